"""An adapter for Anima's 28 blocks as one for the 40 of Anima-2.9B, and back.

Anima-2.9B puts a new block behind some of Anima's, as its `expand_manifest.json` lists them, counted from 0 in the model of 40;
all others are Anima's in their order (https://huggingface.co/Gazingstars123/Anima-2.9B). A new one began as a copy of the block
before it, with outputs of zero.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...errors import SettingError
from ..formats import BLOCK
from ..keys import Layers
from ..recognise import DORA, NORM, type_name
from .loaded import LoadedAdapter, counted
from .merging import merged_layer
from .scaling import scaled

BLOCKS, MORE_BLOCKS = 28, 40
INSERTED = (2, 5, 8, 11, 14, 17, 21, 24, 27, 30, 33, 36)
PLACES = tuple(number for number in range(MORE_BLOCKS) if number not in INSERTED)  # of Anima's blocks, in their order
NEW_BLOCKS = ("nothing", "copy", "half")  # what a new block gets; half: and the block before it keeps half
DROPPED_BLOCKS = ("drop", "add")  # what becomes of a new block's layers; add: to the block before it


def convert_blocks(adapter: LoadedAdapter, to: int, new: str = "nothing", dropped: str = "drop") -> LoadedAdapter:
    """Return an adapter for a model of 28 or 40 blocks. new, dropped: words of the two lists. Raises SettingError."""
    if to not in (BLOCKS, MORE_BLOCKS):
        raise SettingError(
            f"blocks={to}: adapters are converted between {BLOCKS} blocks (Anima) and {MORE_BLOCKS} (Anima-2.9B)"
        )
    wanted = MORE_BLOCKS if to == BLOCKS else BLOCKS
    if adapter.blocks != wanted or adapter.used > wanted:
        found = f"{adapter.name} is for {max(adapter.blocks, adapter.used)} blocks"
        raise SettingError(f"blocks={to}: {found}; to {to} are converted those of {wanted}")
    counts = Counter[str]()
    layers = expanded(adapter.layers, new, counts) if to == MORE_BLOCKS else reduced(adapter.layers, dropped, counts)
    facts = {"new": new} if to == MORE_BLOCKS else {"dropped": dropped}
    done = adapter.done("blocks", layers, counted(counts), blocks=to, **facts)
    return replace(done, metadata={**done.metadata, "ss_num_blocks": str(to)})


def expanded(layers: Layers, new: str, counts: Counter[str]) -> Layers:
    found: Layers = {}
    for name, tensors in layers.items():
        number = block_of(name)
        if number is None:
            found[name] = tensors
            continue
        place = PLACES[number]
        if new == "nothing" or place + 1 not in INSERTED:
            found[moved(name, place)] = tensors
            continue
        if DORA in tensors:
            why = "a DoRA, whose lengths are those of its own block's weights"
            raise SettingError(f"{name}: {why}, and no new block has them; let the new blocks have nothing")
        share = scaled(name, tensors, 0.5) if new == "half" else tensors
        found[moved(name, place)] = share
        found[moved(name, place + 1)] = {key: tensor.clone() for key, tensor in share.items()}
        counts["are in a new block, too" if new == "copy" else "are shared by halves with a new block"] += 1
    return found


def reduced(layers: Layers, dropped: str, counts: Counter[str]) -> Layers:
    found: Layers = {}
    for name, tensors in layers.items():
        number = block_of(name)
        if number is None or number not in INSERTED:
            found[name if number is None else moved(name, PLACES.index(number))] = tensors
    for name, tensors in layers.items():
        number = block_of(name)
        if number is not None and number in INSERTED:
            before = moved(name, PLACES.index(number - 1))
            counts["of new blocks are left out" if dropped == "drop" else "of new blocks are added to the block before"] += 1
            if dropped == "add":
                found[before] = together(before, found.get(before), tensors)
    return found


def together(name: str, first: Mapping[str, Tensor] | None, second: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer and that of a new block as one, where both can be put side by side. Raises SettingError."""
    found = [dict(tensors) for tensors in (first, second) if tensors]
    others = {type_name(tensors) for tensors in found} - {"lora", NORM}
    if others and len(found) > 1:
        what = f"a {others.pop() or 'layer of an unknown type'}, which cannot be added to the block before"
        raise SettingError(f"{name}: {what}; drop the new blocks' layers, or resize the adapter to a LoRA first")
    return merged_layer(name, [(tensors, 1.0) for tensors in found], None, torch.empty(0))


def block_of(name: str) -> int | None:
    """Return the number of a layer's block in the transformer; None for one outside of its blocks."""
    found = BLOCK.match(name)
    return int(found[1]) if found else None


def moved(name: str, number: int) -> str:
    return BLOCK.sub(f"blocks.{number}.", name)

"""How strongly an adapter acts in each block: read from a text, as `0-9=0, 10-27=1`, or a list with a number for each block."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...errors import SettingError
from ..formats import BLOCK
from ..keys import read_key

LLM_ADAPTER, OTHER = "llm_adapter", "other"
RANGE = re.compile(r"(\d{1,4})(?:\s*-\s*(\d{1,4}))?")
SEPARATOR = re.compile(r"[,;\n]+")
WAY_OUT = "write ranges such as 0-9=0, 10-27=1, or a number for each block such as 0,0,1"


@dataclass(frozen=True)
class BlockWeights:
    """A weight for each block. llm_adapter: of all its layers; other: of layers in no block, and of the text encoder's."""

    blocks: Mapping[int, float] = field(default_factory=dict)
    llm_adapter: float = 1.0
    other: float = 1.0

    def of(self, layer: str) -> float:
        """Return the weight of a layer by its name in our model."""
        if layer.startswith("llm_adapter."):
            return self.llm_adapter
        found = BLOCK.match(layer)
        return self.blocks.get(int(found[1]), 1.0) if found else self.other


def read_block_weights(text: str, blocks: int, setting: str = "block_weights") -> BlockWeights:
    """Read weights of a model of so many blocks. What the text says nothing of has 1. Raises SettingError.

    Either entries `block=weight`, `first-last=weight`, `llm_adapter=weight`, `other=weight`, of which a later one counts; or
    a list with a number for each block, or with one more, the first, which is of all that is in no block.
    """
    entries = [entry.strip() for entry in SEPARATOR.split(text) if entry.strip()]
    if not entries:
        return BlockWeights()
    if not any("=" in entry for entry in entries):
        return _of_list([_number(entry, setting) for entry in entries], blocks, setting)
    found: dict[int, float] = {}
    words = {LLM_ADAPTER: 1.0, OTHER: 1.0}
    for entry in entries:
        place, _, value = (part.strip() for part in entry.partition("="))
        if place in words:
            words[place] = _number(value, setting)
        else:
            found |= dict.fromkeys(_range(place, blocks, setting), _number(value, setting))
    return BlockWeights(found, words[LLM_ADAPTER], words[OTHER])


def by_weight(state: Mapping[str, Tensor], weights: BlockWeights) -> dict[float, dict[str, Tensor]]:
    """Sort an adapter's tensors by the weights of their layers. A layer of no known model has that of all other layers."""
    found: dict[float, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        found.setdefault(weights.of(read_key(key).layer), {})[key] = tensor
    return found


def _of_list(numbers: list[float], blocks: int, setting: str) -> BlockWeights:
    if len(numbers) not in (blocks, blocks + 1):
        counts = f"{len(numbers)} numbers, and the model has {blocks} blocks"
        raise SettingError(f"{setting}: {counts}; write {blocks}, or {blocks + 1} with that of all other layers first")
    rest = numbers[0] if len(numbers) > blocks else 1.0
    return BlockWeights(dict(enumerate(numbers[-blocks:] if blocks else [])), rest, rest)


def _range(place: str, blocks: int, setting: str) -> range:
    found = RANGE.fullmatch(place)
    if not found:
        raise SettingError(f"{setting}={place!r}: no block, no range of blocks, not {LLM_ADAPTER} nor {OTHER}; {WAY_OUT}")
    first, last = int(found[1]), int(found[2] or found[1])
    if not first <= last < blocks:
        raise SettingError(f"{setting}={place}: the model's blocks are 0 to {blocks - 1}; {WAY_OUT}")
    return range(first, last + 1)


def check_weight(value: float) -> None:
    """Refuse a weight that is no number. Raises SettingError."""
    if not math.isfinite(value):
        raise SettingError(f"a weight of {value}: is no number to multiply by; use one such as 0.5")


def _number(text: str, setting: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SettingError(f"{setting}={text!r}: a weight is a number; {WAY_OUT}")
    return value

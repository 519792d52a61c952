"""The settings of a network as an adapter file has it: sd-scripts' dim_from_weights, with every layer's own rank."""

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from ..errors import SettingError
from ..models.llm_adapter import LLMAdapterConfig
from ..models.transformer import Block, TransformerConfig
from ..settings import NetworkConfig
from ..settings.network import FULL_MATRIX_RANK
from .adapter_type import Size
from .formats import START_FROM, WEIGHTS, check_type, read_shapes
from .recognise import DORA, NORM, read_layers, type_name, type_of
from .targets import linear_names, preset_words, words_of
from .types import ADAPTER_TYPES

Number = TypeVar("Number", int, float)
BLOCK = re.compile(r"^((?:llm_adapter\.)?blocks)\.(\d+)\.")

# Settings that a file decides -> what they are where it says nothing of them
SHAPE = {name: getattr(NetworkConfig, name) for name in ("targets", "include", "exclude", "ranks", "alphas", "train_norm")}
SHAPE |= {name: getattr(NetworkConfig, name) for name in ("factor", "full_matrix", "decompose_both", "dora")}

SMALLEST = TransformerConfig(1, 1, 1, 1, 1, 1, 1, 1, LLMAdapterConfig(1, 1, 1, 1, 1, 1, 1))  # no name depends on a size


def network_of(path: str | Path, blocks: int = 0) -> dict[str, Any]:
    """Return settings of `network` as a file has them. blocks: of the model; 0 where it is not known: those of the file.

    Type, rank and alpha; ranks and alphas where layers differ; targets and include where they are not the default; what only
    its type has; whether it is a DoRA. A file of whole factors asks for a full matrix. Raises FileError, SettingError.
    """
    layers = read_shapes(path)
    kinds = {name: kind for name, tensors in layers.items() if (kind := type_of(tensors))}
    names = [kind.name for kind in dict.fromkeys(kinds.values())]
    check_type(layers, names[0] if names else NORM)
    if not names:
        raise SettingError(f"{WEIGHTS}: {path} holds norms only; {START_FROM}")
    kind = ADAPTER_TYPES[names[0]]
    read = read_layers(kind, [layers[name] for name in kinds])
    sizes = dict(zip(kinds, read.sizes))
    places = Places(sizes, blocks)
    found = ranks_of({name: size for name, size in sizes.items() if size.rank is not None}, places) | read.settings
    included = places.patterns(sizes)
    if set(included) != default_layers():
        found |= {"targets": "", "include": included}
    if any(DORA in tensors for tensors in layers.values()):
        found["dora"] = True
    if any(type_name(tensors) == NORM for tensors in layers.values()):
        found["train_norm"] = True
    return {"type": kind.name, **found}


def network_to_continue(config: NetworkConfig, path: str | Path, blocks: int = 0) -> tuple[NetworkConfig, str]:
    """Return settings with all that an adapter file decides as in that file, from which they start, and what that changed.

    For who cannot tell what was said from what was left as it is: a form whose every field has a value. blocks: of the model;
    0 where it is not known. Raises FileError, SettingError.
    """
    shape = SHAPE | network_of(path, blocks)
    changed = {name: value for name, value in shape.items() if value != getattr(config, name)}
    return dataclasses.replace(config, weights=str(path), **shape), said(changed)


def default_layers() -> set[str]:
    """Return the patterns of the layers that are adapted when nothing is said."""
    with torch.device("meta"):
        names = [f"blocks.0.{name}" for name in linear_names(Block(SMALLEST))]
    wanted = preset_words(NetworkConfig().targets)
    return {glob_of(name) for name in names if words_of(name) & wanted}


def ranks_of(sizes: dict[str, Size], places: "Places") -> dict[str, Any]:
    """Return the rank and the alpha that most layers have, and those of the others.

    An alpha that is everywhere the layer's own rank is 0, which stands for it.
    """
    if not sizes:
        return {"rank": FULL_MATRIX_RANK, "alpha": 0.0}
    ranks = {name: size.rank or 0 for name, size in sizes.items()}
    alphas = {name: float(ranks[name]) if size.alpha is None else size.alpha for name, size in sizes.items()}
    found: dict[str, Any] = {"rank": most_common(ranks), "alpha": most_common(alphas)}
    if own := places.exceptions(ranks):
        found["ranks"] = own
    if own and alphas == ranks:
        found["alpha"] = 0.0
    elif others := places.exceptions(alphas):
        found["alphas"] = others
    return found


def most_common(values: Mapping[str, Number]) -> Number:
    return Counter(values.values()).most_common(1)[0][0]


class Places:
    """Patterns of the layers of a file. blocks: how many the model has; 0: up to the last of the file."""

    def __init__(self, names: Iterable[str], blocks: int) -> None:
        numbers: dict[bool, set[int]] = defaultdict(set)
        for name in names:
            if number := number_of(name):
                numbers[of_llm_adapter(name)].add(int(number))
        count = {which: max(found) + 1 for which, found in numbers.items()}
        self.count = count | ({False: blocks} if blocks else {})

    def patterns(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return patterns that match these layers and no others: a glob for a layer of every block, else with the blocks."""
        chosen: dict[str, list[str]] = defaultdict(list)
        for name in names:
            chosen[glob_of(name)].append(number_of(name))
        return tuple(glob if self.everywhere(glob, numbers) else exactly(glob, numbers) for glob, numbers in chosen.items())

    def everywhere(self, glob: str, numbers: list[str]) -> bool:
        return "*" in glob and len(numbers) == self.count[of_llm_adapter(glob)]

    def exceptions(self, values: Mapping[str, Number]) -> tuple[str, ...]:
        """Return `pattern=value` of the layers whose value is not the one that most have."""
        others = sorted(set(values.values()) - {most_common(values)})
        groups = {other: [name for name in values if values[name] == other] for other in others}
        return tuple(f"{pattern}={other!r}" for other, names in groups.items() for pattern in self.patterns(names))


def of_llm_adapter(name: str) -> bool:
    return name.startswith("llm_adapter.")


def exactly(glob: str, numbers: list[str]) -> str:
    """Return the pattern of a layer in these blocks only, or of one in no block."""
    which = numbers[0] if len(numbers) == 1 else f"(?:{'|'.join(numbers)})"
    return f"re:^{re.escape(glob).replace(re.escape('*'), which)}$"


def glob_of(name: str) -> str:
    """Return the pattern of a layer in any block: blocks.*.mlp.layer1."""
    return BLOCK.sub(r"\1.*.", name)


def number_of(name: str) -> str:
    """Return the number of a layer's block; empty for a layer of none."""
    found = BLOCK.match(name)
    return found[2] if found else ""


def said(found: Mapping[str, Any]) -> str:
    """Say settings that a file gave in one line: type lokr, rank 4, alpha 2, ranks of 3 patterns."""
    texts = [
        f"{name} of {len(value)} patterns" if isinstance(value, tuple) else f"{name} {shown(value)}"
        for name, value in found.items()
        if value != ""
    ]
    return ", ".join(texts)


def shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)

"""The settings of a network as an adapter file has it: sd-scripts' dim_from_weights, with every layer's own rank."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from ..models.llm_adapter import LLMAdapterConfig
from ..models.transformer import Block, TransformerConfig
from ..settings import NetworkConfig
from ..settings.network import FULL_MATRIX_RANK
from .adapter_type import Size
from .formats import read_adapter
from .recognise import DORA, NORM, type_name, type_of
from .targets import linear_names, preset_words, words_of

SMALLEST = TransformerConfig(1, 1, 1, 1, 1, 1, 1, 1, LLMAdapterConfig(1, 1, 1, 1, 1, 1, 1))  # no name depends on a size


def network_of(path: str | Path) -> dict[str, Any]:
    """Return settings of `network` as a file has them.

    Rank and alpha; ranks where layers differ; targets and include where they are not the default; what only its type has;
    whether it is a DoRA. A file of whole factors asks for a full matrix. Raises FileError, SettingError.
    """
    layers = read_adapter(path)
    kinds = {name: kind for name, tensors in layers.items() if (kind := type_of(tensors))}
    sizes: dict[str, Size] = {}
    own: dict[str, Any] = {}
    for kind in dict.fromkeys(kinds.values()):
        names = [name for name in kinds if kinds[name] is kind]
        read = kind.read([layers[name] for name in names])
        sizes |= dict(zip(names, read.sizes))
        own |= read.settings
    found = ranks_of({name: size for name, size in sizes.items() if size.rank is not None}) | own
    included = patterns(sizes, sizes)
    if set(included) != default_layers():
        found |= {"targets": "", "include": included}
    if any(DORA in tensors for tensors in layers.values()):
        found["dora"] = True
    if any(type_name(tensors) == NORM for tensors in layers.values()):
        found["train_norm"] = True
    return found


def default_layers() -> set[str]:
    """Return the patterns of the layers that are adapted when nothing is said."""
    with torch.device("meta"):
        names = [f"blocks.0.{name}" for name in linear_names(Block(SMALLEST))]
    wanted = preset_words(NetworkConfig().targets)
    return {glob_of(name) for name in names if words_of(name) & wanted}


def ranks_of(sizes: dict[str, Size]) -> dict[str, Any]:
    """Return the rank that most layers have, with its alpha, and the ranks of the others.

    An alpha that is everywhere the layer's own rank is 0, which stands for it.
    """
    if not sizes:
        return {"rank": FULL_MATRIX_RANK, "alpha": 0.0}
    ranks = {name: size.rank or 0 for name, size in sizes.items()}
    alphas = {name: float(ranks[name]) if size.alpha is None else size.alpha for name, size in sizes.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    alpha = next(alphas[name] for name in ranks if ranks[name] == rank)
    if len(set(ranks.values())) == 1:
        return {"rank": rank, "alpha": alpha}
    others = {other: [name for name in ranks if ranks[name] == other] for other in sorted(set(ranks.values()) - {rank})}
    own = tuple(f"{pattern}={other}" for other, names in others.items() for pattern in patterns(names, sizes))
    return {"rank": rank, "alpha": 0.0 if alphas == ranks else alpha, "ranks": own}


def patterns(names: Iterable[str], of: Iterable[str]) -> tuple[str, ...]:
    """Return patterns that match these layers of a file: a glob for a layer of every block, else the name."""
    blocks: dict[str, set[str]] = defaultdict(set)
    for name in of:
        blocks[glob_of(name)].add(name)
    most, chosen, found = max(map(len, blocks.values()), default=0), set(names), dict[str, None]()
    for name in names:
        of_every_block = len(blocks[glob_of(name)]) == most and blocks[glob_of(name)] <= chosen
        found[glob_of(name) if "*" in glob_of(name) and of_every_block else f"re:^{re.escape(name)}$"] = None
    return tuple(found)


def glob_of(name: str) -> str:
    """Return the pattern of a layer in any block: blocks.*.mlp.layer1."""
    return re.sub(r"^((?:llm_adapter\.)?blocks)\.\d+\.", r"\1.*.", name)

"""What an adapter does to a model, layer by layer: how strongly, with how much of its rank, and how like another adapter."""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import FileError, SettingError
from ..models.loading import by_name
from ..models.quantised import read_weights
from ..models.transformer_files import LAYOUT, sources
from .formats import read_adapter
from .keys import Layers
from .layouts import LEAVES, layer_of
from .low_rank import Delta, delta_of
from .recognise import DORA, type_name, type_of

ENERGY = 0.95  # of a layer's effect, that the ranks which it uses are to hold; the effect is the sum of squares
ORDER = {leaf: number for number, leaf in enumerate(LEAVES)}
BLOCK = re.compile(r"^((?:llm_adapter\.)?)blocks\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Fact:
    """What is known of one layer.

    kind: its name without its block, as self_attn.q_proj. block: None outside of the blocks. strength: the norm of what it
    adds over the weight's norm; without a base, over the root of how many numbers it adds to. rank: of its form; used: how
    many ranks hold `ENERGY`; like: cosine with another adapter's. The last three are None where there is nothing to measure.
    """

    name: str
    kind: str
    block: int | None
    strength: float
    rank: int | None = None
    used: int | None = None
    like: float | None = None


@dataclass(frozen=True)
class Analysis:
    """What is known of an adapter. relative: to the weights of a base model. like: cosine of all layers that both have.

    left_out: what could not be measured, said in lines.
    """

    name: str
    facts: tuple[Fact, ...]
    relative: bool
    other: str = ""
    like: float | None = None
    left_out: tuple[str, ...] = ()


@torch.no_grad()
def analyse(path: str | Path, other: str | Path = "", base: str | Path = "") -> Analysis:
    """Measure an adapter, one layer in memory at a time. other: an adapter to compare with. base: the model's file.

    Raises FileError, and SettingError for an adapter of which nothing can be measured.
    """
    layers, others = read_adapter(path), read_adapter(other) if other else {}
    if not base and any(DORA in tensors for tensors in others.values()):
        raise SettingError(
            f"{other}: is a DoRA, whose effect depends on the weights; give the model that it is for as the base"
        )
    measurable, left_out = sorted_out(layers, bool(base))
    if not measurable:
        raise SettingError(f"{path}: nothing in it can be measured ({'; '.join(left_out)})")
    facts, products = [], []
    for name, weight in weights_of(base, measurable):
        facts.append(fact := measure(name, measurable[name], weight))
        if name in others and type_of(others[name]) and not math.isnan(fact.strength):
            products.append(compare(name, measurable[name], others[name], weight))
            facts[-1] = Fact(**(vars(fact) | {"like": cosine(*products[-1])}))
    if others and (apart := layers.keys() ^ others.keys()):
        left_out.append(f"{len(apart)} layers are in one of both files only")
    totals = [sum(column) for column in zip(*products)]
    found = tuple(sorted(facts, key=place_in_model))
    like = cosine(*totals) if totals else None
    return Analysis(Path(path).name, found, bool(base), Path(other).name if other else "", like, tuple(left_out))


def place_in_model(fact: Fact) -> tuple[bool, bool, int, int]:
    """Return what sorts layers as a model has them, those outside of blocks last."""
    of_llm_adapter = fact.kind.startswith("llm_adapter.")
    leaf = fact.kind.removeprefix("llm_adapter.")
    return of_llm_adapter, fact.block is None, fact.block or 0, ORDER.get(leaf, len(ORDER))


def sorted_out(layers: Layers, with_base: bool) -> tuple[Layers, list[str]]:
    """Return the layers that can be measured, and lines about the others."""
    found: Layers = {}
    others: dict[str, int] = defaultdict(int)
    for name, tensors in layers.items():
        if type_of(tensors) is None:
            others[type_name(tensors) or "unknown"] += 1
        elif DORA in tensors and not with_base:
            others["dora, which needs the model it is for, as the base"] += 1
        else:
            found[name] = tensors
    return found, [f"{count} layers are left out: {what}" for what, count in others.items()]


def weights_of(base: str | Path, layers: Layers) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's name with its weight, as they lie in the base model's files; without one with an empty tensor.

    A quantised one gives the numbers that it stands for. Raises FileError for a model that lacks a weight.
    """
    if not base:
        yield from ((name, torch.empty(0)) for name in layers)
        return
    wanted = {f"{layer}.weight": layer for layer in layers}
    places = {
        source.file: {stored.key: wanted[name] for name, stored in by_name(source, LAYOUT).items() if name in wanted}
        for source in sources(base)
    }
    there = {layer for keys in places.values() for layer in keys.values()}
    if missing := [name for name in layers if name not in there]:
        raise FileError(f"{base}: holds no weight of {missing[0]} ({len(missing)} layers); give the model that it was made for")
    for file, keys in places.items():
        for key, weight in read_weights(file, keys):
            yield keys[key], weight.numbers(torch.float32, "cpu")


def weight_of(key: str) -> str | None:
    """Return the layer whose weight a key of a model's file is; None for anything else."""
    stem, _, name = key.rpartition(".")
    return layer_of(stem) if name == "weight" else None


def measure(name: str, tensors: dict[str, Tensor], weight: Tensor) -> Fact:
    """Measure one layer. A layer that holds NaN or infinity has a strength of NaN."""
    found = BLOCK.match(name)
    kind, block = (found[1] + found[3], int(found[2])) if found else (name, None)
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        return Fact(name, kind, block, math.nan)
    delta = made(name, tensors, weight)
    values = delta.singular_values()
    norm = float(values.square().sum().sqrt())
    size = float(weight.norm()) if weight.numel() else math.sqrt(math.prod(delta.shape))
    return Fact(name, kind, block, norm / max(size, 1e-30), int(values.numel()), ranks_used(values))


def made(name: str, tensors: dict[str, Tensor], weight: Tensor) -> Delta:
    """Return what a layer adds. Raises SettingError for tensors that do not fit one another, or the weight."""
    kind = type_of(tensors)
    try:
        assert kind is not None
        delta = delta_of(kind, tensors, weight)
        if weight.numel() and delta.shape != tuple(weight.shape):
            raise ValueError(f"{list(delta.shape)}, of a weight {list(weight.shape)}")
        return delta
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SettingError(
            f"{name}: its tensors do not fit ({reason}); choose a whole adapter, and the model it is for"
        ) from None


def ranks_used(values: Tensor) -> int:
    """Return how many of the largest singular values hold `ENERGY` of the sum of squares; 0 of nothing."""
    energy = values.double().square().cumsum(0)
    return int((energy < ENERGY * energy[-1]).sum()) + 1 if energy.numel() and energy[-1] > 0 else 0


def compare(name: str, mine: dict[str, Tensor], theirs: dict[str, Tensor], weight: Tensor) -> tuple[float, float, float]:
    """Return the inner product of what two adapters add to a layer, and the squares of both norms."""
    first, second = made(name, mine, weight), made(name, theirs, weight)
    if first.shape != second.shape:
        raise SettingError(
            f"{name}: {list(first.shape)} in one file, {list(second.shape)} in the other; compare files of one model"
        )
    return first.inner(second), first.inner(first), second.inner(second)


def cosine(product: float, first: float, second: float) -> float:
    """Return the cosine from an inner product and both squares; 0 where one is nothing."""
    length = math.sqrt(max(first, 0) * max(second, 0))
    return max(-1.0, min(1.0, product / length)) if length > 0 else 0.0

"""Several adapters as one that does what all of them do together."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ...errors import SettingError
from ..analysis import weights_of
from ..keys import TEXT_PREFIXES, Layers
from ..low_rank import Delta, Low, delta_of, total
from ..recognise import DORA, type_name, type_of
from .block_weights import BlockWeights, check_weight
from .loaded import RECORD, LoadedAdapter, counted, dtype_of
from .resizing import Keep, Progress, lora_of, quiet
from .scaling import DIFFERENCES, scaled, times

WAY_OUT = "give a rank, to which the sum is then brought by its largest singular values"


@dataclass(frozen=True)
class Part:
    """An adapter of a merge. weight: of all its layers; blocks: of each block beside."""

    adapter: LoadedAdapter
    weight: float = 1.0
    blocks: BlockWeights = field(default_factory=BlockWeights)

    def __post_init__(self) -> None:
        check_weight(self.weight)

    def of(self, layer: str) -> float:
        return self.weight * self.blocks.of(layer)


Share = tuple[dict[str, Tensor], float]  # a layer of one adapter, and its weight


@torch.no_grad()
def merge(parts: Sequence[Part], keep: Keep | None = None, base: str | Path = "", on_layer: Progress = quiet) -> LoadedAdapter:
    """Return the sum of adapters, each times its weight.

    Without `keep` LoRAs are put side by side, which is exact, and their ranks add up; a layer that one adapter alone has
    stays of its type. With `keep` every layer becomes LoRA by its singular values. base: the model's file, which the lengths
    of a DoRA need. Raises SettingError for layers that do not fit one another, or cannot be added up so; FileError.
    """
    if len(parts) < 2:
        raise SettingError(f"merge: {len(parts)} adapter; give two or more, or use scale")
    shares = shares_of(parts)
    layers, counts = Layers(), Counter[str]()
    for number, (name, weight) in enumerate(base_weights(base, shares), 1):
        found = merged_layer(name, shares[name], keep, weight)
        counts["add nothing and are left out"] += not found
        counts["are of one adapter alone"] += len(shares[name]) == 1
        if found:
            layers[name] = found
        on_layer(number, len(shares))
    first = parts[0].adapter
    metadata, of = common([part.adapter.metadata for part in parts]), [part.adapter.name for part in parts]
    start = LoadedAdapter(first.name, {}, metadata, first.key_format)
    facts = {"of": of, "weights": [part.weight for part in parts]} | (vars(keep) if keep else {})
    return start.done("merge", {name: layers[name] for name in shares if name in layers}, counted(+counts), **facts)


def shares_of(parts: Sequence[Part]) -> dict[str, list[Share]]:
    """Return, of each layer, those that have it, with their weights; those of weight 0 are left out."""
    found: dict[str, list[Share]] = {}
    for part in parts:
        for name, tensors in part.adapter.layers.items():
            if (weight := part.of(name)) != 0:
                found.setdefault(name, []).append((tensors, weight))
    return found


def base_weights(base: str | Path, shares: Mapping[str, list[Share]]) -> Iterator[tuple[str, Tensor]]:
    """Yield each layer's name with the weight that a DoRA of it needs, one in memory at a time; else with an empty tensor."""
    needed: Layers = {n: found[0][0] for n, found in shares.items() if any(DORA in tensors for tensors, _ in found)}
    if base and needed:
        yield from weights_of(base, needed)
    yield from ((name, torch.empty(0)) for name in shares if not (base and name in needed))


def merged_layer(name: str, shares: list[Share], keep: Keep | None, weight: Tensor) -> dict[str, Tensor]:
    """Return the sum of what adapters add to a layer. weight: the base's, [out, in], or empty. Raises SettingError."""
    if all(tensors.keys() <= DIFFERENCES | {"alpha"} for tensors, _ in shares):
        return summed(shares)
    if len(shares) == 1 and keep is None and (DORA not in shares[0][0] or shares[0][1] == 1):
        return scaled(name, *shares[0])
    try:
        deltas = [delta(name, tensors, weight).times(factor) for tensors, factor in shares]
        whole = total(deltas)
    except (KeyError, RuntimeError, ValueError) as error:
        raise SettingError(
            f"{name}: the adapters do not fit one another ({str(error)[:100]}); merge those of one model"
        ) from None
    dtype = dtype_of({str(number): torch.empty(0, dtype=dtype_of(tensors)) for number, (tensors, _) in enumerate(shares)})
    if keep is not None:
        return lora_of(whole, keep, dtype, name)
    kinds = {type_name(tensors) for tensors, _ in shares}
    if kinds != {"lora"} or not isinstance(whole, Low):
        raise SettingError(f"{name}: of {' and '.join(sorted(kinds))}, which cannot be put side by side; {WAY_OUT}")
    return side_by_side(whole, dtype)


def delta(name: str, tensors: Mapping[str, Tensor], weight: Tensor) -> Delta:
    """Return what an adapter adds to a layer. Raises SettingError for a type that is not known, and a DoRA without its base."""
    kind = type_of(tensors)
    if kind is None:
        raise SettingError(
            f"{name}: a {type_name(tensors) or 'layer of an unknown type'}, which cannot be merged; leave it out"
        )
    if DORA in tensors and not weight.numel():
        text_encoder = "the text encoder's weights, which are not read; leave that adapter out"
        needs = text_encoder if name.startswith(TEXT_PREFIXES) else "the base weights; give the model's file (merge --base)"
        raise SettingError(f"{name}: a DoRA, whose sum needs {needs}")
    return delta_of(kind, tensors, weight)


def side_by_side(low: Low, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return a product as a LoRA of its own rank; alpha is the rank, all scales are within the upper factor."""
    rank = low.right.shape[0]
    return {
        "lora_down.weight": low.right.to(dtype).contiguous(),
        "lora_up.weight": low.left.to(dtype).contiguous(),
        "alpha": torch.tensor(float(rank)),
    }


def summed(shares: list[Share]) -> dict[str, Tensor]:
    """Return the sum of differences of weights, tensor by tensor."""
    found: dict[str, Tensor] = {}
    for tensors, factor in shares:
        for key, tensor in tensors.items():
            if key != "alpha":
                found[key] = found[key] + times(tensor, factor) if key in found else times(tensor, factor)
    return found


def common(metadata: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Return what several files say alike, but for what was done to them."""
    first, *others = metadata
    kept = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    done = [entry for found in metadata for entry in json.loads(found.get(RECORD, "[]"))]
    return {key: value for key, value in kept.items() if key != RECORD} | ({RECORD: json.dumps(done)} if done else {})

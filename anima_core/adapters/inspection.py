"""What is in an adapter file, of whatever trainer: types, layers, ranks, alphas, metadata."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import FileError
from ..models.checkpoint import read_header, read_metadata
from ..models.kinds import not_an_adapter
from .formats import header_tensors
from .keys import LOADED, TEXT_ENCODER, Parts, cut_key, parts_of
from .layouts import DOTTED_PREFIXES, KOHYA_PREFIXES, locate, parts_of_fused
from .peft_config import with_config_alphas
from .recognise import RANKS, type_name, type_of
from .targets import words_of


def summarise(path: str | Path) -> dict[str, Any]:
    """Return what `inspect` prints: types with their layers, ranks and alphas, places, dtypes, size and metadata.

    Only the header and the alphas are read. Raises FileError for what is no adapter.
    """
    header = read_header(path)
    parts = parts_of(with_config_alphas(path, header_tensors(path)))
    types = type_lines(parts)
    if not header:
        raise FileError(f"{path}: holds no tensors; choose an adapter file")
    if kind := not_an_adapter(header):
        raise FileError(f"{path}: not an adapter; {kind}")
    passed_over = [key for key in header if not key.startswith(LOADED)]
    found: dict[str, Any] = {
        "file": Path(path).name,
        "types": types,
        "places": places(parts),
        "names": names_of(header),
        "keys": f"{len(header)}, such as {next(iter(header))}",
        "dtype": ", ".join(sorted({info.dtype for info in header.values()})),
        "size": f"{Path(path).stat().st_size / 1e6:.1f} MB",
        "metadata": read_metadata(path),
    }
    if passed_over:
        found["not read by ComfyUI"] = (
            f"{len(passed_over)} keys, such as {passed_over[0]}; convert renames those of the transformer"
        )
    return found


def names_of(keys: Iterable[str]) -> str:
    """Say whose names a file's layers of the transformer have: "diffusers' after transformer. (diffusers, OneTrainer)"."""
    places = [place for stem in dict.fromkeys(cut_key(key)[0] for key in keys) if (place := locate(stem))]
    found = Counter((place.names, place.prefix) for place in places)
    fused = sum(bool(parts_of_fused(place.layer)) for place in places)
    texts = [f"{names} {behind(prefix)}" for (names, prefix), _ in found.most_common()]
    return "; ".join([*texts, *[f"{fused} layers are several of Anima's in one"] * (fused > 0)]) or "of no layer of Anima"


def behind(prefix: str) -> str:
    who = KOHYA_PREFIXES.get(prefix) or DOTTED_PREFIXES.get(prefix)
    return f"after {prefix}{f' ({who})' if who else ''}" if prefix else "alone"


def type_lines(parts: Parts) -> dict[str, str]:
    """Return, of each type, its layers, ranks and alphas: {"lora": "280 layers, rank 4 to 32, alpha 16"}."""
    of_parts = (
        ("", parts.transformer),
        (f" of the {TEXT_ENCODER}", parts.text_encoder),
        (" of no layer of Anima", parts.others),
    )
    groups: dict[str, list[dict[str, Tensor]]] = defaultdict(list)
    for where, layers in of_parts:
        for tensors in layers.values():
            groups[(type_name(tensors) or f"unknown ({', '.join(sorted(tensors))})") + where].append(tensors)
    return {name: type_line(found) for name, found in groups.items()}


def type_line(layers: list[dict[str, Tensor]]) -> str:
    ranks = [rank for tensors in layers if (rank := rank_of(tensors))]
    whole = sum(type_of(tensors) is not None and not rank_of(tensors) for tensors in layers)
    alphas = [tensors["alpha"].item() for tensors in layers if rank_of(tensors) and has_alpha(tensors)]
    texts = [f"rank {span(ranks)}" if ranks else "", "whole factors" if whole == len(layers) else ""]
    texts += [f"{whole} with whole factors" if 0 < whole < len(layers) else "", f"alpha {span(alphas)}" if alphas else ""]
    return ", ".join(filter(None, [f"{len(layers)} layers", *texts]))


def rank_of(tensors: Mapping[str, Tensor]) -> int | None:
    """Return the rank of a layer of any type; None where it has none."""
    return next((tensors[name].shape[0] for name in RANKS if name in tensors and tensors[name].ndim), None)


def has_alpha(tensors: Mapping[str, Tensor]) -> bool:
    return "alpha" in tensors and not tensors["alpha"].is_meta


def span(values: Iterable[float]) -> str:
    found = sorted(set(values))
    return f"{found[0]:g}" if len(found) == 1 else f"{found[0]:g} to {found[-1]:g}"


def places(parts: Parts) -> dict[str, str]:
    """Count the layers by the words of `network.targets`, norms and the text encoder's apart."""
    found = Counter(place_of(layer) for layer in parts.transformer)
    found |= Counter({TEXT_ENCODER: len(parts.text_encoder), "no layer of Anima": len(parts.others)})
    return {place: f"{count} layers" for place, count in found.items() if count}


def place_of(layer: str) -> str:
    if layer.rpartition(".")[2].endswith("norm") or "norm_" in layer.rpartition(".")[2]:
        return "norms"
    (word,) = words_of(layer) - {"all"} or {"all"}
    return word

"""A model with adapters in its weights: what ComfyUI computes when it applies them, written as a model's file."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ...errors import FileError, SettingError
from ...models.checkpoint import TensorInfo, read_metadata, rewrite
from ..keys import TEXT_PREFIXES, Layers
from ..recognise import type_name, type_of
from .loaded import LoadedAdapter, check_record, check_target
from .merging import Part
from .models import plain_header, weights_in
from .resizing import Progress, quiet

NOT_QUANTISED = "bake into the model in bf16, fp16 or fp32, and quantise what comes of it"
ON_WEIGHT = ("w_norm", "diff")  # names of a difference of a weight; of biases Anima has none


@torch.no_grad()
def bake(
    model: str | Path, parts: Sequence[Part], output: str | Path, force: bool = False, on_tensor: Progress = quiet
) -> tuple[str, ...]:
    """Write a model with adapters in its weights, and return what was left out, in lines.

    Its keys, dtypes, order and metadata stay. Sums are fp32, and rounded once. Of models one tensor is in memory at a time.
    Raises FileError, SettingError: before anything is written for what does not fit.
    """
    target, header, metadata = check_target(output, force), plain_header(model, NOT_QUANTISED), read_metadata(model)
    if target.exists() and target.samefile(model):
        raise SettingError(f"{target}: is the model itself, which is read while this is written; choose another name")
    check_record(model, metadata)
    changes = changes_of(str(model), header, parts)
    names, strengths = [part.adapter.name for part in parts], [part.weight for part in parts]
    done = LoadedAdapter(target.name, {}, metadata).done("bake", {}, of=names, weights=strengths)
    seen = 0

    def change(key: str, tensor: Tensor) -> Tensor:
        nonlocal seen
        seen += 1
        on_tensor(seen, len(header))
        return changed(key, tensor, changes[key]) if key in changes else tensor

    try:
        rewrite(model, target, dict(done.metadata), change)
    except OSError as error:
        raise FileError(f"{target}: cannot be written ({error.strerror}); free some space or choose another folder") from None
    text = sum(layer.startswith(TEXT_PREFIXES) for part in parts for layer in part.adapter.layers)
    return (f"{text} layers of the text encoder are left out: only the transformer's are baked",) * bool(text)


Change = tuple[str, dict[str, Tensor], float]  # a layer's name, its tensors, its weight


def changes_of(model: str, header: Mapping[str, TensorInfo], parts: Sequence[Part]) -> dict[str, list[Change]]:
    """Return what is done to each tensor of a model, by its key. Raises FileError, SettingError for what does not fit."""
    keys, found = weights_in(header), dict[str, list[Change]]()
    for part in parts:
        for layer, tensors in transformer_layers(part.adapter).items():
            check_known(layer, tensors)
            if layer not in keys:
                raise FileError(f"{model}: holds no weight of {layer}; bake {part.adapter.name} into the model it is for")
            key = keys[layer]
            if part.of(layer) != 0:
                found.setdefault(key, []).append((layer, tensors, part.of(layer)))
    return found


def transformer_layers(adapter: LoadedAdapter) -> Layers:
    return {layer: tensors for layer, tensors in adapter.layers.items() if not layer.startswith(TEXT_PREFIXES)}


def check_known(layer: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise SettingError for a layer that is not one difference of its weight, or of a type that is not known."""
    if type_of(tensors) is None and not tensors.keys() - {"alpha"} <= set(ON_WEIGHT):
        raise SettingError(
            f"{layer}: a {type_name(tensors) or 'layer of an unknown type'}, which cannot be baked; leave it out"
        )


def changed(key: str, weight: Tensor, changes: Sequence[Change]) -> Tensor:
    """Return a weight with what adapters add to it, one after another: a DoRA's lengths are those of what it finds."""
    found = weight.float()
    for layer, tensors, factor in changes:
        added = difference(layer, tensors, found)
        if added.shape != found.shape:
            shapes = f"{list(added.shape)}, and {key} is {list(found.shape)}"
            raise SettingError(f"{layer}: the adapter adds {shapes}; bake it into the model it is for")
        found = found + factor * added
    return found.to(weight.dtype)


def difference(layer: str, tensors: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """Return what a layer of an adapter adds to a weight, fp32. Raises SettingError for tensors that do not fit."""
    kind = type_of(tensors)
    if kind is None:
        return next(tensors[name] for name in ON_WEIGHT if name in tensors).float()
    try:
        return kind.delta(tensors, weight)
    except (KeyError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise SettingError(f"{layer}: its tensors do not fit ({reason}); bake it into the model it is for") from None

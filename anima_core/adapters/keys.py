"""Names within adapter files: which layer of which model a key means, and what its tensor is called.

Two families of key names load in ComfyUI for Anima's transformer: `diffusion_model.<dotted>` and kohya's
`lora_unet_<underscored>`; and two for its text encoder, `text_encoders.` and `lora_te_layers_` (docs/model.md §7.5). Other
trainers' files hold further ones, which ComfyUI passes over; they are read here where they mean a layer of Anima (`layouts`).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import SettingError
from .layouts import DOTTED, KOHYA, layer_of, parts_of_fused
from .recognise import OTHER_TYPES, SIDE_TENSORS, read_layers, type_name, type_of
from .types import ADAPTER_TYPES

TRANSFORMER, TEXT_ENCODER, NEITHER = "transformer", "text encoder", "neither"

TEXT_PREFIXES = ("text_encoder", "lora_te")
LOADED = (DOTTED, KOHYA, "text_encoders.", "lora_te_layers_")  # what ComfyUI 0.29 reads

# Other words for a tensor -> ours
ALIASES = {
    f".{theirs}{default}.weight": name
    for theirs, name in (("lora_A", "lora_down.weight"), ("lora_B", "lora_up.weight"))
    for default in ("", ".default")
} | {
    ".lora.down.weight": "lora_down.weight",
    ".lora.up.weight": "lora_up.weight",
    ".lora_magnitude_vector": "dora_scale",
    ".lora_magnitude_vector.weight": "dora_scale",
}
NAMES = {f".{name}" for kind in ADAPTER_TYPES for name in kind.tensors}
NAMES |= {f".{name}" for _, names in OTHER_TYPES for name in names} | {f".{name}" for name in SIDE_TENSORS}
SUFFIX = re.compile(rf"({'|'.join(re.escape(name) for name in sorted((NAMES | ALIASES.keys()), key=len, reverse=True))})$")

# A layer's tensors whose rows are those of its outputs, and those that all of its outputs share
OF_OUTPUTS = frozenset({"lora_up.weight", "hada_w1_a", "hada_w2_a", "lokr_w1", "lokr_w1_a", "diff", "diff_b"})
SHARED = frozenset({"alpha", "lora_down.weight", "hada_w1_b", "hada_w2_b", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"})


class Key(NamedTuple):
    """part: TRANSFORMER, TEXT_ENCODER or NEITHER. layer: dotted in the transformer, else as in the file. name: the tensor's."""

    part: str
    layer: str
    name: str


Layers = dict[str, dict[str, Tensor]]  # layer -> tensor name -> tensor


@dataclass(frozen=True)
class Parts:
    """The tensors of an adapter file by what they change. others: layers of no model that Anima has."""

    transformer: Layers = field(default_factory=lambda: defaultdict(dict))
    text_encoder: Layers = field(default_factory=lambda: defaultdict(dict))
    others: Layers = field(default_factory=lambda: defaultdict(dict))


def parts_of(tensors: Mapping[str, Tensor]) -> Parts:
    """Sort a file's tensors by part and layer, under the names that we write. Raises SettingError for what is there twice."""
    found = Parts()
    layers = {TRANSFORMER: found.transformer, TEXT_ENCODER: found.text_encoder, NEITHER: found.others}
    for key, tensor in tensors.items():
        part, layer, name = read_key(key)
        if name in layers[part][layer]:
            raise SettingError(f"adapter key: {key}: a second {name} of {layer}; leave one of them out")
        layers[part][layer][name] = tensor
    return found


def cut_key(key: str) -> tuple[str, str]:
    """Cut a key into what it says of the layer, and the tensor's name."""
    found = SUFFIX.search(key)
    stem, _, name = key.rpartition(".") if found is None else (key[: found.start()], "", found[1].removeprefix("."))
    return stem, ALIASES.get(f".{name}", name)


def read_key(key: str) -> Key:
    """Read a key of any trainer's file."""
    stem, name = cut_key(key)
    if stem.startswith(TEXT_PREFIXES):
        return Key(TEXT_ENCODER, stem, name)
    layer = layer_of(stem)
    return Key(NEITHER, stem, name) if layer is None else Key(TRANSFORMER, layer, name)


def join_key(layer: str, name: str, key_format: str) -> str:
    """Return the key of a transformer's tensor in one family: "diffusion_model" or "lora_unet"."""
    if key_format == "lora_unet":
        return f"{KOHYA}{layer.replace('.', '_')}.{name}"
    return f"{DOTTED}{layer}.{name}"


def convert_keys(state: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """Return the same adapter, the transformer's layers under the names of one family, the text encoder's as they are.

    Fused layers are split, and alphas written where the file has none. Raises SettingError for tensors that belong to
    neither, and for a fused layer that cannot be split.
    """
    parts = parts_of(state)
    refuse_foreign(f"{layer}.{name}" for layer, tensors in parts.others.items() for name in tensors)
    layers = with_alphas(split_fused(parts.transformer))
    found = {join_key(layer, name, to): tensor for layer, tensors in layers.items() for name, tensor in tensors.items()}
    return found | {key: tensor for key, tensor in state.items() if read_key(key).part == TEXT_ENCODER}


def split_fused(layers: Mapping[str, Mapping[str, Tensor]]) -> Layers:
    """Split layers that are several of our model, such as a trainer's qkv: what inputs meet is shared, outputs have own rows.

    Raises SettingError for tensors that no such cut divides.
    """
    found: Layers = {}
    for layer, tensors in layers.items():
        parts = parts_of_fused(layer)
        if not parts:
            found[layer] = dict(tensors)
            continue
        uneven = [name for name, tensor in tensors.items() if not divides(name, tensor, len(parts))]
        if uneven:
            what = f"{type_name(tensors) or 'layer'} of {len(parts)} layers in one, whose {uneven[0]} cannot be cut"
            raise SettingError(f"adapter key: {layer}: a {what}; save it with q, k and v apart in its own trainer")
        for number, part in enumerate(parts):
            cut = {name: tensor.chunk(len(parts))[number] for name, tensor in tensors.items() if name in OF_OUTPUTS}
            found[part] = {name: cut.get(name, tensor).clone() for name, tensor in tensors.items()}
    return found


def divides(name: str, tensor: Tensor, parts: int) -> bool:
    return name in SHARED or (name in OF_OUTPUTS and tensor.ndim > 0 and tensor.shape[0] % parts == 0)


def with_alphas(layers: Layers) -> Layers:
    """Add the alpha to each layer of a rank that has none: the rank itself, which is the scale of 1 that ComfyUI gives it."""
    for tensors in layers.values():
        kind = type_of(tensors)
        rank, alpha = read_layers(kind, [tensors]).sizes[0] if kind else (None, None)
        if rank is not None and alpha is None:
            tensors["alpha"] = torch.tensor(float(rank))
    return layers


def refuse_foreign(keys: Iterable[str]) -> None:
    """Raise SettingError for keys of layers that neither Anima's transformer nor its text encoder has."""
    if foreign := list(keys):
        count = f"{len(foreign)} keys, first " if len(foreign) > 1 else ""
        raise SettingError(f"adapter key: {count}{foreign[0]}: not a layer of Anima; use an adapter made for Anima")

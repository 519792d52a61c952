"""Names within adapter files: which layer of which model a key means, and what its tensor is called.

Two families of key names load in ComfyUI for Anima's transformer: `diffusion_model.<dotted>` and kohya's
`lora_unet_<underscored>`; and two for its text encoder, `text_encoders.` and `lora_te_layers_` (docs/model.md §7.5). Other
trainers' files hold further ones, which ComfyUI passes over; they are read here where they mean a layer of Anima.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from ..errors import SettingError
from .recognise import OTHER_TYPES, SIDE_TENSORS
from .types import ADAPTER_TYPES

DOTTED, KOHYA = "diffusion_model.", "lora_unet_"
TRANSFORMER, TEXT_ENCODER, NEITHER = "transformer", "text encoder", "neither"

# Prefixes of the transformer's layers, ComfyUI's first; a key may also begin with the layer itself.
DOTTED_PREFIXES = (DOTTED, "base_model.model.", "model.diffusion_model.", "transformer.", "net.")
KOHYA_PREFIXES = (KOHYA, "lora_unet_net_", "lycoris_", "lora_transformer_")
TEXT_PREFIXES = ("text_encoder", "lora_te")
LOADED = (DOTTED, KOHYA, "text_encoders.", "lora_te_layers_")  # what ComfyUI 0.29 reads

# Other words for a tensor -> ours
ALIASES = {
    f".{theirs}{default}.weight": name
    for theirs, name in (("lora_A", "lora_down.weight"), ("lora_B", "lora_up.weight"))
    for default in ("", ".default")
} | {".lora.down.weight": "lora_down.weight", ".lora.up.weight": "lora_up.weight"}
NAMES = {f".{name}" for kind in ADAPTER_TYPES for name in kind.tensors}
NAMES |= {f".{name}" for _, names in OTHER_TYPES for name in names} | {f".{name}" for name in SIDE_TENSORS}
SUFFIX = re.compile(rf"({'|'.join(re.escape(name) for name in sorted((NAMES | ALIASES.keys()), key=len, reverse=True))})$")

# Anima's module names hold underscores of their own; a kohya key is unambiguous against this grammar.
LEAVES = (
    r"(?:self_attn|cross_attn)_(?:q_proj|k_proj|v_proj|output_proj|o_proj|q_norm|k_norm)"
    r"|mlp_(?:layer1|layer2|0|2)"
    r"|adaln_modulation_(?:self_attn|cross_attn|mlp)_[12]"
    r"|norm_(?:self_attn|cross_attn|mlp)"
)
BLOCK = re.compile(rf"^(?P<bridge>llm_adapter_)?blocks_(?P<index>\d+)_(?P<leaf>{LEAVES})$")
GROUPS = re.compile(r"^(self_attn|cross_attn|mlp|adaln_modulation_(?:self_attn|cross_attn|mlp))_(.+)$")
SINGLE_MODULES = {
    name.replace(".", "_"): name
    for name in (
        "x_embedder.proj.1",
        "t_embedder.1.linear_1",
        "t_embedder.1.linear_2",
        "t_embedding_norm",
        "final_layer.linear",
        "final_layer.adaln_modulation.1",
        "final_layer.adaln_modulation.2",
        "llm_adapter.embed",
        "llm_adapter.in_proj",
        "llm_adapter.out_proj",
        "llm_adapter.norm",
    )
}


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
    """Sort a file's tensors by part and layer, under the names that we write."""
    found = Parts()
    layers = {TRANSFORMER: found.transformer, TEXT_ENCODER: found.text_encoder, NEITHER: found.others}
    for key, tensor in tensors.items():
        part, layer, name = read_key(key)
        layers[part][layer][name] = tensor
    return found


def read_key(key: str) -> Key:
    """Read a key of any trainer's file."""
    found = SUFFIX.search(key)
    stem, _, name = key.rpartition(".") if found is None else (key[: found.start()], "", found[1].removeprefix("."))
    name = ALIASES.get(f".{name}", name)
    if stem.startswith(TEXT_PREFIXES):
        return Key(TEXT_ENCODER, stem, name)
    layer = layer_of(stem)
    return Key(NEITHER, stem, name) if layer is None else Key(TRANSFORMER, layer, name)


def layer_of(stem: str) -> str | None:
    """Return the dotted name of Anima's layer that a key without its tensor's name means; None for another model's."""
    for prefix in KOHYA_PREFIXES:
        if stem.startswith(prefix) and (layer := dotted_name(stem[len(prefix) :])):
            return layer
    while prefix := next((prefix for prefix in DOTTED_PREFIXES if stem.startswith(prefix)), ""):
        stem = stem[len(prefix) :]
    return stem if dotted_name(stem.replace(".", "_")) == stem else None


def dotted_name(underscored: str) -> str | None:
    """Return Anima's name of a layer for kohya's underscored one; None where there is no such layer."""
    if underscored in SINGLE_MODULES:
        return SINGLE_MODULES[underscored]
    found = BLOCK.match(underscored)
    if found is None:
        return None
    leaf = found["leaf"]
    if not leaf.startswith("norm_"):
        leaf = GROUPS.sub(r"\1.\2", leaf)
    return f"{'llm_adapter.' if found['bridge'] else ''}blocks.{found['index']}.{leaf}"


def join_key(layer: str, name: str, key_format: str) -> str:
    """Return the key of a transformer's tensor in one family: "diffusion_model" or "lora_unet"."""
    if key_format == "lora_unet":
        return f"{KOHYA}{layer.replace('.', '_')}.{name}"
    return f"{DOTTED}{layer}.{name}"


def convert_keys(state: Mapping[str, Tensor], to: str) -> dict[str, Tensor]:
    """Return the same tensors, the transformer's under the names of one family, the text encoder's as they are.

    Raises SettingError for tensors that belong to neither.
    """
    found: dict[str, Tensor] = {}
    foreign = []
    for key, tensor in state.items():
        part, layer, name = read_key(key)
        if part == NEITHER:
            foreign.append(key)
        found[join_key(layer, name, to) if part == TRANSFORMER else key] = tensor
    refuse_foreign(foreign)
    return found


def refuse_foreign(keys: Iterable[str]) -> None:
    """Raise SettingError for keys of layers that neither Anima's transformer nor its text encoder has."""
    if foreign := list(keys):
        count = f"{len(foreign)} keys, first " if len(foreign) > 1 else ""
        raise SettingError(f"adapter key: {count}{foreign[0]}: not a layer of Anima; use an adapter made for Anima")

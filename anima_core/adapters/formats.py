"""Adapter files: key names, what each tensor is called, reading and writing.

Two families of key names, both of which ComfyUI loads for Anima: `diffusion_model.<dotted>` and kohya's
`lora_unet_<underscored>` (docs/model.md §7.5).
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import FileError, SettingError
from ..files import write_whole
from ..models.checkpoint import load_tensors, read_header, read_metadata
from .adapter_type import Adapter, AdapterType
from .layers import AdaptedNorm
from .network import AdapterNetwork
from .types import ADAPTER_TYPES

DOTTED, KOHYA = "diffusion_model.", "lora_unet_"

# Tensor names within a module: those of our types, and those of others that are read to say what they are.
PEFT = {
    f"lora_{letter}{default}.weight": name
    for letter, name in (("A", "lora_down.weight"), ("B", "lora_up.weight"))
    for default in ("", ".default")
}
FOREIGN = ("dora_scale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "diff", "diff_b")
NAMES = sorted({"w_norm", "alpha", *PEFT, *FOREIGN, *(name for kind in ADAPTER_TYPES for name in kind.tensors)})
SUFFIX = re.compile(rf"\.({'|'.join(map(re.escape, NAMES))})$")

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


def dotted_name(underscored: str) -> str:
    """Return Anima's name of a module for kohya's underscored one. Raises SettingError where there is no such module."""
    if underscored in SINGLE_MODULES:
        return SINGLE_MODULES[underscored]
    found = BLOCK.match(underscored)
    if found is None:
        raise SettingError(f"adapter key {KOHYA}{underscored}: not a layer of Anima; is this an Anima adapter?")
    leaf = found["leaf"]
    if not leaf.startswith("norm_"):
        leaf = GROUPS.sub(r"\1.\2", leaf)
    return f"{'llm_adapter.' if found['bridge'] else ''}blocks.{found['index']}.{leaf}"


def split_key(key: str) -> tuple[str, str]:
    """Split a file's key into the dotted module name and the tensor name as we write it. Raises SettingError."""
    found = SUFFIX.search(key)
    if found is None:
        raise SettingError(f"adapter key {key}: not a tensor of {', '.join(kind.name for kind in ADAPTER_TYPES)}")
    module, name = key[: found.start()], found[1]
    name = PEFT.get(name, name)
    if module.startswith(DOTTED):
        return module[len(DOTTED) :], name
    if module.startswith(KOHYA):
        return dotted_name(module[len(KOHYA) :]), name
    raise SettingError(f"adapter key {key}: starts with neither {DOTTED} nor {KOHYA}; is this an Anima adapter?")


def join_key(module: str, name: str, key_format: str) -> str:
    if key_format == "lora_unet":
        return f"{KOHYA}{module.replace('.', '_')}.{name}"
    return f"{DOTTED}{module}.{name}"


def convert_keys(state: dict[str, Tensor], to: str) -> dict[str, Tensor]:
    """Return the same tensors under the names of one family."""
    return {join_key(*split_key(key), to): tensor for key, tensor in state.items()}


def convert_file(source: str | Path, target: str | Path, to: str) -> int:
    """Rename a file's keys; metadata is kept. Return the number of tensors."""
    state = convert_keys(load_tensors(source), to)
    save_adapter(Path(target), state, read_metadata(source))
    return len(state)


def adapter_state(
    network: AdapterNetwork, key_format: str = "diffusion_model", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return the network as a file's tensors, on the CPU. Alphas stay fp32: fp16 could not hold large ones."""
    state: dict[str, Tensor] = {}
    for name, module in network.trained():
        for tensor_name, tensor in network.tensors(module).items():
            state[join_key(name, tensor_name, key_format)] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if isinstance(module, Adapter):
            state[join_key(name, "alpha", key_format)] = torch.tensor(float(module.alpha))
    return state


def save_adapter(path: str | Path, state: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file that appears whole or not at all. Raises FileError when it cannot be written."""
    path = Path(path)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    try:
        write_whole(path, lambda temporary: save_file(tensors, temporary, metadata=metadata or None))
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        locked = isinstance(error, PermissionError)  # on Windows also a file that another program has mapped
        way_out = ("close what has it open" if locked else "free some space") + " or choose another folder"
        raise FileError(f"{path}: cannot be written ({reason}); {way_out}") from None


def read_adapter(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read an adapter file of either family: {dotted module name: {tensor name: tensor}}. Raises FileError, SettingError."""
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in load_tensors(path).items():
        module, name = split_key(key)
        is_scalar = tensor.numel() == 1 if name == "alpha" else tensor.ndim == 0
        if is_scalar != (name == "alpha"):
            raise FileError(f"{path}: {key} has shape {list(tensor.shape)}; is this an adapter?")
        modules[module][name] = tensor
    if not modules:
        raise FileError(f"{path}: holds no tensors; is this an adapter?")
    return dict(modules)


@torch.no_grad()
def load_into(network: AdapterNetwork, path: str | Path) -> None:
    """Start a network from an adapter file. Every tensor must find its place and every layer its tensors, in the same shapes.

    Alphas that differ are folded into the zero-initialised factor, so that the effect is the file's. Raises SettingError
    that names the first layer that does not fit.
    """
    modules = read_adapter(path)
    trained = dict(network.trained())
    missing, unknown = [n for n in trained if n not in modules], [n for n in modules if n not in trained]
    if missing or unknown:
        first = f"{unknown[0]} of the file is not trained" if unknown else f"{missing[0]} is not in the file"
        count = len(missing) + len(unknown)
        raise SettingError(f"{path}: {count} layers differ from this network, first: {first}; use the same targets")
    for name, module in trained.items():
        _load_module(name, module, network, modules[name], path)


def _load_module(
    name: str,
    module: Adapter | AdaptedNorm,
    network: AdapterNetwork,
    tensors: dict[str, Tensor],
    path: str | Path,
) -> None:
    wanted = network.tensors(module)
    if tensors.keys() - {"alpha"} != wanted.keys():
        has, needs = ", ".join(sorted(tensors.keys() - {"alpha"})), ", ".join(sorted(wanted))
        raise SettingError(f"{path}: {name} has {has}, this network {needs}; use the same type, rank and factor")
    for key, parameter in wanted.items():
        if tensors[key].shape != parameter.shape:
            shapes = f"{list(tensors[key].shape)}, this network {list(parameter.shape)}"
            raise SettingError(f"{path}: {name}.{key} has shape {shapes}; use the same rank and factor")
        parameter.copy_(tensors[key])
    if isinstance(module, Adapter):
        rank, alpha = network.kind.size(tensors)
        if rank is not None:  # of whole factors the alpha means nothing
            getattr(module, module.zero_init).mul_((rank if alpha is None else alpha) / module.alpha)


def type_of(tensors: Iterable[str]) -> AdapterType | None:
    """Return the type of a layer by the names of its tensors; None for a norm, and for a type that is not ours."""
    names = set(tensors) - {"alpha"}
    return next((kind for kind in ADAPTER_TYPES if names and names <= kind.tensors), None)


def summarise(path: str | Path) -> dict[str, Any]:
    """Return what `inspect` prints: kind, layers, ranks, alphas, dtypes, size and metadata."""
    header, modules = read_header(path), read_adapter(path)
    kinds: set[str] = set()
    ranks: set[int | str] = set()
    for tensors in modules.values():
        kind = type_of(tensors)
        if kind is not None:
            kinds.add(kind.name)
            ranks.add(kind.size(tensors).rank or "full")
        else:
            kinds.add("norm" if "w_norm" in tensors else f"not trained here ({', '.join(sorted(tensors))})")
    alphas = {tensors["alpha"].item() for tensors in modules.values() if "alpha" in tensors}
    prefix = KOHYA if next(iter(header)).startswith(KOHYA) else DOTTED
    return {
        "file": Path(path).name,
        "kind": ", ".join(sorted(kinds)),
        "keys": f"{prefix}… ({len(header)} tensors, {len(modules)} layers)",
        "rank": ", ".join(map(str, sorted(ranks, key=str))) or "none",
        "alpha": ", ".join(f"{a:g}" for a in sorted(alphas)) or "none",
        "dtype": ", ".join(sorted({info.dtype for info in header.values()})),
        "size": f"{Path(path).stat().st_size / 1e6:.1f} MB",
        "metadata": read_metadata(path),
    }

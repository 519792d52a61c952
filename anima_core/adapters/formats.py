"""Adapter files: key names, what each tensor is called, reading and writing.

Two families of key names, both of which ComfyUI loads for Anima: `diffusion_model.<dotted>` and kohya's
`lora_unet_<underscored>` (`reference/seed_family.md` §3.6).
"""

import os
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import FileError, SettingError
from ..models.checkpoint import load_tensors, read_header, read_metadata
from .layers import AdaptedLinear
from .lora import LoRA
from .network import AdapterNetwork

DOTTED, KOHYA = "diffusion_model.", "lora_unet_"

# Tensor names within a module. PEFT's spelling is read, never written.
SUFFIX = re.compile(
    r"\.(lora_down\.weight|lora_up\.weight|lora_A(?:\.default)?\.weight|lora_B(?:\.default)?\.weight"
    r"|lokr_w[12](?:_[ab])?|w_norm|alpha|dora_scale|hada_w[12]_[ab]|diff|diff_b)$"
)
PEFT = {"lora_A": "lora_down.weight", "lora_B": "lora_up.weight"}

# Anima's module names hold underscores of their own; a kohya key is unambiguous against this grammar.
LEAVES = (
    r"(?:self_attn|cross_attn)_(?:q_proj|k_proj|v_proj|output_proj|o_proj|q_norm|k_norm)"
    r"|mlp_(?:layer1|layer2|0|2)"
    r"|adaln_modulation_(?:self_attn|cross_attn|mlp)_[12]"
    r"|norm_(?:self_attn|cross_attn|mlp)"
)
BLOCK = re.compile(rf"^(?P<adapter>llm_adapter_)?blocks_(?P<index>\d+)_(?P<leaf>{LEAVES})$")
GROUPS = re.compile(r"^(self_attn|cross_attn|mlp|adaln_modulation_(?:self_attn|cross_attn|mlp))_(.+)$")
OTHERS = {
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
    """kohya's underscored module name -> Anima's. Raises SettingError for a name that is none of Anima's."""
    if underscored in OTHERS:
        return OTHERS[underscored]
    found = BLOCK.match(underscored)
    if found is None:
        raise SettingError(f"adapter key {KOHYA}{underscored}: not a layer of Anima; is this an Anima adapter?")
    leaf = found["leaf"]
    if not leaf.startswith("norm_"):
        leaf = GROUPS.sub(r"\1.\2", leaf)
    return f"{'llm_adapter.' if found['adapter'] else ''}blocks.{found['index']}.{leaf}"


def split_key(key: str) -> tuple[str, str]:
    """A file's key -> (dotted module name, tensor name as we write it)."""
    found = SUFFIX.search(key)
    if found is None:
        raise SettingError(f"adapter key {key}: not a LoRA or LoKr tensor")
    module, name = key[: found.start()], found[1]
    name = PEFT.get(name[:6], name)
    if module.startswith(DOTTED):
        return module[len(DOTTED) :], name
    if module.startswith(KOHYA):
        return dotted_name(module[len(KOHYA) :]), name
    raise SettingError(f"adapter key {key}: starts with neither {DOTTED} nor {KOHYA}, so ComfyUI would not load it either")


def join_key(module: str, name: str, key_format: str) -> str:
    if key_format == "lora_unet":
        return f"{KOHYA}{module.replace('.', '_')}.{name}"
    return f"{DOTTED}{module}.{name}"


def convert_keys(state: dict[str, Tensor], to: str) -> dict[str, Tensor]:
    """The same tensors under the other family's names."""
    return {join_key(*split_key(key), to): tensor for key, tensor in state.items()}


def convert_file(source: str | Path, target: str | Path, to: str) -> int:
    """Rename a file's keys; metadata is kept. Returns the number of tensors."""
    state = convert_keys(load_tensors(source), to)
    save_adapter(Path(target), state, read_metadata(source))
    return len(state)


def module_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of one adapter under the names of the file format, fp32, without alpha."""
    if isinstance(module, LoRA):
        return {"lora_down.weight": module.lora_down, "lora_up.weight": module.lora_up}
    return dict(module.named_parameters(recurse=False))


def adapter_state(network: AdapterNetwork, key_format: str = "diffusion_model", dtype: torch.dtype = torch.float32):
    """The network as a file's tensors, on the CPU. Alphas stay fp32: fp16 could not hold large ones."""
    state: dict[str, Tensor] = {}
    for name, module in network.trained():
        for tensor_name, tensor in module_tensors(module).items():
            own = "w_norm" if tensor_name == "w_norm" else tensor_name
            state[join_key(name, own, key_format)] = tensor.detach().to("cpu", dtype, copy=True).contiguous()
        if hasattr(module, "alpha"):
            state[join_key(name, "alpha", key_format)] = torch.tensor(float(module.alpha))
    return state


def save_adapter(path: str | Path, state: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a file that appears whole or not at all. Raises FileError when it cannot be written."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.stem[:200]}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror}); choose another output_dir") from None
    try:
        save_file({k: v.contiguous() for k, v in state.items()}, temporary, metadata=metadata or None)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp and safetensors write files that only their owner may read
        os.replace(temporary, path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
            raise FileError(f"{path}: could not be written ({error}); free some space or choose another folder") from None
        raise


def read_adapter(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """An adapter file of either family -> {dotted module name: {tensor name: tensor}}."""
    modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in load_tensors(path).items():
        module, name = split_key(key)
        if tensor.numel() != 1 if name == "alpha" else tensor.ndim == 0:
            raise FileError(f"{path}: {key} has shape {list(tensor.shape)}; is this an adapter?")
        modules[module][name] = tensor
    if not modules:
        raise FileError(f"{path}: holds no tensors; is this an adapter?")
    return dict(modules)


@torch.no_grad()
def load_into(network: AdapterNetwork, path: str | Path) -> None:
    """Start from an adapter file. Every tensor must find its place and every layer its tensors, in the same shapes.

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
        _load_module(name, module, modules[name], path)


def _load_module(name: str, module: nn.Module, tensors: dict[str, Tensor], path: str | Path) -> None:
    alpha = tensors.pop("alpha", None)
    wanted = module_tensors(module)
    if set(tensors) != set(wanted):
        theirs, ours = ", ".join(sorted(tensors)), ", ".join(sorted(wanted))
        raise SettingError(f"{path}: {name} has {theirs}, this network {ours}; use the same type, rank and factor")
    for key, parameter in wanted.items():
        if tensors[key].shape != parameter.shape:
            shapes = f"{list(tensors[key].shape)}, this network {list(parameter.shape)}"
            raise SettingError(f"{path}: {name}.{key} has shape {shapes}; use the same rank and factor")
        parameter.copy_(tensors[key])
    if hasattr(module, "alpha") and uses_alpha(tensors):
        theirs = float(module.rank if alpha is None else alpha)  # no alpha means scale 1
        if theirs != module.alpha:
            getattr(module, module.zero_init).mul_(theirs / module.alpha)


def uses_alpha(tensors: dict[str, Tensor]) -> bool:
    """A LoKr of two whole factors ignores its alpha, here and in ComfyUI."""
    return not ("lokr_w1" in tensors and "lokr_w2" in tensors)


def summarise(path: str | Path) -> dict[str, Any]:
    """What `inspect` prints: kind, layers, ranks, alphas, dtypes, size and metadata."""
    header, modules = read_header(path), read_adapter(path)
    kinds, ranks, alphas = set(), set(), set()
    for tensors in modules.values():
        kinds.add("LoRA" if "lora_down.weight" in tensors else "norm" if "w_norm" in tensors else "LoKr")
        inner = next((tensors[k].shape[0] for k in ("lora_down.weight", "lokr_w2_b", "lokr_w1_b") if k in tensors), None)
        ranks.add(inner if inner is not None else "full")
        if "alpha" in tensors:
            alphas.add(tensors["alpha"].item())
    prefix = KOHYA if next(iter(header)).startswith(KOHYA) else DOTTED
    return {
        "file": Path(path).name,
        "kind": ", ".join(sorted(kinds)),
        "keys": f"{prefix}… ({len(header)} tensors, {len(modules)} layers)",
        "rank": ", ".join(map(str, sorted(ranks, key=str))),
        "alpha": ", ".join(f"{a:g}" for a in sorted(alphas)) or "none",
        "dtype": ", ".join(sorted({info.dtype for info in header.values()})),
        "size": f"{Path(path).stat().st_size / 1e6:.1f} MB",
        "metadata": read_metadata(path),
    }


@torch.no_grad()
def merge(network: AdapterNetwork, strength: float = 1.0) -> nn.Module:
    """Eject the network and add its corrections to the base weights, as patching a file in ComfyUI does."""
    deltas = [
        (m.base, (m.adapter.delta_weight() if isinstance(m, AdaptedLinear) else m.w_norm)) for m in network.adapted.values()
    ]
    model = network.eject()
    for base, delta in deltas:
        base.weight.copy_((base.weight.float() + strength * delta).to(base.weight.dtype))
    return model

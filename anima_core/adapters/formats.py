"""Adapter files: written, read, converted, and put into a network to start from."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import FileError, SettingError
from ..files import write_whole
from ..models.checkpoint import load_tensors, read_header, read_metadata, readable
from ..models.kinds import not_an_adapter
from .adapter_type import Adapter
from .keys import TRANSFORMER, Layers, convert_keys, join_key, parts_of, read_key, refuse_foreign, split_fused
from .layers import AdaptedNorm
from .layouts import parts_of_fused
from .network import AdapterNetwork
from .peft_config import scales_of, with_config_alphas
from .recognise import DORA, NORM, OTHER_TYPES, type_name, type_of
from .types import ADAPTER_TYPES

WEIGHTS = "`network.weights`"
SIZES = "`network.rank` and `network.factor`"
START_FROM = f"start from a file of {', '.join(ADAPTER_TYPES.names)}"
FOREIGN = {name for name, _ in OTHER_TYPES} - {NORM}
EMBEDDING = "llm_adapter.embed"
BLOCK = re.compile(r"^blocks\.(\d+)\.")
RELEASED = {28: " (Anima)", 40: " (Anima-2.9B)"}  # blocks of the models that people make adapters for


def adapter_state(
    network: AdapterNetwork, key_format: str = "diffusion_model", dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Return the network as a file's tensors, on the CPU.

    Alphas stay fp32: fp16 could not hold large ones. So do the few lengths of a DoRA's columns: bf16 would move each by 0.2 %.
    """
    state: dict[str, Tensor] = {}
    copies = network.copied(lambda tensor: tensor.to("cpu", dtype, copy=True))
    for name, module in network.trained():
        for tensor_name, parameter in network.tensors(module).items():
            fp32 = parameter.detach().to("cpu", copy=True) if tensor_name == DORA else None
            state[join_key(name, tensor_name, key_format)] = copies[parameter] if fp32 is None else fp32
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


def convert_file(source: str | Path, target: str | Path, to: str) -> tuple[int, int]:
    """Write an adapter again, its keys of one family; metadata is kept. Return the tensors written, and the text encoder's.

    Those of the text encoder stay as they are: ComfyUI reads them beside either family. Raises FileError, SettingError.
    """
    check_adapter(source)
    path = Path(target)
    if path.suffix != ".safetensors":
        raise SettingError(f"{path}: an adapter file ends in .safetensors; name it so")
    if path.exists():
        raise FileError(f"{path}: is there already; choose another name")
    state = convert_keys(with_config_alphas(source, load_tensors(source)), to)
    save_adapter(path, state, read_metadata(source))
    own = sum(read_key(key).part == TRANSFORMER for key in state)
    return own, len(state) - own


def check_adapter(path: str | Path) -> None:
    """Check by its header that a file is an adapter with layers of the transformer. Raises FileError that says what it is."""
    header = read_header(path)
    if kind := not_an_adapter(header):
        raise FileError(f"{path}: not an adapter; {kind}")
    if not any(read_key(key).part == TRANSFORMER for key in header):
        raise FileError(f"{path}: holds no layer of Anima's transformer; choose an adapter made for Anima")


def read_adapter(path: str | Path) -> Layers:
    """Read the transformer's part of an adapter file: {dotted layer name: {tensor name: tensor}}; fused layers are split.

    Raises FileError, and SettingError for a file that holds layers of another model, or what cannot be split.
    """
    check_adapter(path)
    return layers_of(path, with_config_alphas(path, load_tensors(path)))


def read_shapes(path: str | Path) -> Layers:
    """Return what `read_adapter` does without the tensors' values, but for the alphas. Raises as it does."""
    check_adapter(path)
    return layers_of(path, with_config_alphas(path, header_tensors(path)))


def header_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return a file's tensors without their values, but for the alphas. Raises FileError."""
    tensors = {key: torch.empty(info.shape, device="meta") for key, info in read_header(path).items()}
    with readable(path), safe_open(str(path), framework="pt", device="cpu") as file:
        for key, tensor in tensors.items():
            if key.endswith(".alpha") and tensor.numel() == 1:
                tensors[key] = file.get_tensor(key)
    return tensors


def layers_of(path: str | Path, tensors: Mapping[str, Tensor]) -> Layers:
    parts = parts_of(tensors)
    for found in parts.others.values():
        if (name := type_name(found)) in FOREIGN:
            raise SettingError(f"{path}: a {name}, which is not trained here; {START_FROM}")
    refuse_foreign(f"{layer}.{name}" for layer, found in parts.others.items() for name in found)
    for layer, found in parts.transformer.items():
        for name, tensor in found.items():
            is_scalar = tensor.numel() == 1 if name == "alpha" else tensor.ndim == 0
            if is_scalar != (name == "alpha"):
                raise FileError(f"{path}: {layer}.{name} has shape {list(tensor.shape)}; is this an adapter?")
    return split_fused(parts.transformer)


def check_blocks(path: str | Path, blocks: int) -> None:
    """Check that an adapter was made for a model of so many blocks, as far as it tells. Raises SettingError.

    It tells by our own metadata, by a block that the model lacks, or by having layers of all blocks of another release.
    """
    found = (BLOCK.match(key.layer) for key in map(read_key, read_header(path)) if key.part == TRANSFORMER)
    most = max((int(block[1]) + 1 for block in found if block), default=0)
    said = read_metadata(path).get("ss_num_blocks", "")
    made_for = int(said) if said.isdecimal() and len(said) < 5 else most if most > blocks or most in RELEASED else blocks
    if made_for != blocks:
        whose = f"made for {made_for} blocks{RELEASED.get(made_for, '')}, the model has {blocks}{RELEASED.get(blocks, '')}"
        raise SettingError(f"{WEIGHTS}: {path} was {whose}; start from an adapter of this model, or train that one")


def notes_of(path: str | Path) -> list[str]:
    """Say what of an adapter file a network cannot start from, and what is read otherwise than it stands. Raises FileError."""
    keys = list(map(read_key, read_header(path)))
    others = {key.layer for key in keys if key.part != TRANSFORMER}
    fused = {key.layer for key in keys if key.part == TRANSFORMER and parts_of_fused(key.layer)}
    scale = scales_of(path)
    texts = (
        (others, f"{len(others)} layers of the text encoder are left out: only the transformer is trained"),
        (fused, f"{len(fused)} layers are q, k and v in one, and are trained apart"),
        (scale, f"its alpha is {scale.get('alpha')} by its configuration, for the layers that have none in the file"),
    )
    return [f"{WEIGHTS}: {text}" for there, text in texts if there]


def check_finite(path: str | Path, layers: Layers) -> None:
    """Refuse an adapter that holds NaN or infinity: whatever is made of it is as broken. Raises FileError."""
    for layer, tensors in layers.items():
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise FileError(f"{path}: {layer} holds NaN or infinity; use a file that is not broken")


@torch.no_grad()
def load_into(network: AdapterNetwork, path: str | Path) -> None:
    """Start a network from an adapter file. Every tensor must find its place and every layer its tensors, in the same shapes.

    Alphas that differ are folded into the zero-initialised factor, so that the effect is the file's. Raises SettingError
    that names the first layer that does not fit.
    """
    layers = read_adapter(path)
    check_finite(path, layers)
    trained = dict(network.trained())
    check_type(layers, network.kind.name)
    check_dora(layers, network.config.dora)
    missing, unknown = [n for n in trained if n not in layers], [n for n in layers if n not in trained]
    if missing or unknown:
        first = unknown[0] if unknown else missing[0]
        setting = "`network.train_norm`" if type_name(layers.get(first, ())) == NORM else "`network.targets`"
        which = f"{first} {'of the file is not trained' if unknown else 'is not in the file'}"
        count = len(missing) + len(unknown)
        raise SettingError(f"{WEIGHTS}: {count} layers differ from this network, first: {which}; set {setting} as for the file")
    for name, module in trained.items():
        check_whole(path, name, layers[name], network.tensors(module))
        _load_layer(name, module, network, layers[name])


def check_whole(path: str | Path, name: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Refuse a layer that lacks a tensor and has no other one in its stead: no setting helps. Raises FileError."""
    lacking = wanted.keys() - found.keys()
    if lacking and found.keys() <= {*wanted, "alpha"}:
        raise FileError(f"{path}: {name} lacks {min(lacking)}; download it again, or use another file")


def _load_layer(name: str, module: Adapter | AdaptedNorm, network: AdapterNetwork, tensors: dict[str, Tensor]) -> None:
    wanted = network.tensors(module)
    if tensors.keys() - {"alpha"} != wanted.keys():
        held = f"{', '.join(sorted(tensors.keys() - {'alpha'}))}, this network {', '.join(sorted(wanted))}"
        raise SettingError(f"{WEIGHTS}: {name} has {held}; set the same {SIZES}")
    for key, parameter in wanted.items():
        if tensors[key].shape != parameter.shape:
            shapes = f"{list(tensors[key].shape)} in the file, {list(parameter.shape)} in this network"
            raise SettingError(f"{WEIGHTS}: {name}.{key} has shape {shapes}; set the same {SIZES}")
        parameter.copy_(tensors[key])
    if isinstance(module, Adapter):
        rank, alpha = network.kind.read([tensors]).sizes[0]
        if rank is not None:  # of whole factors the alpha means nothing
            getattr(module, module.zero_init).mul_((rank if alpha is None else alpha) / module.alpha)


def check_type(layers: Layers, wanted: str) -> None:
    """Check that all layers of a file are of a network's type, or norms. Raises SettingError with the way out."""
    if EMBEDDING in layers:
        raise SettingError(f"{WEIGHTS}: {EMBEDDING} is an embedding, which is not trained here; {START_FROM} of linear layers")
    for name, tensors in layers.items():
        found, kind = type_name(tensors), type_of(tensors)
        if found == NORM or (kind is not None and kind.name == wanted):
            continue
        if kind is not None:
            raise SettingError(f"{WEIGHTS}: {name} is a {found}, this network a {wanted}; train a {kind.name}")
        what = found or f"unknown ({', '.join(sorted(tensors))})"
        raise SettingError(f"{WEIGHTS}: the type of {name} is {what}, which is not trained here; {START_FROM}")


def check_dora(layers: Layers, wanted: bool) -> None:
    """Check that a file is a DoRA of the inputs' lengths where a network is one, and none where not. Raises SettingError."""
    for name, tensors in layers.items():
        if type_of(tensors) is None:
            continue
        if (DORA in tensors) != wanted:
            what = "is a DoRA, this network is none" if DORA in tensors else "is no DoRA, this network is one"
            raise SettingError(f"{WEIGHTS}: {name} {what}; set `network.dora` as for the file")
        if wanted and tensors[DORA].shape[0] != 1:
            why = "has a length for each output, which ComfyUI applies wrongly and is not trained here"
            raise SettingError(f"{WEIGHTS}: {name}.{DORA} {why}; start from a file trained with wd_on_output=False")

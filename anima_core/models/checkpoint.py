"""Safetensors files: look at the header first, then load every tensor a model asks for, or say which is missing.

Format: 8 bytes little-endian header length, JSON header, then the raw tensors
(https://github.com/huggingface/safetensors#format). Pickles are never opened.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load
from torch import Tensor, nn

from ..errors import FileError

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own bound
MAX_DIMENSIONS = 64  # torch's own bound

M = TypeVar("M", bound=nn.Module)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}
PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}

# Released files differ: `net.` (base-v1.0, previews) and `model.diffusion_model.` (aesthetic, turbo).
TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")

# Never weights of ours: buffers that some exporters write, and quantisation side data, which is ignored by name.
IGNORED = re.compile(r"(^|\.)(pos_embedder\..*|_extra_state|comfy_quant|accum_.*)$")
# A file that holds these is quantised: its weights mean nothing without them.
QUANTISED = re.compile(r"(\.weight_scale.*|\.scale_(weight|input)|\.input_scale|\.absmax|\.quant_(map|state.*)|^scaled_fp8)$")


@dataclass(frozen=True)
class TensorInfo:
    dtype: str  # the format's name: F32, BF16, …
    shape: tuple[int, ...]


def read_header(path: str | Path) -> dict[str, TensorInfo]:
    """Return names, dtypes and shapes of a safetensors file, without reading a tensor.

    Raises FileError, naming the file, when it is missing, a pickle, truncated, or not safetensors.
    """
    return {name: TensorInfo(item["dtype"], tuple(item["shape"])) for name, item in _tensor_entries(path).items()}


def read_metadata(path: str | Path) -> dict[str, str]:
    """Return the `__metadata__` of a safetensors file. Raises FileError."""
    found = _json_header(Path(path)).get("__metadata__", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise FileError(f"{path}: its safetensors header is damaged; download it again")
    return found


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor, for hashing and checksums."""
    return memoryview(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read all tensors of a small file, an adapter say. Raises FileError.

    `load_file` would keep the file mapped while any of them lives, and Windows does not replace a mapped file.
    """
    read_header(path)
    with readable(path):
        return load(Path(path).read_bytes())


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn what the safetensors library still objects to after the header was checked into a FileError."""
    try:
        yield
    except (SafetensorError, OSError, OverflowError) as error:
        raise FileError(f"{path}: cannot be read ({' '.join(str(error).split())[:200]}); download it again") from None


def _tensor_entries(path: str | Path) -> dict[str, dict[str, Any]]:
    path = Path(path)
    header = _json_header(path)
    entries = {name: item for name, item in header.items() if name != "__metadata__"}
    end = check_layout(path, entries)
    missing = 8 + _header_length(path) + end - path.stat().st_size
    if missing > 0:
        raise FileError(f"{path}: truncated, {missing:,} bytes are missing; download it again")
    if missing < 0:
        raise FileError(f"{path}: {-missing:,} bytes too long for its header; download it again")
    read_metadata(path)
    return entries


ITEM_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}


def check_layout(path: Path, entries: dict[str, dict[str, Any]]) -> int:
    """Check that offsets follow one another and fit the shapes, before anything is allocated. Return the data's length."""
    end = 0
    try:
        places = sorted((*e["data_offsets"], tuple(e["shape"]), e["dtype"]) for e in entries.values())
        for begin, stop, shape, dtype in places:
            plain = type(begin) is type(stop) is int and isinstance(dtype, str) and len(shape) <= MAX_DIMENSIONS
            if not plain or begin != end or stop < begin or not all(type(side) is int and side >= 0 for side in shape):
                raise ValueError
            if dtype in ITEM_BITS and stop - begin != math.prod(shape) * ITEM_BITS[dtype] // 8:
                raise ValueError
            end = stop
    except (AttributeError, KeyError, TypeError, ValueError):
        raise FileError(f"{path}: its safetensors header is damaged; download it again") from None
    return end


def _header_length(path: Path) -> int:
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def _json_header(path: Path) -> dict[str, Any]:
    check_is_file(path)
    length = _header_length(path)
    if length > MAX_HEADER_BYTES or length < 2:
        raise FileError(f"{path}: not a safetensors file; convert it to safetensors first")
    if length > path.stat().st_size - 8:  # before anything of that size is asked for
        raise FileError(f"{path}: truncated inside its header; download it again")
    with open(path, "rb") as file:
        file.seek(8)
        raw = file.read(length)
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError):  # not UTF-8, not JSON, numbers of thousands of digits, nested without end
        header = None
    if not isinstance(header, dict):
        raise FileError(f"{path}: not a safetensors file; convert it to safetensors first")
    return header


def check_is_file(path: Path) -> None:
    """Refuse what is not a readable file, and every pickle, before a byte of it is interpreted."""
    if not path.exists():
        raise FileError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise FileError(f"{path}: is a folder; name the .safetensors file in it")
    with open(path, "rb") as file:
        start = file.read(4)
    if path.suffix.lower() in PICKLE_SUFFIXES or start[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK"):
        raise FileError(f"{path}: a pickle, which can run code when opened; convert it to safetensors first")


def strip_prefix(name: str, prefixes: tuple[str, ...] = TRANSFORMER_PREFIXES) -> str:
    """Remove the known prefixes from the front, as often as they stand there."""
    while True:
        for prefix in prefixes:
            if name.startswith(prefix):
                name = name[len(prefix) :]
                break
        else:
            return name


def load_strict(
    model: M,
    path: str | Path | list[Path],
    *,
    what: str,
    rename: Callable[[str], str | None] = strip_prefix,
    transform: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    dtype: torch.dtype,
    device: str | torch.device,
) -> M:
    """Fill `model` (built on the meta device) from a file, tensor by tensor, straight to `device` in `dtype`.

    path: one file, or the shards of one model.
    rename: the file's key -> the model's, or None to leave the tensor out.
    transform: reshapes one tensor to the model's layout, by its model name.
    Every parameter and persistent buffer must be in the file and every tensor of the file must be one of them, else a
    FileError names the first. Parameters come out frozen (`requires_grad=False`).
    """
    files = path if isinstance(path, list) else [path]
    wanted = dict(model.state_dict(keep_vars=True))
    sources = {file: _sources(file, rename) for file in files}
    _check_names(files[0], what, wanted.keys(), [name for names in sources.values() for name in names])
    state = {}
    for file, names in sources.items():
        with readable(file), safe_open(str(file), framework="pt", device="cpu") as tensors:
            for name, key in names.items():
                tensor = transform(name, tensors.get_tensor(key))
                if tensor.shape != wanted[name].shape:
                    shapes = f"{list(tensor.shape)}, expected {list(wanted[name].shape)}"
                    raise FileError(f"{file}: {key} has shape {shapes}; is this the {what}?")
                state[name] = tensor.to(device=device, dtype=dtype)
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False)


def shards(path: str | Path) -> list[Path]:
    """List the safetensors files behind a path: itself, or those of a Hugging Face folder."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.safetensors"))
    if not found:
        raise FileError(f"{path}: no .safetensors file in this folder; check the path")
    return found


def _sources(path: str | Path, rename: Callable[[str], str | None]) -> dict[str, str]:
    """Return the file's key of each tensor by the model's name."""
    header = read_header(path)
    check_not_quantised(path, header)
    named = [(rename(key), key) for key in header if not IGNORED.search(key)]
    return {name: key for name, key in named if name is not None}


def check_not_quantised(path: str | Path, header: dict[str, TensorInfo]) -> None:
    """Refuse 8-bit and 4-bit files with the reason: training needs the real weights. Raises FileError."""
    marks = [n for n in header if QUANTISED.search(n)]
    marks += [n for n, t in header.items() if n.endswith("weight") and t.dtype not in FLOAT_DTYPES]
    if marks:
        dtype = header[marks[0]].dtype
        raise FileError(f"{path}: is quantised ({marks[0]}, {dtype}); training needs the bf16, fp16 or fp32 file")


def _check_names(path: str | Path, what: str, wanted: Iterable[str], found: Iterable[str]) -> None:
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        count = len(missing)
        raise FileError(f"{path}: {count} tensors of the {what} are missing, first {missing[0]}; is this the right file?")
    if unexpected:
        count = len(unexpected)
        raise FileError(f"{path}: {count} tensors do not belong to the {what}, first {unexpected[0]}; is this the right file?")


def kind_of(header: dict[str, TensorInfo]) -> str:
    """Say what a file seems to be, for the error of a file in the wrong slot, with the way out."""
    names = " ".join(list(header)[:4000])
    marks = {
        "lora_down": "it is an adapter: give it as network weights",
        "lora_A": "it is an adapter: give it as network weights",
        "lokr_w": "it is an adapter: give it as network weights",
        "llm_adapter.": "it is an Anima transformer: give it as the transformer",
        "decoder.middle.0.residual": "it is a VAE: give it as the VAE",
        "decoder.mid_block": "it is a diffusers VAE: use the ComfyUI file qwen_image_vae.safetensors",
        "model.layers.0.self_attn": "it is a text encoder: give Qwen3-0.6B as the qwen file",
        "layers.0.self_attn.q_norm": "it is a text encoder: give Qwen3-0.6B as the qwen file",
        "blocks.0.adaln_modulation_self_attn": "it is a Cosmos-Predict2 model without Anima's LLM adapter",
        "double_blocks.": "it is a Flux model",
    }
    return next((hint for mark, hint in marks.items() if mark in names), "check that this is the right file")

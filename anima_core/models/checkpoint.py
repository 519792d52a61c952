"""Safetensors files: look at the header first, then load every tensor a model asks for, or say which is missing.

Format: 8 bytes little-endian header length, JSON header, then the raw tensors
(https://github.com/huggingface/safetensors#format). Pickles are never opened.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import FileError
from ..files import read_through
from .kinds import LONGEST_START, REAL_WEIGHTS, all_in_one, folder_of, kind_of, start_of

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own bound
MAX_DIMENSIONS = 64  # torch's own bound
MOST_VALUES = 1 << 60  # of a tensor: more than any file holds, and few enough for torch to count
NOT_SAFETENSORS = "not a safetensors file, or a damaged one; download it again, as .safetensors"

M = TypeVar("M", bound=nn.Module)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}
NAMES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}  # the format's names of dtypes, and torch's, of which older versions lack some
FORMATS: dict[str, torch.dtype] = {name: getattr(torch, ours) for name, ours in NAMES.items() if hasattr(torch, ours)}

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
    """Read all tensors of a file. Raises FileError."""
    return dict(read_tensors(path))


def read_tensors(path: str | Path) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file with their keys, as they lie in it, each in memory of its own. Raises FileError.

    The file is read once, from front to back, and its digest is learnt on the way. It is not mapped: what is mapped is read
    in small pieces, Windows does not replace such a file, and its weights would be gone where a network drive is.
    """
    path = Path(path)
    entries = _tensor_entries(path)
    unread = sorted({item["dtype"] for item in entries.values()} - FORMATS.keys())
    if unread:
        raise FileError(f"{path}: holds tensors of {unread[0]}, which this version of torch lacks; use a file in BF16 or F32")
    with readable(path), read_through(path) as fill:
        fill(memoryview(bytearray(8 + _header_length(path))))
        for key, item in sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"]):
            yield key, _filled(item, fill)


def _filled(entry: dict[str, Any], fill: Callable[[memoryview], None]) -> Tensor:
    begin, end = entry["data_offsets"]
    data = torch.empty(end - begin, dtype=torch.uint8)
    fill(data.numpy().data)
    return data.view(FORMATS[entry["dtype"]]).reshape(entry["shape"])


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


def check_layout(path: Path, entries: dict[str, dict[str, Any]]) -> int:
    """Check that offsets follow one another and fit the shapes, before anything is allocated. Return the data's length."""
    end = 0
    try:
        places = sorted((*e["data_offsets"], tuple(e["shape"]), e["dtype"]) for e in entries.values())
        for begin, stop, shape, dtype in places:
            plain = type(begin) is type(stop) is int and isinstance(dtype, str) and len(shape) <= MAX_DIMENSIONS
            if not plain or begin != end or stop < begin or not all(type(side) is int and side >= 0 for side in shape):
                raise ValueError
            if math.prod(shape) >= MOST_VALUES:
                raise ValueError
            if dtype in FORMATS and stop - begin != math.prod(shape) * FORMATS[dtype].itemsize:
                raise ValueError
            end = stop
    except (AttributeError, KeyError, TypeError, ValueError):
        raise FileError(f"{path}: its safetensors header is damaged; download it again") from None
    return end


def _header_length(path: Path) -> int:
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def raw_header(path: Path) -> bytes:
    """Return the JSON of a header as it stands in the file. Raises FileError."""
    check_is_file(path)
    length = _header_length(path)
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise FileError(f"{path}: {NOT_SAFETENSORS}")
    if length > path.stat().st_size - 8:  # before anything of that size is asked for
        raise FileError(f"{path}: truncated inside its header; download it again")
    with open(path, "rb") as file:
        file.seek(8)
        return file.read(length)


def _json_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads(raw_header(path))
    except (ValueError, RecursionError):  # not UTF-8, not JSON, numbers of thousands of digits, nested without end
        header = None
    if not isinstance(header, dict):
        raise FileError(f"{path}: {NOT_SAFETENSORS}")
    return header


def check_is_file(path: Path) -> None:
    """Refuse what is not a readable file, and every pickle, before a byte of it is interpreted."""
    if not path.exists():
        raise FileError(f"{path}: no such file; check the path")
    if not path.is_file():
        raise FileError(f"{path}: is {folder_of(path)}")
    try:
        with open(path, "rb") as file:
            start = file.read(LONGEST_START)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if not start:
        raise FileError(f"{path}: is empty (0 bytes); download it again")
    is_length = int.from_bytes(start[:8], "little") <= MAX_HEADER_BYTES  # of a header, which may look like a pickle's bytes
    if what := start_of(b"" if is_length else start, path.suffix):
        raise FileError(f"{path}: is {what}")


def strip_prefix(name: str, prefixes: tuple[str, ...] = TRANSFORMER_PREFIXES) -> str:
    """Remove the known prefixes from the front, as often as they stand there."""
    while True:
        for prefix in prefixes:
            if name.startswith(prefix):
                name = name[len(prefix) :]
                break
        else:
            return name


@dataclass(frozen=True)
class Layout:
    """How a model lies in files.

    what: its name in errors. rename: a file's key -> the model's, or None to leave the tensor out. transform: reshapes one
    tensor to the model's layout, by its model name.
    """

    what: str
    rename: Callable[[str], str | None] = strip_prefix
    transform: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every parameter and persistent buffer of a model, which may be on the meta device."""
    return {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}


def check_fits(
    wanted: Mapping[str, tuple[int, ...]], path: str | Path | list[Path], layout: Layout
) -> dict[Path, dict[str, str]]:
    """Check by the headers that a file holds exactly the tensors that are wanted, a shape for each of the model's names.

    path: one file, or the shards of one model. Returns, of each file, the key of each tensor by the model's name. Every tensor
    that is wanted must be in the files and every tensor of theirs must be wanted, else a FileError names the first.
    """
    files = path if isinstance(path, list) else [Path(path)]
    headers = {file: read_header(file) for file in files}
    sources = {file: _sources(file, headers[file], layout.rename) for file in files}
    _check_names(files[0], layout.what, wanted.keys(), [name for names in sources.values() for name in names])
    for file, names in sources.items():
        for name, key in names.items():
            shape = layout.transform(name, torch.empty(headers[file][key].shape, device="meta")).shape
            if shape != wanted[name]:
                shapes = f"{list(shape)}, expected {list(wanted[name])}"
                raise FileError(f"{file}: {key} has shape {shapes}; is this the {layout.what}?")
    return sources


def load_strict(
    model: M, path: str | Path | list[Path], layout: Layout, *, dtype: torch.dtype, device: str | torch.device
) -> M:
    """Fill `model` (built on the meta device) from a file, tensor by tensor, straight to `device` in `dtype`.

    Raises FileError where `check_fits` does. Parameters come out frozen (`requires_grad=False`).
    """
    state = {}
    for file, sources in check_fits(shapes_of(model), path, layout).items():
        names = {key: name for name, key in sources.items()}
        for key, tensor in read_tensors(file):
            if name := names.get(key):
                state[name] = layout.transform(name, tensor).to(device=device, dtype=dtype)
            del tensor  # before the next one is read: only one is in memory twice
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False)


def shards(path: str | Path) -> list[Path]:
    """List the safetensors files behind a path: itself, or those of a Hugging Face folder."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.safetensors"))
    if not found and (path / "text_encoder").is_dir():
        raise FileError(f"{path}: is a folder in diffusers' layout; name its sub-folder text_encoder")
    if not found:
        others = {
            "*.bin": ", only pickles, which are never opened",
            "*.gguf": f", only GGUF, which is quantised; {REAL_WEIGHTS}",
        }
        instead = next((what for kind, what in others.items() if any(path.glob(kind))), "; check the path")
        raise FileError(f"{path}: no .safetensors file in this folder{instead}")
    return found


def _sources(path: Path, header: dict[str, TensorInfo], rename: Callable[[str], str | None]) -> dict[str, str]:
    """Return the file's key of each tensor by the model's name."""
    check_not_quantised(path, header)
    named = [(rename(key), key) for key in header if not IGNORED.search(key)]
    return {name: key for name, key in named if name is not None}


def check_one_model(path: str | Path, header: dict[str, TensorInfo]) -> None:
    """Refuse quantised files, and several models in one. Raises FileError."""
    if several := all_in_one(header):
        raise FileError(f"{path}: is {several}")
    check_not_quantised(path, header)


def check_not_quantised(path: str | Path, header: dict[str, TensorInfo]) -> None:
    """Refuse 8-bit and 4-bit files with the reason: training needs the real weights. Raises FileError."""
    marks = [n for n in header if QUANTISED.search(n)]
    marks += [n for n, t in header.items() if n.endswith("weight") and t.dtype not in FLOAT_DTYPES]
    if marks:
        dtype = header[marks[0]].dtype
        raise FileError(f"{path}: is quantised ({marks[0]}, {dtype}); {REAL_WEIGHTS}")


def _check_names(path: Path, what: str, wanted: Iterable[str], found: Iterable[str]) -> None:
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise FileError(f"{path}: {len(missing)} tensors of the {what} are missing, first {missing[0]}; use a whole file")
    if unexpected:
        count, way_out = len(unexpected), f"use a file of the {what} alone"
        raise FileError(f"{path}: {count} tensors do not belong to the {what}, first {unexpected[0]}; {way_out}")


def wrong_kind(path: str | Path, wanted: str, missing: str, header: dict[str, TensorInfo]) -> FileError:
    """Return the error of a file that is not what its slot wants ("a VAE"), by what it lacks and what it is."""
    found = kind_of(header)
    if f"it is {wanted}:" in found:
        found = "it is only a part of one, or its names are others; use the file that comes with Anima"
    return FileError(f"{path}: not {wanted} (no {missing}); {found}")

"""Safetensors files: the header first, then every tensor, from front to back. What a model makes of them: `loading`.

Format: 8 bytes little-endian header length, JSON header, then the raw tensors
(https://github.com/huggingface/safetensors#format). Pickles are never opened.
"""

import errno
import json
import math
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import FileError
from ..files import read_through, write_whole
from .kinds import LONGEST_START, folder_of, start_of

MAX_HEADER_BYTES = 100_000_000  # the safetensors library's own bound
MAX_DIMENSIONS = 64  # torch's own bound
MOST_VALUES = 1 << 60  # of a tensor: more than any file holds, and few enough for torch to count
NOT_SAFETENSORS = "not a safetensors file, or a damaged one; download it again, as .safetensors"
NOT_GGUF = "not a GGUF file, or a damaged one; download it again"

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NAMES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "BOOL": "bool"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu"},
}  # the format's names of dtypes, and torch's, of which older versions lack some
FORMATS: dict[str, torch.dtype] = {name: getattr(torch, ours) for name, ours in NAMES.items() if hasattr(torch, ours)}

# Released files differ: `net.` (base-v1.0, previews) and `model.diffusion_model.` (aesthetic, turbo).
TRANSFORMER_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")


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


def read_tensors(path: str | Path, keys: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a file with their keys, as they lie in it, each in memory of its own. Raises FileError.

    keys: of those that are wanted, None for all: the others are passed over.

    The file is read once, from front to back, and its digest is learnt on the way. It is not mapped: what is mapped is read
    in small pieces, Windows does not replace such a file, and its weights would be gone where a network drive is.
    """
    path = Path(path)
    entries = _tensor_entries(path)
    wanted = {key for key in entries if keys is None or key in keys}
    unread = sorted({entries[key]["dtype"] for key in wanted} - FORMATS.keys())
    if unread:
        raise FileError(f"{path}: holds tensors of {unread[0]}, which this version of torch lacks; use a file in BF16 or F32")
    with readable(path), read_through(path) as reading:
        reading.fill(memoryview(bytearray(8 + _header_length(path))))
        for key, item in sorted(entries.items(), key=lambda entry: entry[1]["data_offsets"]):
            begin, end = item["data_offsets"]
            if key in wanted:
                yield key, _filled(item, reading.fill)
            else:
                reading.pass_over(end - begin)


def _filled(entry: dict[str, Any], fill: Callable[[memoryview], None]) -> Tensor:
    begin, end = entry["data_offsets"]
    data = torch.empty(end - begin, dtype=torch.uint8)
    fill(data.numpy().data)
    return data.view(FORMATS[entry["dtype"]]).reshape(entry["shape"])


def read_some(path: str | Path, keys: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of a few small tensors by their keys, without reading the others. Raises FileError."""
    path, entries, found = Path(path), _tensor_entries(path), {}
    start = 8 + _header_length(path)
    with readable(path), open(path, "rb") as file:
        for key in keys:
            begin, end = entries[key]["data_offsets"]
            file.seek(start + begin)
            found[key] = file.read(end - begin)
    return found


def read_in_order(path: str | Path, keys: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors of a file in the order of their keys, each in memory of its own. Raises FileError."""
    path = Path(path)
    entries, start = _tensor_entries(path), 8 + _header_length(path)
    with readable(path), open(path, "rb") as file:

        def fill(buffer: memoryview) -> None:
            if file.readinto(buffer) < len(buffer):
                raise OSError(errno.EIO, "it ends too early")

        for key in keys:
            file.seek(start + entries[key]["data_offsets"][0])
            yield key, _filled(entries[key], fill)


def rewrite(source: str | Path, target: Path, metadata: dict[str, str], change: Callable[[str, Tensor], Tensor]) -> None:
    """Write a file again with its keys, dtypes and layout, one tensor in memory at a time.

    metadata: in place of the file's. change: key and tensor -> the tensor that is written, of the same shape and dtype. The
    target appears whole or not at all. Raises FileError for the source; OSError for the target.
    """
    header = json.dumps({"__metadata__": metadata} | _tensor_entries(source)).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors are aligned, as the library has them

    def write(path: Path) -> None:
        with open(path, "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for key, tensor in read_tensors(source):
                file.write(tensor_bytes(change(key, tensor)))

    write_whole(target, write)


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
            if math.prod(max(side, 1) for side in shape) >= MOST_VALUES:
                raise ValueError
            if dtype in FORMATS and stop - begin != math.prod(shape) * FORMATS[dtype].itemsize:
                raise ValueError
            end = stop
    except (AttributeError, KeyError, TypeError, ValueError):
        raise FileError(f"{path}: its safetensors header is damaged; download it again") from None
    return end


def unreadable(path: Path) -> FileError:
    return FileError(f"{path}: {NOT_GGUF if path.suffix == '.gguf' else NOT_SAFETENSORS}")


def _header_length(path: Path) -> int:
    with open(path, "rb") as file:
        return int.from_bytes(file.read(8), "little")


def raw_header(path: Path) -> bytes:
    """Return the JSON of a header as it stands in the file. Raises FileError."""
    check_is_file(path)
    length = _header_length(path)
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise unreadable(path)
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
        raise unreadable(path)
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

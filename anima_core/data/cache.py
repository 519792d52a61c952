"""Tensors on disk under a key made of everything they depend on: what changes gets a new key, what does not is found again."""

import hashlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import FileError
from ..files import delete, write_whole
from ..models.checkpoint import tensor_bytes

VERSION = 1  # of what the cached numbers mean


def cache_key(**parts: Any) -> str:
    """Return the SHA-256 of the named parts, as hex."""
    return hashlib.sha256(json.dumps({"version": VERSION} | parts, sort_keys=True).encode()).hexdigest()


class TensorCache:
    """key -> named tensors, as safetensors files in `folder`, or in memory when that is None. Safe across threads.

    A file that does not match its checksum counts as damaged and is treated as missing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, dict[str, Tensor]] = {}

    def has(self, key: str) -> bool:
        """Tell whether an entry is there, of its full length; its checksum is looked at when it is read."""
        return key in self._memory if self.folder is None else has_full_length(entry_path(self.folder, key))

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Read an entry; None when it is missing or damaged, which removes it."""
        if self.folder is None:
            return self._memory.get(key)
        path = entry_path(self.folder, key)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError:
            data = b""
        try:
            metadata, tensors = metadata_of(data), load(data)  # whole: safetensors 0.8 loses 28 bytes with each safe_open
            intact = metadata.get("key") == key and metadata.get("crc32") == checksum(tensors)
        except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            intact = False
        if not intact:
            delete(path)
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Write an entry. Raises FileError."""
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        if self.folder is None:
            self._memory[key] = tensors
            return
        path = entry_path(self.folder, key)
        try:
            write_whole(path, save(tensors, metadata={"key": key, "crc32": checksum(tensors)}), durable=False)
        except OSError as error:
            way_out = "set `train.cache_dir` elsewhere"
            raise FileError(f"{path.parent}: the cache cannot be written ({error.strerror}); {way_out}") from None


def everything(key: str) -> bool:
    """Name every key as one's own: no other process encodes a share."""
    return True


def entry_path(folder: Path, key: str) -> Path:
    return folder / key[:2] / f"{key[2:34]}.safetensors"


def encoded_at_once(device: torch.device, wanted: int) -> int:
    """Return how many are encoded in one batch: 1 on the CPU.

    Batched kernels round differently there, and the cache must be reproducible after an interruption.
    """
    return 1 if device.type == "cpu" else wanted


def metadata_of(data: bytes) -> dict[str, str]:
    """Return the `__metadata__` of a safetensors file in memory."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def has_full_length(path: Path) -> bool:
    """Compare a file's length with its header, which alone is read: cheap for a hundred thousand files."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        return size == 8 + length + end
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def checksum(tensors: dict[str, Tensor]) -> str:
    """Return the CRC-32 of names and bytes, as hex."""
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(tensor_bytes(tensors[name]), zlib.crc32(name.encode(), value))
    return f"{value:08x}"

"""Tensors on disk under a key made of everything they depend on: what changes gets a new key, what does not is found again."""

import hashlib
import json
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ..errors import FileError

VERSION = 1  # of what the cached numbers mean


def cache_key(**parts: Any) -> str:
    """SHA-256 of the named parts, as hex."""
    return hashlib.sha256(json.dumps({"version": VERSION} | parts, sort_keys=True).encode()).hexdigest()


class TensorCache:
    """key -> named tensors, as safetensors files in `folder`, or in memory when that is None. Safe across threads.

    A file that does not match its checksum counts as damaged and is treated as missing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.damaged = 0
        self._memory: dict[str, dict[str, Tensor]] = {}

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key[2:34]}.safetensors"

    def has(self, key: str) -> bool:
        """Whether an entry is there, of its full length; its checksum is looked at when it is read."""
        return key in self._memory if self.folder is None else has_full_length(self.path(key))

    def get(self, key: str) -> dict[str, Tensor] | None:
        if self.folder is None:
            return self._memory.get(key)
        path = self.path(key)
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
            self.damaged += 1
            path.unlink(missing_ok=True)
            return None
        return tensors

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
        if self.folder is None:
            self._memory[key] = tensors
            return
        path = self.path(key)
        temporary = path.with_name(f"{path.stem[:8]}-{os.getpid()}-{threading.get_ident()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(save(tensors, metadata={"key": key, "crc32": checksum(tensors)}))
            os.replace(temporary, path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise FileError(f"{path.parent}: the cache cannot be written ({error.strerror}); set cache_dir elsewhere") from None


def encoded_at_once(device: torch.device, wanted: int) -> int:
    """On the CPU one: in another batch the last bits differ, and what is cached must not depend on where a run was cut."""
    return 1 if device.type == "cpu" else wanted


def metadata_of(data: bytes) -> dict[str, str]:
    """The `__metadata__` of a safetensors file in memory."""
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def has_full_length(path: Path) -> bool:
    """Cheap for a hundred thousand files: only the header is read."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, size)))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        return size == 8 + length + end
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as hex. Raises FileError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); start again") from None
    return digest.hexdigest()


def checksum(tensors: dict[str, Tensor]) -> str:
    value = 0
    for name in sorted(tensors):
        value = zlib.crc32(bytes_of(tensors[name]), zlib.crc32(name.encode(), value))
    return f"{value:08x}"


def bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())

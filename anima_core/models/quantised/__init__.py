"""Model files as models see them: tensors by name, each stored plainly or in a quantised format.

A format is one file here: a `FrozenWeight` that writes its numbers, and a `Format` that says how a file marks it. Formulas
are those of ComfyUI's own dequantisation (comfy_kitchen's eager backend) and of ggml; tests compare them to the bit.
"""

from collections.abc import Container, Iterator
from pathlib import Path
from types import ModuleType

from torch import Tensor

from ..frozen import FrozenWeight
from . import gguf_file, safetensors_file
from .stored import Stored


def file_type(path: Path) -> ModuleType:
    return gguf_file if gguf_file.is_gguf(path) else safetensors_file


def read_stored(path: str | Path) -> dict[str, Stored]:
    """Return how each tensor of a model's file is stored, by its key, without reading a weight. Raises FileError."""
    return file_type(Path(path)).read_stored(Path(path))


def read_weights(path: str | Path, keys: Container[str] | None = None) -> Iterator[tuple[str, FrozenWeight]]:
    """Yield the weights of a file with their keys, each as soon as all of its parts are read. Raises FileError.

    keys: of those that are wanted, None for all.

    The file is read once, from front to back, and its digest is learnt on the way.
    """
    stored = read_stored(path)
    parts: dict[str, dict[str, Tensor]] = {}
    wanted = {owner: found for owner, found in stored.items() if keys is None or owner in keys}
    owners = {key: owner for owner, found in wanted.items() for key in found.keys.values()}
    for key, tensor in file_type(Path(path)).read_parts(Path(path), owners):
        if owner := owners.get(key):
            parts.setdefault(owner, {})[key] = tensor
        del tensor  # before the next one is read: only one is in memory twice
        if owner and len(parts[owner]) == len(stored[owner].keys):
            yield owner, stored[owner].weight(parts.pop(owner))

"""What in a safetensors file belongs together: weights, their scales, and the marks that say how they are quantised.

Marks, as ComfyUI reads and writes them: a tensor `comfy_quant` of JSON beside a weight; `_quantization_metadata` in the
header; `scaled_fp8` and `scale_weight` of older files. A scale without a mark is taken for what it must be.
"""

import json
import re
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from ...errors import FileError
from .. import checkpoint
from ..checkpoint import TensorInfo, read_header, read_metadata, read_some, strip_prefix
from ..frozen import FloatWeight, FrozenWeight
from ..kinds import READABLE
from .formats import BY_DTYPE, FLOAT8, FOREIGN, FORMATS
from .fp8 import CastFloat8
from .stored import Format, Parts, Settings, Stored

# Never weights of ours: buffers that some exporters write, and what quantised activations would need
IGNORED = re.compile(r"(^|\.)(pos_embedder\..*|_extra_state|accum_.*|comfy_quant|input_scale|scale_input|scaled_fp8)$")
SIDES = {"weight_scale": "scale", "scale_weight": "scale", "weight_scale_2": "scale_2"}  # name in a file -> part
MARK = "comfy_quant"
LONGEST_MARK = 10_000  # bytes; ComfyUI's have about 80
FLOAT_DTYPES = {"F64", "F32", "F16", "BF16"}


def read_stored(path: Path) -> dict[str, Stored]:
    """Return how each tensor of a model is stored. Raises FileError for what is not read, or not whole."""
    header = read_header(path)
    check_read(path, header)
    settings = all_settings(path, header)
    sides = sides_of(path, header)
    found = {}
    for key in header:
        if IGNORED.search(key) or key.rpartition(".")[2] in SIDES:
            continue
        layer = key.removesuffix(".weight") if key.endswith(".weight") else ""
        said = settings.get(layer) or settings.get(strip_prefix(layer)) if layer else None
        found[key] = _stored(path, header, {"weight": key, **sides.get(layer, {})}, said)
    return found


def check_read(path: Path, header: dict[str, TensorInfo]) -> None:
    """Refuse the files of other quantisers, and dtypes that this torch lacks."""
    for key, info in header.items():
        for mark, what in FOREIGN:
            if mark.search(key):
                raise FileError(f"{path}: is quantised by {what} ({key}), which is not read; {READABLE}")
        if info.dtype not in checkpoint.FORMATS:
            raise FileError(f"{path}: {key} is of {info.dtype}, which this version of torch lacks; {READABLE}")


def all_settings(path: Path, header: dict[str, TensorInfo]) -> dict[str, Settings]:
    """Return what a file says about its layers, by their names there."""
    said = read_metadata(path).get("_quantization_metadata")
    layers = _json(path, "_quantization_metadata", said).get("layers") if said else {}
    if not isinstance(layers, dict):
        raise FileError(f"{path}: `_quantization_metadata` in its header is damaged; download it again")
    marks = [key for key in header if key.rpartition(".")[2] == MARK]
    for key in marks:
        if header[key].dtype not in ("U8", "I8") or sum(header[key].shape) > LONGEST_MARK:
            raise FileError(f"{path}: {key} is damaged; download it again")
    texts = {key: text for key, text in read_some(path, marks).items()}
    return layers | {key.removesuffix(f".{MARK}"): _json(path, key, text) for key, text in texts.items()}


def _json(path: Path, name: str, text: str | bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FileError(f"{path}: {name} is damaged; download it again")
    return found


def sides_of(path: Path, header: dict[str, TensorInfo]) -> dict[str, dict[str, str]]:
    """Return the keys of each layer's scales, by part. Raises FileError for one without a weight."""
    found: dict[str, dict[str, str]] = {}
    for key in header:
        layer, _, name = key.rpartition(".")
        if name not in SIDES:
            continue
        if f"{layer}.weight" not in header:
            raise FileError(f"{path}: {key} is there and {layer}.weight is missing; download it again")
        found.setdefault(layer, {})[SIDES[name]] = key
    return found


def _stored(path: Path, header: dict[str, TensorInfo], keys: dict[str, str], said: Any) -> Stored:
    """Say how one tensor is stored. keys: of its parts. said: its settings, if it has any. Raises FileError."""
    key = keys["weight"]
    if said is None and len(keys) == 1:
        made: Callable[[Parts], FrozenWeight] = _plain(path, key, header[key])
    else:
        known = _format(path, key, header[key], said)
        check_parts(path, keys, header, known)
        made = _marked(known, said or {})
    stored = Stored(keys, {part: header[name] for part, name in keys.items()}, made)
    try:
        stored.check()
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise FileError(f"{path}: {key}: {str(error).splitlines()[0][:200]}; use another file of this model") from None
    return stored


def _marked(known: Format, settings: Settings) -> Callable[[Parts], FrozenWeight]:
    return lambda parts: known.make(parts, settings)


def _plain(path: Path, key: str, info: TensorInfo) -> Callable[[Parts], FrozenWeight]:
    if info.dtype in FLOAT8:
        return lambda parts: CastFloat8(parts["weight"])
    if key.endswith("weight") and info.dtype not in FLOAT_DTYPES:
        raise FileError(f"{path}: is quantised in a way that is not read ({key}, {info.dtype}, without a scale); {READABLE}")
    return lambda parts: FloatWeight(parts["weight"])


def _format(path: Path, key: str, info: TensorInfo, said: Any) -> Format:
    name = said.get("format") if isinstance(said, dict) else None
    known = FORMATS.get(name) if isinstance(name, str) else BY_DTYPE.get(info.dtype) if said is None else None
    if known is None:
        what = repr(name)[:60] if said is not None else f"{info.dtype} with a scale"
        raise FileError(f"{path}: is quantised as {what} ({key}), which is not read; {READABLE}")
    return known


def check_parts(path: Path, keys: dict[str, str], header: dict[str, TensorInfo], known: Format) -> None:
    """Raise FileError for a weight that lacks a part, has one too many, or numbers of another dtype."""
    key, dtype = keys["weight"], header[keys["weight"]].dtype
    names = {part: name for name, part in reversed(SIDES.items())}
    if missing := [part for part in known.sides if part not in keys]:
        scale = f"{key.removesuffix('weight')}{names[missing[0]]}"
        raise FileError(f"{path}: {scale} is missing, without which a weight of {known.name} means nothing; download it again")
    if others := [name for part, name in keys.items() if part not in ("weight", *known.sides)]:
        raise FileError(f"{path}: {others[0]} does not belong to a weight of {known.name}; use another file of this model")
    if dtype not in known.dtypes:
        raise FileError(f"{path}: {key} is marked as {known.name} and is of {dtype}; use another file of this model")


def read_parts(path: Path, keys: Container[str]) -> Iterator[tuple[str, Tensor]]:
    return checkpoint.read_tensors(path, keys)

"""Models as the workshop reads them: only those that are stored as plain floats, layers by the names of our model."""

from collections.abc import Mapping
from pathlib import Path

from ...errors import FileError
from ...models.checkpoint import TensorInfo, read_header
from ...models.frozen import FloatWeight
from ...models.quantised import read_stored
from ...models.quantised.safetensors_file import FLOAT_DTYPES
from ..analysis import weight_of


def plain_header(path: str | Path, way_out: str) -> dict[str, TensorInfo]:
    """Return the header of a model's file. Raises FileError for a quantised one, with the way out."""
    header = read_header(path)
    quantised = [(key, stored.kind) for key, stored in read_stored(path).items() if stored.kind != FloatWeight.kind]
    if quantised:
        key, kind = quantised[0]
        raise FileError(f"{path}: {len(quantised)} weights are quantised, first {key} ({kind}); {way_out}")
    return header


def weights_in(header: Mapping[str, TensorInfo]) -> dict[str, str]:
    """Return the keys of weights by their layers' names in our model."""
    return {layer: key for key, info in header.items() if info.dtype in FLOAT_DTYPES and (layer := weight_of(key))}

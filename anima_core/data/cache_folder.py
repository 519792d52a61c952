"""Where everything that is cached lies."""

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import FileError
from ..settings import DatasetConfig

CACHE = ".anima_cache"
INDEX = "files.sqlite"  # in the cache folder: what was found in files, see `index`


def cache_beside(datasets: Sequence[DatasetConfig]) -> Path | None:
    """Return the cache folder in the first folder of pictures, where that can be written. Raises FileError."""
    pictures = Path(datasets[0].subsets[0].image_dir)
    if not pictures.is_dir():
        raise FileError(f"{pictures}: no such folder of pictures; check `subset.image_dir`")
    return pictures / CACHE if os.access(pictures, os.W_OK) else None

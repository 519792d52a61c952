"""Names of files that nodes write: plain, inside their folder, never on top of another run's."""

import re
from pathlib import Path

import folder_paths

from ..anima_core.config import LONGEST_NAME, NOT_IN_NAMES
from ..anima_core.errors import SettingError

RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)$", re.IGNORECASE)  # device names on Windows


def safe_name(name: str, setting: str = "output_name") -> str:
    """Check a file name that a user typed. Letters of any script are fine; separators and Windows' device names are not."""
    plain = name.strip().removesuffix(".safetensors").rstrip(". ")
    if not plain or NOT_IN_NAMES.search(plain) or plain.startswith(".") or RESERVED.match(plain):
        raise SettingError(f'{setting}={name!r}: use a plain file name without / \\ : * ? " < > |')
    if len(plain.encode()) > LONGEST_NAME:
        raise SettingError(f"{setting}: a name of {len(plain.encode())} bytes; use at most {LONGEST_NAME}")
    return plain


def unused_path(folder: Path, name: str) -> Path:
    """`name.safetensors`, or `name-2`, `name-3`, … when that is taken."""
    path, number = folder / f"{name}.safetensors", 1
    while path.exists():
        number += 1
        path = folder / f"{name}-{number}.safetensors"
    return path


def loras_folder() -> Path:
    """The first folder of `loras`: where the dropdowns of every LoRA loader look."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder

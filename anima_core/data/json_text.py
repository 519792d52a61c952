"""JSON that others wrote, read as text that can be printed, hashed and turned into tokens."""

import json
import re
from typing import Any

HALVES = re.compile("[\ud800-\udfff]")  # of a character beyond the first 65536: alone it stands for nothing, and UTF-8 has none
CONTROLS = re.compile("[\0-\x08\x0e-\x1b\x7f]")  # but for white space


def load_json(text: str) -> Any:
    """Read JSON. Raises ValueError, also for half a character, and RecursionError."""
    data = json.loads(text)
    if half := "\\u" in text and half_character(json.dumps(data, ensure_ascii=False)):
        raise ValueError(half)
    return data


def half_character(text: str) -> str:
    r"""Say which half of a character stands in a text; nothing where none does. Programs that cut an emoji leave "\ud83d"."""
    half = HALVES.search(text)
    return f"half a character ({ascii(half[0])[1:-1]})" if half else ""


def without_controls(text: str) -> str:
    """Leave out characters that nobody sees."""
    return CONTROLS.sub("", text)

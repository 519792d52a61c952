"""Values of a file, checked against the flag that they stand for."""

from typing import Any

from ..errors import SettingError
from .flags import Flag

TYPES = {"str": str, "path": str, "int": int, "float": float}


def typed_value(flag: Flag, value: Any, where: str) -> Any:
    """A TOML value as the flag's kind, or an error that names the place."""
    if flag.kind == "list":
        items = value.split() if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return items
    elif flag.kind == "switch":
        if isinstance(value, bool):
            return value
    elif flag.kind in ("str", "path"):
        if isinstance(value, list):
            return ",".join(map(str, value))
        if not isinstance(value, bool):
            return str(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if flag.kind == "float" or value == int(value):
            return TYPES[flag.kind](value)
    raise SettingError(f"{where}={value!r}: must be {flag.kind}")

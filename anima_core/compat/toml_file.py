"""Reading TOML, and finding the line of a key for error messages."""

import re
from pathlib import Path
from typing import Any

import toml

from ..errors import FileError, SettingError
from .flags import Flag

TYPES = {"str": str, "int": int, "float": float}


def read_toml(path: str | Path) -> dict[str, Any]:
    """Raises FileError that names the file and, for a mistake in it, the line."""
    try:
        return toml.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except (toml.TomlDecodeError, UnicodeDecodeError, IndexError, ValueError) as error:
        raise FileError(f"{path}: not valid TOML: {str(error).splitlines()[0]}") from None


def line_of(path: str | Path, table: str, key: str) -> int:
    """Line number of `key` in `[table]` or `[[table]]` ("": above the first table); 0 when it is not found."""
    current = ""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        heading = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if heading:
            current = heading[1]
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return 0


def typed_value(flag: Flag, value: Any, where: str) -> Any:
    """A TOML value as the flag's kind, or an error that names the place."""
    if flag.kind == "list":
        items = value.split() if isinstance(value, str) else value
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return items
    elif flag.kind == "switch":
        if isinstance(value, bool):
            return value
    elif flag.kind == "str":
        if isinstance(value, list):
            return ",".join(map(str, value))
        if not isinstance(value, bool):
            return str(value)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if flag.kind == "float" or value == int(value):
            return TYPES[flag.kind](value)
    raise SettingError(f"{where}={value!r}: must be {flag.kind}")

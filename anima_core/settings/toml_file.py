"""TOML: read, written, and searched for the line of a key.

Written with `toml`, its strings replaced by JSON's, which are TOML's too: the package's own break on quotes and
backslashes. Read with the standard library where Python has it (3.11), else with `toml`.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import toml

from ..errors import FileError

if sys.version_info >= (3, 11):
    from tomllib import loads
else:
    from toml import loads

MOST_DOTS = 1000  # in a line: the parsers take the square of a dotted key's length, minutes for 50,000


class Encoder(toml.TomlEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.dump_funcs[str] = lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def dump_toml(data: dict[str, Any]) -> str:
    return toml.dumps(data, encoder=Encoder())


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file. Raises FileError that names the file and what is wrong with it."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise FileError(f"{path}: not valid TOML: a line of more than {MOST_DOTS} dots")
        return loads(text)
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except RecursionError:
        raise FileError(f"{path}: not valid TOML: nested too deeply") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:  # `toml` also trips over its own feet
        raise FileError(f"{path}: not valid TOML: {' '.join(str(error).split())[:200]}") from None


def line_of(path: str | Path, table: str, key: str) -> int:
    """Return the line number of `key` in `[table]` or `[[table]]` ("": above the first table); 0 when it is not found."""
    current = ""
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), start=1):
        heading = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if heading:
            current = heading[1]
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return 0

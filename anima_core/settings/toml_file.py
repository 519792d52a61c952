"""TOML: read, written, and searched for the line of a key.

Written with `toml`, its strings replaced by JSON's, which are TOML's too: the package's own break on quotes and
backslashes. Read with the standard library where Python has it (3.11), else with `toml`.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import toml

from ..errors import FileError

if sys.version_info >= (3, 11):
    from tomllib import loads
else:
    from toml import loads

WINDOWS_PATH = re.compile(r'^[^#\']*"(?:[A-Za-z]:|\.{1,2}|\\)\\(?!\\)')
BACKSLASH = "a backslash in double quotes means another character; write / instead, or put the path in single quotes"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f]|\A(?:[A-Za-z]:|\.{1,2}|\\)[^/\\]*\n")  # \n alone is also a prompt's line break
YAML = re.compile(r"^(---|\s*(- )?[\w.-]+:(\s|$))")
MOST_DOTS = 1000  # in a line: the parsers take the square of a dotted key's length, minutes for 50,000


class Encoder(toml.TomlEncoder):
    def __init__(self) -> None:
        super().__init__()
        self.dump_funcs[str] = lambda text: json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def dump_toml(data: dict[str, Any]) -> str:
    return toml.dumps(data, encoder=Encoder())


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file, or JSON of the same content, as sd-scripts does. Raises FileError: what is wrong, and in which line."""
    return parse_toml(read_text(path), path)


def parse_toml(text: str, path: str | Path) -> dict[str, Any]:
    """Do the same with the text of a file that was read. path: to be named."""
    if text.lstrip().startswith("{"):  # no TOML does
        return read_json(path, text)
    try:
        if any(line.count(".") > MOST_DOTS for line in text.splitlines()):
            raise FileError(f"{path}: not valid TOML: a line of more than {MOST_DOTS} dots; write shorter keys")
        data = loads(text)
    except RecursionError:
        raise FileError(f"{path}: not valid TOML: nested too deeply; use tables of one or two levels") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:  # `toml` also trips over its own feet
        raise FileError(f"{path}{no_toml(text, ' '.join(str(error).split())[:200])}") from None
    if any(CONTROL.search(value) for value in strings(data)) and (line := backslash_line(text)):
        raise FileError(f"{path}, line {line}: {BACKSLASH}")
    return data


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8. Raises FileError that says what the file is otherwise."""
    if not str(path):
        raise FileError("'': no file is named; name a .toml file")
    if Path(path).is_dir():
        raise FileError(f"{path}: is a folder; name the .toml file in it")
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise FileError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileError(f"{path}: is {encoding_of(data)}, not UTF-8 (line {line}); save it as UTF-8") from None


def encoding_of(data: bytes) -> str:
    """Name the encoding of what is not UTF-8, as far as the bytes tell."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "UTF-16"
    if b"\0" in data:
        return "no text"
    try:
        data.decode("gb18030")
    except UnicodeDecodeError:
        return "in another encoding"
    return "in GBK or another older encoding"


def read_json(path: str | Path, text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = f"{error.msg}, line {error.lineno}" if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise FileError(f"{path}: begins like JSON, and is not valid ({reason}); repair it, or write TOML") from None
    return dict(without_nulls(data))


def without_nulls(value: Any) -> Any:
    """Leave out what JSON says is not set: TOML has no word for it."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def no_toml(text: str, reason: str) -> str:
    """Say what a text is that is no TOML, and the way out: ", line 4: a backslash …" or ": is YAML …"."""
    if line := backslash_line(text):
        return f", line {line}: {BACKSLASH}"
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and not any("=" in line for line in lines) and any(YAML.match(line) for line in lines):
        return ": is YAML, which is not read; write it as TOML: key = value below [table]"
    if lines and lines[0].startswith("[{"):
        return ": is a JSON list, which is not read; write it as TOML"
    return f": not valid TOML: {reason}; repair that line"


def backslash_line(text: str) -> int:
    """Return the number of the first line with a Windows path in double quotes; 0 for none."""
    return next((n for n, line in enumerate(text.splitlines(), start=1) if WINDOWS_PATH.search(line)), 0)


def strings(value: Any) -> Iterator[str]:
    """Yield every string within tables and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


def line_of(path: str | Path, table: str, key: str) -> int:
    """Return the line number of `key` in `[table]` or `[[table]]` ("": above the first table); 0 when it is not found.

    In JSON, whose tables have no lines of their own, it is the first line with the key.
    """
    current, text = "", Path(path).read_text(encoding="utf-8-sig")
    in_json = text.lstrip().startswith("{")
    for number, line in enumerate(text.splitlines(), start=1):
        if in_json:
            if re.search(rf'"{re.escape(key)}"\s*:', line):
                return number
            continue
        heading = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if heading:
            current = heading[1]
        elif current == table and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return number
    return 0

"""What is said about names that nobody knows: all of them at once, each with its line and the nearest known one."""

import difflib
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import SettingError
from ..settings.toml_file import line_of


class Unknown(NamedTuple):
    """A key of a file, or a table, that its dialect does not have. known: what it may have been meant for.

    table: its table, empty for a key at the top. prefix: what stands before it in messages. is_table: it is a table itself.
    """

    table: str
    key: str
    known: Collection[str]
    prefix: str = ""
    is_table: bool = False

    def said(self) -> str:
        name = f"table [{self.key}]" if self.is_table else f"key {self.prefix}{self.key}"
        return f"unknown {name}{hint(self.key, self.known)}"

    def line(self, path: str) -> int:
        return line_of_table(path, self.key) if self.is_table else line_of(path, self.table, self.key)


def hint(name: str, known: Collection[str], prefix: str = "") -> str:
    near = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


def refuse_unknown(where: str, found: Sequence[Unknown]) -> None:
    """Raise SettingError when there are any. where: the file, or what else the keys stand in."""
    if not found:
        return
    if not Path(where).is_file():
        raise SettingError(f"{where}: {'; '.join(unknown.said() for unknown in found)}")
    said = "; ".join(f"line {unknown.line(where)}: {unknown.said()}" for unknown in found)
    raise SettingError(f"{where}, {said}")


def line_of_table(path: str, table: str) -> int:
    """Return the line number of [table], [[table]] or [table.inner]; 0 when it is not found."""
    lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    found = rf"\s*\[+\s*[\"']?{re.escape(table)}(?![\w-])"
    return next((number for number, line in enumerate(lines, start=1) if re.match(found, line)), 0)

"""Remembers what was found in files, so that the next start reads only what is new or changed."""

import sqlite3
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSION = 2  # of what is remembered; another one starts afresh
TABLE = "CREATE TABLE IF NOT EXISTS files (folder, name, size, time, found, PRIMARY KEY (folder, name)) WITHOUT ROWID"
SETTLED_NS = 2_000_000_000  # a file younger than this may change again within one tick of its clock (2 s on FAT)
READERS = 4  # threads: decoding and hashing let go of Python's lock
AT_ONCE = 64  # files between two looks at the progress listener, and two writes

Progress = Callable[[int, int], None]
Stamp = tuple[int, int]  # what tells an unchanged file: bytes, and nanoseconds of its last change


class FileIndex:
    """(folder, file name) -> stamp and findings, in an SQLite file; in memory when there is no path.

    Losing it costs time only, so a damaged file is made anew and a write that fails is let go.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = open_database(path)
        except (sqlite3.Error, OSError):  # damaged
            try:
                path.unlink(missing_ok=True)
                self._db = open_database(path)
            except (sqlite3.Error, OSError):
                self._db = open_database(None)

    def known(self, folder: Path, files: dict[str, Stamp]) -> dict[str, str]:
        """What is remembered of those files that are unchanged. Files that are gone are forgotten."""
        try:
            rows = self._db.execute("SELECT name, size, time, found FROM files WHERE folder = ?", (str(folder),)).fetchall()
        except sqlite3.Error:
            return {}
        found = {name: what for name, size, when, what in rows if files.get(name) == (size, when)}
        if len(found) < len(rows):
            gone = [(str(folder), row[0]) for row in rows if row[0] not in files]
            self._write("DELETE FROM files WHERE folder = ? AND name = ?", gone)
        return found

    def remember(self, folder: Path, found: Iterable[tuple[str, Stamp, str]]) -> None:
        """Files that changed a moment ago are not believed next time."""
        now = time.time_ns()
        rows = [
            (str(folder), name, size, when if abs(now - when) > SETTLED_NS else -1, what) for name, (size, when), what in found
        ]
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def _write(self, statement: str, rows: list[tuple]) -> None:
        try:
            with self._db:
                self._db.executemany(statement, rows)
        except sqlite3.Error:
            pass

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "FileIndex":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_database(path: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(path or ":memory:", timeout=10)
    try:
        if db.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
            db.execute("DROP TABLE files")
        db.execute(TABLE)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("PRAGMA synchronous = OFF")  # a lost index is made anew
        return db
    except sqlite3.Error:
        db.close()  # Windows deletes no open file
        raise


def look_at(
    folder: Path,
    files: dict[str, Stamp],
    names: Iterable[str],
    examine: Callable[[Path], str],
    index: FileIndex,
    progress: Progress,
) -> dict[str, str]:
    """What `examine` finds in each named file, as text: remembered, or looked up now by several threads.

    files: all that the folder holds. What was done before an interruption is kept.
    """
    found = index.known(folder, files)
    todo = [name for name in names if name not in found]
    with ThreadPoolExecutor(READERS, thread_name_prefix="anima-scan") as readers:
        for start in range(0, len(todo), AT_ONCE):
            some = todo[start : start + AT_ONCE]
            results = list(readers.map(lambda name: examine(folder / name), some))
            found.update(zip(some, results))
            index.remember(folder, [(name, files[name], what) for name, what in zip(some, results)])
            progress(start + len(some), len(todo))
    return found

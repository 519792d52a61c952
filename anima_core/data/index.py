"""Remembers what was found in files, so that the next start reads only what is new or changed."""

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSION = 3  # of what is remembered; another one starts afresh
TABLES = (
    "CREATE TABLE IF NOT EXISTS files (folder, name, size, time, found, PRIMARY KEY (folder, name)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS folders (folder PRIMARY KEY, key, found) WITHOUT ROWID",
)
DAMAGE = (sqlite3.Error, OSError, ValueError)  # what comes of a damaged file; ValueError: bytes that are no UTF-8
SETTLED_NS = 2_000_000_000  # a file younger than this may change again within one tick of its clock (2 s on FAT)
READERS = 4  # threads: decoding and hashing let go of Python's lock
AT_ONCE = 64  # files between two looks at the progress listener, and two writes

Progress = Callable[[int, int], None]
Stamp = tuple[int, int]  # what tells an unchanged file: bytes, and nanoseconds of its last change


class FileIndex:
    """(folder, file name) -> stamp and findings, and folder -> all that was made of them, in an SQLite file; in memory when
    there is no path.

    Losing it costs time only, so a damaged file is made anew and a write that fails is let go.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = open_database(path)
        except DAMAGE:
            try:
                path.unlink(missing_ok=True)
                self._db = open_database(path)
            except DAMAGE:
                self._db = open_database(None)

    def known(self, folder: Path, files: dict[str, Stamp]) -> dict[str, str]:
        """What is remembered of those files that are unchanged. Files that are gone are forgotten."""
        try:
            rows = self._db.execute("SELECT name, size, time, found FROM files WHERE folder = ?", (str(folder),)).fetchall()
        except DAMAGE:
            return {}
        found = {row[0]: row[3] for row in rows if files.get(row[0]) == row[1:3]}
        found = {name: text for name, kept in found.items() if (text := unsealed(kept)) is not None}
        if len(found) < len(rows):
            gone = [(str(folder), row[0]) for row in rows if row[0] not in files]
            self._write("DELETE FROM files WHERE folder = ? AND name = ?", gone)
        return found

    def remember(self, folder: Path, found: Iterable[tuple[str, Stamp, str]]) -> None:
        """Files that changed a moment ago are not believed next time."""
        now = time.time_ns()
        rows = [(str(folder), name, size, when if is_settled(when, now) else -1, sealed(w)) for name, (size, when), w in found]
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def whole_folder(self, folder: Path, key: str) -> str | None:
        """What was made of a folder whose files and reading are as `key` says: one row instead of one for each file."""
        try:
            row = self._db.execute("SELECT found FROM folders WHERE folder = ? AND key = ?", (str(folder), key)).fetchone()
        except DAMAGE:
            return None
        return unsealed(row[0]) if row else None

    def remember_whole(self, folder: Path, key: str, found: str) -> None:
        self._write("INSERT OR REPLACE INTO folders VALUES (?, ?, ?)", [(str(folder), key, sealed(found))])

    def _write(self, statement: str, rows: list[tuple]) -> None:
        try:
            with self._db:
                self._db.executemany(statement, rows)
        except DAMAGE:
            pass

    def close(self) -> None:
        self._db.close()

    def __enter__(self) -> "FileIndex":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def sealed(text: str) -> str:
    """With its checksum: SQLite keeps none, and a flipped bit in a caption would be believed."""
    return f"{zlib.crc32(text.encode()):08x}{text}"


def unsealed(text: object) -> str | None:
    """None when it is not as it was written."""
    return text[8:] if isinstance(text, str) and sealed(text[8:]) == text else None


def is_settled(changed: int, now: int) -> bool:
    return abs(now - changed) > SETTLED_NS


def open_database(path: Path | None) -> sqlite3.Connection:
    db = sqlite3.connect(path or ":memory:", timeout=10)
    try:
        if db.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
            db.execute("DROP TABLE IF EXISTS files")
            db.execute("DROP TABLE IF EXISTS folders")
        for table in TABLES:
            db.execute(table)
        db.execute(f"PRAGMA user_version = {VERSION}")
        db.execute("PRAGMA synchronous = OFF")  # a lost index is made anew
        return db
    except BaseException:
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

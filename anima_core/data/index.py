"""Remembering what was found in files, so that the next start reads only what is new or changed."""

import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

VERSION = 5  # of what is remembered; another one starts afresh
TABLES = (
    "CREATE TABLE IF NOT EXISTS files (folder, name, size, time, found, PRIMARY KEY (folder, name)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS folders (folder PRIMARY KEY, key, found) WITHOUT ROWID",
)
DAMAGE = (sqlite3.Error, OSError, ValueError)  # raised for a damaged database; ValueError: for bytes that are not UTF-8
SETTLED_NS = 2_000_000_000  # a file younger than this may change again within one tick of its clock (2 s on FAT)
READERS = 4  # threads: decoding and hashing let go of Python's lock
AT_ONCE = 64  # files between two reports of progress, and two writes

Progress = Callable[[int, int], None]
Stamp = tuple[int, int]  # how an unchanged file is recognised: its bytes, and nanoseconds of its last change


class FileIndex:
    """(folder, file name) -> stamp and findings, and folder -> all that was made of them, in SQLite; in memory without a path.

    What is found in a file for another purpose, at another time, is a kind of its own, which leaves the rest as it is.
    Losing the database costs time only, so a damaged one is made again and a write that fails is ignored.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = open_database(path)
        except DAMAGE:
            try:
                assert path is not None
                path.unlink(missing_ok=True)
                self._db = open_database(path)
            except DAMAGE:
                self._db = open_database(None)

    def known(self, folder: Path, files: dict[str, Stamp], kind: str = "") -> dict[str, str]:
        """Return what is remembered of those files that are unchanged. Files that are gone are forgotten."""
        place = place_of(folder, kind)
        try:
            rows = self._db.execute("SELECT name, size, time, found FROM files WHERE folder = ?", (place,)).fetchall()
        except DAMAGE:
            return {}
        found = {row[0]: row[3] for row in rows if files.get(row[0]) == row[1:3]}
        found = {name: text for name, kept in found.items() if (text := verified(kept)) is not None}
        if len(found) < len(rows):
            gone = [(place, row[0]) for row in rows if row[0] not in files]
            self._write("DELETE FROM files WHERE folder = ? AND name = ?", gone)
        return found

    def remember(self, folder: Path, found: Iterable[tuple[str, Stamp, str]], kind: str = "") -> None:
        """Store findings. Those of a file that changed a moment ago are not believed next time."""
        now = time.time_ns()
        rows = [
            (place_of(folder, kind), name, size, when if is_settled(when, now) else -1, with_checksum(w))
            for name, (size, when), w in found
        ]
        self._write("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)", rows)

    def known_folder(self, folder: Path, key: str) -> str | None:
        """Return what was made of a folder whose files and reading are as `key` says: one row instead of one for each file."""
        try:
            row = self._db.execute("SELECT found FROM folders WHERE folder = ? AND key = ?", (str(folder), key)).fetchone()
        except DAMAGE:
            return None
        return verified(row[0]) if row else None

    def remember_folder(self, folder: Path, key: str, found: str) -> None:
        self._write("INSERT OR REPLACE INTO folders VALUES (?, ?, ?)", [(str(folder), key, with_checksum(found))])

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


def place_of(folder: Path, kind: str) -> str:
    """Return the folder's name in the database; a kind stands behind a NUL, which no path holds."""
    return f"{folder}\0{kind}" if kind else str(folder)


def with_checksum(text: str) -> str:
    """Put the CRC-32 in front: SQLite keeps none, and a flipped bit in a caption would be believed."""
    return f"{zlib.crc32(text.encode()):08x}{text}"


def verified(text: object) -> str | None:
    """Return the text behind its checksum; None when it is not as it was written."""
    return text[8:] if isinstance(text, str) and with_checksum(text[8:]) == text else None


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
        db.execute("PRAGMA synchronous = OFF")  # a lost index costs time only
        return db
    except BaseException:
        db.close()  # Windows deletes no open file
        raise


def scan_files(
    folder: Path,
    files: dict[str, Stamp],
    names: Iterable[str],
    scan: Callable[[Path], str],
    index: FileIndex,
    progress: Progress,
    kind: str = "",
) -> dict[str, str]:
    """Return what `scan` finds in each named file, as text: remembered, or found now by several threads.

    files: all that the folder holds. kind: of what is found. What was scanned before an interruption is kept.
    """
    found = index.known(folder, files, kind)
    todo = [name for name in names if name not in found]
    with ThreadPoolExecutor(READERS, thread_name_prefix="anima-scan") as readers:
        for start in range(0, len(todo), AT_ONCE):
            some = todo[start : start + AT_ONCE]
            results = list(readers.map(lambda name: scan(folder / name), some))
            found.update(zip(some, results))
            index.remember(folder, [(name, files[name], what) for name, what in zip(some, results)], kind)
            progress(start + len(some), len(todo))
    return found

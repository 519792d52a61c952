"""Files: written whole or not at all, hashed, and given names that every file system takes and nothing else has."""

import errno
import hashlib
import itertools
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import FileError, SettingError

FORBIDDEN = re.compile(r'[/\\:*?"<>|\x00-\x1f\ud800-\udfff]')  # lone surrogates stand for bytes that are no text
MAX_NAME_BYTES = 180  # file systems take 255; names of checkpoints and temporary files are longer than the run's
RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)$", re.IGNORECASE)  # device names on Windows
REFUSED_FOR_A_MOMENT = (5, 32)  # Windows' errors while a virus scanner, an indexer or a backup looks at a fresh file
PATIENCE, PAUSE = 3.0, 0.1  # seconds
PIECE = 1 << 22  # bytes that are read at once to be hashed
TEMPORARY = r"\.[0-9a-f]{8}\.tmp"  # how every half-written file ends


def is_plain_name(name: str) -> bool:
    """Check that a name means a file inside its folder, on every system."""
    return bool(name.strip()) and not FORBIDDEN.search(name) and name not in (".", "..")


def safe_name(name: str, setting: str = "`output.name`") -> str:
    """Check a file name that a user typed, and return it without `.safetensors`. Raises SettingError.

    Letters of any script are fine; separators, hidden names and Windows' device names are not.
    """
    plain = name.strip().removesuffix(".safetensors").rstrip(". ")
    if not is_plain_name(plain) or plain.startswith(".") or RESERVED.match(plain):
        raise SettingError(f'{setting}={name!r}: use a plain file name without / \\ : * ? " < > |')
    if len(plain.encode()) > MAX_NAME_BYTES:
        raise SettingError(f"{setting}: a name of {len(plain.encode())} bytes; use at most {MAX_NAME_BYTES}")
    return plain


def write_whole(path: Path, content: bytes | str | Callable[[Path], Any], durable: bool = True) -> None:
    """Write a file that appears whole or not at all, making its folder.

    content: bytes, text (UTF-8), or a function that writes to the path it is given. durable: also survive a power cut.
    Raises what writing raised, an OSError as a rule, with nothing half-written left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem[:200]}.{secrets.token_hex(4)}.tmp")
    try:
        if callable(content):
            content(temporary)
            os.chmod(temporary, 0o644)  # safetensors writes files that only their owner may read
        else:
            temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        if durable:
            flush_to_disk(temporary)
        replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def replace(source: Path, target: Path) -> None:
    """Move a file or folder to where the target is; a move that Windows refuses for a moment is tried for seconds.

    Raises OSError.
    """
    for left in range(round(PATIENCE / PAUSE), -1, -1):
        try:
            os.replace(source, target)
            return
        except PermissionError as error:
            if left == 0 or getattr(error, "winerror", None) not in REFUSED_FOR_A_MOMENT:
                raise
        time.sleep(PAUSE)


def delete(path: Path) -> bool:
    """Delete a file or a folder, if it is there; tell whether it is gone. One that something has open on Windows stays."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


def longest_path() -> int:
    """Return how long a path may be: 259 characters on Windows, unless its user has allowed long ones (LongPathsEnabled)."""
    if sys.platform != "win32":
        return 4095
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, r"SYSTEM\CurrentControlSet\Control\FileSystem") as key:
            return 32767 if winreg.QueryValueEx(key, "LongPathsEnabled")[0] else 259
    except OSError:
        return 259


def flush_to_disk(path: Path) -> None:
    """Make a file, or the names in a folder, survive a power cut. Windows keeps a folder's names by itself."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


SUFFIXES = (".safetensors", ".png")  # of files that are numbered; what else stands behind a dot is a part of a name


def unused(path: Path, taken: Callable[[Path], bool] = Path.exists) -> Path:
    """Return the path itself, or the first of `name-2`, `name-3`, … that is free; behind it a suffix of `SUFFIXES`."""
    stem, suffix = (path.stem, path.suffix) if path.suffix in SUFFIXES else (path.name, "")
    numbered = (path.with_name(f"{stem}-{number}{suffix}") for number in itertools.count(2))
    return next(candidate for candidate in itertools.chain([path], numbered) if not taken(candidate))


def digest(path: Path, on_read: Callable[[int], None] = lambda count: None) -> str:
    """Return the SHA-256 of a file, as hex. on_read: hears of every few bytes. Raises FileError when it cannot be read."""
    found = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(PIECE):
                found.update(chunk)
                on_read(len(chunk))
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check that it is there, and start again") from None
    return found.hexdigest()


Stamp = tuple[int, int]  # how an unchanged file is recognised: its bytes, and nanoseconds of its last change

_digests: dict[tuple[Path, Stamp], str] = {}  # by the real path: model files have gigabytes


def stamp(path: Path) -> Stamp:
    """Return a file's stamp. Raises FileError.

    Of its two times the later one, which no program sets back where it is that of any change. On Windows it is that of
    creation: there a file that is rewritten in place, with its length and time kept, is taken for what it was.
    """
    try:
        stat = path.stat()
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return stat.st_size, max(stat.st_mtime_ns, stat.st_ctime_ns)


def learn(path: Path, when: Stamp, found: str) -> None:
    """Remember the digest of a file that had this stamp, for `known` and `identity`."""
    _digests[path.resolve(), when] = found


def known(path: Path) -> str | None:
    """Return the digest of a file that has not changed since it was learnt. Raises FileError."""
    return _digests.get((path.resolve(), stamp(path)))


class Reading:
    """A file that is read once, from front to back. What is passed over is read too where its digest is not known yet."""

    def __init__(self, file: BinaryIO, hashing: Any) -> None:
        self.file, self.hashing = file, hashing

    def fill(self, buffer: memoryview) -> None:
        """Fill a buffer with what comes next. Raises OSError for what ends too early."""
        if self.file.readinto(buffer) < len(buffer):  # type: ignore[attr-defined]  # typing's BinaryIO lacks it
            raise OSError(errno.EIO, "it ends too early")
        if self.hashing is not None:
            self.hashing.update(buffer)

    def pass_over(self, count: int) -> None:
        """Go on behind so many bytes. Raises OSError as `fill` does, where it reads them."""
        if self.hashing is None:
            self.file.seek(count, os.SEEK_CUR)
            return
        buffer = memoryview(bytearray(min(count, PIECE)))
        while count > 0:
            self.fill(buffer[:count])
            count -= len(buffer)


@contextmanager
def read_through(path: Path) -> Iterator[Reading]:
    """Open a file to be read once, from front to back.

    Where its digest is not known it is learnt on the way, if all is read. Raises OSError, also for what ends too early.
    """
    when, hashing = stamp(path), None if known(path) else hashlib.sha256()
    with open(path, "rb") as file:
        yield Reading(file, hashing)
        if hashing is not None and not file.read(1):
            learn(path, when, hashing.hexdigest())


def identity(path: str | Path, on_read: Callable[[int], None] = lambda count: None) -> str:
    """Return the SHA-256 of a file's content, or of the names and contents of a folder's files, as hex.

    A file is read again only when its stamp has changed; on_read hears how many bytes of it were. Raises FileError.
    """
    path = Path(path)
    if path.is_dir():
        found = hashlib.sha256()
        for file in files_in(path):
            found.update(f"{file.name}\0{identity(file, on_read)}\n".encode())
        return found.hexdigest()
    if (former := known(path)) is not None:
        return former
    when, now = stamp(path), digest(path, on_read)
    learn(path, when, now)
    return now


def files_in(path: Path) -> list[Path]:
    """List the files of a folder that are not hidden, in order, or the file itself."""
    return sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith(".")) if path.is_dir() else [path]

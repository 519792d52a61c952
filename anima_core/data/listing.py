"""What a folder holds, by name alone: files with their stamps, sub-folders, which names are pictures."""

import os
from pathlib import Path

from PIL import Image

from ..errors import FileError
from .index import Stamp
from .report import DataReport

Image.init()
EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"} & ({*Image.EXTENSION} | {".png"})
KINDS = {extension.removeprefix(".") for extension in EXTENSIONS}
JPEG_KINDS = {"jfif", "jpe", "jif"}  # JPEG under endings that the field's trainers do not look for
NOT_READ = {"gif", "tif", "tiff", "heic", "heif", "psd", "tga", "jp2", "svg", "mp4", "webm", "zip"}


def picture_stem(name: str) -> str:
    """Return "a.b" for "a.b.PNG"; empty for a name that no picture has."""
    stem, _, extension = name.rpartition(".")
    return stem if extension.lower() in KINDS else ""


def list_files(folder: Path, report: DataReport) -> dict[str, Stamp]:
    """Return names and stamps of the files of a folder, hidden ones left out. Raises FileError."""
    files = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    continue
                if not (name.isascii() or is_unicode(name)):
                    report.warn("files whose names are not Unicode, left out", ascii(name))
                elif entry.is_file():
                    stat = entry.stat()
                    files[name] = (stat.st_size, stat.st_mtime_ns)
                elif not entry.is_dir():
                    report.warn("links that lead to no file, left out", name)
    except OSError as error:
        raise FileError(f"{folder}: cannot be read ({error.strerror}); check `subset.image_dir`") from None
    return files


def is_unicode(name: str) -> bool:
    """Tell whether a name can be encoded: foreign bytes come as lone surrogates, which no log or database takes."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def list_folders(folder: Path) -> list[str]:
    """Return the names of the sub-folders that are not hidden, in order. Raises FileError."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != "." and entry.is_dir())
    except OSError as error:
        raise FileError(f"{folder}: cannot be read ({error.strerror}); check `subset.image_dir`") from None

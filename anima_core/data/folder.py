"""Scanning folders of captioned pictures. Everything that is left out is counted."""

import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..config import DatasetConfig, SubsetConfig
from ..errors import FileError
from .buckets import Size
from .captions import read_caption
from .pictures import picture_size

Image.init()
EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"} & ({*Image.EXTENSION} | {".png"})
REPEATS = re.compile(r"^(\d+)_")  # kohya's folder names: <repeats>_<name>


@dataclass(frozen=True)
class Picture:
    path: Path
    subset: SubsetConfig
    repeats: int
    size: Size  # (width, height), after the EXIF rotation
    digest: str  # SHA-256 of the file
    caption: str  # as in its file
    mask_path: Path | None = None


@dataclass
class ScanReport:
    """What was found and what was not. `lines` is for people."""

    pictures: int = 0
    draws: int = 0  # with repeats
    counts: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def count(self, what: str, example: str) -> None:
        self.counts[what] += 1
        self.examples.setdefault(what, example)

    def lines(self) -> list[str]:
        head = f"{self.pictures} pictures, {self.draws} with repeats"
        return [head, *(f"{n} {what}, e.g. {self.examples[what]}" for what, n in sorted(self.counts.items()))]


class ScanIndex:
    """Remembers digest and size of files by (size, time), so that the second start need not read them all."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.entries = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.entries = {}
        self.changed = False

    def look(self, path: Path) -> tuple[str, Size]:
        stat = path.stat()
        key, stamp = str(path.resolve()), [stat.st_size, stat.st_mtime_ns]
        entry = self.entries.get(key)
        if entry is None or entry[:2] != stamp:
            entry = [*stamp, file_digest(path), *picture_size(path)]
            self.entries[key] = entry
            self.changed = True
        return entry[2], (entry[3], entry[4])

    def save(self) -> None:
        if self.changed:
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.entries), encoding="utf-8")
            os.replace(temporary, self.path)


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def scan(dataset: DatasetConfig, index: ScanIndex | None = None) -> tuple[list[Picture], ScanReport]:
    """All pictures of a dataset, in a fixed order. Raises FileError for a folder that is missing or empty, a picture that
    cannot be read, and a dataset without any caption.
    """
    pictures: list[Picture] = []
    report = ScanReport()
    for subset in dataset.subsets:
        pictures += scan_subset(subset, report, index)
    if index is not None:
        index.save()
    if not any(p.caption or p.subset.class_tokens for p in pictures):
        subset = dataset.subsets[0]
        way_out = f"put {subset.caption_extension} files beside the pictures, or set class_tokens"
        raise FileError(f"{subset.image_dir}: no captions; {way_out}")
    report.pictures = len(pictures)
    report.draws = sum(p.repeats for p in pictures)
    for digest, number in Counter(p.digest for p in pictures).items():
        if number > 1:
            report.count(
                "pictures that are in the data more than once", next(p.path.name for p in pictures if p.digest == digest)
            )
    return pictures, report


def scan_subset(subset: SubsetConfig, report: ScanReport, index: ScanIndex | None) -> list[Picture]:
    root = Path(subset.image_dir)
    if not root.is_dir():
        raise FileError(f"{root}: no such folder of pictures; check image_dir")
    pictures = []
    for folder, repeats in picture_folders(root, subset, report):
        pictures += scan_folder(folder, repeats, subset, report, index)
    if not pictures:
        kinds = ", ".join(sorted(EXTENSIONS))
        raise FileError(f"{root}: no pictures ({kinds}); check image_dir")
    return pictures


def picture_folders(root: Path, subset: SubsetConfig, report: ScanReport) -> list[tuple[Path, int]]:
    """The folder itself and its `N_name` sub-folders, with their repeats."""
    folders = [(root, repeats_of(root.name) or subset.num_repeats)]
    for child in sorted(p for p in root.iterdir() if p.is_dir()):
        repeats = repeats_of(child.name)
        if repeats is not None:
            folders.append((child, repeats))
        elif not child.name.startswith(".") and str(child) != subset.mask_dir:
            report.count("sub-folders not read (name them N_name, N repeats)", child.name)
    return folders


def repeats_of(name: str) -> int | None:
    found = REPEATS.match(name)
    return max(1, int(found[1])) if found else None


def scan_folder(folder: Path, repeats: int, subset: SubsetConfig, report: ScanReport, index: ScanIndex | None) -> list[Picture]:
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    paths = [p for p in files if p.suffix.lower() in EXTENSIONS]
    captions = {p.name for p in files if p.name.endswith(subset.caption_extension)}
    for path in files:
        if path not in paths and path.name not in captions:
            report.count("files that are neither picture nor caption", path.name)
    pictures = [read_picture(path, repeats, subset, captions, report, index) for path in paths]
    for name in sorted(captions - {p.stem + subset.caption_extension for p in paths}):
        report.count("captions without a picture", name)
    return pictures


def read_picture(path: Path, repeats: int, subset: SubsetConfig, captions: set[str], report: ScanReport, index) -> Picture:
    digest, size = index.look(path) if index is not None else (file_digest(path), picture_size(path))
    caption_path = path.with_name(path.stem + subset.caption_extension)
    if caption_path.name in captions:
        caption = read_caption(caption_path)
        if not caption:
            report.count("empty captions", caption_path.name)
    else:
        caption = subset.class_tokens
        report.count("pictures without a caption file" + (" (class_tokens used)" if caption else ""), path.name)
    return Picture(path, subset, repeats, size, digest, caption, find_mask(path, subset, report))


def find_mask(path: Path, subset: SubsetConfig, report: ScanReport) -> Path | None:
    if not subset.mask_dir:
        return None
    folder = Path(subset.mask_dir)
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder of masks; check mask_dir")
    for extension in sorted(EXTENSIONS):
        mask = folder / f"{path.stem}{extension}"
        if mask.is_file():
            return mask
    report.count("pictures without a mask (counted whole)", path.name)
    return None

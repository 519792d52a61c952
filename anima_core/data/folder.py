"""Scanning folders of captioned pictures. Every skipped or converted file is counted in the report."""

import gc
import hashlib
import json
import marshal
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from ..errors import FileError
from ..settings import DatasetConfig, SubsetConfig
from .buckets import Size
from .caption_files import read_caption
from .index import FileIndex, Progress, Stamp, is_settled, scan_files
from .picture_files import scan_picture, whole_files_only
from .report import DataReport, Finding

Image.init()
EXTENSIONS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"} & ({*Image.EXTENSION} | {".png"})
KINDS = {extension.removeprefix(".") for extension in EXTENSIONS}
NOT_READ = {"gif", "tif", "tiff", "heic", "heif", "psd", "tga", "jp2", "svg", "mp4", "webm", "zip"}
MOST_REPEATS = 10_000  # a larger number in front of a folder's name is a date
REPEATS = re.compile(r"^(\d+)_")  # kohya's folder names: <repeats>_<name>

LEFT_OUT = {  # a picture's problem -> how the report says it
    "truncated": "truncated pictures, left out",
    "unreadable": "unreadable pictures, left out",
    "huge": "huge pictures (over 178 million pixels), left out",
    "tiny": "tiny pictures (a side below 16 px), left out",
}
WARNED_TRAITS = {
    "animated": "animated pictures, only the first frame is used",
    "CMYK": "CMYK pictures, turned into RGB without their colour profile",
}
NOTED_TRAITS = {
    "16-bit": "16-bit pictures, reduced to 8 bits",
    "palette": "palette pictures, turned into RGB",
    "grey": "grey pictures, turned into RGB",
    "transparent": "transparent pictures, put on white",
}

SEPARATOR = "\0"  # between the fields of a scan result: decoded captions never hold one

Stage = Callable[[str], Progress]  # the name of a piece of work -> where its progress goes


class Picture(NamedTuple):  # a hundred thousand are made at each start: tuples are made in a third of the time
    folder: Path
    name: str
    subset: SubsetConfig
    repeats: int
    size: Size  # (width, height), after the EXIF rotation
    digest: str  # SHA-256 of the file
    caption: str  # as in its file
    mask_path: Path | None = None

    @property
    def path(self) -> Path:
        return self.folder / self.name


@contextmanager
def without_collector() -> Iterator[None]:
    """Switch the garbage collector off: it would walk over a growing heap of pictures' records, which all stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclass(frozen=True)
class Scan:
    """What the scanning of one subset shares."""

    subset: SubsetConfig
    masks: dict[str, Path] | None  # stem -> file; None: no masks
    report: DataReport
    index: FileIndex
    stage: Stage


def silent(stage: str) -> Progress:
    return lambda done, total: None


def scan(dataset: DatasetConfig, index: FileIndex | None = None, stage: Stage = silent) -> tuple[list[Picture], DataReport]:
    """Return all usable pictures of a dataset, in a fixed order, each decoded once in its life, and the report.

    Raises FileError for a folder that is missing or holds no usable picture, and for a dataset without any caption.
    """
    report, index = DataReport(), index or FileIndex()
    pictures: list[Picture] = []
    with whole_files_only():
        for subset in dataset.subsets:
            pictures += scan_subset(Scan(subset, mask_files(subset), report, index, stage))
    if not any(p.caption or p.subset.class_tokens for p in pictures):
        subset = dataset.subsets[0]
        way_out = f"put {subset.caption_extension} files beside the pictures, or set `subset.class_tokens`"
        raise FileError(f"{subset.image_dir}: no captions; {way_out}")
    report.pictures = len(pictures)
    report.draws = sum(p.repeats for p in pictures)
    count_doubles(pictures, report)
    return pictures, report


def count_doubles(pictures: list[Picture], report: DataReport) -> None:
    """Report the same bytes under several names."""
    first: dict[str, Picture] = {}
    for picture in pictures:
        other = first.setdefault(picture.digest, picture)
        if other is not picture:
            report.warn("pictures that are in the data more than once", f"{picture.name} = {other.name}")


def scan_subset(state: Scan) -> list[Picture]:
    root = Path(state.subset.image_dir)
    if not root.is_dir():
        raise FileError(f"{root}: no such folder of pictures; check `subset.image_dir`")
    pictures = []
    for folder, repeats in picture_folders(root, state.subset, state.report):
        pictures += scan_folder(folder, repeats, state)
    if not pictures:
        left_out, kinds = "; ".join(state.report.warnings()), ", ".join(sorted(EXTENSIONS))
        problem = f"no usable pictures ({left_out})" if left_out else f"no pictures ({kinds})"
        raise FileError(f"{root}: {problem}; check `subset.image_dir`")
    return pictures


def picture_folders(root: Path, subset: SubsetConfig, report: DataReport) -> list[tuple[Path, int]]:
    """Return the folder itself and its `N_name` sub-folders, with their repeats."""
    folders = [(root, repeats_of(root.name) or subset.num_repeats)]
    for child in sorted(entry.name for entry in os.scandir(root) if entry.is_dir()):
        repeats = repeats_of(child)
        if repeats is not None:
            folders.append((root / child, repeats))
        elif not child.startswith(".") and str(root / child) != subset.mask_dir:
            report.warn("sub-folders not read (name them N_name, N repeats)", child)
    return folders


def repeats_of(name: str) -> int | None:
    """Read the repeats from kohya's folder name. Raises FileError for a number that can only be a mistake."""
    found = REPEATS.match(name)
    if found is None:
        return None
    if len(found[1]) > 9 or int(found[1]) > MOST_REPEATS:
        raise FileError(f"{name}: as a folder's name this means {found[1]} repeats of each picture; rename it if it is a date")
    return max(1, int(found[1]))


def list_files(folder: Path, report: DataReport) -> dict[str, Stamp]:
    """Return names and stamps of the files of a folder, hidden ones left out. Raises FileError."""
    files = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == "." or not entry.is_file():
                    continue
                if not (name.isascii() or is_unicode(name)):
                    report.warn("files whose names are not Unicode, left out", ascii(name))
                    continue
                stat = entry.stat()
                files[name] = (stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise FileError(f"{folder}: cannot be read ({error.strerror}); check `subset.image_dir`") from None
    return files


def is_unicode(name: str) -> bool:
    """Tell whether a name can be encoded: foreign bytes come as lone surrogates, which no log or database takes."""
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def scan_folder(folder: Path, repeats: int, state: Scan) -> list[Picture]:
    """Return the usable pictures of one folder, by name. An unchanged folder is recalled as a whole."""
    files = list_files(folder, state.report)
    key = folder_key(files, state)
    found = recall(folder, repeats, key, state)
    if found is None:
        report = DataReport()
        found = read_folder(folder, files, repeats, replace(state, report=report)), report
        if key and all(is_settled(changed, time.time_ns()) for _, changed in files.values()):
            state.index.remember_folder(folder, key, to_text(*found))
    pictures, report = found
    state.report.add(report)
    return pictures


def folder_key(files: dict[str, Stamp], state: Scan) -> str:
    """Hash everything that `read_folder` depends on; empty with masks, which are files of another folder."""
    if state.masks is not None:
        return ""
    subset = state.subset
    reading = (subset.caption_extension, subset.class_tokens, subset.alpha_mask, sorted(KINDS))
    return hashlib.blake2b(marshal.dumps((reading, files), 2)).hexdigest()  # version 2 writes equal things equally


def to_text(pictures: list[Picture], report: DataReport) -> str:
    """Serialise a folder by columns: a hundred thousand rows would take four times as long to read."""
    columns = [[getattr(picture, column) for picture in pictures] for column in ("name", "size", "digest", "caption")]
    return json.dumps([columns, [[what, f.warns, f.names] for what, f in report.findings.items()]], ensure_ascii=False)


def recall(folder: Path, repeats: int, key: str, state: Scan) -> tuple[list[Picture], DataReport] | None:
    """Read back what `to_text` wrote of an unchanged folder."""
    text = state.index.known_folder(folder, key) if key else None
    if text is None:
        return None
    (names, sizes, digests, captions), findings = json.loads(text)
    pictures = list(
        map(Picture, repeat(folder), names, repeat(state.subset), repeat(repeats), map(tuple, sizes), digests, captions)
    )
    return pictures, DataReport(findings={what: Finding(warns, names) for what, warns, names in findings})


def read_folder(folder: Path, files: dict[str, Stamp], repeats: int, state: Scan) -> list[Picture]:
    """Scan every file of a folder that is new or changed, and put pictures, captions and masks together."""
    extension = state.subset.caption_extension
    stems = {name: stem for name in files if (stem := picture_stem(name))}
    wanted = {stem + extension for stem in stems.values()}
    captions = [name for name in wanted if name in files]
    if len(stems) + len(captions) < len(files):
        count_others(files.keys() - stems.keys() - wanted, state)
    progress = state.stage(f"scanning {folder.name}")
    found = scan_files(
        folder, files, [*stems, *captions], lambda path: scan_file(path, path.name in stems), state.index, progress
    )
    pictures = (read_picture(folder, name, stem, repeats, found, state) for name, stem in sorted(stems.items()))
    return [picture for picture in pictures if picture is not None]


def count_others(names: set[str], state: Scan) -> None:
    for name in sorted(names):
        if name.endswith(state.subset.caption_extension):
            state.report.warn("captions without a picture", name)
        elif name.rpartition(".")[2].lower() in NOT_READ:
            state.report.warn(f"pictures of kinds that are not read (those that are: {' '.join(sorted(KINDS))})", name)
        else:
            state.report.note("files that are neither picture nor caption", name)


def picture_stem(name: str) -> str:
    """Return "a.b" for "a.b.PNG"; empty for a name that no picture has."""
    stem, _, extension = name.rpartition(".")
    return stem if extension.lower() in KINDS else ""


def scan_file(path: Path, is_picture: bool) -> str:
    """Serialise one file's scan result as NUL-separated fields: `Facts`, or a caption's encoding, problem and text."""
    if is_picture:
        facts = scan_picture(path)
        return SEPARATOR.join([facts.digest, *map(str, facts.size), facts.problem, ",".join(facts.traits)])
    try:
        text, encoding = read_caption(path)
        return SEPARATOR.join([encoding, "", text])
    except FileError as error:
        return SEPARATOR.join(["", str(error).removeprefix(f"{path}: "), ""])


def read_picture(folder: Path, name: str, stem: str, repeats: int, found: dict[str, str], state: Scan) -> Picture | None:
    """Return a picture with its caption and mask, or None for one that cannot be trained on."""
    digest, width, height, problem, traits = found[name].split(SEPARATOR)
    if problem:
        state.report.warn(LEFT_OUT.get(problem, f"{problem}, left out"), name)
        return None
    caption = caption_of(stem + state.subset.caption_extension, name, found, state)
    if caption is None:
        return None
    for trait in traits.split(",") if traits else ():
        if trait in WARNED_TRAITS:
            state.report.warn(WARNED_TRAITS[trait], name)
        elif trait != "transparent" or not state.subset.alpha_mask:
            state.report.note(NOTED_TRAITS[trait], name)
    mask = mask_of(name, stem, state)
    return Picture(folder, name, state.subset, repeats, (int(width), int(height)), digest, caption, mask)


def caption_of(name: str, picture: str, found: dict[str, str], state: Scan) -> str | None:
    """Return the caption of a picture, or None when there is one that cannot be read."""
    subset, report = state.subset, state.report
    if name not in found:  # there is no such file
        if subset.class_tokens:
            report.note("pictures without a caption file (class_tokens used)", picture)
        else:
            report.warn("pictures without a caption file", picture)
        return subset.class_tokens
    encoding, problem, caption = found[name].split(SEPARATOR, 2)
    if problem:
        report.warn("pictures left out, their captions cannot be read", f"{name}: {problem}")
        return None
    if encoding != "UTF-8":
        report.warn(f"captions read as {encoding} (save them as UTF-8)", f"{name}: {excerpt(caption)}")
    if not caption:
        report.warn("empty captions", name)
    return caption


def excerpt(text: str, length: int = 24) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= length else line[:length] + "…")


def mask_files(subset: SubsetConfig) -> dict[str, Path] | None:
    """Return the masks by stem, or None when there is no folder of masks. Raises FileError."""
    if not subset.mask_dir:
        return None
    folder = Path(subset.mask_dir)
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder of masks; check `subset.mask_dir`")
    names = sorted((entry.name for entry in os.scandir(folder) if entry.is_file()), reverse=True)
    return {stem: folder / name for name in names if (stem := picture_stem(name))}


def mask_of(name: str, stem: str, state: Scan) -> Path | None:
    if state.masks is None:
        return None
    if stem not in state.masks:
        state.report.note("pictures without a mask (counted whole)", name)
    return state.masks.get(stem)

"""Pictures that are in the data again as a copy: resized, recompressed or mirrored. Told by what they show, made tiny."""

import base64
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import FileError
from .buckets import Size
from .cache_folder import INDEX
from .check import Checked
from .folder import Picture, Stage, silent
from .index import FileIndex, scan_files
from .listing import list_files
from .picture_files import thumbnail, whole_files_only
from .report import DataReport

ALIKE = "pictures that look like a copy of another (resized, saved again, mirrored)"
EVEN = "pictures without edges, not compared with others"
KIND = "look"  # of what the index remembers of a file

COLUMNS, ROWS = 9, 8  # px of a tiny picture: 8 differences in each of 8 rows
SIDE = 72  # px: a picture is decoded no larger than that takes
STEP = 3  # of 255: a smaller difference is none, or JPEG's noise on an even ground would set bits
LEAST_EDGES = 6  # differences in a picture; one with fewer is an even ground, which others are like by chance
MOST_BITS = 4  # of 64 that copies differ in
MOST_COLOUR = 3.0  # of 255: by how much the tiny pictures differ in the mean; copies up to 1.7, a square and a circle 3.9
MOST_SHAPE = math.log(1.1)  # of the ratio of their aspect ratios
BANDS = MOST_BITS + 1  # hashes that differ in fewer bits than there are bands agree in one of them
MASKS = [sum(1 << bit for bit in range(band, 64, BANDS)) for band in range(BANDS)]


class Look(NamedTuple):
    """own, mirrored: the hashes of a picture and of its mirror image. tiny: it as 9 x 8 px, RGB in base 64."""

    own: int
    mirrored: int
    tiny: str
    size: Size

    @classmethod
    def of(cls, text: str, size: Size) -> "Look | None":
        """Read back what `look_of` wrote; None for a picture that is not compared."""
        return cls(int(text[:16], 16), int(text[16:32], 16), text[32:], size) if text else None

    def pixels(self) -> np.ndarray:
        """Return the tiny picture, [8, 9, 3] in 0 to 255."""
        return np.frombuffer(base64.b64decode(self.tiny), np.uint8).reshape(ROWS, COLUMNS, 3).astype(np.int16)


class Alike(NamedTuple):
    """A picture, and the first one before it that it looks like."""

    first: Picture
    second: Picture
    is_mirrored: bool

    def text(self) -> str:
        return f"{self.second.name} ~ {self.first.name}{', mirrored' if self.is_mirrored else ''}"


def look_of(path: Path) -> str:
    """Return what a picture shows: the two hashes in hex, and it as 9 x 8 px. Empty for one that is even, or not readable."""
    try:
        tiny = np.asarray(thumbnail(path, SIDE).resize((COLUMNS, ROWS), Image.Resampling.BOX))
    except FileError:
        return ""
    grey = np.asarray(Image.fromarray(tiny).convert("L"), dtype=np.int16)
    own, mirrored = difference_hash(grey), difference_hash(grey[:, ::-1])
    if own.bit_count() + mirrored.bit_count() < LEAST_EDGES:
        return ""
    return f"{own:016x}{mirrored:016x}{base64.b64encode(tiny.tobytes()).decode()}"


def difference_hash(grey: np.ndarray) -> int:
    """Return 64 bits of a grey picture [8, 9]: whether a pixel is brighter than its right neighbour, by `STEP` or more.

    dHash without a least step: N. Krawetz, "Kind of Like That", hackerfactor.com, 2013.
    """
    return int.from_bytes(np.packbits(grey[:, :-1] - grey[:, 1:] >= STEP).tobytes(), "big")


def are_alike(one: Look, other: Look, is_mirrored: bool) -> bool:
    """Tell whether one picture, or its mirror image, shows what another does: by hash, shape and colours."""
    if ((one.mirrored if is_mirrored else one.own) ^ other.own).bit_count() > MOST_BITS:
        return False
    if abs(math.log(one.size[0] * other.size[1] / (one.size[1] * other.size[0]))) > MOST_SHAPE:
        return False
    pixels = one.pixels()[:, ::-1] if is_mirrored else one.pixels()
    return bool(np.abs(pixels - other.pixels()).mean() <= MOST_COLOUR)


def pairs(looks: Sequence[Look]) -> Iterator[tuple[int, int, bool]]:
    """Yield (first, second, is_mirrored) for each picture that is like one before it: the first such one.

    Only those that agree in a band of bits are compared, which all within `MOST_BITS` do. The bits of a band lie apart, so
    that an even ground above a figure does not put most pictures into the same one.
    """
    bands: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for second, look in enumerate(looks):
        found = [
            (first, second, is_mirrored)
            for is_mirrored, bits in ((False, look.own), (True, look.mirrored))
            for band, mask in enumerate(MASKS)
            if (first := first_like(look, looks, bands.get((band, bits & mask), ()), is_mirrored)) is not None
        ]
        if found:
            yield min(found)
        for band, mask in enumerate(MASKS):
            bands[band, look.own & mask].append(second)


def first_like(look: Look, looks: Sequence[Look], candidates: Iterable[int], is_mirrored: bool) -> int | None:
    return next((number for number in candidates if are_alike(look, looks[number], is_mirrored)), None)


def find_alike(checked: Checked, cache_dir: Path | None, stage: Stage = silent) -> list[Alike]:
    """Return the pictures of all datasets that look like an earlier one, and note them in their reports.

    Each file is looked at once in its life; `cache_dir` remembers. The same bytes twice are not told: `count_doubles` does.
    """
    pictures: dict[str, tuple[Picture, DataReport]] = {}
    for group, report in checked:
        for picture in group:
            pictures.setdefault(picture.digest, (picture, report))
    kept = [*pictures.values()]
    seen = looks_of([picture for picture, _ in kept], cache_dir, stage)
    known, found = [], []
    for (picture, report), text in zip(kept, seen):
        if look := Look.of(text, picture.size):
            known.append((picture, report, look))
        else:
            report.note(EVEN, picture.name)
    for first, second, is_mirrored in pairs([look for _, _, look in known]):
        found.append(Alike(known[first][0], known[second][0], is_mirrored))
        known[second][1].note(ALIKE, found[-1].text())
    return found


def looks_of(pictures: Sequence[Picture], cache_dir: Path | None, stage: Stage) -> list[str]:
    """Return what `look_of` does of each picture, remembered or found now."""
    folders: defaultdict[Path, list[str]] = defaultdict(list)
    for picture in pictures:
        folders[picture.folder].append(picture.name)
    found: dict[Path, dict[str, str]] = {}
    with FileIndex(cache_dir / INDEX if cache_dir else None) as index, whole_files_only():
        for folder, names in folders.items():
            files = list_files(folder, DataReport())
            there = [name for name in names if name in files]
            found[folder] = scan_files(folder, files, there, look_of, index, stage(f"comparing {folder.name}"), KIND)
    return [found[picture.folder].get(picture.name, "") for picture in pictures]

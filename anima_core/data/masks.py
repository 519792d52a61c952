"""Masks of pictures: which file belongs to which picture, and what is wrong with them."""

import os
from pathlib import Path

from ..errors import FileError
from ..settings import SubsetConfig
from .buckets import Size
from .index import FileIndex, Progress, scan_files
from .listing import list_files, picture_stem
from .picture_files import Facts, scan_picture
from .report import DataReport
from .sets import is_same

MARKS = ("-masklabel", "_mask")  # OneTrainer's ending of a mask's name, and everybody else's
SAME_SHAPE = 0.03  # by which width / height may differ: masks are often made at a rounded size
UNUSABLE = ("unreadable", "truncated", "huge")
BLACK = "masks that are black everywhere: their pictures train nothing"
SHARED = "pictures with the mask of another sub-folder's picture, by its name alone (put masks in sub-folders too)"


class Masks:
    """The masks of a folder of pictures and of its sub-folders, which `mask_dir` mirrors. A flat `mask_dir` serves as well.

    A mask has the name of its picture, or that name with `_mask` or `-masklabel` behind it. Raises FileError.
    """

    def __init__(self, subset: SubsetConfig, index: FileIndex, progress: Progress) -> None:
        self.root = Path(subset.mask_dir)
        if not self.root.is_dir():
            raise FileError(f"{self.root}: no such folder of masks; check `subset.mask_dir`")
        self.beside = is_same(self.root, subset.image_dir)  # the pictures: only a marked name is a mask's
        self.facts: dict[Path, Facts] = {}
        self.by_name: dict[tuple[str, str], Path] = {}  # sub-folder, stem of the picture
        self.used: dict[Path, tuple[str, str]] = {}  # -> sub-folder and name of the first picture that it is of
        for folder, dirs, _ in os.walk(self.root):
            dirs[:] = sorted(name for name in dirs if name[0] != ".")
            self._read(Path(folder), index, progress)

    def _read(self, folder: Path, index: FileIndex, progress: Progress) -> None:
        files = list_files(folder, DataReport())
        stems = {stem for name in files if (stem := picture_stem(name))}
        named = {name: self._key(picture_stem(name), stems) for name in sorted(files, reverse=True)}
        keys = {name: key for name, key in named.items() if key}
        found = scan_files(folder, files, keys, lambda path: scan_picture(path).text(), index, progress)
        place = "" if folder == self.root else folder.relative_to(self.root).as_posix()
        for name, key in keys.items():
            self.facts[folder / name] = Facts.of(found[name])
            self.by_name[place, key] = folder / name

    def _key(self, stem: str, stems: set[str]) -> str:
        """Return the stem that a mask is looked up by: its own, or its picture's where both are in one folder; else empty."""
        bare = next((stem.removesuffix(mark) for mark in MARKS if stem.endswith(mark)), "")
        return stem if not self.beside else bare if bare in stems else ""

    def is_mask(self, place: str, name: str) -> bool:
        """Tell whether a file beside pictures, in the sub-folder `place`, is the mask of one of them."""
        return self.beside and self.root / place / name in self.facts

    def find(self, place: str, stem: str, name: str, size: Size, report: DataReport) -> Path | None:
        """Return the mask of a picture in the sub-folder `place`."""
        marks = ("",) if self.beside else ("", *MARKS)
        keys = ((folder, stem + mark) for folder in dict.fromkeys((place, "")) for mark in marks)
        path = next((self.by_name[key] for key in keys if key in self.by_name), None)
        if path is None:
            report.warn("pictures without a mask (counted whole)", name)
            return None
        first = self.used.setdefault(path, (place, name))
        if first[0] != place:
            report.warn(SHARED, f"{name} (that of {'/'.join(filter(None, first))})")
        self._compare(path, name, size, report)
        return path

    def is_black(self, path: Path) -> bool:
        return "black" in self.facts[path].traits

    def _compare(self, path: Path, name: str, size: Size, report: DataReport) -> None:
        facts = self.facts[path]
        if facts.problem.partition(":")[0] in UNUSABLE:  # what follows is the system's reason
            raise FileError(f"{path}: cannot be read as a mask ({facts.problem}); repair or remove it")
        if self.is_black(path):
            report.warn(BLACK, path.name)
        if abs(facts.size[0] * size[1] / (facts.size[1] * size[0]) - 1) > SAME_SHAPE:
            report.warn(
                "masks of another shape than their picture", f"{name} {size[0]}x{size[1]}, mask {facts.size[0]}x{facts.size[1]}"
            )

    def judge(self, report: DataReport) -> None:
        """Say what was not used. Raises FileError when no mask is of any picture."""
        way_out = "a mask has its picture's name; check `subset.mask_dir`"
        if not self.used:
            raise FileError(f"{self.root}: none of the {len(self.facts)} masks in it has a picture; {way_out}")
        for path in sorted(self.facts.keys() - self.used.keys()):
            report.warn("masks without a picture", path.relative_to(self.root).as_posix())

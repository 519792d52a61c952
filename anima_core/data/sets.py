"""Which folders a dataset's pictures come from, and how often each of them: the rules of sd-scripts for folders.

A set is one folder with its options: a `SubsetConfig` without folder numbers.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ..settings import SubsetConfig
from .listing import list_files, list_folders, picture_stem
from .report import DataReport

MOST_REPEATS = 10_000  # a larger number in front of a folder's name is a date
NUMBERED = re.compile(r"(\d+)(?:_(.*))?")  # N_words, or N alone

SWITCHED_OFF = "folders that are switched off (0 repeats)"


class PictureSet(NamedTuple):
    """own: the set's options. place: its folder as seen from the subset's, "" for that folder itself."""

    own: SubsetConfig
    place: str


def numbered_sets(subset: SubsetConfig, report: DataReport) -> list[PictureSet] | None:
    """Return the sets that sub-folders named `N_words` are; None where there is no such folder, or they do not count.

    sd-scripts' `train_data_dir`: N draws of each picture, 0 switches the folder off, the words are the caption of pictures
    that have none. Pictures beside such folders, and folders of other names, are no data. The folder's own name means
    nothing.
    """
    root = Path(subset.image_dir)
    if not subset.folder_numbers:
        return None
    folders = [name for name in list_folders(root) if not is_same(root / name, subset.mask_dir)]
    named = [(name, number) for name in folders if (number := number_of(name)) is not None]
    if not named:
        if number_of(root.name) is not None and subset.num_repeats == 1:
            report.note(
                "a number in the folder's own name is not read (name the folder above it, or set the repeats)", root.name
            )
        return None
    if subset.num_repeats != 1:
        report.warn("repeats without effect: the numbers of sub-folders count", f"{root.name}: {subset.num_repeats}")
    for name in sorted(list_files(root, DataReport())):
        if picture_stem(name):
            report.warn("pictures beside the folders N_words, left out", name)
    note_unread(subset, {name for name, _ in named}, report)
    return [PictureSet(set_of(subset, name, number, report), name) for name, number in named]


def set_of(subset: SubsetConfig, name: str, number: int, report: DataReport) -> SubsetConfig:
    words = name.partition("_")[2]
    if number:
        report.note("sets by the numbers of their folders", f"{name}: {number} draws of each picture")
    return replace(
        subset,
        image_dir=str(Path(subset.image_dir) / name),
        num_repeats=number,
        class_tokens=subset.class_tokens or words,
        folder_numbers=False,
    )


def number_of(name: str) -> int | None:
    """Read the repeats in a folder's name; None for another name, and for a date."""
    found = NUMBERED.fullmatch(name)
    if found is None or len(found[1]) > 9:  # Python refuses to read thousands of digits
        return None
    number = int(found[1])
    return number if number <= MOST_REPEATS else None


def note_unread(subset: SubsetConfig, read: set[str], report: DataReport) -> None:
    """Name the sub-folders that are no data."""
    root = Path(subset.image_dir)
    why = "name them N_words for N draws" if subset.folder_numbers else "each would be a folder of its own"
    for name in list_folders(root):
        if name not in read and not is_same(root / name, subset.mask_dir):
            report.warn(f"sub-folders not read ({why})", name)


def is_same(one: str | Path, other: str | Path) -> bool:
    return bool(other) and os.path.realpath(one) == os.path.realpath(other)


def drawn(sets: Sequence[PictureSet], seen: set[tuple[str, str]], report: DataReport) -> Iterator[PictureSet]:
    """Yield the sets that are drawn from: not those of 0 repeats, nor a folder for the second time in its dataset.

    sd-scripts takes the first of two subsets with the same `image_dir` (or the same `metadata_file`). seen: what the dataset
    has had so far, added to.
    """
    for found in sets:
        key = os.path.realpath(found.own.image_dir), found.own.metadata_file
        name = found.place or Path(found.own.image_dir).name
        if found.own.num_repeats == 0:
            report.note(SWITCHED_OFF, name)
        elif key in seen:
            report.warn("folders that their dataset names twice, the later left out", name)
        else:
            seen.add(key)
            yield found

"""What lies in a folder of pictures and is not used: named by what it probably is, and by what would have it read."""

from collections.abc import Mapping, Set
from typing import NamedTuple

from ..settings import SubsetConfig
from .caption_files import JSON, OTHER_ENDINGS
from .caption_sources import endings_of
from .listing import JPEG_KINDS, KINDS, NOT_READ, picture_stem
from .masks import MARKS
from .metadata_file import NAMES
from .report import DataReport

Captions = Mapping[str, Mapping[str, str]]  # stem -> ending -> file


class Kind(NamedTuple):
    warns: bool
    what: str


NOT_NAMED = Kind(False, "masks and pictures that are not trained, beside those that are")
IN_JSON = Kind(True, "captions in JSON files, not read (set caption_extension to .json)")
OTHER_ENDING = Kind(True, "captions under another ending, not read (set caption_extension)")
IN_METADATA = Kind(True, "captions in a metadata file, not read (set metadata_file)")
FURTHER = Kind(False, "further captions of a picture, not read (set caption_sources to draw from several)")
ALONE = Kind(True, "captions without a picture")
OTHER_JPEG = Kind(True, "JPEG pictures under another ending, left out (rename them to .jpg)")
OTHER_PICTURE = Kind(True, f"pictures of kinds that are not read (those that are: {' '.join(sorted(KINDS))})")
OTHER = Kind(False, "files that are neither picture nor caption")
LIKE_MASKS = "pictures that are named like masks of others, trained as pictures (name their folder as that of the masks)"


def count_unused(names: Set[str], stems: Set[str], captions: Captions | None, subset: SubsetConfig, report: DataReport) -> None:
    """Report the files of a folder that are no pictures to train on, nor their captions.

    stems: of the pictures. captions: of each stem that has any, by ending; None where a metadata file has them.
    """
    used = {name for named in (captions or {}).values() for name in named.values()}
    for name in sorted(names - used) if len(used) < len(names) else ():
        kind = kind_of(name, stems, captions, subset)
        (report.warn if kind.warns else report.note)(kind.what, name)
    for stem in sorted(stems) if not subset.mask_dir else ():
        if stem.endswith(MARKS) and any(stem.removesuffix(mark) in stems - {stem} for mark in MARKS):
            report.warn(LIKE_MASKS, stem)


def kind_of(name: str, stems: Set[str], captions: Captions | None, subset: SubsetConfig) -> Kind:
    stem, _, ending = name.rpartition(".")
    stem = stem if stem in stems else further_stem(stem, stems)
    lacks_caption = captions is not None and stem in stems and stem not in captions
    if picture_stem(name):
        return NOT_NAMED
    if lacks_caption and f".{ending}" == JSON:
        return IN_JSON
    if lacks_caption and ending.lower() in OTHER_ENDINGS:
        return OTHER_ENDING
    if captions is not None and name in NAMES:
        return IN_METADATA
    if captions is not None and stem in captions and ending.lower() in (*OTHER_ENDINGS, JSON.removeprefix(".")):
        return FURTHER
    if captions is not None and stem not in stems and name.endswith(endings_of(subset)):
        return ALONE
    if ending.lower() in JPEG_KINDS:
        return OTHER_JPEG
    return OTHER_PICTURE if ending.lower() in NOT_READ else OTHER


def further_stem(stem: str, stems: Set[str]) -> str:
    """Return "a" for "a.nl", of "a.nl.txt", where that is a picture's; else the stem as it is."""
    shorter = stem.rpartition(".")[0]
    return shorter if shorter in stems else stem

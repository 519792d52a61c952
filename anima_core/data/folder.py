"""Scanning folders of captioned pictures. Every skipped or converted file is counted in the report."""

import gc
import hashlib
import json
import marshal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FileError
from ..settings import DatasetConfig, SubsetConfig
from . import metadata_file, sets
from .buckets import Size
from .caption_files import JSON, check_json, read_caption
from .caption_rules import after_rules, with_triggers
from .caption_sources import Source, as_sources, caption_names, framed, kept_apart, read_sources, read_tags, whole_caption
from .index import FileIndex, Progress, Stamp, is_settled, scan_files
from .listing import EXTENSIONS, KINDS, list_files, picture_stem
from .masks import Masks
from .picture_files import SEPARATOR, Facts, scan_picture, whole_files_only
from .report import DataReport, Finding
from .unused import count_unused

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
INVISIBLE = "pictures that are transparent everywhere: with alpha_mask they train nothing"
NOTED_TRAITS = {
    "16-bit": "16-bit pictures, reduced to 8 bits",
    "palette": "palette pictures, turned into RGB",
    "grey": "grey pictures, turned into RGB",
    "transparent": "transparent pictures, put on white",
}

ALONE = "their dataset has no other pictures"  # why regularisation pictures are left out
RECALLED = ("name", "size", "digest", "caption", "blank", "sources")  # of each picture of an unchanged folder

Stage = Callable[[str], Progress]  # the name of a piece of work -> where its progress goes


class Picture(NamedTuple):  # a hundred thousand are made at each start: tuples are made in a third of the time
    folder: Path
    name: str
    subset: SubsetConfig
    repeats: int
    size: Size  # (width, height), after the EXIF rotation
    digest: str  # SHA-256 of the file
    caption: str  # as it is read, before anything is drawn; of several the first
    mask_path: Path | None = None
    blank: bool = False  # black or transparent everywhere where white or opaque is trained: it trains nothing
    sources: tuple[Source, ...] = ()  # where `caption` does not say all: several captions, or one by category

    @property
    def path(self) -> Path:
        return self.folder / self.name

    @property
    def captions(self) -> list[Any]:
        """Return all that is read of captions, as JSON can write it: one text, with what it does not say behind it."""
        return [self.caption, self.sources] if self.sources else [self.caption]

    @property
    def whole_captions(self) -> list[str]:
        """Return each of its captions after its rules, with prefix, suffix and trigger words, nothing drawn or left out."""
        subset, sources = self.subset, self.sources or (Source("", self.caption),)
        texts = [whole_caption(after_rules(source, subset), subset) for source in sources]
        return [with_triggers(framed(text, subset), subset) for text in texts]

    @property
    def tags(self) -> list[tuple[list[str], str]]:
        """Return the tags of each of its captions with prefix and suffix, before their rules, and its sentences."""
        return [read_tags(source, self.subset) for source in self.sources or (Source("", self.caption),)]


Chosen = Callable[[list[Picture], DataReport], list[Picture]]


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
    """What the scanning of one set shares."""

    subset: SubsetConfig  # the set's own
    place: str  # of its folder below the subset's
    masks: Masks | None
    entries: metadata_file.Entries | None  # of the metadata file, instead of caption files
    report: DataReport
    index: FileIndex
    stage: Stage


def silent(stage: str) -> Progress:
    return lambda done, total: None


def all_of(pictures: list["Picture"], report: DataReport) -> list["Picture"]:
    return pictures


def scan(
    dataset: DatasetConfig, index: FileIndex | None = None, stage: Stage = silent, trained: Chosen = all_of
) -> tuple[list[Picture], DataReport]:
    """Return all usable pictures of a dataset, in a fixed order, each decoded once in its life, and the report.

    trained: chooses from what is found what is not held out. None where every folder is switched off. Raises FileError for a
    folder that is missing or holds no usable picture, and for a dataset without any caption.
    """
    report, index = DataReport(), index or FileIndex()
    pictures: list[Picture] = []
    seen: set[tuple[str, str]] = set()
    with whole_files_only():
        for subset in dataset.subsets:
            pictures += scan_subset(subset, seen, report, index, stage)
    check_captioned(dataset, pictures, report)
    pictures = balanced(trained(pictures, report), report)
    report.pictures = len(pictures)
    report.draws = sum(p.repeats for p in pictures)
    count_doubles(pictures, report)
    return pictures, report


def check_captioned(dataset: DatasetConfig, pictures: list[Picture], report: DataReport) -> None:
    subset = dataset.subsets[0]
    if pictures and not any(p.caption or p.subset.class_tokens for p in pictures):
        endings = ", ".join(subset.weights) or subset.caption_extension
        other = "or name other endings in `subset.caption_sources`" if subset.weights else "or set `subset.class_tokens`"
        way_out = f"put {endings} files beside the pictures, {other}"
        found = "; ".join(line for line in report.warnings() if line.startswith("captions "))
        raise FileError(f"{subset.image_dir}: no captions; {way_out}{f' ({found})' if found else ''}")


def balanced(pictures: list[Picture], report: DataReport) -> list[Picture]:
    """Give the regularisation pictures of a dataset as many draws as its other pictures have.

    sd-scripts: they are taken in order until there are enough draws, or all get one more in turn. Those left are not used.
    """
    regularisation = [p for p in pictures if p.subset.is_reg]
    if not regularisation:
        return pictures
    wanted = sum(p.repeats for p in pictures if not p.subset.is_reg)
    used: list[Picture] = []
    draws = 0
    for picture in regularisation:
        if draws < wanted:
            used.append(picture)
            draws += picture.repeats
        else:
            why = "more than the draws of the other pictures" if wanted else ALONE
            report.warn(left_out(why), picture.name)
    turns, rest = divmod(max(0, wanted - draws), len(used)) if used else (0, 0)
    repeats = {p: p.repeats + turns + (number < rest) for number, p in enumerate(used)}
    return [p._replace(repeats=repeats.get(p, p.repeats)) for p in pictures if not p.subset.is_reg or p in repeats]


def left_out(why: str) -> str:
    return f"regularisation pictures left out ({why})"


def count_doubles(pictures: list[Picture], report: DataReport) -> None:
    """Report the same bytes under several names."""
    first: dict[str, Picture] = {}
    for picture in pictures:
        other = first.setdefault(picture.digest, picture)
        if other is not picture:
            report.warn("pictures that are in the data more than once", f"{picture.name} = {other.name}")


def scan_subset(
    subset: SubsetConfig, seen: set[tuple[str, str]], report: DataReport, index: FileIndex, stage: Stage
) -> list[Picture]:
    root = Path(subset.image_dir)
    if subset.num_repeats == 0:  # before its folder is looked for, as in sd-scripts
        report.note(sets.SWITCHED_OFF, root.name)
        return []
    if not root.is_dir():
        raise FileError(f"{root}: no such folder of pictures; check `subset.image_dir`")
    entries = metadata_file.read_metadata(subset, report) if subset.metadata_file else None
    chosen = list(sets.drawn(sets_of(subset, entries, report), seen, report))
    masks = Masks(subset, index, stage("scanning masks")) if subset.mask_dir and chosen else None
    pictures = []
    for own, place in chosen:
        found = scan_folder(Path(own.image_dir), Scan(own, place, masks, entries, report, index, stage))
        if not found and place:
            report.warn("folders without a usable picture", place)
        pictures += found
    if chosen and not pictures:
        left_out, kinds = "; ".join(report.warnings()), ", ".join(sorted(EXTENSIONS))
        problem = f"no usable pictures ({left_out})" if left_out else f"no pictures ({kinds})"
        raise FileError(f"{root}: {problem}; check `subset.image_dir`")
    if masks is not None:
        masks.judge(report)
    if entries is not None:
        count_missing(entries, pictures, root, report)
    return pictures


def sets_of(subset: SubsetConfig, entries: metadata_file.Entries | None, report: DataReport) -> list[sets.PictureSet]:
    """Return the folders of a subset: those that its metadata file names, those with numbers, or its own."""
    root = Path(subset.image_dir)
    if entries is not None:
        places = sorted({place.rpartition("/")[0] for place in entries})
        folders = [sets.PictureSet(replace(subset, image_dir=str(root / place)), place) for place in places]
        return [found for found in folders if (root / found.place).is_dir()]
    numbered = sets.numbered_sets(subset, report)
    if numbered is None:
        sets.note_unread(subset, set(), report)
        return [sets.PictureSet(subset, "")]
    return numbered


def count_missing(entries: metadata_file.Entries, pictures: list[Picture], root: Path, report: DataReport) -> None:
    """Report the entries of a metadata file that no picture was found for."""
    found = {picture.path.relative_to(root).as_posix() for picture in pictures}
    found |= {name.rpartition(".")[0] for name in found}
    for place in sorted(entries.keys() - found):
        report.warn("entries of the metadata file without a usable picture", place)


def scan_folder(folder: Path, state: Scan) -> list[Picture]:
    """Return the usable pictures of one folder, by name. An unchanged folder is recalled as a whole."""
    listed = DataReport()
    files = list_files(folder, listed)
    key = folder_key(files, state)
    found = recall(folder, key, state)
    if found is None:
        report = DataReport()
        found = read_folder(folder, files, replace(state, report=report)), report
        if key and all(is_settled(changed, time.time_ns()) for _, changed in files.values()):
            state.index.remember_folder(folder, key, to_text(*found))
    pictures, report = found
    for part in (listed, report):
        state.report.add(part, state.place)
    return pictures


def folder_key(files: dict[str, Stamp], state: Scan) -> str:
    """Hash everything that `read_folder` depends on; empty with masks or a metadata file, which lie elsewhere."""
    if state.masks is not None or state.entries is not None:
        return ""
    subset = state.subset
    captions = (subset.caption_extension, subset.caption_sources, subset.caption_order, subset.caption_separator)
    reading = (RECALLED, captions, subset.class_tokens, subset.alpha_mask, sorted(KINDS))
    return hashlib.blake2b(marshal.dumps((reading, files), 2)).hexdigest()  # version 2 writes equal things equally


def to_text(pictures: list[Picture], report: DataReport) -> str:
    """Serialise a folder by columns: a hundred thousand rows would take four times as long to read."""
    columns = [[getattr(picture, column) for picture in pictures] for column in RECALLED]
    return json.dumps([columns, [[what, f.warns, f.names] for what, f in report.findings.items()]], ensure_ascii=False)


def recall(folder: Path, key: str, state: Scan) -> tuple[list[Picture], DataReport] | None:
    """Read back what `to_text` wrote of an unchanged folder."""
    text = state.index.known_folder(folder, key) if key else None
    if text is None:
        return None
    (names, sizes, digests, captions, blanks, sources), findings = json.loads(text)
    own, repeats, no_mask = repeat(state.subset), repeat(state.subset.num_repeats), repeat(None)
    columns = (names, own, repeats, map(tuple, sizes), digests, captions, no_mask, blanks, map(as_sources, sources))
    pictures = list(map(Picture, repeat(folder), *columns))
    return pictures, DataReport(findings={what: Finding(warns, names) for what, warns, names in findings})


def read_folder(folder: Path, files: dict[str, Stamp], state: Scan) -> list[Picture]:
    """Scan every file of a folder that is new or changed, and put pictures, captions and masks together."""
    stems = {name: stem for name in sorted(files) if (stem := picture_stem(name)) and is_wanted(name, stem, state)}
    captions = None if state.entries is not None else caption_names(stems.values(), files.keys(), state.subset)
    count_unused(files.keys() - stems.keys(), set(stems.values()), captions, state.subset, state.report)
    captions = captions or {}
    texts = dict.fromkeys(name for named in captions.values() for name in named.values())
    progress = state.stage(f"scanning {folder.name}")
    wanted = [*stems, *texts]
    found = scan_files(folder, files, wanted, lambda path: scan_file(path, path.name in stems), state.index, progress)
    pictures = (read_picture(folder, name, stem, found, captions, state) for name, stem in stems.items())
    return [picture for picture in pictures if picture is not None]


def is_wanted(name: str, stem: str, state: Scan) -> bool:
    """Tell whether a picture is one to train on: no mask of another, and named where a metadata file says which are."""
    if state.masks is not None and state.masks.is_mask(state.place, name):
        return False
    if state.entries is None or entry_of(name, stem, state) is not None:
        return True
    state.report.warn("pictures that the metadata file does not name, left out", name)
    return False


def entry_of(name: str, stem: str, state: Scan) -> str | None:
    """Return the caption that the metadata file has for a picture, under its name or its stem."""
    before, entries = f"{state.place}/" if state.place else "", state.entries or {}
    return entries.get(before + name, entries.get(before + stem))


def scan_file(path: Path, is_picture: bool) -> str:
    """Serialise one file's scan result as NUL-separated fields: `Facts`, or a caption's encoding, problem and text."""
    if is_picture:
        return scan_picture(path).text()
    try:
        text, encoding = read_caption(path)
        if path.name.endswith(JSON):
            check_json(path, text)
        return SEPARATOR.join([encoding, "", text])
    except FileError as error:
        return SEPARATOR.join(["", str(error).removeprefix(f"{path}: "), ""])


def read_picture(
    folder: Path, name: str, stem: str, found: dict[str, str], captions: dict[str, dict[str, str]], state: Scan
) -> Picture | None:
    """Return a picture with its caption and mask, or None for one that cannot be trained on."""
    facts, subset, report = Facts.of(found[name]), state.subset, state.report
    if facts.problem:
        report.warn(LEFT_OUT.get(facts.problem, f"{facts.problem}, left out"), name)
        return None
    if state.entries is not None:
        sources: list[Source] | None = [Source("", entry_of(name, stem, state) or "")]
    else:
        sources = read_sources(captions.get(stem, {}), name, found, subset, report)
    if sources is None:
        return None
    caption = next((text for source in sources if (text := whole_caption(source, subset))), "")
    mask = state.masks.find(state.place, stem, name, facts.size, report) if state.masks is not None else None
    alpha = subset.alpha_mask and mask is None  # a mask wins over it
    note_traits(facts.traits, name, alpha, report)
    blank = alpha and "invisible" in facts.traits if state.masks is None or mask is None else state.masks.is_black(mask)
    return Picture(
        folder, name, subset, subset.num_repeats, facts.size, facts.digest, caption, mask, blank, kept_apart(sources)
    )


def note_traits(traits: tuple[str, ...], name: str, alpha: bool, report: DataReport) -> None:
    """Report what becomes of a picture. alpha: its transparency is its mask."""
    for trait in traits:
        if trait in WARNED_TRAITS:
            report.warn(WARNED_TRAITS[trait], name)
        elif trait == "invisible" and alpha:
            report.warn(INVISIBLE, name)
        elif trait in NOTED_TRAITS and not (trait == "transparent" and alpha):
            report.note(NOTED_TRAITS[trait], name)

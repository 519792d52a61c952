"""Captions from elsewhere, such as a tagger: written beside the pictures of a folder, or into one file for a training.

A caption that is there stays, unless something else is asked for; what is replaced is copied first.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import FileError, SettingError
from ..files import unused, write_whole
from .caption_files import OTHER_ENDINGS, caption_endings, read_caption
from .listing import list_files, list_folders, picture_stem
from .report import DataReport, first_of
from .sets import number_of

KEEP, REPLACE, APPEND, APPEND_LINE = "keep", "replace", "append", "append a line"
EXISTING = (KEEP, REPLACE, APPEND, APPEND_LINE)
JOINTS = {APPEND: ", ", APPEND_LINE: "\n"}
BACKUPS = ".captions_before"  # in the folder; hidden, so that nothing takes it for data
NAMED = 3  # beside a count


@dataclass(frozen=True)
class Place:
    """A picture of a folder. name: below it, "3_cat/a.png". caption: the file that it has, and `target`, which it may get."""

    name: str
    target: str
    caption: str
    has_text: bool  # whether that file is there and not empty


@dataclass
class Captioned:
    """Names of pictures by what became of their captions."""

    written: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)  # also those that something was appended to
    same: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    unmatched: list[str] = field(default_factory=list)
    shared: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    backup: Path | None = None

    def sentence(self) -> str:
        """Say all that is not nothing, for people."""
        said = {
            "written": self.written,
            "replaced": self.replaced,
            "already so": self.same,
            "kept as they were": self.kept,
            "empty, not written": self.empty,
            "for no picture of the folder": self.unmatched,
            "for a caption file that an earlier picture has too": self.shared,
            "not added to a caption that cannot be read": self.unreadable,
        }
        worries = ("for no picture of the folder", "for a caption file that an earlier picture has too")
        parts = [
            f"{len(names)} {what}" + (f" ({first_of(names, NAMED)})" if what in worries else "")
            for what, names in said.items()
            if names
        ]
        return f"captions: {', '.join(parts) or 'none to write'}"


def places(folder: Path, extension: str = ".txt") -> list[Place]:
    """Return the pictures of a folder, or of its sub-folders named N_words where there are any. Raises AnimaError."""
    endings = caption_endings(checked_extension(extension))
    numbered = [name for name in list_folders(folder) if number_of(name) is not None]
    found = []
    for part in [f"{name}/" for name in numbered] or [""]:
        files = list_files(folder / part, DataReport())
        for name in sorted(files):
            if stem := picture_stem(name):
                there = next((stem + ending for ending in endings if stem + ending in files), "")
                size = files[there][0] if there else 0
                found.append(Place(part + name, part + stem + endings[0], part + there if there else "", size > 0))
    return found


def checked_extension(extension: str) -> str:
    """Return the ending of caption files that may be written. Raises SettingError: it must be no picture's, no program's."""
    ending = extension.strip().lower().removeprefix(".")
    if ending not in OTHER_ENDINGS:
        known = ", ".join(f".{name}" for name in sorted(OTHER_ENDINGS))
        raise SettingError(f"`subset.caption_extension`={extension!r}: captions are written as one of {known}")
    return f".{ending}"


def merged(old: str, new: str, existing: str) -> str:
    """Return what a caption becomes. Text that stands in it already is not appended again, so that a graph may run again."""
    if not old or existing == REPLACE:
        return new
    if existing == KEEP:
        return old
    joint = JOINTS[existing]
    if f"{joint}{new}{joint}" in f"{joint}{old}{joint}":
        return old
    return f"{old.rstrip(joint)}{joint}{new}"


def cleaned(text: str) -> str:
    """Return a caption as it can be written and read again: without NUL, lone surrogates and white space around it."""
    return text.replace("\0", "").replace("\r\n", "\n").encode("utf-8", "replace").decode().strip()


def planned(
    there: Sequence[Place], folder: Path, captions: Iterable[tuple[str, str]], existing: str
) -> tuple[dict[Place, str], Captioned]:
    """Return the captions that are new or changed, by picture, and what becomes of all."""
    by_name, plan, told = {place.name: place for place in there}, dict[Place, str](), Captioned()
    taken: set[str] = set()
    for name, text in captions:
        place, text = by_name.get(name), cleaned(text)
        if place is None:
            told.unmatched.append(name)
        elif place.target in taken:
            told.shared.append(name)
        elif not text:
            told.empty.append(name)
        elif place.has_text and existing == KEEP:
            told.kept.append(name)
        else:
            taken.add(place.target)
            plan_one(place, folder, text, existing, plan, told)
    return plan, told


def plan_one(place: Place, folder: Path, text: str, existing: str, plan: dict[Place, str], told: Captioned) -> None:
    try:
        old = read_caption(folder / place.caption)[0] if place.has_text else ""
    except FileError:
        if existing != REPLACE:
            told.unreadable.append(place.name)
            return
        old = "\0"  # unlike every text
    new = merged(old, text, existing)
    if new == old:
        told.same.append(place.name)
        return
    plan[place] = new
    (told.replaced if old else told.written).append(place.name)


def write_captions(
    folder: Path, captions: Iterable[tuple[str, str]], existing: str = KEEP, extension: str = ".txt"
) -> Captioned:
    """Write captions as files beside the pictures, each whole or not at all, and say what became of them.

    captions: names of pictures as `places` gives them, with their text. Each file that is replaced is copied before, into a
    folder of this moment. Raises SettingError, FileError.
    """
    plan, told = planned(places(folder, extension), folder, captions, existing)
    for place, text in plan.items():
        target = folder / place.target
        try:
            if target.is_file() and target.stat().st_size:
                told.backup = told.backup or unused(folder / BACKUPS / time.strftime("%Y-%m-%d_%H-%M-%S"))
                write_whole(told.backup / place.target, target.read_bytes())
            write_whole(target, text)
        except OSError as error:
            raise FileError(f"{target}: cannot be written ({error.strerror}); check its permissions and the disk") from None
    return told


def captions_file(
    folder: Path, captions: Iterable[tuple[str, str]], existing: str, extension: str, where: Path
) -> tuple[Path, Captioned]:
    """Write the captions of all pictures of a folder, those that it has and new ones, as one metadata file; return its path.

    The folder itself stays as it is. The file is named by its content and lies in `where`. Raises SettingError, FileError.
    """
    there = places(folder, extension)
    if any("/" in place.name for place in there):
        way_out = "write text files beside the pictures instead"
        raise SettingError(f"{folder}: has sub-folders named N_words, whose numbers a metadata file does not keep; {way_out}")
    plan, told = planned(there, folder, captions, existing)
    texts = {place.name: plan[place] if place in plan else old_text(folder, place) for place in there}
    entries = {name: {"caption": text} for name, text in texts.items() if text}
    if not entries:
        raise FileError(f"{folder}: no picture has a caption; link those of a tagger")
    content = json.dumps(entries, ensure_ascii=False, indent=1)
    path = where / f"{hashlib.sha256(content.encode()).hexdigest()[:24]}.json"
    if not path.is_file():
        write_whole(path, content)
    return path, told


def old_text(folder: Path, place: Place) -> str:
    """Return the caption that a picture has; none where it cannot be read: the training's report names the picture."""
    try:
        return read_caption(folder / place.caption)[0] if place.has_text else ""
    except FileError:
        return ""

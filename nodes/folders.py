"""Which folders of pictures there are to choose from: sub-folders of ComfyUI's input and datasets, told by names alone."""

import heapq
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..anima_core.data.caption_files import JSON, caption_endings
from ..anima_core.data.listing import picture_stem
from ..anima_core.data.sets import number_of
from ..anima_core.errors import FileError, SettingError
from .roots import is_inside, typed_from, user_path

SHOWN = 4  # pictures of a folder
NAMED = 5  # folders in an error
NOT_DATA = {"3d", "clipspace"}  # what ComfyUI itself keeps in its input folder
CAPTIONS = caption_endings(JSON)  # of text files, too


@dataclass(frozen=True)
class Folder:
    """name: what to type. root: where it lies, "input" or "datasets". captions: of its pictures. changed: seconds."""

    name: str
    root: str
    pictures: int
    captions: int
    shown: list[str]
    changed: float


@dataclass
class Listing:
    """The names in one folder, those that are hidden left out."""

    files: set[str]
    folders: list[str]
    changed: float

    def pictures(self) -> list[str]:
        return [name for name in self.files if picture_stem(name)]

    def captioned(self, pictures: list[str]) -> int:
        stems = map(picture_stem, pictures)
        return sum(any(stem + ending in self.files for ending in CAPTIONS) for stem in stems)


def listing(folder: str) -> Listing:
    """List a folder; one that cannot be read is empty."""
    found = Listing(set(), [], 0.0)
    try:
        found.changed = os.stat(folder).st_mtime
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                found.folders.append(entry.name) if entry.is_dir() else found.files.add(entry.name)
    except OSError:
        pass
    return found


def folders() -> list[Folder]:
    """Return the folders that hold pictures, and empty ones directly in a root; the newest first.

    Two levels deep. Pictures in sub-folders named N_words are their folder's: it is the one to name.
    """
    places = typed_from()
    roots = [(kind, root) for kind in ("input", "datasets") for root in places[kind]]
    found = [folder for kind, root in roots for folder in folders_in(kind, root)]
    return sorted(found, key=lambda folder: -folder.changed)


def holds_pictures(folder: str) -> bool:
    return any(part.pictures() for part in parts_of(folder, listing(folder)).values())


def parts_of(folder: str, own: Listing) -> dict[str, Listing]:
    """Return what the pictures of a folder lie in, by place: its sub-folders named N_words, or itself."""
    numbered = [name for name in own.folders if number_of(name) is not None]
    return {f"{name}/": listing(os.path.join(folder, name)) for name in numbered} or {"": own}


def folders_in(kind: str, root: str) -> Iterator[Folder]:
    for name in listing(root).folders:
        if name in NOT_DATA:
            continue
        path = os.path.join(root, name)
        own = listing(path)
        parts = parts_of(path, own)
        others = [sub for sub in own.folders if f"{sub}/" not in parts]
        below = [described(kind, root, f"{name}/{sub}", {"": listing(os.path.join(path, sub))}) for sub in others]
        below = [folder for folder in below if folder.pictures]
        folder = described(kind, root, name, parts)
        if folder.pictures or not below:
            yield folder
        yield from below


def described(kind: str, root: str, place: str, parts: dict[str, Listing]) -> Folder:
    """Count a folder's pictures. parts: what they lie in, by its place in the folder."""
    pictures = {part: found.pictures() for part, found in parts.items()}
    shown = heapq.nsmallest(SHOWN, (part + name for part, names in pictures.items() for name in names))
    captions = sum(found.captioned(pictures[part]) for part, found in parts.items())
    changed = max(found.changed for found in parts.values())
    return Folder(typed(kind, root, place), kind, sum(map(len, pictures.values())), captions, shown, changed)


def typed(kind: str, root: str, place: str) -> str:
    """Return the shortest that a user may type for a folder: where two have the same name, with its root's before it."""
    path = os.path.join(root, place)
    for name in (place, f"{kind}/{place}"):
        if os.path.normpath(user_path(name, "folder")) == os.path.normpath(path):
            return name
    return path


def folder_of_pictures(typed: str, setting: str, what: str = "captioned pictures") -> str:
    """Return the path of a folder as a user types it. setting: `section.field` in ticks. Raises SettingError, FileError."""
    if not typed.strip():
        raise SettingError(f"{setting}='': name a folder of {what}; {there_are()}")
    path = user_path(typed, setting)
    if not Path(path).is_dir():
        raise FileError(f"{path}: no such folder of pictures; check {setting}; {there_are()}")
    return path


def there_are() -> str:
    """Return the end of an error about a folder: which ones there are."""
    found = [folder for folder in folders() if folder.pictures]
    if not found:
        return "there is none with pictures yet; make one in ComfyUI's input folder"
    counts = ["1 picture" if folder.pictures == 1 else f"{folder.pictures} pictures" for folder in found[:NAMED]]
    named = ", ".join(f"{folder.name} ({count})" for folder, count in zip(found, counts))
    rest = len(found) - NAMED
    return f"there are {named}{f' and {rest} more' if rest > 0 else ''}"


def picture_in(folder: str, file: str) -> Path:
    """Return the path of a picture of a folder as both are told by `folders`. Raises SettingError, FileError."""
    place = os.path.abspath(user_path(folder, "folder"))
    path = os.path.abspath(os.path.join(place, file))
    if not folder.strip() or not picture_stem(os.path.basename(path)) or not is_inside(path, place):
        raise SettingError(f"file={file!r}: no picture of {folder!r}")
    if not os.path.isfile(path):
        raise FileError(f"{folder}/{file}: no such picture")
    return Path(path)

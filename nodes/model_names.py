"""What the dropdowns of model files call their entries: files, folders with a slash at the end, and those of other places.

An all-in-one checkpoint lies in models/checkpoints and a diffusers folder in models/diffusers or beside the transformers;
each of the loaders may take its part of them, so they are in all lists, by the folder's name: `checkpoints/anima.safetensors`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ..anima_core.models.diffusers_names import ROOT
from .roots import is_inside

CHECKPOINTS, FOLDERS = "checkpoints", ("diffusers", "diffusion_models")  # where what holds all parts may be
# A folder of a list's own kind is told by one of these: what Hugging Face's and diffusers' savers write into it
MARKS = {
    "diffusion_models": (*ROOT, "transformer"),
    "vae": (*ROOT, "config.json"),
    "text_encoders": (*ROOT, "config.json"),
}


def names_of(kind: str) -> list[str]:
    """List the entries of a dropdown: its own files and folders, then what holds this kind among others."""
    own = [*folder_paths.get_filename_list(kind), *folders_with(kind, *MARKS[kind])]
    checkpoints = [name for name in listed(CHECKPOINTS) if name.endswith(".safetensors")]
    others = [f"{CHECKPOINTS}/{name}" for name in checkpoints]
    others += [f"{place}/{name}" for place in FOLDERS if place != kind for name in folders_with(place, *ROOT)]
    return [*own, *(name for name in others if name not in own)]


def listed(kind: str) -> list[str]:
    return list(folder_paths.get_filename_list(kind)) if places_of(kind) else []


def folders_with(kind: str, *marks: str) -> list[str]:
    """List the sub-folders of a model folder that hold one of `marks`, by their names with a slash."""
    found: list[str] = []
    for root in map(Path, places_of(kind)):
        if root.is_dir():
            found += [f"{p.name}/" for p in sorted(root.iterdir()) if any((p / mark).exists() for mark in marks)]
    return found


def path_of(kind: str, name: str) -> str | None:
    """Return the path of an entry, None where it is gone. A name that leads out of its place means nothing."""
    head, _, rest = name.partition("/")
    elsewhere = [(head, rest)] if head in (CHECKPOINTS, *FOLDERS) and rest else []
    return next((path for place, part in [(kind, name), *elsewhere] for path in paths_of(place, part)), None)


def paths_of(kind: str, name: str) -> Iterator[str]:
    for root in places_of(kind):
        path = os.path.abspath(os.path.join(root, name))
        if is_inside(path, os.path.abspath(root)) and (os.path.isdir(path) if name.endswith("/") else os.path.isfile(path)):
            yield path


def places_of(kind: str) -> list[str]:
    """Return the folders of a kind; none for one that this ComfyUI does not have."""
    try:
        return list(folder_paths.get_folder_paths(kind))
    except KeyError:
        return []


def full_path(kind: str, name: str) -> str:
    """Return the path of an entry. Raises ComfyUI's own error for one that is gone."""
    found: str = path_of(kind, name) or folder_paths.get_full_path_or_raise(kind, name)
    return found

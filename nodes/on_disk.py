"""Fingerprints of what inputs name on disk: ComfyUI executes a node again when its fingerprint changes."""

import hashlib
import os
from typing import Any

from ..anima_core.settings import walk
from .model_names import path_of


def unknown() -> float:
    """Return the fingerprint of a path that a link brings: ComfyUI does not say which, so it is always looked at.

    Not a number equals nothing, itself included. What is trained already is found again by the store of runs.
    """
    return float("nan")


def file_state(path: str) -> str:
    """Return size and time of a file, which change when its content does; empty where there is none."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return ""
    return f"{path}:{stat.st_size}:{stat.st_mtime_ns}"


def folder_state(folder: str) -> str:
    """Hash names, sizes and times of all files below a folder, which change when a picture or caption does.

    Behind links, too: data are read there. Each folder once, since a link may lead back to where it is.
    """
    digest, seen = hashlib.sha256(), set[str]()
    for root, dirs, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(root)) in seen:
            dirs.clear()
            continue
        seen.add(place)
        dirs[:] = sorted(d for d in dirs if not d.startswith("."))
        for name in sorted(names):
            digest.update(f"{file_state(os.path.join(root, name))}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def state(path: str) -> str:
    return folder_state(path) if os.path.isdir(path) else file_state(path)


def chosen(kind: str, name: str | None) -> str | float:
    """Return the fingerprint of a dropdown's file or folder: ComfyUI's files may be replaced under their names."""
    if name is None:
        return unknown()
    path = path_of(kind, name)
    return name + (state(path) if path else "")


def state_of(*configs: Any) -> str:
    """Return settings, and the state of every file and folder that they are made from."""
    read = [found.value for config in configs for found in walk(config) if found.facts.path == "read" and found.value]
    return repr(configs) + "".join(map(state, read))

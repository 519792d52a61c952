"""kohya's metadata file (meta_cap.json, .jsonl): the captions of many pictures in one file, which also says which they are."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import FileError
from ..settings import SubsetConfig
from .json_text import half_character, without_controls
from .report import DataReport

Entries = dict[str, str]  # a picture's path below its folder, with or without its ending, "/" between folders -> caption
NAMES = {"meta_cap.json", "meta_cap_dd.json", "meta_clean.json", "meta_lat.json", "metadata.json", "metadata.jsonl"}


def read_metadata(subset: SubsetConfig, report: DataReport) -> Entries:
    """Return the captions of a metadata file. Raises FileError.

    The file: {"path or stem": {"caption": "...", "tags": "..."}}, or one object with `image_path` a line in a .jsonl.
    """
    path = Path(subset.metadata_file)
    entries: Entries = {}
    for key, entry in read_entries(path):
        place = place_below(key, subset.image_dir)
        if not place:
            report.warn("entries of the metadata file outside of image_dir, left out", key)
        else:
            entries[place] = joined(entry, key, subset, path)
    if not entries:
        raise FileError(f"{path}: names no picture below {subset.image_dir}; check `subset.image_dir`")
    return entries


def read_entries(path: Path) -> list[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() == ".jsonl":
            lines = [json.loads(line) for line in text.splitlines() if line.strip()]
            found = [(line.get("image_path"), line) for line in lines]
        else:
            found = list(json.loads(text).items())
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check `subset.metadata_file`") from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{path}: no metadata file ({error}); it is JSON: {{picture: {{caption, tags}}}}") from None
    for key, entry in found:
        if not (isinstance(key, str) and isinstance(entry, dict)):
            raise FileError(f"{path}: {key!r}: must be a picture with a table of caption and tags; repair the entry")
        if half := half_character(f"{key}{entry.get('caption')}{entry.get('tags')}"):
            raise FileError(f"{path}: {key!a}: {half}; repair the entry")
    return found


def place_below(key: str, image_dir: str) -> str:
    """Return where a picture is as seen from its folder; empty when it is not below it."""
    root = os.path.abspath(image_dir)
    full = os.path.normpath(os.path.join(root, key))
    inside = os.path.normcase(full).startswith(os.path.normcase(os.path.join(root, "")))
    return os.path.relpath(full, root).replace(os.sep, "/") if inside else ""


def joined(entry: dict[str, Any], key: str, subset: SubsetConfig, path: Path) -> str:
    """Return caption and tags as one caption. With wildcards the tags stand behind each line, each of which is one caption."""
    caption, tags = (entry.get(name) or "" for name in ("caption", "tags"))
    if not (isinstance(caption, str) and isinstance(tags, str)):
        raise FileError(f"{path}: {key}: caption and tags must be text; repair the entry")
    caption, tags = without_controls(caption), without_controls(tags)
    lines = [line for line in caption.split("\n") if line.strip()] if subset.enable_wildcard else [caption]
    if subset.enable_wildcard:
        tags = tags.replace("\n", subset.caption_separator)
    return "\n".join(subset.caption_separator.join(part for part in (line, tags) if part) for line in lines or [""])

"""Captions as JSON: tags by category and sentences, in the forms that front ends and taggers write.

AnimaLoraStudio's and AnimaLoraToolkit's: {"fixed": {"quality", "series", "artist"}, "character": {"name", "variant"},
"from_path": {"appearance"}, "ai_output": {"count", "appearance", "tags", "environment", "nl"}}, and the same without the
outer tables; {category: tags}; kohya's {"caption", "tags"}; a list of tags, or a text, alone. Tags are a list, or text with
commas.
"""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from ..settings.captions import ORDER, PROSE
from .json_text import load_json, without_controls

Tags = tuple[tuple[str, tuple[str, ...]], ...]  # category -> tags, in the order of the file

CATEGORIES = {  # what files call them, in small letters -> ours
    **dict.fromkeys(("quality", "quality_meta_year_safe", "meta", "year", "safety", "safe", "rating"), "quality"),
    **dict.fromkeys(("count", "counts"), "count"),
    **dict.fromkeys(("character", "characters", "char"), "character"),
    **dict.fromkeys(("series", "copyright", "copyrights"), "series"),
    **dict.fromkeys(("artist", "artists"), "artist"),
    "appearance": "appearance",
    **dict.fromkeys(("tags", "tag", "general", "style"), "general"),
    **dict.fromkeys(("environment", "background"), "environment"),
    **dict.fromkeys(("nl", "caption", "captions", "description", "natural_language", "sentences", "text"), PROSE),
}
TABLES = ("fixed", "from_path", "ai_output", "tags", "general")  # whose entries are categories again
OF_CHARACTER = ("name", "variant")
TAG = re.compile(r"(?:\{[^{}|]*\|[^{}]*\}|[^,])+")  # up to a comma; the braces of a wildcard may hold more


class JsonCaption(NamedTuple):
    """tags: of categories other than the sentences. unread: keys without a meaning here, and values that are no text."""

    tags: Tags
    prose: str
    unread: tuple[str, ...]


def read_json_caption(text: str) -> JsonCaption:
    """Read a caption of any form. Raises ValueError that says what is wrong, and in which line of the text."""
    try:
        data = load_json(text) if text else {}
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error.msg}, line {error.lineno}") from None
    except ValueError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    except RecursionError:
        raise ValueError("not valid JSON: nested too deeply") from None
    if not isinstance(data, dict):
        data = {"tags": data} if isinstance(data, list) else of_text(data)
    found: dict[str, list[str]] = {}
    unread: list[str] = []
    collect(data, "", found, unread)
    prose = " ".join(found.pop(PROSE, []))
    return JsonCaption(once(found), prose, tuple(unread))


def of_text(text: Any) -> dict[str, Any]:
    """Return a text alone as a text file's: its first line is tags, further lines are sentences."""
    if not isinstance(text, str):
        raise ValueError("must be a table, a list of tags or a text")
    tags, _, prose = text.strip().partition("\n")
    return {"tags": tags, PROSE: prose}


def collect(table: dict[str, Any], place: str, found: dict[str, list[str]], unread: list[str]) -> None:
    """Add what a table says to what was found by category. place: of the table, with a dot behind it, or empty."""
    for key, value in table.items():
        name, category = f"{place}{key}", CATEGORIES.get(key.strip().lower())
        if isinstance(value, dict) and category == "character":
            found.setdefault(category, []).extend(of_character(value, name, unread))
        elif isinstance(value, dict) and not place and key.strip().lower() in TABLES:
            collect(value, f"{name}.", found, unread)
        elif category is None:
            unread.append(name)
        else:
            found.setdefault(category, []).extend(texts_of(value, category, name, unread))


def of_character(value: dict[str, Any], name: str, unread: list[str]) -> list[str]:
    """Return the tags of {"name", "variant"}."""
    unread.extend(f"{name}.{key}" for key in value if key not in OF_CHARACTER)
    return [text for key in OF_CHARACTER for text in texts_of(value.get(key), "character", f"{name}.{key}", unread)]


def texts_of(value: Any, category: str, name: str, unread: list[str]) -> list[str]:
    """Return tags, or sentences, from a text, a list of texts, or nothing. A year may be a number: Anima knows "year 2025"."""
    if name.rpartition(".")[2].lower() == "year" and isinstance(value, int) and not isinstance(value, bool):
        value = f"year {value}"
    items = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(item, str) for item in items):
        unread.append(f"{name} (not text)")
    texts = [" ".join(without_controls(item).split()) for item in items if isinstance(item, str)]
    return [text for text in texts if text] if category == PROSE else [tag for text in texts for tag in split(text)]


def split(text: str) -> Iterable[str]:
    return filter(None, map(str.strip, TAG.findall(text)))


def once(found: dict[str, list[str]]) -> Tags:
    """Leave out a tag that stands earlier in Anima's order, in small or large letters: folder and tagger name the same."""
    first: dict[str, tuple[str, str]] = {}
    for category in sorted(found, key=ORDER.index):
        for tag in found[category]:
            first.setdefault(tag.casefold(), (category, tag))
    return tuple((category, tuple(tag for place, tag in first.values() if place == category)) for category in found)

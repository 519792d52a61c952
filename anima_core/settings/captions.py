"""The small languages of the caption settings: categories with rates, endings with weights, rules for tags."""

import re
from functools import cache
from typing import NamedTuple

from ..errors import SettingError
from .setting import require

PROSE = "nl"  # sentences
VARIED = ("appearance", "general", "environment")  # what `shuffle_caption` and `caption_tag_dropout_rate` are about
# Tag order of the model card (circlestone-labs/Anima): quality, meta, year and safety tags, then 1girl and the like, character,
# series, artist, general tags; within each any order. AnimaLoraStudio's captions divide the last into three; sentences end it.
ORDER = ("quality", "count", "character", "series", "artist", *VARIED, PROSE)
PATTERN = "re:"


@cache
def rates(pairs: tuple[str, ...], name: str) -> dict[str, float]:
    """Read "general=0.1" by category; a category alone is 1. Raises SettingError that names the setting.

    name: `section.field` without its ticks.
    """
    found: dict[str, float] = {}
    for pair in pairs:
        category, _, text = (part.strip() for part in pair.partition("="))
        require(category in ORDER, name, repr(pair), f"{category!r} is no category; they are {', '.join(ORDER)}")
        found[category] = number(text or "1", name, pair)
        require(0 <= found[category] <= 1, name, repr(pair), "must be a chance from 0 to 1")
    return found


@cache
def chances(
    shuffle: bool, dropout: float, shuffled: tuple[str, ...], dropped: tuple[str, ...]
) -> dict[str, tuple[float, float]]:
    """Return by category the chances that its tags are shuffled, and that one of them is left out.

    What a category has for itself wins over `shuffle` and `dropout`, which are about the tags of `VARIED`.
    """
    own, left_out = rates(shuffled, "subset.category_shuffle"), rates(dropped, "subset.category_dropout")
    usual = {category: (float(shuffle), dropout) if category in VARIED else (0.0, 0.0) for category in ORDER}
    return {name: (own.get(name, usual[name][0]), left_out.get(name, usual[name][1])) for name in ORDER}


@cache
def weights(pairs: tuple[str, ...], name: str) -> dict[str, float]:
    """Read ".txt=2" by ending; an ending alone weighs 1, and its dot may be left out. Raises SettingError."""
    found: dict[str, float] = {}
    for pair in pairs:
        ending, _, text = (part.strip() for part in pair.partition("="))
        require(bool(ending.strip(".")), name, repr(pair), "write an ending and its weight, as .txt=2")
        ending = ending if ending.startswith(".") else f".{ending}"
        require(ending not in found, name, repr(pair), "name each ending once")
        found[ending] = number(text or "1", name, pair)
        require(0 < found[ending] < float("inf"), name, repr(pair), "a weight must be above 0")
    return found


def number(text: str, name: str, pair: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingError(f"`{name}`={pair!r}: {text!r} must be a number") from None


@cache
def in_order(named: tuple[str, ...], name: str) -> tuple[str, ...]:
    """Return all categories: those that are named first, the others behind them in Anima's order. Raises SettingError."""
    for category in named:
        require(category in ORDER, name, repr(category), f"is no category; they are {', '.join(ORDER)}")
    require(len(set(named)) == len(named), name, ", ".join(named), "name each category once")
    return (*named, *(category for category in ORDER if category not in named))


class Rule(NamedTuple):
    """What becomes of a tag. written: as its user wrote it. old: a tag to be found, or empty where `pattern` finds it."""

    written: str
    old: str
    pattern: re.Pattern[str] | None
    new: str

    def meets(self, tag: str) -> bool:
        """Tell whether a tag is meant: but for patterns, small letters are as large ones, underscores as blanks."""
        return plain(tag) == self.old if self.pattern is None else self.pattern.search(tag) is not None

    def apply(self, tag: str) -> str:
        return self.new if self.pattern is None else self.pattern.sub(self.new, tag)


def plain(tag: str) -> str:
    return tag.strip().casefold().replace("_", " ")


@cache
def renames(texts: tuple[str, ...], name: str) -> tuple[Rule, ...]:
    """Read "old => new", or "re:pattern => new", which may name groups. Raises SettingError."""
    for text in texts:
        require("=>" in text, name, repr(text), "write old => new, or re:pattern => new")
    sides = [(text, *text.split("=>", 1)) for text in texts]
    return tuple(rule(text, unquoted(old), unquoted(new), name) for text, old, new in sides)


@cache
def blacklist(texts: tuple[str, ...], name: str) -> tuple[Rule, ...]:
    """Read tags, and patterns as "re:pattern". Raises SettingError."""
    return tuple(rule(text, unquoted(text), "", name) for text in texts)


def rule(text: str, old: str, new: str, name: str) -> Rule:
    require(bool(old.removeprefix(PATTERN)), name, repr(text), "name a tag, or a pattern as re:pattern")
    if not old.startswith(PATTERN):
        return Rule(text, plain(old), None, new)
    try:
        pattern = re.compile(old.removeprefix(PATTERN).strip())
        pattern.sub(new, "")  # reads the replacement, found or not
    except (re.error, IndexError) as error:
        raise SettingError(f"`{name}`={text!r}: is no pattern ({error}); see Python's re") from None
    return Rule(text, "", pattern, new)


def unquoted(text: str) -> str:
    """Return a side of a rule without the blanks around it; in double quotes blanks count."""
    text = text.strip()
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] == '"' else text


def words(text: str, separator: str) -> list[str]:
    """Split a text into stripped tags, the empty ones left out."""
    parts = text.split(separator) if separator else [text]
    return [tag for part in parts if (tag := part.strip())]

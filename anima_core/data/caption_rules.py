"""What a subset does with tags whichever are drawn: renames, a blacklist, trigger words."""

import re
from collections.abc import Iterable, Sequence
from functools import cache

from ..settings import SubsetConfig
from ..settings.captions import Rule, plain, words
from .caption_sources import Source, joined


def ruled(tags: Iterable[str], subset: SubsetConfig) -> list[str]:
    """Return tags after the renames, in their order, and the blacklist; a tag that becomes empty is left out."""
    renames, blacklist = subset.renames, subset.blacklist
    if not (renames or blacklist):
        return [*tags]
    found = [renamed(tag, renames) for tag in tags]
    return [tag for tag in found if tag and not any(rule.meets(tag) for rule in blacklist)]


def renamed(tag: str, rules: Sequence[Rule]) -> str:
    for rule in rules:
        if rule.meets(tag):
            tag = rule.apply(tag).strip()
    return tag


def renamed_prose(text: str, rules: Sequence[Rule]) -> str:
    """Return sentences after those renames that are patterns: no tag stands in them."""
    return renamed(text, [rule for rule in rules if rule.pattern is not None]) if rules and text else text


def after_rules(source: Source, subset: SubsetConfig) -> Source:
    """Return a caption after renames and blacklist; of text the first line is tags."""
    if not (subset.caption_replace or subset.caption_blacklist):
        return source
    if source.tags is not None:
        tags = tuple((category, tuple(ruled(some, subset))) for category, some in source.tags)
        return source._replace(tags=tags, text=renamed_prose(source.text, subset.renames))
    first, newline, prose = source.text.partition("\n")
    first = joined(ruled(words(first, subset.caption_separator), subset), subset)
    return source._replace(text=first + newline + renamed_prose(prose, subset.renames))


def triggers(subset: SubsetConfig) -> list[str]:
    return words(subset.caption_trigger, subset.caption_separator)


def taken_out(groups: Sequence[list[str]], subset: SubsetConfig) -> tuple[list[str], list[list[str]]]:
    """Return the trigger words that stand among tags, and the tags without them."""
    wanted = {plain(word): word for word in triggers(subset)}
    if not wanted:
        return [], [*groups]
    there = {key for tags in groups for key in map(plain, tags) if key in wanted}
    rest = [[tag for tag in tags if plain(tag) not in there] for tags in groups]
    return [word for key, word in wanted.items() if key in there], rest


def with_triggers(text: str, subset: SubsetConfig) -> str:
    """Put those trigger words in front of a caption that are nowhere in it as words."""
    if not subset.caption_trigger:
        return text
    missing = [word for word in triggers(subset) if not as_word(word).search(text)]
    return f"{subset.caption_separator.strip()} ".join([*missing, text] if text else missing)


@cache
def as_word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)


def rules_met(tags: Iterable[str], prose: str, subset: SubsetConfig) -> set[str]:
    """Return the rules, as they were written, that meet a tag or a sentence of a caption, one after the other."""
    met: set[str] = set()
    for is_prose, text in [*((False, tag) for tag in tags), (True, prose)]:
        for rule in (*subset.renames, *(() if is_prose else subset.blacklist)):
            if text and not (is_prose and rule.pattern is None) and rule.meets(text):
                met.add(rule.written)
                text = rule.apply(text).strip()
    return met

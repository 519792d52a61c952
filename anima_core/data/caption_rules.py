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
    found = [tag for tag in tags if tag]
    for rule in renames:
        found = applied(rule, found, subset)
    return [tag for tag in found if not any(rule.meets(tag) for rule in blacklist)]


def applied(rule: Rule, tags: list[str], subset: SubsetConfig) -> list[str]:
    """Return tags after one rename, which may make several of one."""
    return [new for tag in tags for new in (words(rule.apply(tag), subset.caption_separator) if rule.meets(tag) else [tag])]


def renamed_prose(text: str, rules: Sequence[Rule]) -> str:
    """Return sentences after those renames that are patterns: no tag stands in them."""
    for rule in rules:
        if text and rule.pattern is not None and rule.meets(text):
            text = rule.apply(text).strip()
    return text


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
    missing = missing_triggers(text, subset)
    return f"{subset.caption_separator.strip()} ".join([*missing, text] if text else missing)


def missing_triggers(text: str, subset: SubsetConfig) -> list[str]:
    return [word for word in triggers(subset) if not as_word(word).search(text)]


@cache
def as_word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(text)}(?!\w)", re.IGNORECASE)


def rules_met(tags: Iterable[str], prose: str, subset: SubsetConfig) -> set[str]:
    """Return the rules, as they were written, that meet a tag or a sentence of a caption, one after the other."""
    met: set[str] = set()
    found = [tag for tag in tags if tag]
    for rule in subset.renames:
        if any(map(rule.meets, found)) or (prose and rule.pattern is not None and rule.meets(prose)):
            met.add(rule.written)
        found, prose = applied(rule, found, subset), renamed_prose(prose, [rule])
    for rule in subset.blacklist:
        if any(map(rule.meets, found)):
            met.add(rule.written)
        found = [tag for tag in found if not rule.meets(tag)]
    return met

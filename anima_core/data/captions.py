"""Captions, changed from draw to draw the way kohya's trainers do, without mangling prose."""

import re
from collections.abc import Sequence
from itertools import accumulate, chain
from typing import NamedTuple

import torch

from ..settings import SubsetConfig
from ..settings.captions import PROSE, words
from .caption_rules import renamed_prose, ruled, taken_out, with_triggers
from .caption_sources import Source, framed, joined, rendered

CHOICE = re.compile(r"\{([^}]+)\}")
OPEN, CLOSE = "\0", "\1"  # stand for the braces that "{{" and "}}" mean
TEXT_TAGS = "general"  # the category of a text caption's tags, of which nothing more is known


def process_caption(
    text: str, subset: SubsetConfig, generator: torch.Generator, drop: bool | None = None, sources: Sequence[Source] = ()
) -> str:
    """Draw a caption: file, line, prefix and suffix, wildcards, rules, shuffle, dropout, trigger, separator; or none at all.

    drop: whether the caption as a whole is left empty; None draws it at `caption_dropout_rate`. sources: of the picture, where
    `text` does not say all.
    Text is returned as it is unless something asks for its tags: shuffling, tag dropout, rules, trigger words, or a
    `keep_tokens_separator` that stands in it. Then its first line is tags, and any further lines are prose, which stays.
    The draws of shuffling and of the dropouts are the same whether or not the others are on.
    """
    drawn = bool(torch.rand((), generator=generator) < subset.caption_dropout_rate)  # drawn always: later draws stay the same
    if drawn if drop is None else drop:
        return ""
    source = draw_source(sources, subset, generator) if sources else Source("", text)
    draw = draw_text if source.tags is None else draw_categories
    text = with_triggers(draw(source, subset, generator), subset)
    second = subset.secondary_separator
    return text.replace(second, subset.caption_separator) if second else text


def draw_source(sources: Sequence[Source], subset: SubsetConfig, generator: torch.Generator) -> Source:
    """Draw one of a picture's captions by the weights of their endings."""
    if len(sources) == 1:
        return sources[0]
    weights = [subset.weights[source.ending] for source in sources]
    point = float(torch.rand((), generator=generator)) * sum(weights)
    return next((source for source, end in zip(sources, accumulate(weights)) if point < end), sources[-1])


def draw_text(source: Source, subset: SubsetConfig, generator: torch.Generator) -> str:
    """Draw from a text file."""
    text = draw_line(source.text, generator) if subset.enable_wildcard else source.text
    text = framed(text, subset)
    text = draw_choices(text, subset, generator)
    marker = subset.keep_tokens_separator
    if not subset.changes_tags and not (marker and marker in text):
        return text
    first, newline, prose = text.partition("\n")
    head, flexible, tail = split_tags(first, subset)
    kept = vary(Group(TEXT_TAGS, flexible), subset, generator)
    sentences = vary(Group(PROSE, [renamed_prose(prose, subset.renames)]), subset, generator) if prose else [""]
    return joined(head + kept + tail, subset) + (newline + sentences[0] if sentences else "")


def draw_categories(source: Source, subset: SubsetConfig, generator: torch.Generator) -> str:
    """Draw from a JSON file, in the subset's order of categories."""
    chosen = {name: [words(draw_choices(tag, subset, generator), ",") for tag in tags] for name, tags in source.tags or ()}
    found = {category: ruled(chain.from_iterable(tags), subset) for category, tags in chosen.items()}
    lead, groups = taken_out([*found.values()], subset)
    found = dict(zip(found, groups))
    if source.text:
        found[PROSE] = [renamed_prose(draw_choices(source.text, subset, generator), subset.renames)]
    drawn = [(category, vary(Group(category, found.get(category, [])), subset, generator)) for category in subset.order]
    text = framed(rendered(drawn, subset), subset)
    return joined([*lead, text] if text else lead, subset)


class Group(NamedTuple):
    """Tags of one category that may be shuffled and left out."""

    category: str
    tags: list[str]


def vary(group: Group, subset: SubsetConfig, generator: torch.Generator) -> list[str]:
    """Shuffle tags, and leave some out, at the chances of their category. All is drawn, whatever the chances are."""
    shuffling, dropout = subset.rates[group.category]
    order = torch.randperm(len(group.tags), generator=generator).tolist()
    kept = torch.rand(len(group.tags), generator=generator) >= dropout
    if torch.rand((), generator=generator) >= shuffling:
        order.sort()
    return [group.tags[i] for i in order if kept[i]]


def draw_line(text: str, generator: torch.Generator) -> str:
    """Draw one of the lines: with wildcards each line of a caption file is a caption of its own (sd-scripts)."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return _one_of(lines, generator) if lines else ""


def draw_choices(text: str, subset: SubsetConfig, generator: torch.Generator) -> str:
    """With wildcards draw one of a, b and c for each "{a|b|c}"; "{{" and "}}" are braces (sd-scripts)."""
    if not subset.enable_wildcard:
        return text
    text = text.replace("{{", OPEN).replace("}}", CLOSE)
    text = CHOICE.sub(lambda found: _one_of(found[1].split("|"), generator), text)
    return text.replace(OPEN, "{").replace(CLOSE, "}")


def _one_of(options: list[str], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=generator))]


def split_tags(text: str, subset: SubsetConfig) -> tuple[list[str], list[str], list[str]]:
    """Split a caption into stripped, non-empty tags after its rules: fixed head, flexible middle, fixed tail.

    `keep_tokens_separator` divides them (a second one begins the tail); without it the head is `keep_tokens` long. Trigger
    words among the tags come to the front of the head.
    """
    marker = subset.keep_tokens_separator
    divided = bool(marker) and marker in text
    parts = [ruled(words(part, subset.caption_separator), subset) for part in (text.split(marker, 2) if divided else [text])]
    lead, parts = taken_out(parts, subset)
    if divided:
        head, middle, *tail = parts
        return lead + head, middle, tail[0] if tail else []
    return lead + parts[0][: subset.keep_tokens], parts[0][subset.keep_tokens :], []

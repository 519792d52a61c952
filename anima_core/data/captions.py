"""Captions, changed from draw to draw the way kohya's trainers do, without mangling prose."""

import re

import torch

from ..settings import SubsetConfig
from .tags import framed

CHOICE = re.compile(r"\{([^}]+)\}")
OPEN, CLOSE = "\0", "\1"  # stand for the braces that "{{" and "}}" mean


def process_caption(text: str, subset: SubsetConfig, generator: torch.Generator, drop: bool | None = None) -> str:
    """Draw a caption: a line of it, prefix and suffix, wildcards, shuffle, tag dropout, second separator; or none at all.

    drop: whether the caption as a whole is left empty; None draws it at `caption_dropout_rate`.
    Text is returned as it is unless something asks for its tags: shuffling, tag dropout, or a `keep_tokens_separator`
    that stands in it. Then its first line is tags, and any further lines are prose, which stays.
    The draws of shuffling and of the dropouts are the same whether or not the others are on.
    """
    drawn = bool(torch.rand((), generator=generator) < subset.caption_dropout_rate)  # drawn always: later draws stay the same
    if drawn if drop is None else drop:
        return ""
    text = draw_line(text, generator) if subset.enable_wildcard else text
    text = framed(text, subset)
    text = draw_choices(text, generator) if subset.enable_wildcard else text
    marker = subset.keep_tokens_separator
    if subset.varies_tags or (marker and marker in text):
        tags, newline, prose = text.partition("\n")
        text = _vary(tags, subset, generator) + newline + prose
    second = subset.secondary_separator
    return text.replace(second, subset.caption_separator) if second else text


def draw_line(text: str, generator: torch.Generator) -> str:
    """Draw one of the lines: with wildcards each line of a caption file is a caption of its own (sd-scripts)."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    return _one_of(lines, generator) if lines else ""


def draw_choices(text: str, generator: torch.Generator) -> str:
    """Draw one of a, b and c for each "{a|b|c}"; "{{" and "}}" are braces (sd-scripts)."""
    text = text.replace("{{", OPEN).replace("}}", CLOSE)
    text = CHOICE.sub(lambda found: _one_of(found[1].split("|"), generator), text)
    return text.replace(OPEN, "{").replace(CLOSE, "}")


def _one_of(options: list[str], generator: torch.Generator) -> str:
    return options[int(torch.randint(len(options), (), generator=generator))]


def _vary(text: str, subset: SubsetConfig, generator: torch.Generator) -> str:
    head, flexible, tail = split_tags(text, subset)
    order = torch.randperm(len(flexible), generator=generator).tolist()
    kept = torch.rand(len(flexible), generator=generator) >= subset.caption_tag_dropout_rate
    if not subset.shuffle_caption:
        order.sort()
    return f"{subset.caption_separator.strip()} ".join(head + [flexible[i] for i in order if kept[i]] + tail)


def split_tags(text: str, subset: SubsetConfig) -> tuple[list[str], list[str], list[str]]:
    """Split a caption into stripped, non-empty tags: fixed head, flexible middle, fixed tail.

    `keep_tokens_separator` divides them (a second one begins the tail); without it the head is `keep_tokens` long.
    """
    marker = subset.keep_tokens_separator
    if marker and marker in text:
        head, middle, *tail = (_tags(part, subset.caption_separator) for part in text.split(marker, 2))
        return head, middle, tail[0] if tail else []
    tags = _tags(text, subset.caption_separator)
    return tags[: subset.keep_tokens], tags[subset.keep_tokens :], []


def _tags(text: str, separator: str) -> list[str]:
    parts = text.split(separator) if separator else [text]
    return [tag for part in parts if (tag := part.strip())]

"""Captions, changed from draw to draw the way kohya's trainers do, without mangling prose."""

import torch

from ..settings import SubsetConfig


def process_caption(text: str, subset: SubsetConfig, generator: torch.Generator, drop: bool | None = None) -> str:
    """Draw a caption: prefix and suffix, then shuffle, then tag dropout, then caption dropout.

    drop: whether the caption as a whole is left empty; None draws it at `caption_dropout_rate`.
    Text is returned as it is unless something asks for its tags: shuffling, tag dropout, or a `keep_tokens_separator`
    that stands in it. Then its first line is tags, and any further lines are prose, which stays.
    An option's draws are the same whether or not other options are on.
    """
    drawn = bool(torch.rand((), generator=generator) < subset.caption_dropout_rate)  # drawn always: later draws stay the same
    if drawn if drop is None else drop:
        return ""
    text = " ".join(part for part in (subset.caption_prefix, text, subset.caption_suffix) if part)
    marker = subset.keep_tokens_separator
    if not (subset.varies or (marker and marker in text)):
        return text
    tags, newline, prose = text.partition("\n")
    return _vary(tags, subset, generator) + newline + prose


def _vary(text: str, subset: SubsetConfig, generator: torch.Generator) -> str:
    head, flexible, tail = split_tags(text, subset)
    order = torch.randperm(len(flexible), generator=generator).tolist()
    kept = torch.rand(len(flexible), generator=generator) >= subset.caption_tag_dropout_rate
    if not subset.shuffle_caption:
        order.sort()
    return ", ".join(head + [flexible[i] for i in order if kept[i]] + tail)


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

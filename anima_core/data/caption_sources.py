"""Which files a picture's captions are in, and what they say before anything is drawn."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import NamedTuple

from ..settings import SubsetConfig
from ..settings.captions import PROSE, words
from .caption_files import JSON, caption_endings
from .json_captions import Tags, read_json_caption
from .picture_files import SEPARATOR
from .report import DataReport, excerpt

ENDS = (".", "!", "?", "…", "。", "！", "？", '"', "”", "」")  # of a sentence
UNREAD_KEYS = "keys of JSON captions that mean nothing here, not read"


class Source(NamedTuple):
    """A caption of a picture. text: of a text file, or the sentences of a JSON file. tags: by category; None of a text file."""

    ending: str
    text: str
    tags: Tags | None = None

    @property
    def is_empty(self) -> bool:
        return not self.text and not any(tags for _, tags in self.tags or ())


def caption_names(stems: Iterable[str], files: Set[str], subset: SubsetConfig) -> dict[str, dict[str, str]]:
    """Return the caption files of each picture that has one, by stem and ending: one, or all of `caption_sources`."""
    endings = endings_of(subset)
    all_found = {stem: {ending: stem + ending for ending in endings if stem + ending in files} for stem in stems}
    return {stem: found if subset.weights else first_of(found) for stem, found in all_found.items() if found}


def first_of(found: dict[str, str]) -> dict[str, str]:
    return dict([next(iter(found.items()))])


def endings_of(subset: SubsetConfig) -> tuple[str, ...]:
    return tuple(subset.weights) or caption_endings(subset.caption_extension)


def read_sources(
    files: Mapping[str, str], picture: str, found: Mapping[str, str], subset: SubsetConfig, report: DataReport
) -> list[Source] | None:
    """Return the captions of a picture, or None when there is one that cannot be read.

    files: their names by ending. found: what the scan found in each.
    """
    if not files:
        if subset.class_tokens:
            report.note("pictures without a caption file (class_tokens used)", picture)
        else:
            report.warn("pictures without a caption file", picture)
        return [Source("", subset.class_tokens)]
    note_missing(files, picture, subset, report)
    sources = []
    for ending, file in files.items():
        encoding, problem, text = found[file].split(SEPARATOR, 2)
        if problem:
            report.warn("pictures left out, their captions cannot be read", f"{file}: {problem}")
            return None
        if encoding != "UTF-8":
            report.warn(f"captions read as {encoding} (save them as UTF-8)", f"{file}: {excerpt(text)}")
        sources.append(source_of(ending, file, text, report))
        if sources[-1].is_empty:
            report.warn("empty captions", file)
    return sources


def kept_apart(sources: list[Source]) -> tuple[Source, ...]:
    """Return the captions of a picture where one text does not say all of them."""
    return tuple(sources) if len(sources) > 1 or sources[0].tags is not None else ()


def note_missing(found: Mapping[str, str], picture: str, subset: SubsetConfig, report: DataReport) -> None:
    """Count what a picture with a caption lacks of the files that its subset asks for."""
    for ending in subset.weights:
        if ending not in found:
            report.note(f"pictures without a caption in {ending} (their others are drawn)", picture)
    if not subset.weights and JSON in endings_of(subset) and JSON not in found:
        report.note("pictures without a JSON caption (their text file is read)", picture)


def source_of(ending: str, name: str, text: str, report: DataReport) -> Source:
    """Return what a file says. Of JSON, which was read before without an error, the keys without a meaning are reported."""
    if not ending.endswith(JSON):
        return Source(ending, text)
    tags, prose, unread = read_json_caption(text)
    if unread:
        report.warn(UNREAD_KEYS, f"{name}: {', '.join(unread)}")
    return Source(ending, prose, tags)


def whole_caption(source: Source, subset: SubsetConfig) -> str:
    """Return all of a caption as it is read, nothing drawn or renamed."""
    if source.tags is None:
        return source.text
    tags = dict(source.tags)
    return rendered(
        [(category, [source.text] if category == PROSE else tags.get(category, ())) for category in subset.order], subset
    )


def rendered(parts: Iterable[tuple[str, Sequence[str]]], subset: SubsetConfig) -> str:
    """Join tags by the separator, and sentences to them by a full stop: "1girl, solo. She smiles." (AnimaLoraStudio's form)."""
    text, after_prose = "", False
    for category, tags in parts:
        piece, is_prose = joined(tags, subset), category == PROSE
        if not piece:
            continue
        if text and (is_prose or after_prose):
            text = f"{text}{'' if text.endswith(ENDS) else '.'} {piece}"
        else:
            text = joined([text, piece], subset) if text else piece
        after_prose = is_prose
    return text


def joined(tags: Sequence[str], subset: SubsetConfig) -> str:
    return f"{subset.caption_separator.strip()} ".join(tags)


def framed(text: str, subset: SubsetConfig) -> str:
    """Put a subset's prefix and suffix around a caption."""
    return " ".join(part for part in (subset.caption_prefix, text, subset.caption_suffix) if part)


def read_tags(source: Source, subset: SubsetConfig) -> tuple[list[str], str]:
    """Return the tags of a caption with prefix and suffix, before its rules, and its sentences."""
    if source.tags is not None:
        prefix, suffix = (words(text, subset.caption_separator) for text in (subset.caption_prefix, subset.caption_suffix))
        return [*prefix, *(tag for _, tags in source.tags for tag in tags), *suffix], source.text
    text = framed(source.text, subset)
    first, _, prose = (text.replace("\n", subset.caption_separator), "", "") if subset.enable_wildcard else text.partition("\n")
    return words(one_separator(first, subset), subset.caption_separator), prose


def one_separator(text: str, subset: SubsetConfig) -> str:
    """Put the separator of tags in place of the marks that divide them otherwise."""
    for mark in (subset.secondary_separator, subset.keep_tokens_separator):
        text = text.replace(mark, subset.caption_separator) if mark else text
    return text


def as_sources(found: Iterable[Sequence]) -> tuple[Source, ...]:
    """Make sources again from lists, as JSON keeps them."""
    return tuple(
        Source(ending, text, None if tags is None else tuple((category, tuple(some)) for category, some in tags))
        for ending, text, tags in found
    )

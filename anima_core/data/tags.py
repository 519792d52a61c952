"""The tags of captions, counted. No torch: a folder's check starts at once."""

from collections import Counter
from collections.abc import Iterable

from ..settings.captions import words
from .caption_rules import missing_triggers, renamed_prose, ruled
from .caption_sources import one_separator
from .folder import Picture

LONGEST_TAG = 100  # characters; a longer one is prose
TAGS_SHOWN = 20  # in a text


def tags_of(picture: Picture) -> set[str]:
    """Return the tags of a caption as the model met them, in small letters as sd-scripts writes them; prose is none.

    A trigger word counts where it is a tag, or is put in front.
    """
    subset, found = picture.subset, list[str]()
    for tags, prose in picture.tags:
        lines = one_separator(prose.replace("\n", subset.caption_separator), subset) if not picture.sources else ""
        found += ruled([*tags, *words(lines, subset.caption_separator)], subset)
        found += missing_triggers("\n".join([*ruled(tags, subset), renamed_prose(prose, subset.renames)]), subset)
    return {tag.strip().lower() for tag in found if len(tag.strip()) <= LONGEST_TAG}


def count_tags(pictures: Iterable[Picture]) -> Counter[str]:
    """Return in how many captions each tag stands. A picture that several datasets have counts once."""
    return Counter(tag for picture in {picture.path: picture for picture in pictures}.values() for tag in tags_of(picture))


def ranked(counts: Counter[str], most: int) -> list[tuple[str, int]]:
    """Return the most frequent tags with their counts; those of the same count by their letters."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]


def tag_lines(pictures: Iterable[Picture]) -> list[str]:
    """Return the most frequent tags, one a line, for people; nothing where no caption has a tag."""
    counts = count_tags(pictures)
    if not counts:
        return []
    shown = ranked(counts, TAGS_SHOWN)
    head = f"tags: {len(counts)}" + (f", the {TAGS_SHOWN} most frequent" if len(counts) > TAGS_SHOWN else "")
    width = len(str(shown[0][1]))
    return [head, *(f"  {count:>{width}} {tag}" for tag, count in shown)]

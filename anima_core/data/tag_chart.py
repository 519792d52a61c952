"""The tags of a dataset as bars: which captions share what, and what stands in nearly all of them."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .folder import Picture
from .lettering import write
from .sheets import BLUE, GREY, INK, MARGIN, PAPER, WIDTH
from .tags import count_tags, ranked, tags_of

TAGS_DRAWN = 40
HEAD, LINE, NAME, BAR = 36, 24, 330, 380  # px: of the title; one row; the longest name; the longest bar


def tag_chart(pictures: Sequence[Picture]) -> Image.Image:
    """Draw the most frequent tags: a bar as long as the share of the captions that a tag stands in."""
    once = [*{picture.path: picture for picture in pictures}.values()]
    counts = count_tags(once)
    shown = ranked(counts, TAGS_DRAWN)
    canvas = Image.new("RGB", (WIDTH, 2 * MARGIN + HEAD + LINE * len(shown)), PAPER)
    pen = ImageDraw.Draw(canvas)
    bare = sum(not tags_of(picture) for picture in once)
    write(pen, (MARGIN, MARGIN), chart_title(len(once), len(counts), bare), 17, INK, WIDTH - 2 * MARGIN)
    for number, (tag, count) in enumerate(shown):
        draw_tag(pen, MARGIN + HEAD + number * LINE, tag, count, len(once))
    return canvas


def chart_title(pictures: int, tags: int, bare: int) -> str:
    shown = f", the {TAGS_DRAWN} most frequent" if tags > TAGS_DRAWN else ""
    without = f"; {bare} without a tag" if bare else ""
    return f"{tags} tags in the captions of {pictures} pictures{shown}{without}"


def draw_tag(pen: ImageDraw.ImageDraw, y: int, tag: str, count: int, pictures: int) -> None:
    left = MARGIN + NAME
    write(pen, (MARGIN, y + 3), tag, 14, INK, NAME - 12)
    pen.rectangle((left, y + 3, left + BAR, y + LINE - 5), fill=GREY)
    pen.rectangle((left, y + 3, left + max(2, round(BAR * count / pictures)), y + LINE - 5), fill=BLUE)
    write(pen, (left + BAR + 10, y + 3), f"{count}, {count / pictures:.0%}", 14, INK, WIDTH - left - BAR - 10)

"""A dataset as pictures: a sheet of its thumbnails, with marks on those that have a problem, and the plan of its buckets."""

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..settings import DatasetConfig
from .buckets import Size
from .folder import Picture
from .lettering import Colour, write
from .marks import Mark
from .picture_files import thumbnail
from .report import DataReport

PAPER, INK, PALE, GREY, BLUE = (255, 255, 255), (32, 32, 36), (110, 110, 118), (226, 226, 230), (52, 101, 184)
PROBLEM, NOTE = (190, 52, 40), (250, 190, 60)  # frames; white letters on the first, dark ones on the second

TILE, FRAME, LABEL, HEAD = 176, 4, 22, 34  # px: of a thumbnail with its margin; its frame; the name below it; the line on top
WORDS, LEAST_WORDS = 21, 120  # px: of the line with a picture's marks, and how long it is at least
COLUMNS, ROWS, LEAST_COLUMNS = 6, 8, 3

WIDTH, MARGIN, LINE, BAR = 880, 24, 30, 440  # px: of the plan; beside it; one row; the longest bar
BUCKETS_SHOWN, FINDINGS_SHOWN = 24, 12


def colours(mark: Mark) -> tuple[Colour, Colour]:
    """Return the colours of a mark: its ground and its letters."""
    return (PROBLEM, PAPER) if mark.warns else (NOTE, INK)


def contact_sheet(pictures: Sequence[Picture], marked: Sequence[list[Mark]]) -> Image.Image:
    """Draw thumbnails with names, those with marks first. marked: what is to be said about each picture."""
    order = sorted(zip(pictures, marked), key=lambda pair: 0 if not pair[1] else -1 - pair[1][0].warns)[: COLUMNS * ROWS]
    columns = max(LEAST_COLUMNS, min(COLUMNS, len(order)))
    rows = -(-len(order) // columns)
    canvas = Image.new("RGB", (columns * TILE, HEAD + rows * (TILE + LABEL)), PAPER)
    pen = ImageDraw.Draw(canvas)
    write(pen, (8, 9), sheet_title(pictures, marked, len(order)), 14, INK, canvas.width - 16)
    for index, (picture, found) in enumerate(order):
        x, y = index % columns * TILE, HEAD + index // columns * (TILE + LABEL)
        draw_tile(canvas, pen, (x, y), picture, found)
    return canvas


def sheet_title(pictures: Sequence[Picture], marked: Sequence[list[Mark]], shown: int) -> str:
    problems = sum(any(mark.warns for mark in found) for found in marked)
    count = f"{len(pictures)} pictures" if shown == len(pictures) else f"{shown} of {len(pictures)} pictures"
    return f"{count}, {problems} with a problem" if problems else count


def draw_tile(
    canvas: Image.Image, pen: ImageDraw.ImageDraw, place: tuple[int, int], picture: Picture, found: list[Mark]
) -> None:
    """Draw one picture with its name below; one with marks in a frame of the first one's colour, which bears their words."""
    x, y = place
    words = WORDS if found else 0
    small = thumbnail(picture.path, TILE - 4 * FRAME)
    small.thumbnail((TILE, TILE - 4 * FRAME - words))
    left, top = x + (TILE - small.width) // 2, y + (TILE - words - small.height) // 2
    if found:
        ground, letters = colours(found[0])
        reach = max(small.width // 2, LEAST_WORDS // 2) + FRAME
        bottom = top + small.height + words
        pen.rectangle((x + TILE // 2 - reach, top - FRAME, x + TILE // 2 + reach - 1, bottom), fill=ground)
        said = ", ".join(mark.word for mark in found)
        write(pen, (x + TILE // 2 - reach + FRAME, bottom - 17), said, 13, letters, 2 * reach - 2 * FRAME)
    canvas.paste(small, (left, top))
    write(pen, (x + 8, y + TILE + 3), picture.name, 12, INK, TILE - 16)


@dataclass(frozen=True)
class Row:
    """A line of the plan. size, count: of a bucket. ground: the colour of its bar, or of the dot before a text."""

    text: str
    ground: Colour | None = None
    size: Size | None = None
    count: int = 0
    is_head: bool = False


def bucket_plan(found: Sequence[tuple[DatasetConfig, DataReport]]) -> Image.Image:
    """Draw the sizes that pictures are trained at, as bars, and below what was found, for each dataset."""
    names = [f"dataset {number}: " if len(found) > 1 else "" for number in range(1, len(found) + 1)]
    rows = [row for pair, name in zip(found, names) for row in rows_of(*pair, name)]
    most = max((row.count for row in rows), default=1)
    canvas = Image.new("RGB", (WIDTH, 2 * MARGIN + LINE * len(rows)), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        draw_row(pen, row, MARGIN + number * LINE, most)
    return canvas


def rows_of(dataset: DatasetConfig, report: DataReport, name: str) -> list[Row]:
    rows = [Row(f"{name}{report.head()}, {len(report.buckets)} sizes, {report.batches} batches an epoch", is_head=True)]
    buckets = sorted(report.buckets.items(), key=lambda item: -item[1])
    for size, count in sorted(buckets[:BUCKETS_SHOWN]):
        text = f"{count}, less than a batch of {dataset.batch_size}" if count < dataset.batch_size else str(count)
        rows.append(Row(text, NOTE if count < dataset.batch_size else BLUE, size, count))
    if rest := buckets[BUCKETS_SHOWN:]:
        rows.append(Row(f"and {len(rest)} more sizes with {sum(count for _, count in rest)}"))
    ordered = sorted(report.findings.items(), key=lambda item: (not item[1].warns, item[0]))
    for what, finding in ordered[:FINDINGS_SHOWN]:
        rows.append(Row(f"{what}: {len(finding.names)}", PROBLEM if finding.warns else NOTE))
    return [*rows, *([Row(f"and {len(ordered) - FINDINGS_SHOWN} more")] if len(ordered) > FINDINGS_SHOWN else [])]


def draw_row(pen: ImageDraw.ImageDraw, row: Row, y: int, most: int) -> None:
    middle = y + LINE // 2
    if row.size is None:
        if row.ground:
            pen.ellipse((MARGIN + 6, middle - 6, MARGIN + 18, middle + 6), fill=row.ground)
        indent = 28 if row.ground else 0
        write(pen, (MARGIN + indent, y + 5), row.text, 17 if row.is_head else 14, INK, WIDTH - 2 * MARGIN - indent)
        return
    width, height = (side * (LINE - 8) / max(row.size) for side in row.size)
    pen.rectangle((MARGIN + 12 - width / 2, middle - height / 2, MARGIN + 12 + width / 2, middle + height / 2), outline=PALE)
    write(pen, (MARGIN + 36, y + 6), f"{row.size[0]} x {row.size[1]}", 14, INK, 110)
    left, length = MARGIN + 150, max(3, round(BAR * row.count / most))
    pen.rectangle((left, y + 4, left + BAR, y + LINE - 5), fill=GREY)
    pen.rectangle((left, y + 4, left + length, y + LINE - 5), fill=row.ground)
    write(pen, (left + BAR + 12, y + 6), row.text, 14, INK, WIDTH - left - BAR - 12 - MARGIN)

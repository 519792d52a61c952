"""The grid as one picture: a row for each adapter, a column for each prompt at each strength."""

from collections.abc import Mapping

from PIL import Image, ImageDraw

from ..data import lettering
from .drawing import Cell, Grid

MARGIN, LINE, TEXT = 8, 22, 15  # px: between pictures, of a line of labels, of its letters
LABELS = 170  # px of the labels beside
NARROWEST = 96  # px of a column: its labels stand above
BLACK, GREY = (0, 0, 0), (90, 90, 90)


def sheet(grid: Grid, cells: Mapping[Cell, Image.Image], side: int = 512) -> Image.Image:
    """Lay the pictures out with their labels. side: px, the longest of a picture."""
    small = {cell: shrunk(picture, side) for cell, picture in cells.items()}
    wide = max(NARROWEST, *(picture.width for picture in small.values())) + MARGIN
    high = max(LINE, *(picture.height for picture in small.values())) + MARGIN
    strengths = list(dict.fromkeys(grid.strengths))
    columns = [(prompt, strength) for prompt in range(len(grid.samples.prompts)) for strength in strengths]
    top = 2 * LINE + MARGIN
    page = Image.new("RGB", (LABELS + len(columns) * wide, top + len(grid.adapters) * high), "white")
    pen = ImageDraw.Draw(page)
    for number, request in enumerate(grid.samples.requests()):
        place = (LABELS + number * len(strengths) * wide, MARGIN)
        lettering.write(pen, place, " ".join(request.prompt.split()), TEXT, BLACK, len(strengths) * wide - MARGIN)
    for number, (_, strength) in enumerate(columns):
        text = f"strength {strength:g}" if strength else "base model"
        lettering.write(pen, (LABELS + number * wide, MARGIN + LINE), text, TEXT, GREY, wide - MARGIN)
    for row, adapter in enumerate(grid.adapters):
        lettering.write(pen, (MARGIN, top + row * high), adapter.label, TEXT, BLACK, LABELS - 2 * MARGIN)
        for column, (prompt, strength) in enumerate(columns):
            page.paste(small[row, prompt, strength], (LABELS + column * wide, top + row * high))
    return page


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    found = picture.convert("RGB")
    found.thumbnail((side, side), Image.Resampling.LANCZOS)
    return found

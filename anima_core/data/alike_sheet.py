"""Pictures that look like a copy of another, side by side, with their names and sizes."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .folder import Picture
from .lettering import write
from .likeness import Alike
from .picture_files import thumbnail
from .sheets import FRAME, HEAD, INK, LABEL, NOTE, PALE, PAPER, TILE

PAIRS_SHOWN, PAIRS_WIDE, GAP = 24, 3, 16  # GAP: px between two pairs


def alike_sheet(found: Sequence[Alike], pictures: int) -> Image.Image:
    """Draw each pair in a frame, the earlier picture first. pictures: how many were compared."""
    shown = found[:PAIRS_SHOWN]
    width, height = 2 * TILE + GAP, TILE + 2 * LABEL + GAP
    columns, rows = max(2, min(PAIRS_WIDE, len(shown))), -(-len(shown) // max(2, min(PAIRS_WIDE, len(shown))))
    canvas = Image.new("RGB", (columns * width, HEAD + rows * height), PAPER)
    pen = ImageDraw.Draw(canvas)
    write(pen, (8, 9), alike_title(len(found), pictures), 14, INK, canvas.width - 16)
    for number, pair in enumerate(shown):
        x, y = number % columns * width + GAP // 2, HEAD + number // columns * height
        pen.rectangle((x, y, x + 2 * TILE - 1, y + TILE + 2 * LABEL), outline=NOTE, width=2)
        draw_half(canvas, pen, (x, y), pair.first, "")
        draw_half(canvas, pen, (x + TILE, y), pair.second, ", mirrored" if pair.is_mirrored else "")
    return canvas


def alike_title(found: int, pictures: int) -> str:
    if not found:
        return f"none of {pictures} pictures looks like a copy of another"
    more = f", {PAIRS_SHOWN} shown" if found > PAIRS_SHOWN else ""
    return f"{found} of {pictures} pictures look like a copy of another{more}"


def draw_half(canvas: Image.Image, pen: ImageDraw.ImageDraw, place: tuple[int, int], picture: Picture, addition: str) -> None:
    x, y = place
    small = thumbnail(picture.path, TILE - 4 * FRAME)
    canvas.paste(small, (x + (TILE - small.width) // 2, y + (TILE - small.height) // 2))
    write(pen, (x + 8, y + TILE), picture.name, 12, INK, TILE - 16)
    write(pen, (x + 8, y + TILE + LABEL - 4), f"{picture.size[0]} x {picture.size[1]}{addition}", 12, PALE, TILE - 16)

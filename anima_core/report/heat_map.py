"""An analysis of an adapter as a picture: a row for each kind of layer, a column for each block."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..adapters.analysis import Analysis, Fact
from ..adapters.findings import sentence
from ..data.lettering import Colour, write

CELL, NAMES, MARGIN, LINE, HEAD = 22, 210, 16, 18, 34  # px: a cell's side; room for names; the rim; a line of text; a title
PAPER, INK, ABSENT = (255, 255, 255), (24, 24, 27), (161, 161, 170)
RISING: tuple[Colour, ...] = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))  # dark is little
SIGNED: tuple[Colour, ...] = ((178, 24, 43), (247, 247, 247), (33, 102, 172))  # red is opposite, blue alike


@dataclass(frozen=True)
class Panel:
    """One measure over all layers. low, high: the values of the first and the last colour."""

    title: str
    of: Callable[[Fact], float | None]
    low: float
    high: float
    colours: tuple[Colour, ...]


def heat_map(found: Analysis) -> Image.Image:
    """Draw strength, the share of ranks used, and likeness where there is another adapter, below the sentence."""
    panels, rows = panels_of(found), list(dict.fromkeys(fact.kind for fact in found.facts))
    columns = 1 + max((fact.block or 0 for fact in found.facts), default=0)
    width = max(NAMES + columns * CELL, 520) + 2 * MARGIN
    height = HEAD + CELL * len(rows) + LINE + MARGIN
    canvas = Image.new("RGB", (width, 2 * MARGIN + 2 * LINE + height * len(panels)), PAPER)
    pen = ImageDraw.Draw(canvas)
    write(pen, (MARGIN, MARGIN), found.name, 16, INK, width - 2 * MARGIN)
    write(pen, (MARGIN, MARGIN + LINE + 4), sentence(found), 12, INK, width - 2 * MARGIN)
    for number, panel in enumerate(panels):
        draw(pen, panel, found, rows, MARGIN + 2 * LINE + number * height)
    return canvas


def panels_of(found: Analysis) -> list[Panel]:
    strengths = [fact.strength for fact in found.facts if not math.isnan(fact.strength)]
    most = max(strengths, default=0) or 1.0
    what = f"0 to {most:.2%} of the weight" if found.relative else f"0 to {most:.3g}, root mean square"
    panels = [
        Panel(f"Strength: {what}", lambda fact: fact.strength, 0, most, RISING),
        Panel("Ranks used: 0 to all", lambda fact: (fact.used or 0) / fact.rank if fact.rank else None, 0, 1, RISING),
    ]
    if found.other:
        panels.append(Panel(f"Alike {found.other}: red -1, white 0, blue 1", lambda fact: fact.like, -1, 1, SIGNED))
    return panels


def draw(pen: ImageDraw.ImageDraw, panel: Panel, found: Analysis, rows: list[str], top: int) -> None:
    """Draw one panel. A layer that is not there, or cannot be measured, is grey."""
    write(pen, (MARGIN, top + 8), panel.title, 14, INK, 10_000)
    facts = {(fact.kind, fact.block or 0): fact for fact in found.facts}
    columns = 1 + max(number for _, number in facts)
    for row, kind in enumerate(rows):
        y = top + HEAD + row * CELL
        write(pen, (MARGIN, y + 4), kind, 12, INK, NAMES - 8)
        for number in range(columns if any(f.block is not None for f in found.facts if f.kind == kind) else 1):
            x, fact = MARGIN + NAMES + number * CELL, facts.get((kind, number))
            pen.rectangle((x, y, x + CELL - 2, y + CELL - 2), fill=colour(panel, panel.of(fact) if fact else None))
    for number in range(0, columns, 2 if columns > 12 else 1):
        write(pen, (MARGIN + NAMES + number * CELL + 3, top + HEAD + len(rows) * CELL), str(number), 11, INK, 2 * CELL)


def colour(panel: Panel, value: float | None) -> Colour:
    """Return the colour of a value, between the two of the scale that are nearest."""
    if value is None or math.isnan(value):
        return ABSENT
    place = min(max((value - panel.low) / (panel.high - panel.low), 0.0), 1.0) * (len(panel.colours) - 1)
    index = min(int(place), len(panel.colours) - 2)
    first, second = panel.colours[index : index + 2]
    red, green, blue = (round(a + (place - index) * (b - a)) for a, b in zip(first, second))
    return red, green, blue

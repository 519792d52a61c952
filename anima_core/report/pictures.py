"""Samples, step by prompt: which of them are shown, as small JPEGs in a page or as one contact sheet."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageDraw

from ..data import lettering
from ..training.previews import original_name
from .story import Story

SIDE = 256  # px, of a picture
QUALITY = 80
MOST_STEPS, MOST_PROMPTS = 12, 8  # at most 96 pictures, about 2 MB
ORIGINAL = -1  # stands for the step of the held-out pictures themselves
MARGIN, LABEL, STEPS = 8, 22, 80  # px, of the contact sheet: between pictures, of the prompts above, of the steps beside
NARROWEST = 128  # px, of a column: its prompt stands above
TEXT, BLACK = 14, (0, 0, 0)

T = TypeVar("T")


@dataclass(frozen=True)
class Table:
    """The samples that are shown. prompts: (index, text) of each column; left_out: how many samples are not shown.

    Where previews are of held-out pictures, the first of the steps is `ORIGINAL`: the pictures themselves.
    """

    steps: list[int]
    prompts: list[tuple[int, str]]
    cells: dict[tuple[int, tuple[int, str]], Path]  # (step, prompt) -> its picture
    left_out: int


def table_of(run: Story) -> Table:
    """Arrange a run's samples by step and prompt. A line of prompts that was changed on the way has a column for each text."""
    cells = {(s.step, (s.index, s.prompt)): run.folder / "samples" / s.file for s in run.samples_there()}
    steps = spread(sorted({step for step, _ in cells}), MOST_STEPS)
    prompts = sorted({prompt for _, prompt in cells})[:MOST_PROMPTS]
    shown = {key: path for key, path in cells.items() if key[0] in steps and key[1] in prompts}
    left_out = len(cells) - len(shown)
    originals = {prompt: run.folder / "samples" / original_name(prompt[0]) for prompt in prompts}
    there = {(ORIGINAL, prompt): path for prompt, path in originals.items() if path.is_file()}
    return Table([ORIGINAL, *steps] if there else steps, prompts, there | shown, left_out)


def label(step: int) -> str:
    """Return what stands beside the pictures of a step."""
    return "original" if step == ORIGINAL else f"{step:,}"


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many, evenly apart, the first and the last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(n * (len(items) - 1) / (most - 1))] for n in range(most)]


def small(path: Path) -> Image.Image | None:
    """Read a picture at most `SIDE` wide and high; None where its file is gone or damaged."""
    try:
        with Image.open(path) as picture:
            found = picture.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    found.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return found


def data_uri(picture: Image.Image, form: str = "JPEG") -> str:
    """Return a picture as text that stands in a page. form: PNG for one that is drawn, which is sharp and small as such."""
    buffer = io.BytesIO()
    picture.save(buffer, form, quality=QUALITY, optimize=True)
    return f"data:image/{form.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def contact_sheet(table: Table, name: Callable[[int], str] = label, beside: int = STEPS) -> Image.Image | None:
    """Draw a row for each step and a column for each prompt, labelled; None without samples.

    name: of a row, which may be no step. beside: px, the room for it.
    """
    pictures = {place: picture for place, path in table.cells.items() if (picture := small(path)) is not None}
    if not pictures:
        return None
    wide = max(NARROWEST, *(picture.width for picture in pictures.values())) + MARGIN
    high = max(picture.height for picture in pictures.values()) + MARGIN
    sheet = Image.new("RGB", (beside + len(table.prompts) * wide, LABEL + MARGIN + len(table.steps) * high), "white")
    pen = ImageDraw.Draw(sheet)
    for column, (_, text) in enumerate(table.prompts):
        line = " ".join(text.split())
        lettering.write(pen, (beside + column * wide, MARGIN), line, TEXT, BLACK, wide - MARGIN)
    for row, step in enumerate(table.steps):
        lettering.write(pen, (MARGIN, LABEL + MARGIN + row * high), name(step), TEXT, BLACK, beside - 2 * MARGIN)
    for (step, prompt), picture in pictures.items():
        place = beside + table.prompts.index(prompt) * wide, LABEL + MARGIN + table.steps.index(step) * high
        sheet.paste(picture, place)
    return sheet

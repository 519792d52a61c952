"""The report and the contact sheet of a dataset."""

from collections.abc import Callable
from pathlib import Path

import comfy.model_management as mm
import numpy as np
import torch
from comfy.utils import ProgressBar
from PIL import Image, ImageDraw

from ..anima_core.data.captions import process_caption
from ..anima_core.data.check import check_datasets, report_lines
from ..anima_core.data.folder import Picture
from ..anima_core.data.picture_files import open_picture
from ..anima_core.models.tokenizers import comfyui_tokenizers, load_t5_tokenizer
from ..anima_core.settings import DatasetConfig

CAPTIONS_SHOWN = 8
NAMES_SHOWN = 20
TILE = 160  # px, of a thumbnail with its margin
LABEL = 14  # px, of the name below it
COLUMNS, ROWS = 6, 8


def report(datasets: tuple[DatasetConfig, ...], cache_dir: Path) -> tuple[str, list[Picture]]:
    """Return a text for people, and all pictures."""
    tokenizers = comfyui_tokenizers()
    checked = check_datasets(datasets, cache_dir, load_t5_tokenizer(tokenizers[1]) if tokenizers else None, stage)
    pictures = [picture for group, _ in checked for picture in group]
    lines = report_lines([found for _, found in checked], per_step=1, names=NAMES_SHOWN)
    return "\n".join([*lines, "", "captions as they are read:", *examples(pictures)]), pictures


def looked_at(datasets: tuple[DatasetConfig, ...], cache_dir: Path) -> tuple[DatasetConfig, ...]:
    """Scan datasets, and return them: what nothing can be trained on is said by the node that names its folder.

    What is learnt about the files is remembered, so that the training looks at them no second time. Raises FileError.
    """
    check_datasets(datasets, cache_dir, None, stage)
    return datasets


def stage(name: str) -> Callable[[int, int], None]:
    """Return what moves the node's progress bar; Cancel ends the scan."""
    bar = ProgressBar(1)

    def progress(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return progress


def examples(pictures: list[Picture]) -> list[str]:
    """Return captions after prefix, shuffle and dropout, one draw each."""
    generator = torch.Generator().manual_seed(0)
    shown = pictures[:: max(1, len(pictures) // CAPTIONS_SHOWN)][:CAPTIONS_SHOWN]
    return [f"  {p.name}: {process_caption(p.caption, p.subset, generator)}" for p in shown]


def contact_sheet(pictures: list[Picture]) -> torch.Tensor:
    """Draw thumbnails with file names: [1, H, W, 3] in [0, 1]."""
    shown = pictures[: COLUMNS * ROWS]
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    canvas = Image.new("RGB", (columns * TILE, rows * (TILE + LABEL)), "white")
    pen = ImageDraw.Draw(canvas)
    for index, picture in enumerate(shown):
        image = open_picture(picture.path)
        image.thumbnail((TILE - 8, TILE - 8))
        x, y = index % columns * TILE, index // columns * (TILE + LABEL)
        canvas.paste(image, (x + (TILE - image.width) // 2, y + (TILE - image.height) // 2))
        pen.text((x + 4, y + TILE), picture.name[:26], fill="black")
    return torch.from_numpy(np.array(canvas, dtype=np.float32) / 255)[None]

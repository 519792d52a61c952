"""What AnimaDatasetInspect shows."""

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..anima_core.config import DatasetConfig
from ..anima_core.data.batches import build_items
from ..anima_core.data.buckets import bucket_table
from ..anima_core.data.captions import process_caption
from ..anima_core.data.folder import Picture, scan
from ..anima_core.data.pictures import open_picture
from ..anima_core.models.tokenizers import comfyui_tokenizers, load_t5_tokenizer

SHOWN_CAPTIONS = 8
TILE = 160
SHEET_COLUMNS = 6
SHEET_ROWS = 8
LONG_CAPTION = 512


def report(datasets: tuple[DatasetConfig, ...]) -> tuple[str, list[Picture]]:
    """-> text for people, and all pictures."""
    lines: list[str] = []
    everything: list[Picture] = []
    for number, dataset in enumerate(datasets, start=1):
        pictures, found = scan(dataset)
        items = build_items((dataset,), (pictures,))
        if len(datasets) > 1:
            lines.append(f"Dataset {number}")
        lines += found.lines() + ["", "Buckets"] + bucket_table((item.bucket for item in items), dataset.batch_size)
        lines += ["", "Captions"] + caption_statistics(pictures) + ["", "As they are read"] + examples(pictures) + [""]
        everything += pictures
    return "\n".join(lines).strip(), everything


def caption_statistics(pictures: list[Picture]) -> list[str]:
    captions = [p.caption for p in pictures]
    lines = [f"{len(set(captions))} different captions, {sum(not c for c in captions)} empty"]
    tokenizers = comfyui_tokenizers()
    if tokenizers is None:
        return lines
    counts = [len(ids) for ids in load_t5_tokenizer(tokenizers[1]).encode(captions)]
    lines.append(f"{min(counts)} to {max(counts)} tokens, {sum(counts) / len(counts):.0f} on average")
    long = [p.path.name for p, n in zip(pictures, counts) if n > LONG_CAPTION]
    if long:
        lines.append(f"{len(long)} over {LONG_CAPTION} tokens (kept whole), e.g. {long[0]}")
    return lines


def examples(pictures: list[Picture]) -> list[str]:
    """Captions after prefix, shuffle and dropout, one draw each."""
    generator = torch.Generator().manual_seed(0)
    shown = pictures[:: max(1, len(pictures) // SHOWN_CAPTIONS)][:SHOWN_CAPTIONS]
    return [f"{p.path.name}: {process_caption(p.caption, p.subset, generator)}" for p in shown]


def contact_sheet(pictures: list[Picture]) -> torch.Tensor:
    """Thumbnails with file names, [1, H, W, 3] in [0, 1]."""
    shown = pictures[: SHEET_COLUMNS * SHEET_ROWS]
    columns = min(SHEET_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * (TILE + 14)), "white")
    pen = ImageDraw.Draw(sheet)
    for index, picture in enumerate(shown):
        image = open_picture(picture.path)
        image.thumbnail((TILE - 8, TILE - 8))
        x, y = index % columns * TILE, index // columns * (TILE + 14)
        sheet.paste(image, (x + (TILE - image.width) // 2, y + (TILE - image.height) // 2))
        pen.text((x + 4, y + TILE), picture.path.name[:26], fill="black")
    return torch.from_numpy(np.array(sheet, dtype=np.float32) / 255)[None]

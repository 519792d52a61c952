"""What the owner of a dataset wants to know before hours of training: sizes against buckets, captions, an epoch's length."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from ..config import DatasetConfig
from ..errors import FileError
from ..models.tokenizers import T5Tokenizer
from .buckets import Size, bucket_table, choose_bucket
from .folder import Picture, Stage, excerpt, scan, silent, without_collector
from .index import FileIndex
from .report import SHOWN, DataReport

CACHE = ".anima_cache"
INDEX = "files.sqlite"  # in the cache folder

LONG_CAPTION = 512  # T5 tokens: beyond it the text embeddings grow, as in ComfyUI
MUCH_ENLARGED = 2.0  # times its side: the model would learn the blur
MUCH_CROPPED = 0.25  # of its area

Checked = list[tuple[list[Picture], DataReport]]  # of each dataset


@without_collector()
def check_datasets(
    datasets: Sequence[DatasetConfig], cache_dir: Path | None, t5: T5Tokenizer | None, stage: Stage = silent
) -> Checked:
    """Scan and diagnose each dataset. What is learnt about files is remembered in `cache_dir`; without `t5`, no caption's
    tokens are counted.
    """
    found = []
    with FileIndex(cache_dir / INDEX if cache_dir else None) as index:
        for dataset in datasets:
            pictures, report = scan(dataset, index, stage)
            diagnose(dataset, pictures, report, t5)
            found.append((pictures, report))
    return found


def cache_beside(datasets: Sequence[DatasetConfig]) -> Path | None:
    """The cache folder in the first folder of pictures, where that can be written."""
    pictures = Path(datasets[0].subsets[0].image_dir)
    if not pictures.is_dir():
        raise FileError(f"{pictures}: no such folder of pictures; check image_dir")
    return pictures / CACHE if os.access(pictures, os.W_OK) else None


def sheet(reports: Sequence[DataReport], per_step: int, shown: int = SHOWN) -> list[str]:
    """Everything about every dataset, for people. per_step: micro-batches in an optimizer step."""
    lines: list[str] = []
    for number, report in enumerate(reports, start=1):
        lines += [f"dataset {number}"] if len(reports) > 1 else []
        lines += [*report.lines(shown), "buckets:", *(f"  {line}" for line in report.tables)]
    return [*lines, epoch_line(reports, per_step)]


def diagnose(dataset: DatasetConfig, pictures: Sequence[Picture], report: DataReport, t5: T5Tokenizer | None) -> None:
    """Add to a scan's report what only the whole dataset shows."""
    look_at_sizes(dataset, pictures, report)
    look_at_captions(pictures, report, t5)


def look_at_sizes(dataset: DatasetConfig, pictures: Sequence[Picture], report: DataReport) -> None:
    buckets: Counter[Size] = Counter()
    for resolution in dataset.resolutions:
        choose = cache(partial(choose_bucket, dataset=dataset, resolution=resolution))
        for picture in pictures:
            bucket = choose(picture.size)
            buckets[bucket] += picture.repeats
            note_fit(picture, bucket, report)
    for (width, height), draws in buckets.items():
        if draws < dataset.batch_size:
            report.note("sparse buckets, their batches stay smaller", f"{width}x{height}: {draws} of {dataset.batch_size}")
    report.tables = bucket_table(buckets, dataset.batch_size)
    report.batches = sum(math.ceil(draws / dataset.batch_size) for draws in buckets.values())


def note_fit(picture: Picture, bucket: Size, report: DataReport) -> None:
    scale = max(bucket[0] / picture.size[0], bucket[1] / picture.size[1])
    lost = 1 - bucket[0] * bucket[1] / (picture.size[0] * picture.size[1] * scale**2)
    if scale <= 1.005 and lost <= MUCH_CROPPED:
        return
    what = f"{picture.name} {picture.size[0]}x{picture.size[1]} -> {bucket[0]}x{bucket[1]}"
    if scale > MUCH_ENLARGED:
        report.warn("pictures enlarged to more than twice their side", what)
    elif scale > 1.005:
        report.note("pictures enlarged", what)
    if lost > MUCH_CROPPED:
        report.warn("pictures cropped by more than a quarter", f"{what}, {lost:.0%} lost")


def look_at_captions(pictures: Sequence[Picture], report: DataReport, t5: T5Tokenizer | None) -> None:
    for caption, number in Counter(p.caption for p in pictures).items():
        if number > 1 and caption:
            report.note("captions that several pictures share", f"{excerpt(caption)} {number} times")
    # every token but a lone "▁" stands for at least one character, so shorter captions cannot reach the limit
    long = [p for p in pictures if 2 * len(p.caption) + 1 > LONG_CAPTION]
    for picture, ids in zip(long, t5.encode([p.caption for p in long]) if t5 is not None and long else []):
        if len(ids) > LONG_CAPTION:
            report.note(f"captions over {LONG_CAPTION} tokens, kept whole", f"{picture.name}: {len(ids)}")


def epoch_line(reports: Sequence[DataReport], per_step: int) -> str:
    """How long one epoch is. per_step: micro-batches in an optimizer step, over all processes."""
    batches = sum(report.batches for report in reports)
    return f"one epoch: {batches} batches, {math.ceil(batches / per_step)} steps"

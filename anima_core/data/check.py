"""Checking a dataset before hours of training: sizes against buckets, captions, an epoch's length."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from ..errors import FileError
from ..models.tokenizers import T5Tokenizer
from ..settings import DatasetConfig
from .buckets import Size, bucket_table, choose_bucket
from .cache_folder import INDEX
from .caption_rules import rules_met
from .folder import ALONE, Picture, Stage, left_out, scan, silent, without_collector
from .held_out import DRAWN, Holding
from .index import FileIndex
from .report import NAMES_SHOWN, DataReport, excerpt

LONG_CAPTION = 512  # T5 tokens: beyond it the text embeddings grow, as in ComfyUI
MUCH_ENLARGED = 2.0  # times its side: the model would learn the blur
MUCH_CROPPED = 0.25  # of its area

Checked = list[tuple[list[Picture], DataReport]]  # of each dataset


@without_collector()
def check_datasets(
    datasets: Sequence[DatasetConfig],
    cache_dir: Path | None,
    t5: T5Tokenizer | None,
    stage: Stage = silent,
    holding: Holding | None = None,
) -> Checked:
    """Scan and check each dataset. What is learnt about files is remembered in `cache_dir`.

    Without `t5`, no caption's tokens are counted. holding: takes what is held out, by default of folders that say so.
    Raises FileError for data that cannot be trained on.
    """
    holding = holding or Holding()
    with FileIndex(cache_dir / INDEX if cache_dir else None) as index:
        scanned = [scan(dataset, index, stage, holding.draw) for dataset in datasets]
        holding.read_folder(datasets[0], lambda dataset: scan(dataset, index, stage))
    found = [(holding.without(pictures, report), report) for pictures, report in scanned]
    for dataset, (pictures, report) in zip(datasets, found):
        check_sizes(dataset, pictures, report)
        check_captions(pictures, report, t5)
    check_usable(datasets[0].subsets[0].image_dir, found)
    count_shared(found)
    return found


def check_usable(folder: str, found: Checked) -> None:
    """Refuse data of which nothing at all would be trained: a part without effect is only reported. Raises FileError.

    folder: the first one, to be named.
    """
    pictures = [picture for some, _ in found for picture in some]
    if not pictures and any(left_out(ALONE) in report.findings for _, report in found):
        way_out = "name a folder of others in the same dataset, with `subset.num_repeats` above 0"
        raise FileError(f"{folder}: only regularisation pictures are left; {way_out}")
    if not pictures and any(DRAWN in report.findings for _, report in found):
        way_out = "set `subset.validation_split` below 1 for one of the folders"
        raise FileError(f"{folder}: every picture is held out, and none is left to train; {way_out}")
    if not pictures:
        raise FileError(f"{folder}: every folder is switched off by 0 repeats; check `subset.num_repeats`")
    if all(picture.blank for picture in pictures):
        why = "their masks are black everywhere, or they are transparent everywhere"
        way_out = "white and opaque is trained; check `subset.mask_dir` and `subset.alpha_mask`"
        raise FileError(f"{folder}: nothing of the {len(pictures)} pictures would be trained: {why}; {way_out}")


def count_shared(found: Checked) -> None:
    """Report the folders that several datasets have, as is done to train at several resolutions."""
    earlier: set[str] = set()
    for pictures, report in found:
        folders = {os.path.realpath(folder) for folder in {picture.folder for picture in pictures}}
        for folder in sorted(folders & earlier):
            report.note("folders that an earlier dataset has too: trained in each", Path(folder).name)
        earlier |= folders


def check_sizes(dataset: DatasetConfig, pictures: Sequence[Picture], report: DataReport) -> None:
    """Add to a report what becomes of the pictures' sizes, and the buckets."""
    buckets: Counter[Size] = Counter()
    for resolution in dataset.resolutions:
        choose = cache(partial(choose_bucket, dataset=dataset, resolution=resolution))
        for picture in pictures:
            bucket = choose(picture.size)
            buckets[bucket] += picture.repeats
            check_fit(picture, bucket, report)
    for (width, height), draws in buckets.items():
        if draws < dataset.batch_size:
            report.note("sparse buckets, their batches stay smaller", f"{width}x{height}: {draws} of {dataset.batch_size}")
    report.buckets = dict(buckets)
    report.tables = bucket_table(buckets, dataset.batch_size)
    report.batches = sum(math.ceil(draws / dataset.batch_size) for draws in buckets.values())


def fit(size: Size, bucket: Size) -> tuple[float, float]:
    """Return by how much a picture's sides are enlarged to cover a bucket, and which share of its area is then cut off."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    return scale, 1 - bucket[0] * bucket[1] / (size[0] * size[1] * scale**2)


def check_fit(picture: Picture, bucket: Size, report: DataReport) -> None:
    scale, lost = fit(picture.size, bucket)
    if scale <= 1.005 and lost <= MUCH_CROPPED:
        return
    what = f"{picture.name} {picture.size[0]}x{picture.size[1]} -> {bucket[0]}x{bucket[1]}"
    if scale > MUCH_ENLARGED:
        report.warn("pictures enlarged to more than twice their side", what)
    elif scale > 1.005:
        report.note("pictures enlarged", what)
    if lost > MUCH_CROPPED:
        report.warn("pictures cropped by more than a quarter", f"{what}, {lost:.0%} lost")


def check_captions(pictures: Sequence[Picture], report: DataReport, t5: T5Tokenizer | None) -> None:
    """Add to a report which captions several pictures share, which are long, and what the rules of their tags meet."""
    for caption, number in Counter(p.caption for p in pictures).items():
        if number > 1 and caption:
            report.note("captions that several pictures share", f"{excerpt(caption)} {number} times")
    long = [(p.name, text) for p in pictures for text in p.whole_captions if may_be_long(text)]
    for (name, _), ids in zip(long, t5.encode([text for _, text in long]) if t5 is not None and long else []):
        if len(ids) > LONG_CAPTION:
            report.note(f"captions over {LONG_CAPTION} tokens, kept whole", f"{name}: {len(ids)}")
    count_rules(pictures, report)


def count_rules(pictures: Sequence[Picture], report: DataReport) -> None:
    """Add to a report which pictures' captions each rule for tags meets, and the rules that meet none."""
    subsets = {picture.subset: None for picture in pictures}
    idle = {rule.written for subset in subsets for rule in (*subset.renames, *subset.blacklist)}
    for picture in pictures if idle else ():
        met = {rule for tags, prose in picture.tags for rule in rules_met(tags, prose, picture.subset)}
        for rule in sorted(met):
            report.note(f"captions with what the rule {rule!r} is for", picture.name)
        idle -= met
        for (tags, prose), text in zip(picture.tags, picture.whole_captions):
            if (tags or prose) and not text.strip():
                report.warn("captions that rules leave empty", picture.name)
    for rule in sorted(idle):
        report.warn("rules for tags that no caption has", repr(rule))


def may_be_long(caption: str) -> bool:
    """Tell whether a caption may have over 512 tokens: each but a lone "▁" stands for at least one character."""
    return 2 * len(caption) + 1 > LONG_CAPTION


def report_lines(reports: Sequence[DataReport], per_step: int, names: int = NAMES_SHOWN) -> list[str]:
    """Return everything about every dataset, for people. per_step: micro-batches in a step; names: shown beside a count."""
    lines: list[str] = []
    for number, report in enumerate(reports, start=1):
        lines += [f"dataset {number}"] if len(reports) > 1 else []
        lines += [*report.lines(names), "buckets:", *(f"  {line}" for line in report.tables)]
    return [*lines, epoch_line(reports, per_step)]


def steps_per_epoch(batches: int, per_step: int) -> int:
    """Return the optimizer steps of an epoch: the last one averages what is left. As sd-scripts counts them.

    per_step: micro-batches of a whole step, over all processes.
    """
    return max(1, math.ceil(batches / per_step))


def epoch_line(reports: Sequence[DataReport], per_step: int) -> str:
    """Say how long one epoch is. per_step: micro-batches in an optimizer step, over all processes."""
    batches = sum(report.batches for report in reports)
    return f"one epoch: {batches} batches, {steps_per_epoch(batches, per_step)} steps"

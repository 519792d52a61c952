"""What is said and drawn about a dataset before it is trained on."""

from collections.abc import Callable
from pathlib import Path

import comfy.model_management as mm
import numpy as np
import torch
from comfy.utils import ProgressBar
from PIL import Image

from ..anima_core.data.alike_sheet import alike_sheet
from ..anima_core.data.check import Checked, check_datasets, report_lines
from ..anima_core.data.drawn_captions import example_lines
from ..anima_core.data.likeness import find_alike
from ..anima_core.data.marks import marks
from ..anima_core.data.sheets import bucket_plan, contact_sheet
from ..anima_core.data.tag_chart import tag_chart
from ..anima_core.data.tags import tag_lines
from ..anima_core.models.tokenizers import comfyui_tokenizers, load_t5_tokenizer
from ..anima_core.settings import DatasetConfig, TrainConfig

CAPTIONS_SHOWN = 8
NAMES_SHOWN = 20


def inspected(datasets: tuple[DatasetConfig, ...], cache_dir: Path, shown: int) -> tuple[str, list[torch.Tensor]]:
    """Return a text for people, and pictures: contact sheet, plan of the buckets, tags, pairs that look alike.

    shown: how many pictures' captions are in the text.
    """
    tokenizers = comfyui_tokenizers()
    t5 = load_t5_tokenizer(tokenizers[1]) if tokenizers else None
    checked = check_datasets(datasets, cache_dir, t5, stage)
    alike = find_alike(checked, cache_dir, stage)
    groups = [group for group, _ in checked]
    pictures = [picture for group in groups for picture in group]
    lines = report_lines([found for _, found in checked], per_step=1, names=NAMES_SHOWN)
    drawn_by = (TrainConfig.seed, TrainConfig.caption_variants, t5)  # as a training node that nothing is changed on
    captions = example_lines(datasets, groups, shown, *drawn_by)
    text = "\n".join([*lines, *tag_lines(pictures), "", *captions])
    compared = len({picture.digest for picture in pictures})
    drawn = [*pictured(datasets, checked), tag_chart(pictures), alike_sheet(alike, compared)]
    return text, [as_image(picture) for picture in drawn]


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


def pictured(datasets: tuple[DatasetConfig, ...], checked: Checked) -> tuple[Image.Image, Image.Image]:
    """Draw the contact sheet and the plan of the buckets."""
    pictures = [picture for group, _ in checked for picture in group]
    marked = [found for dataset, (group, _) in zip(datasets, checked) for found in marks(dataset, group)]
    plan = bucket_plan([(dataset, report) for dataset, (_, report) in zip(datasets, checked)])
    return contact_sheet(pictures, marked), plan


def as_image(picture: Image.Image) -> torch.Tensor:
    """Return a picture as an IMAGE, [1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255)[None]

"""What the dataset nodes show, and how it becomes a dataset."""

from collections.abc import Mapping
from typing import Any

from ..anima_core.errors import SettingError
from ..anima_core.settings import DatasetConfig, SubsetConfig
from .widgets import settings_from, widget

Datasets = tuple[DatasetConfig, ...]

REPEATS = widget("repeats", SubsetConfig, "num_repeats", min=1, max=1000)
SIZES = (
    widget("resolution", DatasetConfig, "resolutions", default="1024", why="the setting's own 1024x1024, as people write it"),
    widget("flip", SubsetConfig, "flip_aug"),
    widget("bucket_step", DatasetConfig, "bucket_reso_steps", min=16, max=64, step=16, advanced=True),
    widget("min_side", DatasetConfig, "min_bucket_reso", min=64, max=2048, step=16, advanced=True),
    widget("no_upscale", DatasetConfig, "bucket_no_upscale", advanced=True),
)
CAPTIONS = (
    widget("shuffle_caption", SubsetConfig),
    widget("keep_tokens", SubsetConfig, max=50),
    widget("caption_dropout_rate", SubsetConfig, step=0.01),
    widget("caption_tag_dropout_rate", SubsetConfig, max=0.95, step=0.01, advanced=True),
    widget("caption_prefix", SubsetConfig, advanced=True),
    widget("caption_separator", SubsetConfig, advanced=True),
)
FILES = (
    widget("caption_extension", SubsetConfig, advanced=True),
    widget("class_tokens", SubsetConfig, advanced=True),
    widget("mask_folder", SubsetConfig, "mask_dir", advanced=True),
    widget("alpha_mask", SubsetConfig, advanced=True),
    widget("loss_weight", SubsetConfig, max=10.0, step=0.1, advanced=True),
    widget("metadata_file", SubsetConfig, advanced=True),
)
DRAWS = (
    widget("random_crop", SubsetConfig, advanced=True),
    widget("min_timestep", SubsetConfig, max=0.99, step=0.05, advanced=True),
    widget("max_timestep", SubsetConfig, min=0.01, step=0.05, advanced=True),
    widget("timestep_offset", SubsetConfig, min=-5.0, max=5.0, step=0.1, advanced=True),
)
ALL = (REPEATS, *SIZES, *CAPTIONS, *FILES, *DRAWS)


def dataset_from(given: Mapping[str, Any], image_dir: str, mask_dir: str) -> Datasets:
    """Make the dataset of one folder from a node's inputs. Raises SettingError."""
    linked = {"image_dir": image_dir, "mask_dir": mask_dir} | (given.get("caption_rules") or {})
    subset = SubsetConfig(**(settings_from(ALL, given, SubsetConfig) | linked))
    settings = settings_from(ALL, given, DatasetConfig)
    sides = sides_of(",".join(settings["resolutions"]))
    settings["resolutions"] = tuple((side, side) for side in sides)
    settings["min_bucket_reso"] = min(settings["min_bucket_reso"], *sides)
    return (DatasetConfig(subsets=(subset,), **settings),)


def sides_of(resolution: str) -> list[int]:
    """Read "1024", or "768,1024" for several. Raises SettingError."""
    try:
        sides = [int(part) for part in resolution.replace(" ", "").split(",") if part]
    except ValueError:
        sides = []
    if not sides:
        raise SettingError(f"`dataset.resolutions`={resolution!r}: write 1024, or 768,1024 for several")
    return sides

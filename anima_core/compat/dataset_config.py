"""kohya's dataset_config TOML: `[general]` < `[[datasets]]` < `[[datasets.subsets]]`, the innermost wins.

Key names and defaults: `reference/seed_family.md` §4.4. A key that has no meaning here is an error or a note, never dropped.
"""

from pathlib import Path
from typing import Any

import toml

from ..config import DatasetConfig, SubsetConfig
from ..errors import FileError, SettingError

SUBSET_KEYS = {  # kohya's name -> ours
    "num_repeats": "num_repeats",
    "caption_extension": "caption_extension",
    "class_tokens": "class_tokens",
    "caption_dropout_rate": "caption_dropout_rate",
    "caption_prefix": "caption_prefix",
    "caption_suffix": "caption_suffix",
    "caption_separator": "caption_separator",
    "keep_tokens": "keep_tokens",
    "keep_tokens_separator": "keep_tokens_separator",
    "shuffle_caption": "shuffle_caption",
    "caption_tag_dropout_rate": "caption_tag_dropout_rate",
    "flip_aug": "flip_aug",
    "alpha_mask": "alpha_mask",
}
DATASET_KEYS = {
    "batch_size": "batch_size",
    "enable_bucket": "enable_bucket",
    "min_bucket_reso": "min_bucket_reso",
    "max_bucket_reso": "max_bucket_reso",
    "bucket_reso_steps": "bucket_reso_steps",
    "bucket_no_upscale": "bucket_no_upscale",
}
OWN_SUBSET_KEYS = {"image_dir", "is_reg", "mask_dir"}
OWN_DATASET_KEYS = {"resolution", "prior_loss_weight", "subsets"}
KOHYA_DEFAULTS = {"enable_bucket": False, "caption_extension": ".txt"}


def read_dataset_config(path: str | Path, fallback: dict[str, Any]) -> tuple[DatasetConfig, ...]:
    """Read a dataset_config file. `fallback`: command-line values, which the file's own settings override."""
    try:
        data = toml.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise FileError(f"{path}: no such dataset_config; check the path") from None
    except (toml.TomlDecodeError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: not valid TOML ({error})") from None
    return datasets_from(data, fallback, str(path))


def datasets_from(data: dict[str, Any], fallback: dict[str, Any], where: str) -> tuple[DatasetConfig, ...]:
    known = set(SUBSET_KEYS) | set(DATASET_KEYS) | {"resolution", "prior_loss_weight"}
    _refuse_unknown(data, {"general", "datasets"}, where)
    general = data.get("general", {})
    _refuse_unknown(general, known, f"{where} [general]")
    entries = data.get("datasets", [])
    if not entries:
        raise SettingError(f"{where}: no [[datasets]]; add one with [[datasets.subsets]] and image_dir")
    outer = KOHYA_DEFAULTS | fallback | general
    return tuple(_dataset(entry, outer, f"{where} [[datasets]] {n}") for n, entry in enumerate(entries, start=1))


def _dataset(entry: dict[str, Any], outer: dict[str, Any], where: str) -> DatasetConfig:
    _refuse_unknown(entry, set(SUBSET_KEYS) | set(DATASET_KEYS) | OWN_DATASET_KEYS, where)
    values = outer | entry
    subsets = entry.get("subsets", [])
    if not subsets:
        raise SettingError(f"{where}: no [[datasets.subsets]]; add one with image_dir")
    settings = {ours: values[key] for key, ours in DATASET_KEYS.items() if key in values}
    return DatasetConfig(
        subsets=tuple(_subset(s, values, f"{where} subset {n}") for n, s in enumerate(subsets, start=1)),
        resolutions=(resolution(values.get("resolution", 1024), where),),
        **settings,
    )


def _subset(entry: dict[str, Any], outer: dict[str, Any], where: str) -> SubsetConfig:
    _refuse_unknown(entry, set(SUBSET_KEYS) | OWN_SUBSET_KEYS, where)
    values = outer | entry
    if not values.get("image_dir"):
        raise SettingError(f"{where}: image_dir is missing; name a folder of pictures")
    settings = {ours: values[key] for key, ours in SUBSET_KEYS.items() if values.get(key) is not None}
    weight = float(values.get("prior_loss_weight", 1.0)) if entry.get("is_reg") else 1.0
    return SubsetConfig(image_dir=entry["image_dir"], mask_dir=entry.get("mask_dir", ""), loss_weight=weight, **settings)


def resolution(value: Any, where: str) -> tuple[int, int]:
    """1024, "1024", "1024,768" or [1024, 768] -> (width, height)."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        sides = [int(p) for p in parts]
    except (TypeError, ValueError):
        sides = []
    if len(sides) not in (1, 2):
        raise SettingError(f"{where}: resolution={value!r}: write 1024 or [1024, 768]")
    return sides[0], sides[-1]


def _refuse_unknown(table: dict[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise SettingError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(sorted(known))}")

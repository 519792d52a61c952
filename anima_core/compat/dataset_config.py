"""kohya's dataset_config TOML: `[general]` < `[[datasets]]` < `[[datasets.subsets]]`, the innermost wins.

Key names and defaults: sd-scripts' config_util. A key that has no meaning here is an error or a note, never dropped.
"""

from pathlib import Path
from typing import Any, TypeVar

from ..errors import SettingError
from ..settings import DatasetConfig, SubsetConfig
from ..settings.serial import as_kind
from ..settings.toml_file import line_of, read_toml
from .front_ends import PREFER_JSON, json_first
from .kinds import from_text
from .mistaken import refuse_training_file
from .unknown import Unknown, refuse_unknown

T = TypeVar("T")

# kohya's names, which are ours
SUBSET_KEYS = (
    "num_repeats",
    "caption_extension",
    "class_tokens",
    "caption_dropout_rate",
    "enable_wildcard",
    "caption_prefix",
    "caption_suffix",
    "caption_separator",
    "keep_tokens",
    "keep_tokens_separator",
    "shuffle_caption",
    "caption_tag_dropout_rate",
    "secondary_separator",
    "flip_aug",
    "random_crop",
    "alpha_mask",
    "validation_split",
    "validation_split_num",
    "validation_seed",
    "timestep_offset",
    # ours alone
    "caption_sources",
    "caption_replace",
    "caption_blacklist",
    "caption_trigger",
    "category_shuffle",
    "category_dropout",
    "caption_order",
)
DATASET_KEYS = (
    "batch_size",
    "enable_bucket",
    "min_bucket_reso",
    "max_bucket_reso",
    "bucket_reso_steps",
    "bucket_no_upscale",
)
RULED_KEYS = {  # of which a rule of their own makes a setting
    "min_timestep": "subset.min_timestep",
    "max_timestep": "subset.max_timestep",
    "custom_attributes": "subset.timestep_offset",
}
MOST_TIMESTEP = 1000  # sd-scripts' word for t = 1, nothing but noise
WITHOUT_EFFECT = {
    "caption_dropout_every_n_epochs": "use caption_dropout_rate",
    "color_aug": "colours are trained as they are",
    "face_crop_aug_range": "faces are not looked for; random_crop draws the place",
    "token_warmup_min": "all tags train from the start",
    "token_warmup_step": "all tags train from the start",
    "resize_interpolation": "Lanczos is used",
    "cache_info": "the index of the cache folder does this",
    "network_multiplier": "the adapter trains at full strength",
    "skip_image_resolution": "small pictures are trained as well",
    "train_inpainting": "inpainting models are not trained",
    "max_token_length": "captions are never cut",
    "debug_dataset": "`check` shows what is in a dataset",
}
OWN_SUBSET_KEYS = {  # which stand in a subset only -> our setting
    "image_dir": "subset.image_dir",
    "is_reg": "subset.is_reg",
    "metadata_file": "subset.metadata_file",
    "conditioning_data_dir": "subset.mask_dir",
    "mask_dir": "subset.mask_dir",
}
OWN_DATASET_KEYS = {"resolution": "dataset.resolutions", "prior_loss_weight": "subset.loss_weight", "subsets": ""}
OTHER_DEFAULTS = {"enable_bucket": False}  # kohya's: without it a file's pictures are cropped to its resolution
WORDS = {  # what a file calls our settings, where it has another word
    "subset.mask_dir": "conditioning_data_dir",
    "subset.loss_weight": "prior_loss_weight",
    "subset.timestep_offset": "custom_attributes.timestep_sampling.offset",
    "dataset.resolutions": "resolution",
    **{f"subset.{name}": name for name in ("validation_split", "validation_split_num", "validation_seed")},
}

Datasets = tuple[tuple[DatasetConfig, ...], list[str]]


def read_dataset_config(path: str | Path, fallback: dict[str, Any]) -> Datasets:
    """Read a dataset_config file -> datasets, and notes on keys without effect.

    fallback: command-line values, which the file's own settings override.
    """
    return datasets_from(read_toml(path), fallback, str(path))


def datasets_from(data: dict[str, Any], fallback: dict[str, Any], where: str) -> Datasets:
    notes: list[str] = []
    require_table(data, where, "the file")
    refuse_training_file(data, where)
    refuse_unknown(where, unknown_keys(data))
    general = data.get("general", {})
    note_keys(general, where, "general", notes)
    entries = list_of(data, "datasets", where)
    if not entries:
        raise SettingError(f"{where}: no [[datasets]]; add one with [[datasets.subsets]] and image_dir")
    outer = OTHER_DEFAULTS | fallback | general
    return tuple(_dataset(entry, outer, where, notes) for entry in entries), notes


def _dataset(entry: dict[str, Any], outer: dict[str, Any], where: str, notes: list[str]) -> DatasetConfig:
    note_keys(entry, where, "datasets", notes)
    values = outer | entry
    subsets = list_of(entry, "subsets", where)
    if not subsets:
        raise SettingError(f"{where}: [[datasets]] without [[datasets.subsets]]; add one with image_dir")
    settings = own_kinds(DatasetConfig, {key: values[key] for key in DATASET_KEYS if key in values}, where)
    return checked(
        DatasetConfig,
        where,
        subsets=tuple(_subset(subset, values, where, notes) for subset in subsets),
        resolutions=(resolution(values.get("resolution", 1024), where),),
        **settings,
    )


def _subset(entry: dict[str, Any], outer: dict[str, Any], where: str, notes: list[str]) -> SubsetConfig:
    note_keys(entry, where, "datasets.subsets", notes)
    values = outer | entry
    folder = entry.get("image_dir") or folder_of(entry.get("metadata_file"))
    if not folder:
        raise SettingError(f"{where}: [[datasets.subsets]] without image_dir; name a folder of pictures")
    keys = (*SUBSET_KEYS, "is_reg", "metadata_file")
    settings = own_kinds(SubsetConfig, {k: values[k] for k in keys if values.get(k) is not None}, where)
    settings |= json_first(values, settings.get("caption_extension"))
    weight = as_kind(float, values.get("prior_loss_weight", 1.0), f"{where}: prior_loss_weight")
    settings["loss_weight"] = weight if settings.get("is_reg") else 1.0
    settings |= timestep_range(values, f"{where}: ") | timestep_offset(values, where, notes)
    settings["num_repeats"] = max(0, settings.get("num_repeats", 1))  # kohya leaves out a folder of less than one repeat
    masks = entry.get("conditioning_data_dir", entry.get("mask_dir", ""))
    return checked(SubsetConfig, where, image_dir=str(folder), mask_dir=str(masks), folder_numbers=False, **settings)


def timestep_range(values: dict[str, Any], where: str = "") -> dict[str, float]:
    """Read min_timestep and max_timestep, thousandths of t: sd-scripts' 0 is no noise, 1000 nothing else.

    Raises SettingError.
    """
    low, high = timestep(values, "min_timestep", 0, where), timestep(values, "max_timestep", MOST_TIMESTEP, where)
    if not 0 <= low < MOST_TIMESTEP:
        raise SettingError(f"{where}min_timestep={low:g}: must be at least 0 and below {MOST_TIMESTEP}, thousandths of noise")
    if not max(low, 1) <= high <= MOST_TIMESTEP:
        rule = f"must be at least {max(low, 1):g} and at most {MOST_TIMESTEP}, thousandths of noise"
        raise SettingError(f"{where}max_timestep={high:g}: {rule}")
    return {"min_timestep": low / MOST_TIMESTEP, "max_timestep": high / MOST_TIMESTEP}


def timestep(values: dict[str, Any], key: str, default: float, where: str) -> float:
    value = values.get(key)
    return float(default if value in (None, "") else as_kind(float, from_text(float, value), f"{where}{key}"))


def timestep_offset(values: dict[str, Any], where: str, notes: list[str]) -> dict[str, float]:
    """Read custom_attributes.timestep_sampling.offset, and note what else stands in that table."""
    attributes = values.get("custom_attributes") or {}
    require_table(attributes, where, "custom_attributes")
    sampling = attributes.get("timestep_sampling") or {}
    require_table(sampling, where, "custom_attributes.timestep_sampling")
    other = [*sorted(attributes.keys() - {"timestep_sampling"})]
    other += [f"timestep_sampling.{key}" for key in sorted(sampling.keys() - {"offset"})]
    told = [f"{where}: custom_attributes.{name} has no effect: only timestep_sampling.offset is read" for name in other]
    notes += [text for text in told if text not in notes]
    if "offset" not in sampling:
        return {}
    return {"timestep_offset": as_kind(float, sampling["offset"], f"{where}: custom_attributes.timestep_sampling.offset")}


def overridden(data: dict[str, Any], given: dict[str, Any]) -> list[str]:
    """List the keys of `given` for which a file, at any level, has another value of its own."""
    subsets = [subset for entry in data["datasets"] for subset in entry["subsets"]]
    tables = (data.get("general", {}), *data["datasets"], *subsets)
    return [key for key, value in given.items() if any(str(table.get(key, value)) != str(value) for table in tables)]


def folder_of(metadata_file: Any) -> str:
    """Return the folder that a metadata file lies in, which is the pictures' where nothing else is said."""
    return str(Path(metadata_file).parent) if isinstance(metadata_file, str) and metadata_file else ""


def own_kinds(cls: type, values: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the values as the kinds that the settings of these names have.

    Numbers and switches may come as text; empty, they are not set.
    """
    kinds = {
        name: cls.__annotations__[name] for name, value in values.items() if value != "" or cls.__annotations__[name] is str
    }
    return {name: as_kind(kind, from_text(kind, values[name]), f"{where}: {name}") for name, kind in kinds.items()}


def checked(cls: type[T], where: str, **values: Any) -> T:
    """Make a settings class; what it refuses is said with the file's name and words."""
    try:
        return cls(**values)
    except SettingError as error:
        raise SettingError(f"{where}: {error.said(WORDS)}") from None


def require_table(value: Any, where: str, name: str) -> None:
    if not isinstance(value, dict):
        raise SettingError(f"{where}: {name} must be a table, not {value!r}")


def list_of(table: dict[str, Any], key: str, where: str) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list):
        raise SettingError(f"{where}: {key}={value!r}: must be tables [[{key}]]")
    return value


def unknown_keys(data: dict[str, Any]) -> list[Unknown]:
    """List the keys of all levels that the dialect does not have, each once; what is no table is left to later."""
    everywhere = (*SUBSET_KEYS, PREFER_JSON, *DATASET_KEYS, *RULED_KEYS, *WITHOUT_EFFECT)
    datasets = [entry for entry in as_list(data.get("datasets")) if isinstance(entry, dict)]
    subsets = [subset for entry in datasets for subset in as_list(entry.get("subsets")) if isinstance(subset, dict)]
    levels: list[tuple[str, list[Any], tuple[str, ...]]] = [
        ("", [data], ("general", "datasets")),
        ("general", [data.get("general")], (*everywhere, "resolution", "prior_loss_weight")),
        ("datasets", datasets, (*everywhere, *OWN_DATASET_KEYS)),
        ("datasets.subsets", subsets, (*SUBSET_KEYS, PREFER_JSON, *OWN_SUBSET_KEYS, *RULED_KEYS, *WITHOUT_EFFECT)),
    ]
    found = [
        Unknown(name, key, known, is_table=not name and isinstance(value, dict | list))
        for name, tables, known in levels
        for table in tables
        if isinstance(table, dict)
        for key, value in table.items()
        if key not in known
    ]
    return list(dict.fromkeys(found))


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def note_keys(table: dict[str, Any], where: str, name: str, notes: list[str]) -> None:
    """Note keys without effect that ask for anything, with their line."""
    require_table(table, where, f"[{name}]")
    for key in table:
        if key in WITHOUT_EFFECT and table[key] not in (False, 0, None, ""):
            line = f", line {line_of(where, name, key)}" if Path(where).is_file() else ""
            notes.append(f"{where}{line}: {key} has no effect: {WITHOUT_EFFECT[key]}")


def resolution(value: Any, where: str) -> tuple[int, int]:
    """Read 1024, "1024", "1024,768" or [1024, 768] as (width, height). Raises SettingError."""
    parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        sides = [int(p) for p in parts]
    except (TypeError, ValueError, OverflowError):
        sides = []
    if len(sides) not in (1, 2):
        raise SettingError(f"{where}: resolution={value!r}: write 1024 or [1024, 768]")
    return sides[0], sides[-1]

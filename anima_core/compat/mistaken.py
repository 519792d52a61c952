"""A dataset file where a training file is wanted, and the other way round."""

from typing import Any

from ..errors import SettingError

WHOLE_TRAINING = ("model", "training", "network", "optimizer", "output_dir", "network_module", "pretrained_model_name_or_path")


def refuse_dataset_file(data: dict[str, Any], path: str) -> None:
    """Raise SettingError for kohya's dataset_config given as a training file."""
    if isinstance(data.get("datasets"), list) and not set(data) & set(WHOLE_TRAINING):
        way_out = "give it as --dataset_config, in ComfyUI to Anima Dataset (TOML)"
        raise SettingError(f"{path}: is a dataset file ([[datasets]]), not a training's; {way_out}")


def refuse_training_file(data: dict[str, Any], path: str) -> None:
    """Raise SettingError for a file of a whole training given as a dataset_config."""
    tables = [data, *(value for value in data.values() if isinstance(value, dict))]
    found = [key for key in WHOLE_TRAINING if any(key in table for table in tables)]
    if found:
        way_out = "give it as --config_file, in ComfyUI to Train Anima Adapter (TOML)"
        raise SettingError(f"{path}: is the file of a whole training ({found[0]}), not of a dataset; {way_out}")

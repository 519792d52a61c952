"""sd-scripts' flags of loggers. They are no settings: a run is the same whoever hears of it, and a key belongs in no file."""

import os
import time
from collections.abc import Mapping
from typing import Any

from ..errors import SettingError
from ..loggers.wanted import Logging
from ..settings.toml_file import read_toml

OF_TENSORBOARD = ("log_prefix",)
OF_WANDB = ("log_tracker_name", "log_tracker_config", "wandb_run_name", "wandb_api_key")
OF_BOTH = ("log_config",)
NOTHING = Logging()
NAMES = ("log_with", "logging_dir", *OF_TENSORBOARD, *OF_WANDB, *OF_BOTH)


def logging_from(values: Mapping[str, Any], explicit: set[str]) -> tuple[Logging, list[str]]:
    """Return what is to be logged, and notes on flags that nothing reads. explicit: the names of those that were given.

    A --logging_dir alone means TensorBoard, without which the run goes on. Raises SettingError for --log_tracker_config.
    """
    asked = values["log_with"]
    required = asked in ("tensorboard", "all")
    has_board, has_wandb = required or (not asked and "logging_dir" in explicit), asked in ("wandb", "all")
    found = Logging(
        tensorboard=board_folder(values) if has_board else "",
        tensorboard_required=required,
        wandb=has_wandb,
        folder=values["logging_dir"],
        project=values["log_tracker_name"],
        run_name=values["wandb_run_name"],
        api_key=values["wandb_api_key"],
        init=tracker_config(values["log_tracker_config"]) if has_wandb else {},
        settings=values["log_config"],
    )
    without_effect = {OF_TENSORBOARD: not has_board, OF_WANDB: not has_wandb, OF_BOTH: not (has_board or has_wandb)}
    way_in = {OF_TENSORBOARD: "tensorboard", OF_WANDB: "wandb", OF_BOTH: "tensorboard or wandb"}
    idle = [(name, way_in[names]) for names, is_idle in without_effect.items() if is_idle for name in names]
    return found, [f"{name} has no effect without log_with={way}" for name, way in idle if name in explicit and values[name]]


def board_folder(values: Mapping[str, Any]) -> str:
    """Return the folder of TensorBoard's files: with a prefix a new one, as sd-scripts names it."""
    if not values["log_prefix"]:
        return values["logging_dir"]
    return os.path.join(values["logging_dir"], values["log_prefix"] + time.strftime("%Y%m%d%H%M%S"))


def tracker_config(path: str) -> Mapping[str, Any]:
    """Return the table [wandb] of a file, which goes to `wandb.init`. Raises SettingError where it has none."""
    if not path:
        return {}
    found = read_toml(path).get("wandb")
    if not isinstance(found, dict):
        raise SettingError(f"log_tracker_config={path}: must have a table [wandb]")
    return found

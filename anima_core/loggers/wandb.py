"""Weights & Biases. wandb's own environment counts: with WANDB_MODE=offline nothing is sent until `wandb sync`."""

import os
from collections.abc import Mapping
from typing import Any

from ..errors import FileError, SettingError
from .wanted import Logging, said

# wandb would also send the command line, with a key that stands there, the machine's name, the console, the code's repository.
UNASKED = {
    "WANDB__DISABLE_META": "true",
    "WANDB__SAVE_REQUIREMENTS": "false",
    "WANDB_CONSOLE": "off",
    "WANDB_DISABLE_CODE": "true",
    "WANDB_DISABLE_GIT": "true",
    "WANDB_ERROR_REPORTING": "false",
}
WAYS_OUT = "run wandb login, give --wandb_api_key, or set WANDB_MODE=offline"


class WeightsAndBiases:
    """Sends one run. Numbers have their step beside them, so that those that come late are not refused."""

    name = "wandb"

    def __init__(self, wanted: Logging) -> None:
        self._wanted = wanted

    def start(self, run: str, settings: Mapping[str, Any]) -> None:
        """Begin a run. Raises SettingError where wandb refuses, without a login say, FileError for its folder."""
        wanted = self._wanted
        for name, value in UNASKED.items():
            os.environ.setdefault(name, value)
        if wanted.api_key:
            os.environ["WANDB_API_KEY"] = wanted.api_key  # not wandb.login, which would write it into ~/.netrc
        own = {"project": wanted.project, "name": wanted.run_name or run, "config": dict(settings) or None}
        if wanted.folder and "WANDB_DIR" not in os.environ:
            make_folder(wanted.folder)
            own["dir"] = wanted.folder
        try:
            import wandb

            self._wandb, self._run = wandb, wandb.init(**(own | dict(wanted.init)))
            self._run.define_metric("step")
            self._run.define_metric("*", step_metric="step")
        except Exception as error:
            told = said(error)
            hidden = told.replace(wanted.api_key, "…") if wanted.api_key else told
            raise SettingError(f"log_with=wandb: {hidden}; {WAYS_OUT}") from None

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def picture(self, step: int, name: str, path: str, caption: str) -> None:
        self._run.log({"step": step, name: self._wandb.Image(path, caption=caption)})

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


def make_folder(folder: str) -> None:
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise FileError(f"{folder}: cannot be made ({error.strerror}); choose another logging_dir") from None

"""Where this ComfyUI keeps runs and adapters."""

from pathlib import Path

import folder_paths

from ..anima_core.run_store import RunStore


def run_store() -> RunStore:
    return RunStore(store_folder())


def store_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "anima_trainer"


def loras_folder() -> Path:
    """Return the first folder of `loras`, where the dropdowns of every LoRA loader look."""
    folder = Path(folder_paths.get_folder_paths("loras")[0])
    folder.mkdir(parents=True, exist_ok=True)
    return folder

"""Where this ComfyUI keeps runs and adapters."""

from pathlib import Path

import folder_paths

from ..anima_core.run_store import RunStore


def run_store() -> RunStore:
    return RunStore(store_folder(), loras_folders())


def store_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "anima_trainer"


def loras_folders() -> list[Path]:
    """Return the folders of `loras`, where the dropdowns of every LoRA loader look."""
    return [Path(folder) for folder in folder_paths.get_folder_paths("loras")]


def loras_folder() -> Path:
    """Return the first of them, where adapters are saved."""
    folder = loras_folders()[0]
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def diffusion_models_folder() -> Path:
    """Return the folder where models are saved: of those in the dropdowns the one of this name, which is not the first."""
    folders = [Path(folder) for folder in folder_paths.get_folder_paths("diffusion_models")]
    return next((folder for folder in folders if folder.name == "diffusion_models"), folders[0])

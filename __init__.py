"""Anima Trainer: ComfyUI nodes that train LoRA and LoKr adapters for Anima. Only the entry point is here."""

import sys
from pathlib import Path
from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Return the extension. Raises RuntimeError, with the way out, in a ComfyUI that is too old or lacks a package."""
    try:
        from .nodes import AnimaTrainerExtension
    except ImportError as error:
        raise RuntimeError(f"Anima Trainer needs {what_lacks(error)}") from None
    return AnimaTrainerExtension()


def what_lacks(error: ImportError) -> str:
    if (error.name or "").startswith("comfy"):
        return f"ComfyUI 0.25.0 or newer ({error}); update ComfyUI"
    requirements = Path(__file__).with_name("requirements.txt")
    return f'the package {error.name}: run "{sys.executable}" -m pip install -r "{requirements}", then restart ComfyUI'

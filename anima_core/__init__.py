"""Anima Trainer's core: train LoRA and LoKr adapters for Anima in plain PyTorch. Never imports ComfyUI.

The public names load on first use, so that `import anima_core` costs nothing.
"""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

_PUBLIC = {
    "load_transformer": ".models.transformer",
    "load_vae": ".models.vae",
    "load_qwen": ".models.qwen",
    "load_t5_tokenizer": ".models.tokenizers",
    "simple_sigmas": ".sampling",
    "sample": ".sampling",
    "train": ".training.loop",
    "TrainResult": ".training.loop",
    "TrainConfig": ".settings",
    "AnimaError": ".errors",
}
__all__ = [*_PUBLIC, "__version__"]


def _version() -> str:
    """Read the version where it is written: in the project's file, as ComfyUI's registry wants it."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'^version = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name], __name__), name)

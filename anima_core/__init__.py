"""Anima Trainer's core: train LoRA and LoKr adapters for Anima in plain PyTorch. Never imports ComfyUI.

The public names load on first use, so that `import anima_core` costs nothing.
"""

from importlib import import_module
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
    "__version__": ".version",
}
__all__ = [*_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name], __name__), name)

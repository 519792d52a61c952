"""Anima Trainer: ComfyUI nodes that train LoRA and LoKr adapters for Anima. Only the entry point is here."""

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """Return the extension. Raises RuntimeError, with the way out, in a ComfyUI that is too old for it."""
    try:
        from comfy_api.latest import ComfyExtension  # noqa: F401
    except ImportError as error:
        raise RuntimeError(f"Anima Trainer needs ComfyUI 0.25.0 or newer ({error}); update ComfyUI") from None
    from .nodes import AnimaTrainerExtension

    return AnimaTrainerExtension()

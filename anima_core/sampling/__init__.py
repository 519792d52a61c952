"""Drawing pictures as ComfyUI's KSampler does: noise, schedules, samplers."""

from .drawing import noise_for, preview_image, sample
from .schedules import simple_sigmas

__all__ = ["noise_for", "preview_image", "sample", "simple_sigmas"]

"""A line of a prompt file: the prompt, and sd-scripts' flags within it."""

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from .errors import SettingError


@dataclass(frozen=True)
class PreviewRequest:
    """One preview, its own flags applied."""

    prompt: str
    negative: str
    width: int
    height: int
    steps: int
    cfg: float
    shift: float
    seed: int


PREVIEW_FLAGS = {  # flag -> (name, type, smallest)
    "n": ("negative", str, None),
    "w": ("width", int, 16),
    "h": ("height", int, 16),
    "d": ("seed", int, 0),
    "s": ("steps", int, 1),
    "l": ("cfg", float, 0),
    "fs": ("shift", float, 1e-6),
}


def preview_request(line: str, defaults: Any) -> PreviewRequest:
    """ "a cat --w 768 --n blurry" -> that prompt with these settings, the rest from `defaults` (a SampleConfig)."""
    prompt, *flags = re.split(r"\s--(?=[a-z]{1,2}\s)", " " + line)
    settings = {f.name: getattr(defaults, f.name) for f in fields(PreviewRequest) if f.name != "prompt"}
    for flag in flags:
        key, _, text = flag.partition(" ")
        if key not in PREVIEW_FLAGS:
            raise SettingError(f"sample prompt {line!r}: unknown flag --{key}; known are --{' --'.join(PREVIEW_FLAGS)}")
        name, kind, smallest = PREVIEW_FLAGS[key]
        try:
            settings[name] = kind(text.strip())
        except ValueError:
            raise SettingError(f"sample prompt {line!r}: --{key} needs a number") from None
        if smallest is not None and not (math.isfinite(settings[name]) and settings[name] >= smallest):
            raise SettingError(f"sample prompt {line!r}: --{key} must be at least {smallest}")
    for side in ("width", "height"):
        settings[side] = settings[side] // 16 * 16  # sd-scripts rounds down as well
    return PreviewRequest(prompt=prompt.strip(), **settings)

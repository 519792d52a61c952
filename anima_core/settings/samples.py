"""Settings of preview pictures, and the lines of a prompt file."""

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from ..errors import SettingError
from .setting import check, require, setting


@dataclass(frozen=True)
class PreviewRequest:
    """One preview, the flags of its own line applied."""

    prompt: str
    negative: str
    width: int
    height: int
    steps: int
    cfg: float
    shift: float
    seed: int


@dataclass(frozen=True)
class SampleConfig:
    """Preview pictures during training. Without prompts there are none."""

    prompts: tuple[str, ...] = setting((), "Prompts of the previews, one a line.", resume="free")
    negative: str = setting("", "Negative prompt of all previews.", resume="free")
    width: int = setting(1024, "Width of the previews in pixels, a multiple of 16.", low=64, resume="free")
    height: int = setting(1024, "Height of the previews in pixels, a multiple of 16.", low=64, resume="free")
    steps: int = setting(30, "Sampling steps of the previews: more are finer and slower.", low=1, resume="free")
    cfg: float = setting(4.0, "Guidance of the previews: 1 turns it off, which is twice as fast.", low=0, resume="free")
    shift: float = setting(3.0, "Sampling shift of the previews; ComfyUI's for this model is 3.", above=0, resume="free")
    seed: int = setting(
        42, "Seed of the previews' noise, the same every time, so that pictures can be compared.", resume="free"
    )
    every_n_steps: int = setting(0, "Training steps between previews; 0: none.", low=0, resume="free")
    every_n_epochs: int = setting(0, "Epochs between previews; 0: none.", low=0, resume="free")
    at_first: bool = setting(False, "Also draw previews before the first step: what the base model draws.", resume="free")
    at_end: bool = setting(False, "Also draw previews when training ends.", resume="free")

    def __post_init__(self) -> None:
        check(self)
        for name in ("width", "height"):
            side = getattr(self, name)
            require(side % 16 == 0, f"sample.{name}", side, "must be a multiple of 16")
        self.requests()

    def requests(self) -> tuple[PreviewRequest, ...]:
        """Return each prompt as a request. Raises SettingError for a line with wrong flags."""
        return tuple(preview_request(line, self) for line in self.prompts)


PREVIEW_FLAGS: dict[str, tuple[str, type, float | None]] = {  # flag of sd-scripts -> (field, type, smallest)
    "n": ("negative", str, None),
    "w": ("width", int, 16),
    "h": ("height", int, 16),
    "d": ("seed", int, 0),
    "s": ("steps", int, 1),
    "l": ("cfg", float, 0),
    "fs": ("shift", float, 1e-6),
}


def preview_request(line: str, defaults: SampleConfig) -> PreviewRequest:
    """Read a line such as "a cat --w 768 --n blurry": that prompt with these settings, the rest from `defaults`."""
    prompt, *flags = re.split(r"\s--(?=[a-z]{1,2}\s)", " " + line)
    values: dict[str, Any] = {f.name: getattr(defaults, f.name) for f in fields(PreviewRequest) if f.name != "prompt"}
    for flag in flags:
        key, _, text = flag.partition(" ")
        if key not in PREVIEW_FLAGS:
            raise SettingError(f"sample prompt {line!r}: unknown flag --{key}; known are --{' --'.join(PREVIEW_FLAGS)}")
        name, kind, smallest = PREVIEW_FLAGS[key]
        try:
            values[name] = kind(text.strip())
        except ValueError:
            raise SettingError(f"sample prompt {line!r}: --{key} needs a number") from None
        if smallest is not None and not (math.isfinite(values[name]) and values[name] >= smallest):
            raise SettingError(f"sample prompt {line!r}: --{key} must be at least {smallest}")
    for side in ("width", "height"):
        values[side] = values[side] // 16 * 16  # sd-scripts rounds down as well
    return PreviewRequest(prompt=prompt.strip(), **values)

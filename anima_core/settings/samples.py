"""Settings of preview pictures, and the lines of a prompt file."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

from ..errors import SettingError
from .setting import check, require, setting

# As ComfyUI calls them; what each does stands in anima_core/sampling/
SAMPLERS = ("euler", "euler_ancestral", "er_sde", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu", "res_multistep")
SCHEDULERS = ("simple", "normal", "sgm_uniform", "beta")
SAMPLER_WORDS = {  # of sd-scripts and WebUIs -> ours
    "k_euler": "euler",
    **dict.fromkeys(("euler_a", "k_euler_a"), "euler_ancestral"),
    "dpmsolverpp": "dpmpp_2m",
}


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
    sampler: str
    scheduler: str


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
    sampler: str = setting(
        "euler",
        "Sampler of the previews, as KSampler calls it: euler is plain, er_sde and euler_ancestral draw noise on the way.",
        choices=SAMPLERS,
        resume="free",
    )
    scheduler: str = setting(
        "simple",
        "Noise levels of the previews' steps, as KSampler calls them: simple is usual, beta has more at both ends.",
        choices=SCHEDULERS,
        resume="free",
    )

    held_out: int = setting(
        0,
        "Held-out pictures whose captions are drawn as previews too, each at its own size and beside the picture; 0: none.",
        low=0,
        resume="free",
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("width", "height"):
            side = getattr(self, name)
            require(side % 16 == 0, f"sample.{name}", side, "must be a multiple of 16")
        self.requests()

    @property
    def draws(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.prompts or self.held_out)

    def requests(self) -> tuple[PreviewRequest, ...]:
        """Return each prompt as a request. Raises SettingError for a line with wrong flags."""
        return tuple(preview_request(line, self) for line in self.prompts)

    def of_caption(self, caption: str, size: tuple[int, int]) -> PreviewRequest:
        """Return the request of a picture's caption at its size; what looks like a flag in it is a part of it."""
        own = {f.name: getattr(self, f.name) for f in fields(PreviewRequest) if f.name not in ("prompt", "width", "height")}
        return PreviewRequest(prompt=caption, width=size[0], height=size[1], **own)

    def warnings(self) -> list[str]:
        """Say what was asked for and is not drawn: previews without a prompt, flags of prompts."""
        told = dict.fromkeys(text for line in self.prompts for text in without_effect(line))
        asked = next((n for n in ("every_n_steps", "every_n_epochs", "at_first", "at_end") if getattr(self, n)), "")
        if asked and not self.draws:
            return [f"`sample.{asked}` asks for previews, but there is no prompt in `sample.prompts`: add one"]
        return list(told)


PREVIEW_FLAGS: dict[str, tuple[str, type, float | None]] = {  # flag of sd-scripts -> (field, type, smallest)
    "n": ("negative", str, None),
    "w": ("width", int, 16),
    "h": ("height", int, 16),
    "d": ("seed", int, -1),  # -1: by chance there, the run's here
    "s": ("steps", int, 1),
    "l": ("cfg", float, 0),
    "fs": ("shift", float, 1e-6),
}
OTHER_PREVIEW_FLAGS = {  # flags of sd-scripts that are no setting of ours -> why
    "g": "the model has no guidance embedding; --l sets the guidance",
    "cn": "no ControlNet is drawn with",
    "ctr": "guidance is never cut short",
    "rcfg": "guidance is not renormalised",
    "i": "no reference picture is drawn with",
    "am": "the adapter is drawn at its full strength",
}
FLAG = re.compile(r"\s--(?=[A-Za-z]+(?:\s|$))")


def sampler_named(text: str) -> str:
    """Return the sampler that ComfyUI, sd-scripts or a WebUI calls so ("euler_a", "DPM++ 2M"); empty where there is none."""
    word = text.strip().lower().replace("++", "pp").replace(" ", "_")
    word = SAMPLER_WORDS.get(word, word)
    return word if word in SAMPLERS else ""


def scheduler_named(text: str) -> str:
    """Return the schedule that is called so; empty where there is none."""
    word = text.strip().lower().replace(" ", "_")
    return word if word in SCHEDULERS else ""


CHOSEN_FLAGS: dict[str, tuple[str, Callable[[str], str], tuple[str, ...]]] = {  # flag -> (field, by a word, all there are)
    "ss": ("sampler", sampler_named, SAMPLERS),
    "sch": ("scheduler", scheduler_named, SCHEDULERS),  # no flag of sd-scripts, which has one schedule
}


def split_prompt(line: str) -> tuple[str, list[tuple[str, str]]]:
    """Split "a cat --w 768 --n blurry" into the prompt and its flags, each with its text."""
    prompt, *flags = FLAG.split(" " + line)
    parted = [(*flag.split(None, 1), "")[:2] for flag in flags]
    return prompt.strip(), [(name.lower(), text.strip()) for name, text in parted]


def without_effect(line: str) -> list[str]:
    """Say which flags of a prompt do nothing, and why. As in sd-scripts they are no part of the prompt."""
    known = f"known are --{' --'.join((*PREVIEW_FLAGS, *CHOSEN_FLAGS))}"
    told = []
    for name, text in split_prompt(line)[1]:
        if name in CHOSEN_FLAGS:
            _, named, all_names = CHOSEN_FLAGS[name]
            told += [] if named(text) else [f"--{name} {text} in a prompt has no effect: there are {', '.join(all_names)}"]
        elif name not in PREVIEW_FLAGS:
            told.append(f"--{name} in a prompt has no effect: {OTHER_PREVIEW_FLAGS.get(name, known)}")
    return told


def preview_request(line: str, defaults: SampleConfig) -> PreviewRequest:
    """Read a line such as "a cat --w 768 --n blurry": that prompt with these settings, the rest from `defaults`."""
    prompt, flags = split_prompt(line)
    values: dict[str, Any] = {f.name: getattr(defaults, f.name) for f in fields(PreviewRequest) if f.name != "prompt"}
    for flag, text in flags:
        if flag in PREVIEW_FLAGS:
            name, value = PREVIEW_FLAGS[flag][0], flag_value(line, flag, text)
            values[name] = values[name] if (name, value) == ("seed", -1) else value
        elif flag in CHOSEN_FLAGS:
            name, named, _ = CHOSEN_FLAGS[flag]
            values[name] = named(text) or values[name]
    for side in ("width", "height"):
        values[side] = values[side] // 16 * 16  # sd-scripts rounds down as well
    return PreviewRequest(prompt=prompt, **values)


def flag_value(line: str, flag: str, text: str) -> Any:
    _, kind, smallest = PREVIEW_FLAGS[flag]
    try:
        value = kind(text)
    except ValueError:
        raise SettingError(f"sample prompt {line!r}: --{flag} needs a number") from None
    if smallest is not None and not (math.isfinite(value) and value >= smallest):
        raise SettingError(f"sample prompt {line!r}: --{flag} must be at least {smallest}")
    return value

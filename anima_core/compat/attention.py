"""sd-scripts' words for how attention is computed -> `train.attention`."""

from importlib.util import find_spec
from typing import Any

from ..settings.train import ATTENTION, ATTENTION_PACKAGES

MODES = {"torch": "sdpa", "sdpa": "sdpa", "xformers": "xformers", "flash": "flash_attn", "sageattn": "sage"}  # of --attn_mode
SWITCHES = {  # -> ours
    "sdpa": "sdpa",
    "xformers": "xformers",
    "flash_attn": "flash_attn",
    "use_sage_attn": "sage",
    "mem_eff_attn": "mem_eff_attn",
}
NOT_FOR_TRAINING = {"sage": "SageAttention has no backward pass", "mem_eff_attn": "it would take no less memory"}


def attention(values: dict[str, Any], explicit: set[str], notes: list[str]) -> str:
    """Read how attention is to be computed. What is not there, or cannot train, is noted and not refused.

    Front ends write such words into every file. --attention itself wins over them, and --attn_mode over the switches.
    """
    asked, mode, found = {flag: name for flag, name in SWITCHES.items() if values[flag]}, values["attn_mode"], "sdpa"
    if mode:
        asked = {f"attn_mode={mode}": MODES.get(mode.lower(), mode)}
    if "attention" in explicit:
        own = str(values["attention"])
        notes += [f"--{flag} has no effect beside --attention {own}" for flag, name in asked.items() if name != own]
        return own
    for flag, name in asked.items():
        if why := not_usable(name):
            notes.append(f"--{flag} has no effect: {why}; torch's own attention is used")
        else:
            found = name
    return found


def not_usable(name: str) -> str:
    """Return why a word of sd-scripts is not followed; empty where it is."""
    if why := NOT_FOR_TRAINING.get(name):
        return why
    package = ATTENTION_PACKAGES.get(name)
    if package and find_spec(package) is None:
        return f"the package {package} is not installed"
    return "" if name in ATTENTION else f"known are {', '.join(MODES)}"

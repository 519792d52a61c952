"""Prompts of previews as sd-scripts takes them: a file of one of three kinds; or, in GUIs' files, the prompts themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.caption_files import decode
from ..data.json_text import load_json
from ..errors import FileError
from ..settings.toml_file import parse_toml

KEYS = {  # of a prompt in JSON and TOML -> the flag of a line that says the same
    "negative_prompt": "n",
    "width": "w",
    "height": "h",
    "seed": "d",
    "sample_steps": "s",
    "scale": "l",
    "flow_shift": "fs",
    "guidance_scale": "g",
    "sample_sampler": "ss",
    "sample_scheduler": "sch",
    "controlnet_image": "cn",
    "cfg_trunc_ratio": "ctr",
    "renorm_cfg": "rcfg",
    "image": "i",
    "additional_network_multiplier": "am",
}
OF_THE_FILE = ("subset", "enum")

Prompts = tuple[tuple[str, ...], list[str]]


def names_file(value: str) -> bool:
    """Tell the name of a prompt file from a prompt: by its ending, as a full path, or because there is such a file here."""
    if "\n" in value:
        return False
    if Path(value).suffix.lower() in (".txt", *READERS) or Path(value).is_absolute() or value.startswith(("\\\\", "~")):
        return True
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # longer than any name, or with characters that none has
        return False


def read_prompts(value: str) -> Prompts:
    """Return the prompts, one a line with its flags, and notes. Raises FileError for a file that is not what it is called."""
    if not names_file(value):
        return lines(value), []
    path = Path(value).expanduser()
    try:
        text, encoding = decode(path.read_bytes())
    except (OSError, UnicodeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise FileError(f"{value}: cannot be read ({reason}); check --sample_prompts") from None
    notes = [] if encoding == "UTF-8" else [f"{value}: read as {encoding}"]
    prompts = READERS.get(path.suffix.lower(), read_lines)(text, str(path))
    return prompts, notes if prompts else [*notes, f"{value}: is empty: it holds no prompt, so no previews are drawn"]


def lines(text: str) -> tuple[str, ...]:
    found = (line.strip() for line in text.splitlines())
    return tuple(line for line in found if line and not line.startswith("#"))


def read_lines(text: str, path: str) -> tuple[str, ...]:
    return lines(text)


def read_json(text: str, path: str) -> tuple[str, ...]:
    """Read a list of prompts, each a line or an object."""
    try:
        found = load_json(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"{path}: not valid JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(found, list):
        raise FileError(f"{path}: must be a list of prompts")
    return tuple(entry if isinstance(entry, str) else as_line(entry, path) for entry in found)


def read_tables(text: str, path: str) -> tuple[str, ...]:
    """Read [prompt], which holds for all, and [[prompt.subset]], one for each prompt."""
    shared = parse_toml(text, path).get("prompt")
    subsets = shared.get("subset") if isinstance(shared, dict) else None
    if not isinstance(shared, dict) or not isinstance(subsets, list) or not all(isinstance(s, dict) for s in subsets):
        raise FileError(f"{path}: no [[prompt.subset]]; add one for each prompt")
    return tuple(as_line(shared | subset, path) for subset in subsets)


def as_line(entry: Any, path: str) -> str:
    """Write a prompt's keys as the flags of a line."""
    if not isinstance(entry, dict) or not isinstance(entry.get("prompt", ""), str):
        raise FileError(f"{path}: {entry!r}: a prompt must be a text, or keys with prompt among them")
    unknown = [key for key in entry if key not in ("prompt", *OF_THE_FILE, *KEYS)]
    if unknown:
        raise FileError(f"{path}: a prompt has unknown keys: {', '.join(unknown)}; known are prompt, {', '.join(KEYS)}")
    flags = [f"--{flag} {one_line(entry[key])}" for key, flag in KEYS.items() if entry.get(key) not in (None, "")]
    return " ".join([one_line(entry.get("prompt", "")), *flags])


def one_line(value: Any) -> str:
    return " ".join(str(value).split())


READERS: dict[str, Callable[[str, str], tuple[str, ...]]] = {".json": read_json, ".toml": read_tables}

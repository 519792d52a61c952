"""Lists of name=value, as --network_args and --optimizer_args are: how they are split, and how their texts are read."""

import ast
from typing import Any

from ..errors import SettingError

TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


def key_values(items: Any, flag: str) -> dict[str, str]:
    """Split ["a=1", "b=2"] into {"a": "1", "b": "2"}. Raises SettingError."""
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingError(f"{flag}: {item!r} must be written name=value")
        found[key.strip()] = value.strip()
    return found


def boolean(text: str, name: str) -> bool:
    if text.lower() not in TRUE_WORDS + FALSE_WORDS:
        raise SettingError(f"{name}={text}: must be true or false")
    return text.lower() in TRUE_WORDS


def python_list(text: str, name: str) -> list[str]:
    """Read a list as sd-scripts writes it, in Python: "['re','re']"."""
    if not text:
        return []
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise SettingError(f"network_args: {name}={text}: write it as \"['regex','regex']\"")
    return found


def pairs(text: str, name: str) -> tuple[str, ...]:
    """Read "re=16,re=0" as ("re:^(?:re)$=16", …): whole names, as in sd-scripts."""
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        pattern, equals, number = item.rpartition("=")
        if not equals:
            raise SettingError(f"network_args: {name}: {item!r} must be written pattern=number")
        found.append(f"re:^(?:{pattern})$={number}")
    return tuple(found)

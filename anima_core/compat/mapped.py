"""What flags say of our settings, where a flag sets one."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ..errors import SettingError
from ..settings.setting import name_of
from .flags import mapped_flags


def settings_for(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the flags say of the settings of a class, in our words."""
    names = {name_of(cls, f.name): f.name for f in fields(cls)}
    found: dict[str, Any] = {}
    for flag in mapped_flags():
        if flag.setting in names and flag.name in values:
            value = values[flag.name]
            if flag.words and value not in flag.words:  # argparse checks typed choices; a file's are checked here
                known = ", ".join(map(str, flag.words))
                raise SettingError(f"{flag.name}={value}: must be one of {known}")
            value = flag.words.get(value, value) if flag.words else value
            found[names[flag.setting]] = tuple(value) if isinstance(value, list) else value
    return found

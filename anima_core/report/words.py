"""What a report says about settings and paths."""

from collections.abc import Iterator
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from ..adapters.metadata import file_name
from ..errors import in_words
from ..settings import TrainConfig, walk


def changed_settings(config: TrainConfig) -> Iterator[tuple[str, str, str]]:
    """Yield place, value and default of every setting that is not at its default."""
    for found in walk(config):
        if found.value != found.default:
            value = file_name(found.value) if found.facts.path else written(found.value)
            yield found.place, value, "" if found.default is MISSING else written(found.default)


def written(value: Any) -> str:
    """Write a setting's value: texts one a line, sizes as 768x1024, nothing for what is not set."""
    if isinstance(value, tuple):
        items = ["x".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value]
        return ("\n" if any(isinstance(item, str) for item in value) else ", ").join(items)
    return str(value).lower() if isinstance(value, bool) else str(value)


def names_only(text: str, config: TrainConfig | None) -> str:
    """Return a text of the log with settings as config.toml names them, and of every known path only its last part."""
    values = {found.value for found in walk(config) if found.facts.path} if config else ()
    paths = [path for path in values if file_name(path) not in ("", path)]
    told = in_words(text)
    for path in sorted(paths, key=len, reverse=True):
        told = told.replace(path, file_name(path))
    return told.replace(str(Path.home()), "~")

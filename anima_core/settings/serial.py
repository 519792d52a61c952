"""Settings as plain data, for TOML, JSON and metadata, and back."""

from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import SettingError
from .setting import settings_of

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
MOST_BITS = 1000  # a float holds integers up to 2^1023

# Names that settings had in the config.toml of earlier runs -> the name and value of today
FORMER = {"gradient_checkpointing": ("memory", {True: "recompute", False: "keep"})}


def to_dict(config: Any, path: Callable[[str], str] = str) -> dict[str, Any]:
    """Return nested dicts and lists, ready for TOML or JSON. path: what becomes of each setting that is a path."""
    facts = settings_of(type(config))
    found: dict[str, Any] = {}
    for f in fields(config):
        value = getattr(config, f.name)
        is_path = f.name in facts and bool(facts[f.name].path)
        found[f.name] = path(value) if is_path else _plain(value, path)
    return found


def _plain(value: Any, path: Callable[[str], str]) -> Any:
    if is_dataclass(value):
        return to_dict(value, path)
    return [_plain(item, path) for item in value] if isinstance(value, tuple) else value


def from_dict(cls: type, data: dict[str, Any], where: str = "config") -> Any:
    """Rebuild a settings class from `to_dict`'s output. An unknown key is an error that names its table."""
    if not isinstance(data, dict):
        raise SettingError(f"{where}={data!r}: must be a table")
    hints = get_type_hints(cls)
    data = _renamed(data, hints)
    unknown = set(data) - hints.keys()
    if unknown:
        raise SettingError(f"{where}: unknown setting {', '.join(sorted(map(str, unknown)))}; leave it out")
    missing = [f.name for f in fields(cls) if f.name not in data and f.default is MISSING and f.default_factory is MISSING]
    if missing:
        raise SettingError(f"{where}: {', '.join(missing)} is missing; add it, or use a run's own config.toml")
    return cls(**{key: as_kind(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def _renamed(data: dict[str, Any], hints: dict[str, Any]) -> dict[str, Any]:
    found = dict(data)
    for former, (name, values) in FORMER.items():
        if name in hints and isinstance(found.get(former), bool):
            found[name] = values[found.pop(former)]
    return found


def as_kind(kind: Any, value: Any, where: str) -> Any:
    """Return a value of a file as the kind that a setting has; a whole number serves as a float.

    kind: a type, a settings class, or a tuple of them. Raises SettingError that names `where`.
    """
    if is_dataclass(kind):
        return from_dict(kind, value, where)  # type: ignore[arg-type]
    if get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise SettingError(f"{where}={value!r}: must be a list")
        return tuple(as_kind(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if kind is float and isinstance(value, int) and not isinstance(value, bool) and value.bit_length() <= MOST_BITS:
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise SettingError(f"{where}={value!r}: must be {EXPECTED[kind]}")
    return value

"""What a sweep may vary, by every name that a setting has; values as files, flags and widgets write them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from dataclasses import replace as replaced
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from ..compat.dataset_config import MOST_TIMESTEP
from ..compat.flags import mapped_flags
from ..compat.kinds import from_text
from ..compat.translate import RANGE
from ..compat.unknown import hint
from ..errors import SettingError
from ..settings import TrainConfig
from ..settings.serial import as_kind
from ..settings.setting import Setting, name_of, walk

T = TypeVar("T")
RESULTS_ONLY = ("output", "sample", "metadata")  # sections that change what is written and drawn, not what is learnt
BARE = ("train", "network", "optimizer", "flow", "dataset", "subset")  # sections whose fields need no section before them
SHORT = {  # words in labels and names of points, which may be written, too
    "optimizer.learning_rate": "lr",
    "optimizer.type": "optimizer",
    "train.max_train_steps": "steps",
    "train.max_train_epochs": "epochs",
    "train.gradient_accumulation_steps": "accumulation",
    "dataset.batch_size": "batch",
    "dataset.resolutions": "px",
    "network.type": "type",
    "flow.timestep_sampling": "t",
}
WAY_OUT = "write name = a, b, such as network.rank = 4, 16"


class Named(NamedTuple):
    """What a name stands for. setting: `section.field`. words: the name's own values -> the setting's.

    per_unit: what the name counts in one of the setting's own.
    """

    setting: str
    words: Mapping[Any, Any]
    per_unit: int = 1


class Declared(NamedTuple):
    """A setting by its declaration. kind: its type."""

    name: str
    facts: Setting
    kind: Any


def declared(cls: type = TrainConfig) -> Iterator[Declared]:
    """Yield every setting of a class, those of the classes within it included."""
    hints = get_type_hints(cls)
    for f in fields(cls):
        kind = hints[f.name]
        if "setting" in f.metadata:
            yield Declared(name_of(cls, f.name), f.metadata["setting"], kind)
            continue
        for inner in (kind, *get_args(kind)):
            if isinstance(inner, type) and is_dataclass(inner):
                yield from declared(inner)


@cache
def settings() -> dict[str, Declared]:
    return {found.name: found for found in declared()}


def may_vary(found: Declared) -> bool:
    return found.facts.shapes and found.facts.path != "written" and found.name.partition(".")[0] not in RESULTS_ONLY


@cache
def known_names() -> dict[str, Named]:
    """Return every name: `section.field`, a flag of `train`, a point's short word, or a field that only one section has."""
    found = {name: Named(name, {}) for name in settings()}
    for flag in mapped_flags():
        if flag.setting:
            words = module_words() if flag.setting == "network.type" else flag.words
            found |= {name: Named(flag.setting, words) for name in (flag.name, *flag.aliases)}
    found |= {name: Named(f"subset.{name}", {}, MOST_TIMESTEP) for name in RANGE}  # the flags count in thousandths
    alone: dict[str, list[str]] = {}
    for name in settings():
        section, _, field = name.partition(".")
        alone.setdefault(field, []).extend([name] if section in BARE else [])
    shorter = {word: Named(name, {}) for name, word in SHORT.items()}
    return {field: Named(names[0], {}) for field, names in alone.items() if len(names) == 1} | shorter | found


def module_words() -> dict[str, str]:
    """Return sd-scripts' words for the types of adapters -> ours."""
    from ..adapters.types import ADAPTER_TYPES  # loads torch

    return {module: kind.name for kind in ADAPTER_TYPES for module in kind.modules}


def short(setting: str) -> str:
    return SHORT.get(setting, setting.partition(".")[2])


def named(name: str, more: Mapping[str, Named]) -> Named:
    """Return the setting that a name stands for. more: names that only the caller has, such as a node's widgets.

    Raises SettingError for a name that nobody knows, and for a setting that changes nothing of what is learnt.
    """
    known = {**known_names(), **more}
    plain = name.strip().lstrip("-")
    if any(plain in (flag.name, *flag.aliases) for flag in mapped_flags()) and plain not in known:
        raise SettingError(f"vary {name!r}: sets no setting of its own; name that as section.field, as network.rank")
    if plain not in known:
        raise SettingError(f"vary {name!r}: no setting has this name{hint(plain, known)}")
    if not may_vary(settings()[known[plain].setting]):
        raise SettingError(f"vary `{known[plain].setting}`: no number that is learnt depends on it; vary another setting")
    return known[plain]


def read_vary(lines: Iterable[str]) -> dict[str, list[str]]:
    """Read lines of `name = a, b` as texts by name; empty ones and those that begin with # are passed over.

    Raises SettingError.
    """
    found: dict[str, list[str]] = {}
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        name, _, text = (part.strip() for part in line.partition("="))
        values = [value.strip().strip("\"'") for value in text.removeprefix("[").removesuffix("]").split(",")]
        if not name or not all(values):
            raise SettingError(f"vary {line!r}: {WAY_OUT}")
        if name in found:
            raise SettingError(f"vary {name!r}: stands there twice; write all of its values in one line")
        found[name] = values
    return found


def as_value(found: Named, raw: Any) -> Any:
    """Return a value, of a file or as text, as the setting has it. Raises SettingError that names the setting."""
    word = found.words.get(raw, raw) if isinstance(raw, str | int | float | bool) else raw
    value = converted(settings()[found.setting].kind, word, f"`{found.setting}`")
    return value if found.per_unit == 1 else value / found.per_unit


def converted(kind: Any, raw: Any, where: str) -> Any:
    """Convert a value to a kind. A tuple is a list, a text with blanks between, or one item; 768 and 768x1024 are sizes."""
    if get_origin(kind) is not tuple:
        return as_kind(kind, from_text(kind, raw), where)
    inner = get_args(kind)
    is_size = inner == (int, int)
    items = (raw.lower().split("x") if is_size else raw.split()) if isinstance(raw, str) else raw
    items = list(items) if isinstance(items, list | tuple) else [items]
    if is_size and len(items) not in (1, 2):
        raise SettingError(f"{where}={raw!r}: write a size as 1024 or 768x1024")
    return tuple(converted(inner[0], item, where) for item in (items * 2 if is_size and len(items) == 1 else items))


def changed(config: T, values: Mapping[str, Any]) -> T:
    """Return a config with settings replaced wherever they stand, all at once, so that each is checked beside the others.

    values: by `section.field`. Raises SettingError.
    """
    missing = values.keys() - {found.name for found in walk(config)}
    if missing:
        raise SettingError(f"`{min(missing)}`: there is nothing in these settings that has it; leave it out")
    return _changed(config, values)


def _changed(config: T, values: Mapping[str, Any]) -> T:
    own: dict[str, Any] = {}
    for f in fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, f.name), name_of(type(config), f.name)
        if "setting" in f.metadata:
            own |= {f.name: values[name]} if name in values else {}
        elif is_dataclass(value):
            own[f.name] = _changed(value, values)
        else:
            own[f.name] = tuple(_changed(item, values) for item in value)
    return replaced(config, **own)  # type: ignore[type-var]

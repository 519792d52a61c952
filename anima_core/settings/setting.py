"""One setting, declared once: its default, what it does, what it may be, and what a change of it means.

Everything else that knows about settings reads these facts: flags and help, widgets, checks, the rules of resuming, the key
of a finished run, metadata, documentation. A fact that only one reader needs stays with that reader.
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

from ..errors import SettingError

T = TypeVar("T")
PathUse = Literal["", "read", "written"]
ResumeRule = Literal["fixed", "change", "free"]


@dataclass(frozen=True)
class Setting:
    """What is declared about a field of a settings class; see `setting`."""

    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    path: PathUse = ""
    resume: ResumeRule = "change"
    shapes: bool = True

    def problem(self, value: Any) -> str:
        """Say what a value must be instead; empty when it is allowed."""
        if self.choices:
            return "" if value in self.choices else f"must be one of {', '.join(self.choices)}"
        bounds = [
            ("at least", self.low, lambda v, bound: v >= bound),
            ("at most", self.high, lambda v, bound: v <= bound),
            ("above", self.above, lambda v, bound: v > bound),
            ("below", self.below, lambda v, bound: v < bound),
        ]
        wanted = [(word, bound, holds) for word, bound, holds in bounds if bound is not None]
        if not wanted or (math.isfinite(value) and all(holds(value, bound) for _, bound, holds in wanted)):
            return ""
        return "must be " + " and ".join(f"{word} {bound}" for word, bound, _ in wanted)


def setting(
    default: Any = MISSING,
    help: str = "",
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
    path: PathUse = "",
    resume: ResumeRule = "change",
    shapes: bool = True,
) -> Any:
    """Declare a field of a settings class. Without a default it must be given.

    help: one or two sentences that make sense when quoted alone; another setting is named as `section.field`.
    low, high, above, below: bounds of a number, inclusive and exclusive. choices: the words a text may be.
    path: "read" for what a run is made from, which is compared by content wherever it is compared; "written" for results.
    resume: what a difference from the checkpoint means. "fixed": its tensors would mean something else. "change": allowed
    when the user says so. "free": it shapes no number of the steps that are left, or only how many there are.
    shapes: False for what shapes no number and no file that a run hands on.
    """
    facts = Setting(help, low, high, above, below, choices, path, resume, shapes)
    return field(default=default, metadata={"setting": facts})


class Found(NamedTuple):
    """A setting of one config: where it is (`datasets[0].batch_size`), its name (`dataset.batch_size`), facts and value.

    default: `dataclasses.MISSING` where it must be given.
    """

    place: str
    name: str
    facts: Setting
    value: Any
    default: Any


def name_of(cls: type, field_name: str) -> str:
    """Return the one name of a setting, in messages and tables: HeldOutConfig's share is "held_out.share"."""
    section = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__.removesuffix("Config")).lower()
    return f"{section}.{field_name}"


def settings_of(cls: type) -> dict[str, Setting]:
    """Return the declared settings of a class by field."""
    return {f.name: f.metadata["setting"] for f in fields(cls) if "setting" in f.metadata}


def walk(config: Any, place: str = "") -> Iterator[Found]:
    """Yield every setting of a config, those of nested configs included, in the order of declaration."""
    facts = settings_of(type(config))
    for f in fields(config):
        value, here = getattr(config, f.name), f"{place}.{f.name}" if place else f.name
        if f.name in facts:
            yield Found(here, name_of(type(config), f.name), facts[f.name], value, f.default)
        elif is_dataclass(value):
            yield from walk(value, here)
        else:
            for number, item in enumerate(value):
                yield from walk(item, f"{here}[{number}]")


def with_paths(config: T, change: Callable[[str, str], str]) -> T:
    """Return a config with every path that it reads, where one is set, replaced by change(path, `section.field`)."""
    facts, values = settings_of(type(config)), {}
    for f in fields(config):  # type: ignore[arg-type]
        value = getattr(config, f.name)
        if f.name in facts:
            read = facts[f.name].path == "read" and value
            values[f.name] = change(value, name_of(type(config), f.name)) if read else value
        elif is_dataclass(value):
            values[f.name] = with_paths(value, change)
        else:
            values[f.name] = tuple(with_paths(item, change) for item in value)
    return replace(config, **values)  # type: ignore[type-var]


def check(config: Any) -> None:
    """Refuse the first value that its declaration does not allow. Raises SettingError."""
    for name, facts in settings_of(type(config)).items():
        value = getattr(config, name)
        require(not (rule := facts.problem(value)), name_of(type(config), name), value, rule)


def require(ok: bool, name: str, value: Any, rule: str) -> None:
    """Refuse a setting, by its `section.field` name, with the rule that it breaks. Raises SettingError."""
    if not ok:
        raise SettingError(f"`{name}`={value}: {rule}")

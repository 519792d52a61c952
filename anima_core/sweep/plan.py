"""A sweep's points: from a grid, a list, or both; each with the settings of its training, a label and a name of its own."""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import AnimaError, SettingError
from ..files import MAX_NAME_BYTES
from ..settings import TrainConfig, from_dict, to_dict
from ..settings.toml_file import dump_toml, read_toml
from .names import Named, as_value, changed, named, read_vary, short

MOST_POINTS = 500  # more are a mistake: each is a training
ROOM = 20  # bytes of a name that are left for what is added to it: `-best`, `-2`
AS_IT_IS = "as set"  # label of a point that changes nothing

Asked = Mapping[str, Any]  # one point as it was asked for: name -> value


@dataclass(frozen=True)
class Point:
    """One training of a sweep.

    values: by `section.field`, what it sets. label: "rank 16, lr 0.0003". name: of its adapter and run. config: None where
    the settings are refused. error: why it cannot be trained; empty when it can.
    """

    values: Mapping[str, Any]
    label: str
    name: str
    config: TrainConfig | None = None
    error: str = ""


@dataclass(frozen=True)
class Sweep:
    """base: what all points share; its output.name is the sweep's. folder: of its plan, results and page."""

    base: TrainConfig
    folder: Path
    points: tuple[Point, ...]
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.base.output.name

    @property
    def varied(self) -> tuple[str, ...]:
        """The settings that differ, in the order in which they were named."""
        return tuple(dict.fromkeys(name for point in self.points for name in point.values))

    def frozen(self) -> str:
        """Return the plan as TOML, which `read_plan` reads back: every point spelt out, and the settings that they share."""
        points = [{name: as_list(value) for name, value in point.values.items()} for point in self.points]
        return dump_toml({"points": points, "base": to_dict(self.base)})


def as_list(value: Any) -> Any:
    return [as_list(item) for item in value] if isinstance(value, list | tuple) else value


def folder_of(config: TrainConfig) -> Path:
    """Return the folder of the sweep that a run's settings name."""
    return Path(config.output.dir) / f"{config.output.name}-sweep"


def grid(values: Mapping[str, Sequence[Any]]) -> Iterator[Asked]:
    """Yield every combination, the last name changing fastest; nothing where nothing varies."""
    if values:
        yield from (dict(zip(values, chosen)) for chosen in itertools.product(*values.values()))


def asked_for(vary: Iterable[str], plan: Mapping[str, Any] | None = None) -> list[Asked]:
    """Return the points of a grid in lines and of a sweep file: of its [sweep] table, which the lines add to, and [[points]].

    Raises SettingError.
    """
    table, points = (plan or {}).get("sweep", {}), (plan or {}).get("points", [])
    if not isinstance(table, dict) or not isinstance(points, list) or not all(isinstance(p, dict) for p in points):
        raise SettingError("sweep file: write lists of values in [sweep], or single values in [[points]]")
    table, points = flat(table), [flat(point) for point in points]
    for name, values in table.items():
        if not isinstance(values, list) or not values:
            raise SettingError(f"sweep file: {name}={values!r}: write a list of values")
    return [*grid(table | read_vary(vary)), *points]


def flat(table: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """Return a table's values by `section.field`: a key without quotes makes tables of it."""
    found: dict[str, Any] = {}
    for key, value in table.items():
        found |= flat(value, f"{place}{key}.") if isinstance(value, dict) else {place + key: value}
    return found


def read_plan(path: str | Path) -> tuple[dict[str, Any], TrainConfig | None]:
    """Read a sweep file: its table, and the settings in it where it is the sweep.toml of a sweep. Raises AnimaError."""
    data = read_toml(path)
    unknown = data.keys() - {"sweep", "points", "base"}
    if unknown:
        way_out = "a sweep file has [sweep] and [[points]]; a training's settings go into --config or --config_file"
        raise SettingError(f"{path}: unknown {min(unknown)}; {way_out}")
    return data, from_dict(TrainConfig, data["base"], str(path)) if "base" in data else None


def make_sweep(base: TrainConfig, asked: Sequence[Asked], folder: Path, more: Mapping[str, Named] | None = None) -> Sweep:
    """Make the points of a sweep. Those whose values are refused carry the reason.

    base: with the folders that the points' runs have. more: names that only the caller has.
    Raises SettingError for names that no setting has, and for no points or too many.
    """
    if not 0 < len(asked) <= MOST_POINTS:
        raise SettingError(
            f"sweep: {len(asked)} points; {'say what varies' if not asked else f'at most {MOST_POINTS} are run'}"
        )
    converted = [read_point([(named(name, more or {}), value) for name, value in point.items()]) for point in asked]
    once = [(values, error) for n, (values, error) in enumerate(converted) if (values, error) not in converted[:n]]
    notes = (f"{len(converted) - len(once)} points are there twice, and are run once",) if len(once) < len(converted) else ()
    names = names_of(base.output.name, [values for values, _ in once])
    points = tuple(point_of(base, values, name, error) for (values, error), name in zip(once, names))
    return Sweep(base, folder, points, notes)


def read_point(point: Sequence[tuple[Named, Any]]) -> tuple[dict[str, Any], str]:
    """Return a point's values by setting, and why one of them is none; that one stays as it was written.

    Raises SettingError for a setting that is named twice.
    """
    values: dict[str, Any] = {}
    error = ""
    for found, raw in point:
        if found.setting in values:
            raise SettingError(f"vary `{found.setting}`: has two values in one point; leave one out")
        try:
            values[found.setting] = as_value(found, raw)
        except AnimaError as refused:
            values[found.setting], error = raw, error or refused.text
    return values, error


def point_of(base: TrainConfig, values: dict[str, Any], name: str, error: str) -> Point:
    label = ", ".join(f"{short(setting)} {written(value)}" for setting, value in values.items()) or AS_IT_IS
    if error:
        return Point(values, label, name, error=error)
    try:
        config = changed(base, values)
        config = dataclasses.replace(config, output=dataclasses.replace(config.output, name=name))
    except AnimaError as refused:
        return Point(values, label, name, error=refused.text)
    return Point(values, label, name, config)


def written(value: Any) -> str:
    """Write a value as people do: 0.0003, 1e-5, on, 768x1024."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:.6g}".replace("e-0", "e-")
    if isinstance(value, list | tuple):
        is_size = len(value) == 2 and all(isinstance(side, int) for side in value)
        items = dict.fromkeys(map(written, value)) if is_size else map(written, value)  # 1024 for 1024x1024
        return ("x" if is_size else " ").join(items)
    return str(value)


def names_of(base: str, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a file name for each point, which follows from its own values: a longer list changes none."""
    plain = [f"{base}-{'-'.join(map(part, point.items())) or 'base'}" for point in points]
    taken = [name.casefold() for name in plain]
    found = []
    for number, (name, point) in enumerate(zip(plain, points)):
        own = hashlib.sha256(repr(sorted(point.items())).encode(errors="replace")).hexdigest()[:6]
        is_long = len(name.encode()) > MAX_NAME_BYTES - ROOM
        clashes = taken[number] in taken[:number]
        cut = name.encode()[: MAX_NAME_BYTES - ROOM - 7].decode(errors="ignore")
        found.append(f"{cut}-{own}" if is_long or clashes else name)
    return found


def part(item: tuple[str, Any]) -> str:
    """Write a setting within a name: rank16, lr0.0003, lokr, dora or no_dora."""
    setting, value = item
    if isinstance(value, bool):
        return f"{'' if value else 'no_'}{short(setting)}"
    text = written(Path(value).stem if isinstance(value, str) and "/" in value.replace("\\", "/") else value)
    text = re.sub(r"[^\w.+-]+", "_", text).strip("._")
    return text if text[:1].isalpha() else f"{short(setting)}{text}"

"""What a run's folder tells of its past: steps, samples, warnings, settings. A log is read on from where it was left."""

import contextlib
import json
import math
import re
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from .errors import AnimaError
from .settings import TrainConfig, from_dict, walk
from .settings.toml_file import read_toml
from .speed.plan import summary

LOG = "log.jsonl"
SAMPLE = re.compile(r"step-(\d{8,12})-(\d{1,4})\.png", re.ASCII)
NUMBERS = ("loss", "mean_loss", "lr", "grad_norm", "seconds")
COLUMNS = ("step", *NUMBERS)
LATEST = ("step", "total", *NUMBERS, "eta", "peak_gb", "pictures_per_second")
BLOCK = 1 << 20  # bytes that are read at once
HEAD = 100  # bytes: the first line's kind and time tell a log from another one in its place
MOST_STEPS = 1 << 53  # above it columns hold other numbers than the log
LOGS_KEPT = 16  # in memory, 5 MB each for 100,000 steps
HELD_OUT_POINTS = 200  # of a curve of held-out losses, each with those of its noise levels

Columns = dict[str, list[float | None]]


@dataclass(frozen=True)
class Sample:
    """A preview picture. index: of its prompt; file: its name in the run's folder `samples`."""

    step: int
    index: int
    prompt: str
    file: str


@dataclass(frozen=True)
class HeldOut:
    """The losses of pictures that are not trained on, as a run told them after a step.

    loss: the mean over the noise levels `t`; levels: at each. base: the same without an adapter; ema: of the average, if any.
    best_step, best_loss: up to here. text: says how it goes.
    """

    step: int
    loss: float | None
    t: tuple[float | None, ...]
    levels: tuple[float | None, ...]
    base: float | None
    base_levels: tuple[float | None, ...]
    ema: float | None
    ema_levels: tuple[float | None, ...]
    best_step: int | None
    best_loss: float | None
    pictures: int | None
    text: str

    @property
    def saved_loss(self) -> float | None:
        """The loss of the weights that are saved: of the average where there is one."""
        return self.loss if self.ema is None else self.ema


def name_of(folder: Path) -> str:
    return folder.name.removesuffix("-run")


def config_of(folder: Path) -> TrainConfig | None:
    """Return the frozen settings of a run; None where `config.toml` is not there or not readable."""
    try:
        return from_dict(TrainConfig, read_toml(folder / "config.toml"), "config.toml")
    except AnimaError:
        return None


def settings_of(folder: Path, shown: Callable[[str], str] = str) -> dict[str, Any]:
    """Return the settings of `config_of` by place. shown: how a path is written."""
    found_in = walk(config) if (config := config_of(folder)) else ()
    return {found.place: shown(found.value) if found.facts.path and found.value else found.value for found in found_in}


def plan_of(folder: Path) -> str | None:
    """Say what each block of a run keeps for its backward pass; None where no plan was written."""
    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        parts = int(plan["parts"])
        return summary(plan["levels"]) + (f", each micro-batch in {parts} parts" if parts > 1 else "")
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        return None


@dataclass
class Log:
    """One `log.jsonl`, as far as it was read: of a run that went back to a checkpoint the steps that count.

    columns: by name, one number a step, not-a-number where there is none. samples: by file. held_out: in the order of steps.
    warnings: each once. last: the event of the last step.
    """

    path: Path
    columns: dict[str, array] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)
    held_out: list[HeldOut] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)
    last: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.forget()

    def forget(self) -> None:
        self.columns = {name: array("d") for name in COLUMNS}
        self.samples, self.held_out, self.warnings, self.last = {}, [], {}, None
        self._head = self._rest = b""
        self._offset = 0

    def __len__(self) -> int:
        return len(self.columns["step"])

    def read(self) -> None:
        """Read what was written since. A log that is another one, or gone, is read anew."""
        try:
            file = open(self.path, "rb")  # noqa: SIM115  # closed below
        except OSError:
            self.forget()
            return
        with file:
            head = file.read(HEAD)
            if not head.startswith(self._head) or file.seek(0, 2) < self._offset:
                self.forget()
            self._head = head
            file.seek(self._offset)
            while block := file.read(BLOCK):
                self._offset += len(block)
                *lines, self._rest = (self._rest + block).split(b"\n")
                for line in lines:
                    self.take(line)

    def take(self, line: bytes) -> None:
        """Take in one line; one that is no event is passed over."""
        if line.startswith(b'{"event": "progress"'):  # many, and no part of the past
            return
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            return
        if isinstance(event, dict) and (taker := getattr(self, f"_take_{event.get('event')}", None)):
            taker(event)

    def _take_start(self, event: Mapping[str, Any]) -> None:
        if (step := count(event.get("step"))) is not None:
            self.drop_after(step)

    def _take_step(self, event: Mapping[str, Any]) -> None:
        if (step := count(event.get("step"))) is None:
            return
        if len(self) and step <= self.columns["step"][-1]:
            self.drop_after(step - 1)
        for name in COLUMNS:
            self.columns[name].append(number(event.get(name)))
        self.last = event

    def _take_sample(self, event: Mapping[str, Any]) -> None:
        if (sample := sample_of(event)) is not None:
            self.samples[sample.file] = sample

    def _take_held_out(self, event: Mapping[str, Any]) -> None:
        if (found := held_out_of(event)) is not None:
            self.drop_held_out_after(found.step - 1)
            self.held_out.append(found)

    def _take_warning(self, event: Mapping[str, Any]) -> None:
        self.warnings[str(event.get("text", ""))] = None

    def drop_after(self, step: int) -> None:
        """Forget the steps, samples and held-out losses after one: the run has gone back to it."""
        kept = bisect_left(self.columns["step"], step + 1)
        for column in self.columns.values():
            del column[kept:]
        self.samples = {file: sample for file, sample in self.samples.items() if sample.step <= step}
        self.drop_held_out_after(step)
        if self.last is not None and self.last["step"] > step:
            now = {name: column[-1] for name, column in self.columns.items()} if len(self) else {}
            self.last = {**self.last, **now, "step": step, "eta": None}

    def drop_held_out_after(self, step: int) -> None:
        while self.held_out and self.held_out[-1].step > step:
            self.held_out.pop()

    @property
    def latest(self) -> dict[str, float | None] | None:
        return None if self.last is None else latest_of(self.last)

    def samples_there(self) -> list[Sample]:
        """Return the samples whose pictures are there, by step and prompt."""
        there = samples_in(self.path.parent)
        found = [sample for sample in self.samples.values() if sample.file in there]
        return sorted(found, key=lambda sample: (sample.step, sample.index))


def samples_in(folder: Path) -> dict[str, Path]:
    """Return the preview pictures of a run by their names. What a link brings in from elsewhere is none."""
    found = (folder / "samples").glob("step-*.png")
    return {path.name: path for path in found if SAMPLE.fullmatch(path.name) and path.is_file() and not path.is_symlink()}


def sample_of(event: Mapping[str, Any]) -> Sample | None:
    """Return the sample that an event tells of; None for one that no run has drawn."""
    file = str(event.get("path", "")).replace("\\", "/").rpartition("/")[2]
    name = SAMPLE.fullmatch(file)
    return Sample(int(name[1]), int(name[2]), str(event.get("prompt", "")), file) if name else None


def held_out_of(event: Mapping[str, Any]) -> HeldOut | None:
    """Return what an event tells of the held-out loss, as JSON may have it; None for one that no run has told."""

    def one(name: str) -> float | None:
        return finite(number(event.get(name)))

    def several(name: str) -> tuple[float | None, ...]:
        values = event.get(name)
        return tuple(finite(number(value)) for value in values) if isinstance(values, list) else ()

    step, t, levels = count(event.get("step")), several("t"), several("levels")
    if step is None or len(levels) != len(t):
        return None
    return HeldOut(
        step=step,
        loss=one("loss"),
        t=t,
        levels=levels,
        base=one("base"),
        base_levels=several("base_levels"),
        ema=one("ema"),
        ema_levels=several("ema_levels"),
        best_step=count(event.get("best_step")),
        best_loss=one("best_loss"),
        pictures=count(event.get("pictures")),
        text=str(event.get("text") or ""),
    )


def latest_of(event: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a step's event, as JSON may have them."""
    numbers = {name: finite(number(event.get(name))) for name in LATEST}
    return numbers | {"step": count(event.get("step")), "total": count(event.get("total"))}


def count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST_STEPS else None


def number(value: Any) -> float:
    if type(value) is float:  # nearly all of them
        return value
    try:
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a damaged log
        return math.inf


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def columns_of(log: Log, rows: Sequence[int]) -> Columns:
    """Return some rows of a log's columns, as JSON may have them."""
    steps: list[float | None] = [int(log.columns["step"][row]) for row in rows]
    return {"step": steps} | {name: [finite(log.columns[name][row]) for row in rows] for name in NUMBERS}


def shown_rows(losses: Sequence[float], points: int) -> Sequence[int]:
    """Choose at most so many rows of a curve, in order: all; or the first, the last, and the peaks between.

    In each of equal stretches the rows of least and greatest loss: so no spike is lost.
    """
    rows = len(losses)
    if rows <= points:
        return range(rows)
    stretches = max((points - 2) // 2, 1)
    edges = [1 + (rows - 2) * part // stretches for part in range(stretches + 1)]
    chosen = [0]
    for begin, end in pairwise(edges):
        known = [row for row in range(begin, end) if not math.isnan(losses[row])] or [begin]
        chosen += sorted({min(known, key=losses.__getitem__), max(known, key=losses.__getitem__)})
    return [*chosen, rows - 1]


class Histories:
    """The logs of runs that were asked for last, kept in memory and read on. Several threads may ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logs: OrderedDict[Path, Log] = OrderedDict()

    @contextlib.contextmanager
    def log(self, folder: Path) -> Iterator[Log]:
        """Yield the log of a run's folder, read to its end; nobody else changes it meanwhile."""
        with self._lock:
            log = self._logs.pop(folder, None) or Log(folder / LOG)
            self._logs[folder] = log
            while len(self._logs) > LOGS_KEPT:
                self._logs.popitem(last=False)
        with log.lock:
            log.read()
            yield log

    def curve(self, folder: Path, points: int) -> dict[str, Any]:
        """Return {"columns": at most so many rows, "steps": how many there are, "held_out": a row for each time}."""
        with self.log(folder) as log:
            rows = shown_rows([math.nan if one.loss is None else one.loss for one in log.held_out], HELD_OUT_POINTS)
            return {
                "columns": columns_of(log, shown_rows(log.columns["loss"], points)),
                "steps": len(log),
                "held_out": [asdict(log.held_out[row]) for row in rows],
            }

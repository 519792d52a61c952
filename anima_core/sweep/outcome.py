"""What became of the points of a sweep: facts from each run's log, as a table, as JSON, and the winner among them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import SettingError, in_words
from ..progress_bar import clock
from ..report.curves import figure
from ..report.held_out import DIGITS
from ..report.story import Story, read_story
from ..run_history import LOG, HeldOut, finite
from ..settings import walk
from ..training.held_out import STOPPED_EARLY
from .names import short
from .plan import Point, Sweep, written

DONE = ("finished", "kept", STOPPED_EARLY)  # states of points that have an adapter
AUTO, HELD_OUT, SMOOTHED = "auto", "held_out", "smoothed_loss"  # how the winner is found; or it is named
HELD_OUT_FACTS = ("step", "loss", "ema", "best_step", "best_loss", "base")
NOT_COMPARABLE = (
    "its training loss is the lowest, which says little: another setting can make the loss itself smaller, and pictures that "
    "are learnt by heart make it smallest. Look at the samples, or hold pictures out"
)


def read_point_story(folder: Path) -> Story | None:
    """Read the log of a point's run; None where there is none."""
    return read_story(folder) if (folder / LOG).is_file() else None


@dataclass(frozen=True)
class Outcome:
    """What became of a point so far.

    state: "waiting", "refused", "unfinished", "failed", "finished", "stopped early" by its held-out loss, or "kept": stopped
    before its end, with an adapter.
    error: of one that was refused or failed. adapter: its file, of one that is done. run_dir: of its run, where there is one.
    """

    point: Point
    state: str = "waiting"
    error: str = ""
    adapter: str = ""
    run_dir: Path | None = None
    story: Story | None = field(default=None, repr=False)

    @property
    def held_out(self) -> HeldOut | None:
        """The last measurement of the held-out loss, which knows the best one; None where none tells it."""
        told = self.story.held_out if self.story else []
        return next((held for held in reversed(told) if held.best_loss is not None and held.best_step is not None), None)

    @property
    def steps(self) -> int:
        return int(self.story.columns["step"][-1]) if self.story and len(self.story) else 0

    def last(self, column: str) -> float | None:
        """Return the last number of a column of the log."""
        return finite(self.story.columns[column][-1]) if self.story and len(self.story) else None

    @property
    def seconds(self) -> float:
        """Return how long all steps took."""
        return sum(s for s in self.story.columns["seconds"] if s > 0) if self.story else 0.0

    @property
    def best_adapter(self) -> str:
        """The adapter of the step whose held-out loss was lowest, where it was kept; else the last one."""
        if not self.adapter or self.held_out is None:
            return self.adapter
        best = Path(self.adapter).with_name(f"{Path(self.adapter).stem}-best.safetensors")
        return str(best) if best.is_file() else self.adapter

    def facts(self) -> dict[str, Any]:
        """Return what `results.json` tells of the point."""
        held, story = self.held_out, self.story
        return {
            "name": self.point.name,
            "label": self.point.label,
            "settings": dict(self.point.values),
            "state": self.state,
            "error": in_words(self.error),
            "steps": self.steps,
            "total": story.total if story else 0,
            "loss": self.last("loss"),
            "smoothed_loss": self.last("mean_loss"),
            "held_out": held and {name: getattr(held, name) for name in HELD_OUT_FACTS},
            "seconds": round(self.seconds, 3),
            "peak_gb": finite(story.peak_gb) if story else None,
            "adapter": self.adapter,
            "best_adapter": self.best_adapter,
            "run": str(self.run_dir or ""),
        }


@dataclass(frozen=True)
class Choice:
    """The winner, or None before there is one. why: how it was found. warning: what to be careful about, else empty."""

    winner: Outcome | None = None
    why: str = ""
    warning: str = ""


def check_pick(pick: str, sweep: Sweep) -> None:
    """Refuse a word that names no way to choose and no point. Raises SettingError."""
    if pick not in (AUTO, HELD_OUT, SMOOTHED) and not any(pick in (p.label, p.name) for p in sweep.points):
        first = sweep.points[0].label
        raise SettingError(f"pick={pick!r}: write {AUTO}, {HELD_OUT}, {SMOOTHED}, or a point as the page has it, as {first!r}")


def choose(outcomes: Sequence[Outcome], pick: str = AUTO) -> Choice:
    """Choose the point whose adapter is handed on.

    auto: the lowest held-out loss where every point that is done has one; else the lowest smoothed training loss, with a
    warning, as losses of different settings do not compare. Or as `pick` says: one of the two, or a point.
    """
    done = [outcome for outcome in outcomes if outcome.state in DONE]
    if pick not in (AUTO, HELD_OUT, SMOOTHED):
        named = next((outcome for outcome in done if pick in (outcome.point.label, outcome.point.name)), None)
        return Choice(named, "chosen by its name" if named else f"{pick} has no adapter")
    measured = [outcome for outcome in done if outcome.held_out is not None]
    if pick == HELD_OUT or (pick == AUTO and measured and len(measured) == len(done)):
        return by_held_out(measured, len(done))
    learnt = [outcome for outcome in done if outcome.last("mean_loss") is not None]
    if not learnt:
        return Choice(None, "no point is done")
    best = min(learnt, key=lambda outcome: outcome.last("mean_loss") or 0.0)
    why = f"the lowest smoothed training loss, {figure(best.last('mean_loss'))}"
    return Choice(best, why, NOT_COMPARABLE if pick == AUTO and len(learnt) > 1 else "")


def by_held_out(measured: Sequence[Outcome], done: int) -> Choice:
    """Choose by the lowest held-out loss, and say where that is no fair comparison."""
    if not measured:
        return Choice(None, "no point has a held-out loss; hold pictures out, or pick otherwise")
    losses = [(outcome.held_out.best_loss or 0.0, outcome.held_out, outcome) for outcome in measured if outcome.held_out]
    lowest, held, best = min(losses, key=lambda item: item[0])
    bases = [found.base for _, found, _ in losses if found.base is not None]
    warnings = [f"{done - len(measured)} points have no held-out loss and are left out"] if len(measured) < done else []
    if bases and max(bases) - min(bases) > 1e-3 * max(bases):
        told = f"{figure(min(bases))} to {figure(max(bases))}"
        warnings.append(f"the untrained model's own held-out loss differs between points ({told}): they are measured otherwise")
    if held.base is not None and lowest >= held.base:
        warnings.append("no point is better on held-out pictures than the untrained model")
    return Choice(best, f"the lowest held-out loss, {figure(lowest, DIGITS)} at step {held.best_step:,}", "; ".join(warnings))


def head(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[str]:
    held = ["held-out", "at step"] if any(outcome.held_out for outcome in outcomes) else []
    return [*map(short, sweep.varied), "state", "steps", "loss, smoothed", "last loss", *held, "time", "memory, peak"]


def rows(sweep: Sweep, outcomes: Sequence[Outcome]) -> Iterator[list[str]]:
    """Yield the table's rows: what a point sets, and what came of it; a dash for what is not known."""
    has_held_out = any(outcome.held_out for outcome in outcomes)
    shared = {found.name: found.value for found in walk(sweep.base)}
    for outcome in outcomes:
        values, held, story = outcome.point.values, outcome.held_out, outcome.story
        told = [figure(held.best_loss, DIGITS), f"{held.best_step:,}"] if held else ["–", "–"]
        yield [
            *(written(values.get(name, shared.get(name, ""))) for name in sweep.varied),
            outcome.state,
            f"{outcome.steps:,}" if outcome.steps else "–",
            figure(outcome.last("mean_loss")),
            figure(outcome.last("loss")),
            *(told if has_held_out else []),
            clock(outcome.seconds) if outcome.seconds else "–",
            f"{story.peak_gb:.1f} GB" if story and story.peak_gb else "–",
        ]


def text_table(sweep: Sweep, outcomes: Sequence[Outcome]) -> str:
    """Return the same as lines of text, in columns."""
    lines = [head(sweep, outcomes), *rows(sweep, outcomes)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)

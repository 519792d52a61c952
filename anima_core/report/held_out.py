"""The loss of pictures that were not trained on, in a run's report: its curve, and a table of the noise levels."""

import math
from collections.abc import Iterator, Sequence

from ..run_history import HeldOut, shown_rows
from .curves import Line, chart, figure
from .markup import Html, table, tag
from .story import Story
from .words import names_only

POINTS = 1000  # of a curve; a screen has no more
DIGITS = 4  # such losses differ little


def held_out(run: Story) -> Iterator[str]:
    """Yield how it went in a sentence, the curve with its best, and the noise levels at the first, best and last step."""
    if not run.held_out:
        return
    first, last = run.held_out[0], run.held_out[-1]
    best = next((row for row in run.held_out if row.step == last.best_step), last)
    yield tag("p", names_only(last.text, run.config))
    yield chart("Held-out loss", curves(run.held_out, last), from_zero=False)
    yield levels(first, best, last)
    told = [f"{last.pictures:,} pictures." if last.pictures else "", "t: the noise level, 1 is noise alone."]
    told += ["The table is of the EMA, which is what is saved."] * (last.ema is not None)
    yield tag("p", " ".join(filter(None, told)), class_="note")


def curves(rows: Sequence[HeldOut], last: HeldOut) -> list[Line]:
    """Return the held-out loss, the average's where there is one, the base model's, and the best as a mark."""
    saved = [math.nan if (loss := row.saved_loss) is None else loss for row in rows]
    shown = [rows[number] for number in shown_rows(saved, POINTS)]
    lines = [Line("held-out loss", "main", [(row.step, row.loss) for row in shown])]
    if last.ema is not None:
        lines.append(Line("with EMA", "ema", [(row.step, row.ema) for row in shown]))
    if last.base is not None:
        lines.append(Line("without adapter", "base", [(row.step, last.base) for row in (shown[0], shown[-1])]))
    if last.best_step is not None and last.best_loss is not None:
        lines.append(Line(f"best, step {last.best_step:,}", "best", [(last.best_step, last.best_loss)]))
    return lines


def levels(first: HeldOut, best: HeldOut, last: HeldOut) -> Html:
    """Return a table: a row for each noise level, the mean below; how far each step is from the base model, in percent."""
    steps = list({row.step: row for row in (first, best, last)}.values())
    names = {last.step: "last", first.step: "first", best.step: "best"}  # of several at one step the last
    head = ["t", "without adapter", *(f"{names[row.step]}, step {row.step:,}" for row in steps)]
    lines = []
    for index, t in enumerate(last.t):
        base = at(last.base_levels, index)
        lines.append(
            [figure(t), figure(base, DIGITS), *(beside(at(row.ema_levels or row.levels, index), base) for row in steps)]
        )
    mean = ["mean", figure(last.base, DIGITS), *(beside(row.saved_loss, last.base) for row in steps)]
    return table(head, [*lines, mean], "numbers")


def at(values: Sequence[float | None], index: int) -> float | None:
    return values[index] if index < len(values) else None


def beside(loss: float | None, base: float | None) -> str:
    """Write a loss, and how far it is from the base model's."""
    if loss is None or not base:
        return figure(loss, DIGITS)
    return f"{figure(loss, DIGITS)} ({100 * (loss - base) / base:+.1f} %)"

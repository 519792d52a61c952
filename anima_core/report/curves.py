"""Curves as inline SVG: they need no script, print, take the page's colours, and their labels stay readable at any width."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .markup import Html, tag

WIDTH, HEIGHT = 1000, 400  # of the drawing's own grid, which the page stretches
LOG_FROM = 100  # times the smallest value: from there on a linear axis would hide the small ones
TICKS = 5

Points = Sequence[tuple[int, float | None]]  # (step, value), None where it was not finite


@dataclass(frozen=True)
class Line:
    """One curve. kind: its class on the page: `raw`, `main`, `ema`, `base`, or `best`, a mark."""

    name: str
    kind: str
    points: Points


@dataclass(frozen=True)
class Axis:
    """The two ends of an axis, and the values that are labelled."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def place(self, value: float) -> float:
        """Return where a value lies: 0 at the low end, 1 at the high one."""
        if self.log:
            return (math.log10(value) - math.log10(self.low)) / (math.log10(self.high) - math.log10(self.low))
        return (value - self.low) / (self.high - self.low)


def chart(title: str, lines: Sequence[Line], may_be_log: bool = False, from_zero: bool = True) -> Html:
    """Return a figure of curves over the steps; empty where there is no finite value. from_zero: where its axis begins."""
    steps = [step for line in lines for step, _ in line.points]
    values = [value for line in lines for _, value in line.points if value is not None]
    if not values:
        return Html()
    is_log = may_be_log and min(values) > 0 and max(values) > LOG_FROM * min(values)
    across = linear(min(steps), max(steps), whole=True)
    up = logarithmic(values) if is_log else linear(0 if from_zero else min(values), max(values))
    grid = "".join(f"M0 {HEIGHT * (1 - up.place(tick)):.0f}H{WIDTH}" for tick in up.ticks)
    drawn = [tag("path", d=path(line.points, across, up), class_=line.kind) for line in lines]
    said = f"{title} from step {min(steps)} to {max(steps)}, between {figure(min(values))} and {figure(max(values))}"
    box = tag(
        "svg",
        [tag("path", d=grid, class_="grid"), *drawn],
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
        aria_label=said,
    )
    names = [tag("span", line.name, class_=f"key {line.kind}") for line in lines if len(lines) > 1]
    head = tag("figcaption", [tag("b", title), *names, *[tag("span", "logarithmic")] * is_log])
    return tag("figure", [head, tag("div", [box, *labels(across, up)], class_="plot")])


def path(points: Points, across: Axis, up: Axis) -> str:
    """Return the curve in the grid, broken where a value is lacking; a value that stands alone is a dot."""
    found, pen = "", "M"
    for number, (step, value) in enumerate(points):
        if value is None:
            pen = "M"
            continue
        found += f"{pen}{WIDTH * across.place(step):.1f} {HEIGHT * (1 - up.place(value)):.1f}"
        alone = pen == "M" and (number + 1 == len(points) or points[number + 1][1] is None)
        found, pen = found + "h0" * alone, "L"
    return found


def labels(across: Axis, up: Axis) -> list[Html]:
    """Return the numbers at the axes, placed in percent: text within a stretched drawing would be stretched, too."""
    below = [tag("i", f"{tick:,.0f}", class_="x", style=f"left:{100 * across.place(tick):.2f}%") for tick in across.ticks]
    texts = figures_apart(up.ticks)
    beside = zip(up.ticks, texts)
    return below + [tag("i", text, class_="y", style=f"bottom:{100 * up.place(tick):.2f}%") for tick, text in beside]


def figures_apart(values: Sequence[float]) -> list[str]:
    """Write numbers with as many digits, three at least, as tell each from the next."""
    written = ([figure(value, digits) for value in values] for digits in range(3, 10))
    return next((texts for texts in written if len(set(texts)) == len(set(values))), [figure(value, 10) for value in values])


def linear(low: float, high: float, whole: bool = False) -> Axis:
    """Return an axis of round labels: 1, 2 or 5 times a power of ten apart. whole: of whole numbers that end where they end."""
    if high <= low:
        low, high = low - whole, low + 1 if whole or low == 0 else 2 * low
    apart = spacing((high - low) / TICKS)
    apart = max(1, apart) if whole else apart
    if not whole:
        low, high = apart * math.floor(low / apart + 1e-9), apart * math.ceil(high / apart - 1e-9)
    first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
    return Axis(low, high, tuple(apart * n for n in range(first, last + 1)))


def spacing(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * n for n in (1, 2, 5, 10) if power * n >= least * (1 - 1e-9))


def logarithmic(values: Sequence[float]) -> Axis:
    """Return an axis from one power of ten to another, each labelled, or every few of them."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    apart = -(-(high - low) // (TICKS + 1))
    return Axis(10.0**low, 10.0**high, tuple(10.0**n for n in range(low, high + 1, apart)), log=True)


def figure(value: float | None, digits: int = 3) -> str:
    """Write a number as people do: 0.0851, 12.3, 4e-5; a dash for none."""
    return "–" if value is None else f"{value:.{digits}g}".replace("e-0", "e-").replace("e+0", "e+")

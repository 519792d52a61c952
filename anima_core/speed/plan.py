"""What each block keeps for its backward pass, so that a step fits into the memory there is and takes the least time."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from .cards import FRAGMENTS, GB, Card
from .costs import Costs
from .forms import LEVELS
from .stream import NOWHERE, PLACES, Away

SAID = {
    "keep": "keep",
    "cheap": "remake what is cheap",
    "attention": "keep their attention",
    "checkpoint": "are recomputed",
    "offload": "are recomputed from host memory",
}
TINY = 1e-12
WORTH = 0.05  # of a step that streaming must save: how fast a link is, is known less well than how fast a card computes
TRIED = 12  # numbers of streamed blocks

Levels = tuple[str, ...]  # of the blocks, in order


class Layout(NamedTuple):
    """What of a model is where: the weights that are streamed, and what each block keeps."""

    away: Away
    levels: Levels


@dataclass(frozen=True)
class Budget:
    """The memory of a step, in bytes, and what it costs.

    resident: what is there between steps. room: what the tensors of a step may take beside it. least: what they take whatever
    the blocks keep, in the optimizer. card: None where its rates are not known. micro_batches: of a step. away: the weights
    that are streamed.
    """

    costs: Costs
    resident: float
    room: float
    least: float = 0.0
    card: Card | None = None
    micro_batches: int = 1
    away: Away = NOWHERE

    def streaming(self, away: Away) -> "Budget":
        """Return the same with other weights in host memory."""
        saved = self.costs.sizes.saved(away) - self.costs.sizes.saved(self.away)
        return replace(self, resident=self.resident - saved, room=self.room + saved / FRAGMENTS, away=away)

    def taken(self, levels: Sequence[str]) -> float:
        return max(self.costs.peak(levels), self.least)

    def fits(self, levels: Sequence[str]) -> bool:
        return self.taken(levels) <= self.room

    def said(self, levels: Sequence[str]) -> str:
        """Say what a plan means: "15 of 28 blocks keep, 13 are recomputed, peak 10.9 of 11.3 GB, about 0.9 s/step"."""
        said = f"{summary(levels, self.away)}, peak {self.peak(levels) / GB:.1f} of {max(0.0, self.limit) / GB:.1f} GB"
        if self.card is None or not self.card.tflops:
            return said
        return f"{said}, about {self.micro_batches * self.seconds(levels):.2g} s/step"

    @property
    def limit(self) -> float:
        return self.resident + FRAGMENTS * self.room

    def peak(self, levels: Sequence[str]) -> float:
        """Return the bytes of all that there is at once, gaps between them included."""
        return self.resident + FRAGMENTS * self.taken(levels)

    def seconds(self, levels: Sequence[str]) -> float:
        return self.costs.seconds(levels, self.away)


def best(budget: Budget, allowed: Sequence[str] = LEVELS, at_least: int = 0) -> tuple[Budget, Levels]:
    """Return which weights to stream, as the budget with these, and the levels of the blocks: what takes the least time.

    Nothing is streamed where that is about as fast. Where nothing fits, what takes the least memory is returned. at_least: so
    many blocks are streamed.
    """
    found = []
    for away in candidates(budget, allowed, at_least):
        trial = budget.streaming(away)
        levels = choose(trial.costs, trial.room, allowed)
        seconds = trial.seconds(levels) if trial.fits(levels) else math.inf
        found.append((seconds * (1 - WORTH) if away == NOWHERE else seconds, trial, levels))
    _, trial, levels = min(found, key=lambda tried: tried[0])
    return (trial, levels) if trial.fits(levels) else found[-1][1:]


def candidates(budget: Budget, allowed: Sequence[str], at_least: int) -> list[Away]:
    """List what may be streamed, the least first: nothing, the modulation's layers, and some numbers of blocks beside them.

    The first of these numbers is the smallest at which there is a plan that fits.
    """
    sizes, count = budget.costs.sizes, len(budget.costs.blocks)
    adaln, least = bool(sizes.adaln), [allowed[-1]] * count
    if not sizes.blocks:
        return [NOWHERE]
    none = [NOWHERE, Away(0, adaln)] if not at_least else []
    first = min(max(at_least, PLACES + 1), count)
    fitting = (n for n in range(first, count) if budget.streaming(Away(n, adaln)).fits(least))
    first = next(fitting, count)
    more = {first + (count - first) * n // (TRIED - 1) for n in range(TRIED)}
    return list(dict.fromkeys([*none, *(Away(n, adaln) for n in sorted(more))]))


def choose(costs: Costs, room: float, allowed: Sequence[str] = LEVELS) -> Levels:
    """Return the levels whose peak is within `room` bytes and which take the least time, by the greedy rule.

    Every block begins at the last of the levels that are allowed; then the one that saves most seconds for each byte that it
    keeps more is raised, later blocks first: what they keep is gone before earlier ones are recomputed. That goes on until
    none can be raised. The first choice stands also where even that is more than the room.
    """
    levels: Levels = (allowed[-1],) * len(costs.blocks)
    while (better := best_raise(costs, levels, room, allowed)) is not None:
        levels = better
    return levels


def best_raise(costs: Costs, levels: Levels, room: float, allowed: Sequence[str]) -> Levels | None:
    """Return the levels with the one block raised that gains most; None when nothing fits."""
    limit = max(room, costs.peak(levels))
    best, found = 0.0, None
    for index in reversed(range(len(levels))):
        block, level = costs.blocks[index], levels[index]
        for higher in allowed[: allowed.index(level)]:
            saved = block[level].seconds - block[higher].seconds
            gain = saved / max(block[higher].kept - block[level].kept, TINY)
            trial = (*levels[:index], higher, *levels[index + 1 :])
            if gain > best and costs.peak(trial) <= limit:
                best, found = gain, trial
    return found


def summary(levels: Sequence[str], away: Away = NOWHERE) -> str:
    """Say how many blocks do what: "15 of 28 blocks keep, 13 are recomputed"; and what is streamed."""
    counts = Counter(levels)
    said = [f"{counts[level]} {SAID[level]}" for level in LEVELS if counts[level]]
    first, *rest = said
    number, _, words = first.partition(" ")
    return ", ".join([f"{number} of {len(levels)} blocks {words}", *rest, *streamed(away)])


def streamed(away: Away) -> list[str]:
    """Say what is streamed."""
    parts = [f"the weights of {away.blocks}"] * (away.blocks > 0) + ["the modulation's"] * away.adaln
    return [f"{' and '.join(parts)} are streamed from host memory"] if parts else []

"""What each block keeps for its backward pass, so that a step fits into the memory there is and takes the least time."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .cards import FRAGMENTS, GB, Card
from .costs import Costs
from .forms import LEVELS

SAID = {"keep": "keep", "cheap": "remake what is cheap", "attention": "keep their attention", "checkpoint": "are recomputed"}
TINY = 1e-12

Levels = tuple[str, ...]  # of the blocks, in order


@dataclass(frozen=True)
class Budget:
    """The memory of a step, in bytes, and what it costs.

    resident: what is there between steps. room: what the tensors of a step may take beside it. least: what they take whatever
    the blocks keep, in the optimizer. card: None where its rates are not known. micro_batches: of a step.
    """

    costs: Costs
    resident: float
    room: float
    least: float = 0.0
    card: Card | None = None
    micro_batches: int = 1

    def taken(self, levels: Sequence[str]) -> float:
        return max(self.costs.peak(levels), self.least)

    def fits(self, levels: Sequence[str]) -> bool:
        return self.taken(levels) <= self.room

    def said(self, levels: Sequence[str]) -> str:
        """Say what a plan means: "15 of 28 blocks keep, 13 are recomputed, peak 10.9 of 11.3 GB, about 0.9 s/step"."""
        peak, limit = (self.resident + FRAGMENTS * part for part in (self.taken(levels), self.room))
        said = f"{summary(levels)}, peak {peak / GB:.1f} of {limit / GB:.1f} GB"
        if self.card is None or not self.card.tflops:
            return said
        return f"{said}, about {self.micro_batches * self.costs.seconds(levels):.2g} s/step"


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


def summary(levels: Sequence[str]) -> str:
    """Say how many blocks do what: "15 of 28 blocks keep, 13 are recomputed"."""
    counts = Counter(levels)
    said = [f"{counts[level]} {SAID[level]}" for level in LEVELS if counts[level]]
    first, *rest = said
    number, _, words = first.partition(" ")
    return ", ".join([f"{number} of {len(levels)} blocks {words}", *rest])

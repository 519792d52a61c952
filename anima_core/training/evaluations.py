"""What the measurements of the held-out loss say: which was best, whether to go on, and a sentence for people."""

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from torch import Tensor

NORMAL = 0.6745 * 20**0.5  # the median of |a - 3 b + 3 c - d| of independent normal numbers, in standard deviations
NOISES = 2  # standard deviations within which two losses count as equal
SURE = 2  # measurements above the best before the loss is said to rise
FLAT = 3  # measurements without a gain before it is said to be flat

Record = dict[str, Any]  # one measurement, the event `held_out` without its kind and time


@dataclass
class Evaluations:
    """The measurements of a run, oldest first. of: hash of what was measured. best_adapter: the file's tensors of the best."""

    of: str = ""
    history: list[Record] = field(default_factory=list)
    best_adapter: dict[str, Tensor] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        return {"of": self.of, "history": self.history}

    @property
    def last_step(self) -> int:
        """The step of the last measurement; -1 before there is any."""
        return self.history[-1]["step"] if self.history else -1

    @property
    def best(self) -> Record:
        return best_of(self.history)

    @property
    def without_gain(self) -> int:
        """How many measurements there have been since the best one."""
        return sum(record["step"] > self.best["step"] for record in self.history)


def saved_loss(record: Record) -> float:
    """Return the loss of the weights that are saved: of the EMA where there is one."""
    return record["loss"] if record["ema"] is None else record["ema"]


def best_of(history: list[Record]) -> Record:
    """Return the first measurement of the lowest loss; before the first step nothing has been trained, so it is none."""
    return min([record for record in history if record["step"] > 0] or history, key=saved_loss)


def noise_of(losses: list[float]) -> float:
    """Estimate the standard deviation of losses around a smooth curve, by the median of their third differences."""
    bends = [abs(a - 3 * b + 3 * c - d) for a, b, c, d in zip(losses, losses[1:], losses[2:], losses[3:])]
    return median(bends) / NORMAL if bends else 0.0


def verdict(history: list[Record]) -> str:
    """Say where the held-out loss goes, and what to do: it falls, is flat within its noise, or rises since a step."""
    last, best = history[-1], best_of(history)
    loss, of_base = saved_loss(last), f"the base model's is {last['base']:.4f}"
    trained = [record for record in history if record["step"] > 0]
    if not trained:
        return f"held-out loss {loss:.4f} at step {last['step']}, {of_base}"
    losses, lowest = [saved_loss(record) for record in trained], saved_loss(best)
    noise, worse = NOISES * noise_of(losses), [record for record in trained if record["step"] > best["step"]]
    if len(worse) >= SURE and min(map(saved_loss, worse[-SURE:])) - lowest > noise:
        return f"held-out loss rises since step {worse[0]['step']}, best at {best['step']}: {advice(best)}"
    gain = min(losses[:-FLAT]) - min(losses[-FLAT:]) if len(losses) > FLAT else lowest
    if worse or gain <= noise:
        return f"held-out loss is flat at {loss:.4f}, {of_base}; best at {best['step']}: {advice(best)}"
    return f"held-out loss falls, {loss:.4f} at step {last['step']}, {of_base}: training still helps"


def advice(best: Record) -> str:
    """Say which adapter to use."""
    if saved_loss(best) >= best["base"]:
        return "no adapter of this run beats the base model on these pictures; lower the learning rate or add pictures"
    return f"use the adapter of step {best['step']}"

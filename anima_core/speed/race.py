"""Candidates for one piece of work, tried on the device where it is to run: the fastest that is right is taken.

A candidate is anything that may stand in the place of something plain: a kernel, a compiled block. Whoever tries them says
what each computes and what is true; here is what all have alike.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .probe import verdict_on

ENOUGH = 0.2  # seconds: what takes as long is timed once
TIE = 1.03  # what is slower by less than this is as fast
TIMES = 5  # a shorter one is timed so often, of which the least counts


@dataclass(frozen=True)
class Candidate:
    """results: computes outputs and gradients, which are compared; work: a forward and a backward pass, which is timed."""

    name: str
    results: Callable[[], Sequence[Tensor]]
    work: Callable[[], object]


@dataclass(frozen=True)
class Tried:
    """seconds: that a candidate takes; reason: why it is not to be used, empty where it is right."""

    name: str
    seconds: float = math.inf
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.name} left out ({self.reason})"
        return f"{self.name} {float(f'{1000 * self.seconds:.3g}'):g} ms"


def race(candidates: Iterable[Candidate], truth: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> list[Tried]:
    """Try all, each whole before the next; return those that are right before those that are not, the fastest first.

    Of two as fast the earlier one comes first.
    """
    found = [tried(candidate, truth, dtype, device) for candidate in candidates]
    as_fast = TIE * min((one.seconds for one in found), default=math.inf)
    return sorted(found, key=lambda one: max(one.seconds, as_fast))


def tried(candidate: Candidate, truth: Sequence[Tensor], dtype: torch.dtype, device: torch.device) -> Tried:
    """Try one. Whatever it raises, memory that runs out included, is the reason to leave it out."""
    seconds = math.inf

    def results() -> Sequence[Tensor]:
        nonlocal seconds
        found = candidate.results()
        seconds = seconds_of(candidate.work, device)
        return found

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of each kernel that it cannot use, and why
        reason = verdict_on(results, truth, dtype)
    return Tried(candidate.name, math.inf if reason else seconds, reason)


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the least time that a piece of work takes on a device, after a first run that prepares what it needs."""
    work()
    least = math.inf
    for _ in range(TIMES):
        least = min(least, once(work, device))
        if least > ENOUGH:
            break
    return least


def once(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that one run takes: by the card's own events on CUDA, by the clock elsewhere."""
    if device.type != "cuda":
        synchronize(device)
        begin = time.perf_counter()
        work()
        synchronize(device)
        return time.perf_counter() - begin
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    work()
    ended.record()
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000


def synchronize(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    backend: Any = getattr(torch, device.type, None)
    if hasattr(backend, "synchronize"):
        backend.synchronize()

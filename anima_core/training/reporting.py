"""Telling the losses of the steps, read without waiting for them."""

import math
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .events import COMMANDS, Events
from .memory import peak_gb
from .watchdog import STEPS_AHEAD, Watchdog

DECAY = 0.98  # of the shown loss and of the time a step takes: about the last 50 steps


class RunningMean:
    """The mean of the last values, older ones counting less and less; from the first value on, since its weight is known."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._sum = self._weight = 0.0
        for value in values:
            self.add(value)

    def add(self, value: float) -> None:
        """Count a value; one that is not finite is passed over."""
        if math.isfinite(value):
            self._sum, self._weight = DECAY * self._sum + value, DECAY * self._weight + 1

    @property
    def value(self) -> float | None:
        """The mean; None before there is any value."""
        return self._sum / self._weight if self._weight else None


def smoothed(losses: Iterable[float]) -> float | None:
    """Return the loss at the end of a history, as it is shown while training."""
    return RunningMean(losses).value


@dataclass
class StepRecord:
    """A step, and the numbers that arrive later.

    command: number of what the first process was asked. lowered: how often other processes have lowered their plans. scale: of
    the loss.
    """

    step: int
    lr: float
    pictures: list[str]
    loss: float = math.nan
    command: float = 0.0
    lowered: float = 0.0
    grad_norm: float = math.nan
    scale: float = 1.0


class LossReader:
    """Copies the numbers of steps to the host as the device gets to them; `ready` returns the steps that have arrived.

    at_once: else each is returned exactly `STEPS_AHEAD` steps later, in every process.
    """

    def __init__(self, at_once: bool = True) -> None:
        self._at_once = at_once
        self._waiting: deque[tuple[StepRecord, Tensor, torch.cuda.Event | None]] = deque()

    def push(self, record: StepRecord, numbers: Tensor) -> None:
        """Send for a step's [loss, command, lowered, gradient norm, scale]."""
        if numbers.device.type != "cuda":  # elsewhere a copy that does not wait is not safe to read
            self._waiting.append((record, numbers.cpu(), None))
            return
        host = torch.empty(numbers.shape, pin_memory=True)
        host.copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(numbers.device))
        self._waiting.append((record, host, arrived))

    def ready(self, wait: bool = False) -> list[StepRecord]:
        """Return what has arrived, after waiting for all of it, or for what is more than `STEPS_AHEAD` steps old."""
        records = []
        while self._waiting:
            record, numbers, arrived = self._waiting[0]
            early = not wait and len(self._waiting) <= STEPS_AHEAD
            if early and not (self._at_once and (arrived is None or arrived.query())):
                break
            if arrived is not None:
                arrived.synchronize()
            record.loss, record.command, record.lowered, record.grad_norm, record.scale = numbers.tolist()
            records.append(record)
            self._waiting.popleft()
        return records


class StepReporter:
    """Emits a `step` event for each step whose loss has arrived, oldest first; the watchdog sees each.

    losses: the history of the run, which grows here. total: steps of the run. world: processes that train together, which
    must learn the same things at the same step.
    """

    def __init__(
        self,
        events: Events,
        watchdog: Watchdog,
        losses: list[float],
        total: int,
        device: torch.device,
        world: int = 1,
    ) -> None:
        self.events = events
        self.watchdog = watchdog
        self.losses = losses
        self.total = total
        self.device = device
        self.world = world
        self.reader = LossReader(at_once=world == 1)
        self.commands: dict[int, str] = {}  # step -> what the first process had been asked for when it was taken
        self.lowered = 0  # how often other processes have, as far as it was told
        self.mean_loss, self.mean_seconds, self.mean_pictures = RunningMean(losses), RunningMean(), RunningMean()
        self.reported_at = time.perf_counter()

    def restart_clock(self) -> None:
        """Begin to count seconds per step from now, after work that is no step."""
        self.reported_at = time.perf_counter()

    def push(self, record: StepRecord, numbers: Tensor) -> None:
        """Take a step that is under way, see `LossReader.push`, and report those that have arrived."""
        self.reader.push(record, numbers)
        self.report()

    def command(self, step: int) -> str | None:
        """Return what all processes are to do after this step: what the first one was asked for `STEPS_AHEAD` steps ago."""
        return self.commands.get(step - STEPS_AHEAD)

    def report(self, wait: bool = False) -> None:
        """Emit what has arrived; wait: for all of it. Raises RunError when the watchdog does."""
        records = self.reader.ready(wait)
        if not records:
            return
        now = time.perf_counter()
        seconds, self.reported_at = (now - self.reported_at) / len(records), now
        self.mean_seconds.add(seconds)
        for record in records:
            self.tell(record, seconds)

    def tell(self, record: StepRecord, seconds: float) -> None:
        """Emit one step, and what the watchdog has to say about it."""
        finite = math.isfinite(record.loss)
        self.losses.append(record.loss if finite else math.nan)
        self.mean_loss.add(record.loss)
        self.mean_pictures.add(len(record.pictures) * self.world)
        mean_seconds = self.mean_seconds.value or 0.0
        if record.command:
            self.commands[record.step] = COMMANDS[int(record.command) - 1]
        self.events.emit(
            "step",
            step=record.step,
            total=self.total,
            loss=record.loss if finite else None,
            mean_loss=self.mean_loss.value,
            lr=record.lr,
            grad_norm=record.grad_norm if math.isfinite(record.grad_norm) else None,
            seconds=seconds,
            eta=(self.total - record.step) * mean_seconds,
            pictures_per_second=(self.mean_pictures.value or 0.0) / mean_seconds if mean_seconds else None,
            peak_gb=peak_gb(self.device),
        )
        if times := int(record.lowered) - self.lowered:
            self.lowered += times
            often = "once" if times == 1 else f"{times} times"
            text = f"step {record.step}: out of memory {often} in other processes, which keep less from here on"
            self.events.emit("warning", text=text)
        warning = self.watchdog.check(record.step, record.loss, record.grad_norm, record.pictures, record.scale)
        if warning:
            self.events.emit("warning", text=warning)

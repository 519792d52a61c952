"""Telling the losses of the steps, read without waiting for them."""

import math
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from .events import COMMANDS, Events
from .memory import peak_gb
from .watchdog import Watchdog

STEPS_AHEAD = 2  # so many steps may the host be ahead of the device


@dataclass
class StepRecord:
    """A step, and the numbers that arrive later. scale: of the loss; command: number of what the first process was asked."""

    step: int
    lr: float
    pictures: list[str]
    loss: float = math.nan
    command: float = 0.0
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
        """Send for a step's [loss, command, gradient norm, scale]."""
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
            record.loss, record.command, record.grad_norm, record.scale = numbers.tolist()
            records.append(record)
            self._waiting.popleft()
        return records


class StepReporter:
    """Emits a `step` event for each step whose loss has arrived, oldest first; the watchdog sees each.

    losses: the history of the run, which grows here. total: steps of the run. together: with other processes, which must
    learn the same things at the same step.
    """

    def __init__(
        self,
        events: Events,
        watchdog: Watchdog,
        losses: list[float],
        total: int,
        device: torch.device,
        together: bool = False,
    ) -> None:
        self.events = events
        self.watchdog = watchdog
        self.losses = losses
        self.total = total
        self.device = device
        self.reader = LossReader(at_once=not together)
        self.commands: dict[int, str] = {}  # step -> what the first process had been asked for when it was taken
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
        for record in records:
            self.tell(record, seconds)

    def tell(self, record: StepRecord, seconds: float) -> None:
        """Emit one step, and what the watchdog has to say about it."""
        finite = math.isfinite(record.loss)
        self.losses.append(record.loss if finite else math.nan)
        if record.command:
            self.commands[record.step] = COMMANDS[int(record.command) - 1]
        self.events.emit(
            "step",
            step=record.step,
            total=self.total,
            loss=record.loss if finite else None,
            lr=record.lr,
            grad_norm=record.grad_norm if math.isfinite(record.grad_norm) else None,
            seconds=seconds,
            peak_gb=peak_gb(self.device),
        )
        warning = self.watchdog.check(record.step, record.loss, record.grad_norm, record.pictures, record.scale)
        if warning:
            self.events.emit("warning", text=warning)

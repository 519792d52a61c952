"""Telling the losses of the steps, read without waiting for them."""

import math
import time
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from .events import Events
from .memory import peak_gb
from .watchdog import Watchdog


@dataclass
class StepRecord:
    step: int
    lr: float
    pictures: list[str]
    loss: float = math.nan
    grad_norm: float = math.nan


class LossReader:
    """Copies [loss, gradient norm] to the host as the device gets to it; `ready` returns the steps that have arrived."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[StepRecord, Tensor, torch.Event | None]] = deque()

    def push(self, record: StepRecord, loss: Tensor, grad_norm: Tensor) -> None:
        values = torch.stack([loss.detach().float(), grad_norm.float()])
        if values.device.type == "cpu":
            self._waiting.append((record, values, None))
            return
        host = torch.empty(2, pin_memory=values.device.type == "cuda")
        host.copy_(values, non_blocking=True)
        arrived = torch.Event(values.device)
        arrived.record()
        self._waiting.append((record, host, arrived))

    def ready(self, wait: bool = False) -> list[StepRecord]:
        records = []
        while self._waiting:
            record, values, arrived = self._waiting[0]
            if arrived is not None and not wait and not arrived.query():
                break
            if arrived is not None:
                arrived.synchronize()
            record.loss, record.grad_norm = values.tolist()
            records.append(record)
            self._waiting.popleft()
        return records


class StepReporter:
    """Emits a `step` event for each step whose loss has arrived, oldest first; the watchdog sees each.

    losses: the history of the run, which grows here. total: steps of the run.
    """

    def __init__(self, events: Events, watchdog: Watchdog, losses: list[float], total: int, device: torch.device) -> None:
        self.events = events
        self.watchdog = watchdog
        self.losses = losses
        self.total = total
        self.device = device
        self.reader = LossReader()
        self.reported_at = time.perf_counter()

    def restart_clock(self) -> None:
        """Begin to count seconds per step from now, after work that is no step."""
        self.reported_at = time.perf_counter()

    def push(self, record: StepRecord, loss: Tensor, grad_norm: Tensor) -> None:
        self.reader.push(record, loss, grad_norm)
        self.report()

    def report(self, wait: bool = False) -> None:
        """Emit what has arrived; wait: for all of it. Raises RunError when the watchdog does."""
        records = self.reader.ready(wait)
        if not records:
            return
        now = time.perf_counter()
        seconds, self.reported_at = (now - self.reported_at) / len(records), now
        for record in records:
            finite = math.isfinite(record.loss)
            self.losses.append(record.loss if finite else math.nan)
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
            warning = self.watchdog.check_loss(record.step, record.loss, record.pictures)
            if warning:
                self.events.emit("warning", text=warning)

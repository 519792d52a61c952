"""Reading the loss without waiting for it, and the two watchdogs: non-finite losses and an adapter that does not move."""

import math
from collections import deque
from dataclasses import dataclass

import torch
from torch import Tensor

from ..adapters.network import AdapterNetwork
from ..errors import RunError

MAX_NON_FINITE = 3  # steps in a row before the run stops
DEAD_AFTER_STEPS = 5  # the zero-initialised factors must have moved by then


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


class Watchdog:
    """Raises RunError when the run has gone wrong; `last_good` is the adapter of the last check that was finite."""

    def __init__(self, network: AdapterNetwork) -> None:
        self.network = network
        self.non_finite = 0
        self.good_step = 0
        self.last_good = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.network.state_dict().items()}

    def check(self, record: StepRecord) -> str | None:
        """One step's loss: returns a warning for a non-finite one, raises after several in a row."""
        if math.isfinite(record.loss):
            self.non_finite = 0
            return None
        self.non_finite += 1
        pictures = ", ".join(record.pictures)
        if self.non_finite >= MAX_NON_FINITE:
            raise RunError(
                f"step {record.step}: the loss was not finite {self.non_finite} times in a row (pictures: {pictures}); "
                f"lower the learning rate, or check these pictures"
            )
        return f"step {record.step}: the loss is {record.loss}; its gradient was left out (pictures: {pictures})"

    def keep(self, step: int) -> None:
        """Remember the adapter as good if it is finite: one copy to the host, done every so often."""
        copy = self._copy()
        if all(bool(tensor.isfinite().all()) for tensor in copy.values()):
            self.last_good, self.good_step = copy, step

    def is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.network.parameters())

    def check_finite(self, step: int) -> None:
        if not self.is_finite():
            raise RunError(f"step {step}: the adapter is not finite any more; lower the learning rate")

    def restore_if_broken(self) -> int | None:
        """Put the last good adapter back when the present one is not finite; returns the step that it was of."""
        if self.is_finite():
            return None
        self.network.load_state_dict(self.last_good)
        return self.good_step

    def check_moving(self) -> None:
        """At least one zero-initialised factor must have left zero, else nothing is being trained."""
        factors = list(self.network.zero_init_parameters())
        if factors and not any(bool(parameter.any()) for _, parameter in factors):
            raise RunError(
                f"after {DEAD_AFTER_STEPS} steps all {len(factors)} zero-initialised factors are still zero: the adapter "
                f"gets no gradient; check learning_rate, network learning_rates and gradient overflow"
            )

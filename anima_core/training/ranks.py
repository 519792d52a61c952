"""Data parallelism through accelerate: this process' place among those that train together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor

from ..errors import SettingError
from .events import COMMANDS
from .memory import pick_device

PATIENCE = timedelta(days=7)  # of processes that wait while the first one caches or draws; the library's is ten minutes


class Ranks:
    """One process, or one of `world` that `accelerate launch` started. The first one writes; all compute the same steps."""

    def __init__(self) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = 0
        self._accelerator = None
        if self.world > 1:
            try:
                from accelerate import Accelerator, InitProcessGroupKwargs
            except ImportError:
                raise SettingError(
                    "training on several processes needs the package accelerate: pip install accelerate"
                ) from None
            self._accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)])
            self.rank = self._accelerator.process_index

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device of this process: as named when it is alone, else as accelerate dealt them out."""
        return pick_device(name) if self._accelerator is None else self._accelerator.device

    def wait(self) -> None:
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()

    def mean_(self, tensor: Tensor) -> None:
        """Replace a tensor by its mean over all processes, without a copy of it."""
        if self._accelerator is not None:
            torch.distributed.all_reduce(tensor)
            tensor /= self.world

    def sum_(self, tensor: Tensor) -> None:
        """Replace a tensor by its sum over all processes: exact where all but one of them have zeros."""
        if self._accelerator is not None:
            torch.distributed.all_reduce(tensor)

    def tell(self, loss: Tensor, command: str | None, lowered: int) -> Tensor:
        """Return, of all processes, [mean loss, number of the first one's command or 0, lowered of the others together].

        lowered: how often this one has lowered its plan, see `Fit`. On the device: nobody waits.
        """
        number = 1 + COMMANDS.index(command) if command and self.first else 0
        told = torch.stack([loss, torch.full_like(loss, number), torch.full_like(loss, 0 if self.first else lowered)])
        if self._accelerator is None:
            return told
        told = self._accelerator.reduce(told, reduction="sum")
        told[0] /= self.world
        return told

    def share(self, key: str) -> bool:
        """Tell whether what has this key, a hash, is among what this process encodes for all."""
        return int(key[:8], 16) % self.world == self.rank

    @contextmanager
    def first_first(self) -> Iterator[None]:
        """Let the first process do this before the others do: it fills caches, they find them."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

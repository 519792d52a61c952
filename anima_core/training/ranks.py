"""Data parallelism through accelerate: this process' place among those that train together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import SettingError
from .memory import pick_device

COMMANDS = (None, "stop", "cancel")


class Ranks:
    """One process, or one of `world` that `accelerate launch` started. The first one writes; all compute the same steps."""

    def __init__(self) -> None:
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = 0
        self._accelerator = None
        if self.world > 1:
            try:
                from accelerate import Accelerator
            except ImportError:
                raise SettingError(
                    "training on several processes needs the package accelerate: pip install accelerate"
                ) from None
            self._accelerator = Accelerator()
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
        """Replace a tensor by its mean over all processes."""
        if self._accelerator is not None:
            tensor.copy_(self._accelerator.reduce(tensor, reduction="mean"))

    def agree(self, command: str | None, device: torch.device) -> str | None:
        """Return the first process' command in every process."""
        if self._accelerator is None:
            return command
        code = torch.tensor(float(COMMANDS.index(command)) if self.first else 0.0, device=device)
        return COMMANDS[int(self._accelerator.reduce(code, reduction="sum"))]

    @contextmanager
    def first_first(self) -> Iterator[None]:
        """Let the first process do this before the others do: it fills caches, they find them."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

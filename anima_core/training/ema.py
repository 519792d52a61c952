"""Exponential moving average of the adapter's parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class EMA:
    """shadow = d shadow + (1 - d) parameter, fp32, with d = min(decay, (1 + n) / (10 + n)) after n updates."""

    def __init__(self, parameters: Sequence[Tensor], decay: float) -> None:
        self.parameters = list(parameters)
        self.decay = decay
        self.updates = 0
        self.shadow = [p.detach().float().clone() for p in self.parameters]

    def restart(self) -> None:
        """Begin again from the parameters as they are."""
        self.updates = 0
        self.shadow = [p.detach().float().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.shadow, [p.detach().float() for p in self.parameters], 1 - decay)
        self.updates += 1

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Let the parameters hold the averages inside, and their own values again after."""
        before = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.shadow)
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, before)

    def state_dict(self) -> dict[str, Tensor]:
        return {"updates": torch.tensor(self.updates)} | {f"{i:05d}": s for i, s in enumerate(self.shadow)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.updates = int(state["updates"])
        for i, shadow in enumerate(self.shadow):
            shadow.copy_(state[f"{i:05d}"])

"""Two watchdogs over a run: losses that are not finite, and an adapter that does not move."""

import math

from torch import Tensor

from ..adapters.network import AdapterNetwork
from ..errors import RunError

MAX_NON_FINITE = 3  # steps in a row before the run stops
DEAD_AFTER_STEPS = 5  # the zero-initialised factors must have moved by then


class Watchdog:
    """Raises RunError when the run has gone wrong; `last_good` is the adapter of the last check that was finite."""

    def __init__(self, network: AdapterNetwork) -> None:
        self.network = network
        self.non_finite = 0
        self.good_step = 0
        self.last_good = self._copy()

    def _copy(self) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.network.state_dict().items()}

    def check_loss(self, step: int, loss: float, names: list[str]) -> str | None:
        """Return a warning for a loss that is not finite. Raises RunError after several in a row. names: of its pictures."""
        if math.isfinite(loss):
            self.non_finite = 0
            return None
        self.non_finite += 1
        pictures = ", ".join(names)
        if self.non_finite >= MAX_NON_FINITE:
            raise RunError(
                f"step {step}: the loss was not finite {self.non_finite} times in a row (pictures: {pictures}); "
                f"lower `optimizer.learning_rate`, or check these pictures"
            )
        return f"step {step}: the loss is {loss}; its gradient was left out (pictures: {pictures})"

    def keep(self, step: int) -> None:
        """Remember the adapter as good if it is finite: one copy to the host, done every so often."""
        copy = self._copy()
        if all(bool(tensor.isfinite().all()) for tensor in copy.values()):
            self.last_good, self.good_step = copy, step

    def is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for p in self.network.parameters())

    def check_finite(self, step: int) -> None:
        """Raise RunError when the adapter is not finite."""
        if not self.is_finite():
            raise RunError(f"step {step}: the adapter is not finite any more; lower `optimizer.learning_rate`")

    def restore_if_broken(self) -> int | None:
        """Put the last good adapter back when the present one is not finite; return the step that it was of."""
        if self.is_finite():
            return None
        self.network.load_state_dict(self.last_good)
        return self.good_step

    def check_moving(self, masked: bool = False) -> None:
        """Raise RunError when every zero-initialised factor is still zero: then nothing is being trained.

        masked: whether masks weigh the loss, which may be black where they should not.
        """
        factors = list(self.network.zero_init_parameters())
        if factors and not any(bool(parameter.any()) for _, parameter in factors):
            masks = "the masks (`subset.mask_dir`, `subset.alpha_mask`: black is not trained), " if masked else ""
            raise RunError(
                f"after {DEAD_AFTER_STEPS} steps all {len(factors)} zero-initialised factors are still zero: the adapter gets "
                f"no gradient; check {masks}`optimizer.learning_rate`, `network.learning_rates` and gradient overflow"
            )

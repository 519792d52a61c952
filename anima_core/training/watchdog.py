"""Two watchdogs over a run: losses and gradients that are not finite, and an adapter that does not move."""

import math
from collections.abc import Callable

from ..adapters.network import AdapterNetwork
from ..errors import RunError
from .gradient import LEAST_SCALE

STEPS_AHEAD = 2  # so many steps may the host be ahead of the device, and of what it has been told
MAX_NON_FINITE = 3  # steps in a row before the run stops
DEAD_AFTER_STEPS = 5  # the zero-initialised factors must have moved by then


class Watchdog:
    """Raises RunError when the run has gone wrong; `last_good` is the adapter of the last check that was finite.

    masked: whether masks weigh the loss, which may be black where they should not. good_step: the step of the adapter as it is.
    steps, good_steps: how many were seen since the run was started or continued, and had a finite loss and gradient.
    remedy: changes what may have broken the gradient of a finite loss, and says so; empty when there is nothing to change.
    """

    def __init__(
        self, network: AdapterNetwork, masked: bool = False, good_step: int = 0, remedy: Callable[[], str] = lambda: ""
    ) -> None:
        self.network = network
        self.masked = masked
        self.remedy = remedy
        self.non_finite = 0
        self.steps = self.good_steps = 0
        self.moves = True  # as far as is known
        self.good_step = good_step
        self.last_good = network.host_state()

    def check(self, step: int, loss: float, grad_norm: float, names: list[str], scale: float = 1.0) -> str | None:
        """Return a warning for a step that was left out, its loss or gradient not being finite. names: of its pictures.

        scale: of the loss, under fp16; while it is above its least, an overflow is a step of the search for it, which
        has its own end. Raises RunError after several in a row, and when nothing has moved after several good ones.
        """
        self.steps += 1
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.non_finite = 0
            self.good_steps += 1
            if self.good_steps == DEAD_AFTER_STEPS:
                self.check_moving()
            return None
        if math.isfinite(loss) and scale > LEAST_SCALE:
            return f"step {step}: the gradient overflowed fp16 and was left out; the loss scale {scale:g} is halved"
        self.non_finite += 1
        pictures, what = ", ".join(names), "gradient" if math.isfinite(loss) else "loss"
        if self.non_finite >= MAX_NON_FINITE:
            way_out = "lower `optimizer.learning_rate`, or check these pictures"
            if not self.good_steps:
                way_out = "check the model file and these pictures, or use `model.dtype=fp32`"
            raise RunError(
                f"step {step}: the {what} was not finite {self.non_finite} times in a row (pictures: {pictures}); {way_out}"
            )
        number = grad_norm if what == "gradient" else loss
        text = f"step {step}: the {what} is {number}; the step was left out (pictures: {pictures})"
        if what == "gradient" and self.non_finite == 1 and (changed := self.remedy()):
            self.non_finite = -STEPS_AHEAD  # those that were under way already do not count
            text = f"{text}; {changed}"
        return text

    @property
    def has_gained(self) -> bool:
        """Tell whether there is anything that a later start should go on from, beyond what this one began with."""
        return self.moves and (self.good_steps > 0 or self.steps == 0)

    def check_trained(self) -> None:
        """Raise RunError when all steps, of which there were some, were left out."""
        if self.steps and not self.good_steps:
            way_out = "check the model file, or use `model.dtype=fp32`"
            raise RunError(f"none of {self.steps} steps had a finite loss and gradient: nothing was trained; {way_out}")

    def keep(self, step: int) -> None:
        """Remember the adapter as good if it is finite: one copy to the host, done every so often."""
        copy = self.network.host_state()
        if all(bool(tensor.isfinite().all()) for tensor in copy.values()):
            self.last_good, self.good_step = copy, step

    def is_finite(self) -> bool:
        return all(bool(whole.isfinite().all()) for whole in self.network.wholes())

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

    def check_moving(self) -> None:
        """Raise RunError when every zero-initialised factor is still zero: then nothing is being trained."""
        factors = list(self.network.zero_init_parameters())
        self.moves = not factors or any(bool(parameter.any()) for _, parameter in factors)
        if not self.moves:
            masks = "the masks (`subset.mask_dir`, `subset.alpha_mask`: black is not trained), " if self.masked else ""
            raise RunError(
                f"after {DEAD_AFTER_STEPS} steps all {len(factors)} zero-initialised factors are still zero: the adapter gets "
                f"no gradient; check {masks}`optimizer.learning_rate`, `network.learning_rates` and gradient overflow"
            )

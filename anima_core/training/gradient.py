"""All gradients in one buffer, so that clipping and guarding against non-finite steps are single kernels without a sync."""

import torch
from torch import Tensor, nn

FP16_SCALE = 2.0**14  # start of the loss scale: a velocity loss of 1024 px has gradients near 1e-6, below fp16's normal range
FP16_GROWTH_STEPS = 1000
LEAST_SCALE = 1.0  # a gradient that overflows without a scale is no matter of the scale


class FlatGradient:
    """Every parameter's `.grad` is a view of one fp32 buffer.

    With an fp16 base the loss is scaled so that activation gradients do not vanish; a step whose gradient overflows is
    zeroed and the scale halved, on the device. used_scale: of the gradient that was finished last.
    """

    def __init__(self, parameters: list[nn.Parameter], fp16: bool) -> None:
        device = parameters[0].device
        self.buffer = torch.zeros(sum(p.numel() for p in parameters), device=device)
        pieces = self.buffer.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces):
            parameter.grad = piece.view_as(parameter)
        self.scale = torch.full((), FP16_SCALE if fp16 else 1.0, device=device)
        self.used_scale = self.scale
        self.good_steps = torch.zeros((), device=device)
        self.fp16 = fp16

    def backward(self, loss: Tensor) -> None:
        (loss * self.scale).backward() if self.fp16 else loss.backward()

    @torch.no_grad()
    def finish(self, max_norm: float) -> Tensor:
        """Unscale, clip to `max_norm` (0: do not), zero a non-finite gradient. Returns the norm before clipping, fp32.

        What it allocates comes first: whoever runs out of memory for it may call it again.
        """
        scale = self.scale  # a power of two: dividing by it rounds nothing
        norm = torch.linalg.vector_norm(self.buffer) / scale
        clip = (max_norm / (norm + 1e-6)).clamp(max=1.0) if max_norm > 0 else torch.ones_like(norm)
        finite, zero = norm.isfinite(), torch.zeros_like(norm)
        adjusted = self._adjusted(finite) if self.fp16 else (self.scale, self.good_steps)
        if self.fp16:
            self.buffer.div_(scale)
        if max_norm > 0:
            self.buffer.mul_(clip)
        torch.where(finite, self.buffer, zero, out=self.buffer)
        self.used_scale, (self.scale, self.good_steps) = scale, adjusted
        return norm

    def _adjusted(self, finite: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next scale, and how many steps in a row were good."""
        good_steps = torch.where(finite, self.good_steps + 1, 0)
        grow = good_steps >= FP16_GROWTH_STEPS
        scale = torch.where(finite, torch.where(grow, self.scale * 2, self.scale), (self.scale / 2).clamp(min=LEAST_SCALE))
        return scale, torch.where(grow, 0, good_steps)

    def zero(self) -> None:
        self.buffer.zero_()

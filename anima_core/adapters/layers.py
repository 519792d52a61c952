"""The layers of a model that has adapters: each calls its untouched base layer and adds its correction."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .adapter_type import Adapter, Fast


class AdaptedLinear(nn.Module):
    """base(x) + multiplier * adapter(x, base(x)). The base layer is kept as it is, and only called, or asked for its weight.

    fused: take the adapter's fast form where it has one. It equals the slow one but for the order of sums. A graph of
    `torch.compile` is made of the slow one, which it can look into: what it knows of gradients is what autograd takes.
    """

    def __init__(self, base: nn.Linear, adapter: Adapter) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.multiplier = 1.0
        self.fused = True

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        if (fast := self.fast(x)) is not None:
            return fast.function.apply(x, *fast.inputs)
        y = self.base(x)
        if self.multiplier == 0:
            return y
        correction = self.adapter(x, y)
        return y + (correction if self.multiplier == 1 else correction * self.multiplier)

    def fast(self, x: Tensor) -> Fast | None:
        """Return the fast form where there is one and it is to be taken."""
        wanted = self.fused and self.multiplier == 1 and not torch.compiler.is_compiling()
        return self.adapter.fused(x, self.base) if wanted else None


class AdaptedNorm(nn.Module):
    """RMSNorm with a trained difference on its weight, fp32, zero at the start."""

    def __init__(self, base: nn.RMSNorm) -> None:
        super().__init__()
        self.base = base
        self.w_norm = nn.Parameter(torch.zeros_like(base.weight, dtype=torch.float32))
        self.multiplier = 1.0

    @property
    def weight(self) -> Tensor:
        """The weight with its difference, in the base weight's dtype; the base weight itself at a multiplier of 0."""
        if self.multiplier == 0:
            return self.base.weight
        return (self.base.weight.float() + self.multiplier * self.w_norm).to(self.base.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.base.normalized_shape, self.weight, self.base.eps)

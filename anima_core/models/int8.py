"""Frozen weights in 8-bit integers: one scale for each output channel, finer where that is not exact enough.

W = q * scale, q = round(W / scale) in -127..127. A Gaussian row of 2048 inputs loses 0.8 % of its size so; a row whose largest
weight stands far out loses more, since that one sets the step for all. How much is measured when a layer is made.
"""

import math

import torch
from torch import Tensor

from .frozen import FrozenWeight

LARGEST = 127
GROUP = 128  # inputs that share a scale where a whole row is too coarse: 3 % more bytes
# Of a weight's size, see `error`, lost in rounding. Gaussian weights lose 0.8 % to 0.9 % with a scale for each row of 2048 or
# 8192 inputs, 0.6 % in groups of 128; bf16 itself loses 0.17 %.
COARSE, TOO_COARSE = 0.012, 0.02
GAUSSIAN = math.sqrt(math.pi / 2)  # of Gaussian numbers, the root mean square by the mean size


class Int8Weight(FrozenWeight):
    """W [out, in] as q int8 [out, in] and scale fp32 [out, groups], or [1, groups] for all outputs; the groups of one size.

    kind: its word in notes; None for that of weights that are rounded here.
    """

    q: Tensor
    scale: Tensor

    def __init__(self, q: Tensor, scale: Tensor, kind: str | None = None) -> None:
        super().__init__()
        self.shape, groups = q.shape, scale.shape[1]
        self.kind = kind or ("int8" if groups == 1 else f"int8 in groups of {q.shape[1] // groups}")
        self.register_buffer("q", q)
        self.register_buffer("scale", scale)

    def write(self, into: Tensor) -> None:
        torch.mul(grouped(self.q, self.scale.shape[1]), self.scale[..., None], out=grouped(into, self.scale.shape[1]))

    @classmethod
    def empty(cls, shape: torch.Size) -> "Int8Weight":
        """Return one without numbers, on the meta device, with a scale for each output channel."""
        q = torch.empty(shape, dtype=torch.int8, device="meta")
        return cls(q, torch.empty(shape[0], 1, device="meta"))


def quantised(weight: Tensor) -> Int8Weight | None:
    """Return a weight [out, in] in 8 bits, as coarse as is exact enough; None where neither way is.

    NaN is not exact enough either. On the meta device, which cannot tell, it is what nearly all become.
    """
    if weight.is_meta:
        return Int8Weight.empty(weight.shape)
    weight = weight.detach().float()
    for groups, bound in ((1, COARSE), (-(-weight.shape[1] // GROUP), TOO_COARSE)):
        if weight.shape[1] % groups:
            continue
        found = rounded(weight, groups)
        if error(found, weight) <= bound:
            return found
    return None


def rounded(weight: Tensor, groups: int) -> Int8Weight:
    """Round a weight, fp32, each scale such that its largest weight is the end of the range.

    A nearer end, which cuts that one off, was tried and never lost less: 8 bits are fine enough for the rest.
    """
    rows = grouped(weight, groups)
    scale = rows.abs().amax(-1) / LARGEST
    step = torch.where(scale > 0, scale, 1.0)[..., None]  # rows of zeros stay so
    return Int8Weight((rows / step).round_().to(torch.int8).view_as(weight), scale)


def error(stored: Int8Weight, weight: Tensor) -> float:
    """Return what rounding has taken from a weight, fp32, relative to its usual size.

    Both are root mean squares, the size that of a Gaussian whose numbers are as large on average: a norm would be that of the
    few numbers that stand out, beside which it would not matter that all others were rounded to nothing.
    """
    numbers = torch.empty_like(weight)
    stored.write(numbers)
    lost, size = (numbers - weight).square().mean().sqrt(), weight.abs().mean() * GAUSSIAN
    return 0.0 if size == 0 else (lost / size).item()


def grouped(weight: Tensor, groups: int) -> Tensor:
    """View [out, in] as [out, groups, in / groups]."""
    return weight.view(weight.shape[0], groups, -1)

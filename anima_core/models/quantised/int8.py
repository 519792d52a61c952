"""Integers of 8 bits with a scale for the tensor or for each output, and the same of a rotated weight (ConvRot)."""

import torch
from torch import Tensor

from ..frozen import FrozenWeight
from .fp8 import per_output
from .rotation import Rotated, all_said, group_size
from .stored import Format, Parts, Settings


class Int8(FrozenWeight):
    """Integers [out, in] times a scale, multiplied in fp32 and rounded once."""

    data: Tensor
    scale: Tensor

    def __init__(self, data: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.shape = data.shape
        self.kind = f"int8, a scale per {'tensor' if scale.numel() == 1 else 'output'}"
        self.register_buffer("data", data)
        self.register_buffer("scale", per_output(scale, data.shape).float())

    def write(self, into: Tensor) -> None:
        torch.mul(self.data, self.scale, out=into)


class RotatedInt8(Rotated):
    """Integers of a weight [out, in] whose inputs were rotated. group: how many of them together."""

    def __init__(self, data: Tensor, scale: Tensor, group: int) -> None:
        super().__init__(data, scale, data.shape, group)
        self.kind = f"int8 ConvRot (groups of {group})"

    def integers(self, some: slice) -> Tensor:
        return self.data[some]


def made(parts: Parts, settings: Settings) -> FrozenWeight:
    whole = parts["weight"], parts["scale"]
    return RotatedInt8(*whole, group_size(settings)) if all_said(settings).get("convrot") else Int8(*whole)


INT8 = Format("int8_tensorwise", ("I8",), ("scale",), made)

"""Integers of 8 bits with a scale for the tensor or for each output, and the same of a rotated weight (ConvRot)."""

from torch import Tensor

from ..frozen import FrozenWeight
from ..int8 import Int8Weight
from .fp8 import per_output
from .rotation import Rotated, all_said, group_size
from .stored import Format, Parts, Settings


class RotatedInt8(Rotated):
    """Integers of a weight [out, in] whose inputs were rotated. group: how many of them together."""

    def __init__(self, data: Tensor, scale: Tensor, group: int) -> None:
        super().__init__(data, scale, data.shape, group)
        self.kind = f"int8 ConvRot (groups of {group})"

    def integers(self, some: slice) -> Tensor:
        return self.data[some]


def plain(data: Tensor, scale: Tensor) -> Int8Weight:
    """Return integers [out, in] times a scale of the tensor or of each output, multiplied in fp32 and rounded once."""
    kind = f"int8, a scale per {'tensor' if scale.numel() == 1 else 'output'}"
    return Int8Weight(data, per_output(scale, data.shape).float().reshape(-1, 1), kind)


def made(parts: Parts, settings: Settings) -> FrozenWeight:
    whole = parts["weight"], parts["scale"]
    return RotatedInt8(*whole, group_size(settings)) if all_said(settings).get("convrot") else plain(*whole)


INT8 = Format("int8_tensorwise", ("I8",), ("scale",), made)

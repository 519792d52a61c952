"""Integers of 4 bits, two a byte, with a scale for each output, of a rotated weight (ComfyUI's `convrot_w4a4`)."""

import torch
from torch import Tensor

from .rotation import Rotated, group_size
from .stored import Format, Parts, Settings


class RotatedInt4(Rotated):
    """Integers of a rotated weight [out, in] as bytes [out, in / 2], the first of two in the low bits."""

    def __init__(self, data: Tensor, scale: Tensor, group: int) -> None:
        if data.ndim != 2:
            raise ValueError(f"a weight of {list(data.shape)} is no int4")
        super().__init__(data.view(torch.int8), scale, torch.Size((data.shape[0], data.shape[1] * 2)), group)
        self.kind = f"int4 ConvRot (groups of {group})"

    def integers(self, some: slice) -> Tensor:
        data = self.data[some]
        return torch.stack((data << 4 >> 4, data >> 4), -1).view(len(data), -1)  # shifts of signed bytes keep the sign


def made(parts: Parts, settings: Settings) -> RotatedInt4:
    return RotatedInt4(parts["weight"], parts["scale"], group_size(settings))


INT4 = Format("convrot_w4a4", ("I8", "U8"), ("scale",), made)

"""Floats of 4 bits (E2M1), two a byte, with an 8-bit scale for each 16 of them and one for the tensor (NVIDIA's NVFP4)."""

import torch
from torch import Tensor

from .cublas import unblocked
from .fp8 import float8
from .pieces import InPieces
from .stored import Format, Parts, Settings

BLOCK = 16
MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # of E2M1; the highest bit is the sign


class NvFp4(InPieces):
    """W [out, in] as bytes [out, in / 2], the first of two numbers in the high bits, scales [out, in / 16] and one scale.

    Numbers, scales and their products are each rounded to the compute dtype, as ComfyUI does.
    """

    kind = "nvfp4"
    levels: Tensor
    scales: Tensor
    scale: Tensor

    def __init__(self, data: Tensor, scales: Tensor, scale: Tensor) -> None:
        super().__init__()
        if data.ndim != 2 or data.shape[1] * 2 % BLOCK or scale.numel() != 1:
            raise ValueError(f"a weight of {list(data.shape)} with a scale of {list(scale.shape)} is no nvfp4")
        out, columns = data.shape[0], data.shape[1] * 2
        self.shape = torch.Size((out, columns))
        self.register_buffer("data", data.view(torch.uint8))
        self.register_buffer("levels", torch.tensor([*MAGNITUDES, *(-value for value in MAGNITUDES)], device=data.device))
        self.register_buffer("scales", unblocked(scales, out, columns // BLOCK))
        self.register_buffer("scale", scale.float().reshape(()))

    def rows(self, some: slice, dtype: torch.dtype) -> Tensor:
        data, scales = self.data[some], float8(self.scales[some], torch.float8_e4m3fn).to(dtype) * self.scale.to(dtype)
        numbers = self.levels.to(dtype)[torch.stack((data >> 4, data & 15), -1).int()]
        return (numbers.view(len(data), -1, BLOCK) * scales[..., None]).view(len(data), -1)


def made(parts: Parts, settings: Settings) -> NvFp4:
    return NvFp4(parts["weight"], parts["scale"], parts["scale_2"])


NVFP4 = Format("nvfp4", ("U8", "I8"), ("scale", "scale_2"), made)

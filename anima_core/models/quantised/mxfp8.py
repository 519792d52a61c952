"""8-bit floats (E4M3) with a power of two for each 32 of them (Open Compute's MXFP8)."""

import torch
from torch import Tensor

from .cublas import unblocked
from .fp8 import float8
from .pieces import InPieces
from .stored import Format, Parts, Settings

BLOCK = 32
MANTISSA = 23  # bits of a fp32's; its exponent, which an E8M0 is, stands above them


class MxFp8(InPieces):
    """W [out, in] as 8-bit floats and exponents [out, in / 32], multiplied in fp32 and rounded once."""

    kind = "mxfp8"
    exponents: Tensor

    def __init__(self, data: Tensor, exponents: Tensor) -> None:
        super().__init__()
        if data.ndim != 2 or data.shape[1] % BLOCK:
            raise ValueError(f"a weight of {list(data.shape)} is no mxfp8")
        self.shape = data.shape
        self.register_buffer("data", data.view(torch.uint8))
        self.register_buffer("exponents", unblocked(exponents, data.shape[0], data.shape[1] // BLOCK))

    def rows(self, some: slice, dtype: torch.dtype) -> Tensor:
        scales = (self.exponents[some].int() << MANTISSA).view(torch.float32)
        data = float8(self.data[some], torch.float8_e4m3fn).float()
        return (data.view(len(data), -1, BLOCK) * scales[..., None]).view(len(data), -1)


def made(parts: Parts, settings: Settings) -> MxFp8:
    return MxFp8(parts["weight"], parts["scale"])


MXFP8 = Format("mxfp8", ("F8_E4M3",), ("scale",), made)

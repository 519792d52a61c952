"""8-bit floats: with a scale for the tensor or for each output, or cast as they were."""

import torch
from torch import Tensor

from ..frozen import FrozenWeight
from .stored import Format, Parts, Settings


def per_output(scale: Tensor, shape: torch.Size) -> Tensor:
    """Return a scale of one number, [out] or [out, 1] so that it multiplies a weight [out, in]. Raises ValueError."""
    if scale.numel() == 1:
        return scale.reshape(())
    if len(shape) == 2 and scale.shape in ((shape[0],), (shape[0], 1)):
        return scale.reshape(-1, 1)
    raise ValueError(f"a scale of {list(scale.shape)} does not fit a weight of {list(shape)}")


WITHOUT_FLOAT8 = {"mps"}  # devices whose torch has no such dtypes
UNSCALED = "fp8 without scales"


def float8(data: Tensor, dtype: torch.dtype) -> Tensor:
    """Return bytes as the 8-bit floats that they are, or the same numbers in fp32 where a device has no such dtype."""
    if data.device.type not in WITHOUT_FLOAT8:
        return data.view(dtype)
    every = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return every.to(data.device)[data.int()]


class CastFloat8(FrozenWeight):
    """8-bit floats of any shape that are the numbers themselves, as bytes."""

    word = UNSCALED
    data: Tensor

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.shape, self.dtype = data.shape, data.dtype
        self.kind = f"{self.word} ({str(data.dtype).removeprefix('torch.')})"
        self.register_buffer("data", data.view(torch.uint8))

    def write(self, into: Tensor) -> None:
        into.copy_(float8(self.data, self.dtype))


class Float8(CastFloat8):
    """8-bit floats [out, in] times a scale; both and their product are rounded to the compute dtype, as ComfyUI does."""

    word = "fp8 scaled"
    scale: Tensor

    def __init__(self, data: Tensor, scale: Tensor) -> None:
        super().__init__(data)
        self.register_buffer("scale", per_output(scale, data.shape).float())

    def write(self, into: Tensor) -> None:
        super().write(into)
        into.mul_(self.scale.to(into.dtype))


def scaled(parts: Parts, settings: Settings) -> Float8:
    return Float8(parts["weight"], parts["scale"])


E4M3 = Format("float8_e4m3fn", ("F8_E4M3",), ("scale",), scaled)
E5M2 = Format("float8_e5m2", ("F8_E5M2",), ("scale",), scaled)

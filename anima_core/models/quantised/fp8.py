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


class Float8(FrozenWeight):
    """8-bit floats [out, in] times a scale; both and their product are rounded to the compute dtype, as ComfyUI does."""

    data: Tensor
    scale: Tensor

    def __init__(self, data: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.shape = data.shape
        self.kind = f"fp8 scaled ({str(data.dtype).removeprefix('torch.')})"
        self.register_buffer("data", data)
        self.register_buffer("scale", per_output(scale, data.shape).float())

    def write(self, into: Tensor) -> None:
        into.copy_(self.data).mul_(self.scale.to(into.dtype))


class CastFloat8(FrozenWeight):
    """8-bit floats of any shape that are the numbers themselves."""

    data: Tensor

    def __init__(self, data: Tensor) -> None:
        super().__init__()
        self.shape = data.shape
        self.kind = f"{UNSCALED} ({str(data.dtype).removeprefix('torch.')})"
        self.register_buffer("data", data)

    def write(self, into: Tensor) -> None:
        into.copy_(self.data)


UNSCALED = "fp8 without scales"


def scaled(parts: Parts, settings: Settings) -> Float8:
    return Float8(parts["weight"], parts["scale"])


E4M3 = Format("float8_e4m3fn", ("F8_E4M3",), ("scale",), scaled)
E5M2 = Format("float8_e5m2", ("F8_E5M2",), ("scale",), scaled)

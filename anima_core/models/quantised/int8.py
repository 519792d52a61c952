"""Integers of 8 bits with a scale for the tensor or for each output, and the same of a rotated weight (ConvRot)."""

from functools import lru_cache

import torch
from torch import Tensor

from ..frozen import FrozenWeight
from .fp8 import per_output
from .stored import Format, Parts, Settings

GROUP = 256  # what ConvRot rotates together where a file does not say


class Int8(FrozenWeight):
    """Integers [out, in] times a scale, multiplied in fp32 and rounded once."""

    integers: Tensor
    scale: Tensor

    def __init__(self, integers: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.shape = integers.shape
        self.kind = f"int8, a scale per {'tensor' if scale.numel() == 1 else 'output'}"
        self.register_buffer("integers", integers)
        self.register_buffer("scale", per_output(scale, integers.shape).float())

    def write(self, into: Tensor) -> None:
        torch.mul(self.integers, self.scale, out=into)


class RotatedInt8(Int8):
    """Integers [out, in] of a weight whose inputs were rotated in groups by a Hadamard matrix. group: inputs of each."""

    def __init__(self, integers: Tensor, scale: Tensor, group: int) -> None:
        super().__init__(integers, scale)
        check_group(group, self.shape)
        self.kind, self.group = f"int8 ConvRot (groups of {group})", group

    def write(self, into: Tensor) -> None:
        into.copy_(rotated(self.integers * self.scale, self.group))


def check_group(group: int, shape: torch.Size) -> None:
    """Raise ValueError for groups that are no power of 4, or do not divide a weight's inputs."""
    if group < 4 or group & (group - 1) or group.bit_length() % 2 == 0:
        raise ValueError(f"groups of {group} are rotated, which is no power of 4")
    if len(shape) != 2 or shape[1] % group:
        raise ValueError(f"groups of {group} do not divide a weight of {list(shape)}")


def rotated(weight: Tensor, group: int) -> Tensor:
    """Map [out, in], fp32 -> the same, each group of inputs times the Hadamard matrix, which is its own inverse."""
    groups = weight.reshape(weight.shape[0], -1, group)
    return torch.matmul(groups, hadamard(group, weight.device).T).reshape(weight.shape)


@lru_cache
def hadamard(size: int, device: torch.device) -> Tensor:
    """Make the regular Hadamard matrix [size, size], fp32, symmetric and orthogonal: the Kronecker powers of one of 4."""
    four = torch.ones(4, 4, device=device) - 2 * torch.eye(4, device=device).flip(0)
    whole = four
    while len(whole) < size:
        whole = torch.kron(whole, four)
    return whole / size**0.5


def convrot(settings: Settings) -> int:
    """Return how many inputs a layer's settings rotate together, 0 for none: they may stand in `params` of the settings."""
    inner = settings.get("params")
    found = {**inner, **settings} if isinstance(inner, dict) else settings
    return int(found.get("convrot_groupsize", GROUP)) if found.get("convrot") else 0


def made(parts: Parts, settings: Settings) -> Int8:
    group = convrot(settings)
    return RotatedInt8(parts["weight"], parts["scale"], group) if group else Int8(parts["weight"], parts["scale"])


INT8 = Format("int8_tensorwise", ("I8",), ("scale",), made)

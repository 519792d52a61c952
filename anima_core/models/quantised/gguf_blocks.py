"""The blocks of GGUF files: so many numbers in so many bytes, with scales of their own. Formulas: ggml-quants.c.

All is computed in fp32 in ggml's order, so that the numbers are those of `gguf.quants.dequantize` to the bit. Each function
maps bytes [blocks, bytes of one] -> [blocks, numbers of one].
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .pieces import InPieces


@dataclass(frozen=True)
class BlockType:
    """numbers, bytes: of one block."""

    name: str
    numbers: int
    bytes: int
    decode: Callable[[Tensor], Tensor]


class BlockWeight(InPieces):
    """A tensor in blocks of one type along its last dimension, as bytes [blocks, bytes of one]."""

    def __init__(self, data: Tensor, shape: torch.Size, blocks: BlockType) -> None:
        super().__init__()
        self.shape, self.blocks, self.kind = shape, blocks, f"GGUF {blocks.name}"
        self.register_buffer("data", data)

    def rows(self, some: slice, dtype: torch.dtype) -> Tensor:
        return self.blocks.decode(self.data[some])


def half(data: Tensor) -> Tensor:
    """Map two bytes [blocks, 2] -> [blocks, 1], the fp16 number that they are, in fp32."""
    return data.contiguous().view(torch.float16).float()


def planes(data: Tensor, bits: int) -> Tensor:
    """Split bytes [..., n] into numbers of so many bits [..., 8 / bits, n], the lowest bits first."""
    shifts = range(0, 8, bits)
    return torch.stack([(data >> shift) & ((1 << bits) - 1) for shift in shifts], -2)


def q8_0(data: Tensor) -> Tensor:
    return data[:, 2:].view(torch.int8).float() * half(data[:, :2])


def q4_0(data: Tensor) -> Tensor:
    return half(data[:, :2]) * (planes(data[:, 2:], 4).flatten(1).float() - 8)


def q4_1(data: Tensor) -> Tensor:
    return half(data[:, :2]) * planes(data[:, 4:], 4).flatten(1).float() + half(data[:, 2:4])


def fifth_bits(data: Tensor) -> Tensor:
    """Map four bytes [blocks, 4] -> [blocks, 32], 16 where a bit is set."""
    return planes(data, 1).transpose(-1, -2).flatten(1) << 4


def q5_0(data: Tensor) -> Tensor:
    numbers = planes(data[:, 6:], 4).flatten(1) | fifth_bits(data[:, 2:6])
    return half(data[:, :2]) * (numbers.float() - 16)


def q5_1(data: Tensor) -> Tensor:
    numbers = planes(data[:, 8:], 4).flatten(1) | fifth_bits(data[:, 4:8])
    return half(data[:, :2]) * numbers.float() + half(data[:, 2:4])


def q2_k(data: Tensor) -> Tensor:
    """16 groups of 16: scale and minimum of 4 bits each."""
    scales, numbers = data[:, :16], planes(data[:, 16:80].unflatten(1, (2, 32)), 2)
    scale = (half(data[:, 80:82]) * (scales & 15).float())[..., None]
    least = (half(data[:, 82:84]) * (scales >> 4).float())[..., None]
    return (scale * numbers.reshape(-1, 16, 16).float() - least).flatten(1)


def q3_k(data: Tensor) -> Tensor:
    """16 groups of 16: scales of 6 bits, the third bit of each number by itself and turned around."""
    low, high = planes(data[:, 96:104], 4).flatten(1), planes(data[:, 104:108], 2).flatten(1)
    scale = half(data[:, 108:110]) * ((low | high << 4).float() - 32)
    numbers = planes(data[:, 32:96].unflatten(1, (2, 32)), 2).reshape(-1, 16, 16)
    third = planes(data[:, :32], 1).reshape(-1, 16, 16)
    return (scale[..., None] * (numbers.float() - (1 - third.float()) * 4)).flatten(1)


def scales_of_8(data: Tensor) -> tuple[Tensor, Tensor]:
    """Map 12 bytes [blocks, 12] -> scales and minima of 6 bits, [blocks, 8] each, of Q4_K and Q5_K."""
    first, second, third = data.unflatten(1, (3, 4)).unbind(1)
    scales = torch.cat((first & 63, (third & 15) | (first >> 2 & 48)), -1)
    least = torch.cat((second & 63, (third >> 4) | (second >> 2 & 48)), -1)
    return scales.float(), least.float()


def of_32(data: Tensor, numbers: Tensor) -> Tensor:
    """Scale 8 groups of 32 numbers [blocks, 8, 32] by what a block of Q4_K or Q5_K begins with."""
    scales, least = scales_of_8(data[:, 4:16])
    scale, offset = half(data[:, :2]) * scales, half(data[:, 2:4]) * least
    return (scale[..., None] * numbers.float() - offset[..., None]).flatten(1)


def q4_k(data: Tensor) -> Tensor:
    return of_32(data, planes(data[:, 16:].unflatten(1, (4, 32)), 4).flatten(1, 2))


def q5_k(data: Tensor) -> Tensor:
    low = planes(data[:, 48:].unflatten(1, (4, 32)), 4).flatten(1, 2)
    return of_32(data, low | planes(data[:, 16:48], 1) << 4)


def q6_k(data: Tensor) -> Tensor:
    """16 groups of 16: scales of 8 bits with a sign."""
    low = planes(data[:, :128].unflatten(1, (2, 64)), 4).flatten(2).unflatten(2, (4, 32))
    high = planes(data[:, 128:192].unflatten(1, (2, 32)), 2)
    scale = half(data[:, 208:210]) * data[:, 192:208].view(torch.int8).float()
    return (scale[..., None] * ((low | high << 4).float() - 32).reshape(-1, 16, 16)).flatten(1)


# The file's number of a type -> what it is
BLOCKS = {
    2: BlockType("Q4_0", 32, 18, q4_0),
    3: BlockType("Q4_1", 32, 20, q4_1),
    6: BlockType("Q5_0", 32, 22, q5_0),
    7: BlockType("Q5_1", 32, 24, q5_1),
    8: BlockType("Q8_0", 32, 34, q8_0),
    10: BlockType("Q2_K", 256, 84, q2_k),
    11: BlockType("Q3_K", 256, 110, q3_k),
    12: BlockType("Q4_K", 256, 144, q4_k),
    13: BlockType("Q5_K", 256, 176, q5_k),
    14: BlockType("Q6_K", 256, 210, q6_k),
}

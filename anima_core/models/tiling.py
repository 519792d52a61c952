"""Run a function that keeps or scales height and width over overlapping tiles, and blend the seams."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: float) -> Tensor:
    """Map x [B, C, H, W] -> [B, C', H * scale, W * scale], fp32, from tiles of at most `tile` px that share `overlap` px.

    H, W, tile and overlap must be multiples of 1 / scale where it shrinks. Tiles are weighted by a linear ramp over the
    shared part, so that seams vanish; borders of the picture keep weight 1.
    """
    height, width = x.shape[-2:]
    unit = max(1, round(1 / scale))
    tall, tops = spans(height, tile, overlap, unit)
    wide, lefts = spans(width, tile, overlap, unit)
    fade = round(overlap * scale)
    total = weights = torch.empty(0)
    for top in tops:
        for left in lefts:
            out = function(x[..., top : top + tall, left : left + wide]).float()
            if (top, left) == (tops[0], lefts[0]):  # the first tile says how many channels there are
                total = out.new_zeros(*out.shape[:2], round(height * scale), round(width * scale))
                weights = torch.zeros_like(total[:1, :1])
            rows = ramp(out.shape[-2], fade, top > 0, top + tall < height, out)
            columns = ramp(out.shape[-1], fade, left > 0, left + wide < width, out)
            weight = rows[:, None] * columns
            y, x0 = round(top * scale), round(left * scale)
            place = (..., slice(y, y + len(rows)), slice(x0, x0 + len(columns)))
            total[place] += out * weight
            weights[place] += weight
    return total.div_(weights)


def spans(length: int, tile: int, overlap: int, unit: int) -> tuple[int, list[int]]:
    """Return (size, starts) of the fewest equal tiles of at most `tile` that cover `length`, sharing at least `overlap`.

    All are multiples of `unit` when the arguments are.
    """
    if length <= tile:
        return length, [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    size = math.ceil((length + (count - 1) * overlap) / count / unit) * unit
    return size, [round(i * (length - size) / (count - 1) / unit) * unit for i in range(count)]


def ramp(length: int, overlap: int, fade_in: bool, fade_out: bool, like: Tensor) -> Tensor:
    """Return weights [length] of one side of a tile: 1, but for a linear slope over `overlap` where a neighbour takes over."""
    weight = torch.ones(length, device=like.device, dtype=like.dtype)
    slope = torch.arange(1, overlap + 1, device=like.device, dtype=like.dtype) / (overlap + 1)
    if fade_in:
        weight[:overlap] *= slope
    if fade_out:
        weight[-overlap:] *= slope.flip(0)
    return weight

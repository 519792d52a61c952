"""Run a function that keeps or scales height and width over overlapping tiles, and blend the seams."""

from collections.abc import Callable

import torch
from torch import Tensor


def tiled(function: Callable[[Tensor], Tensor], x: Tensor, tile: int, overlap: int, scale: float) -> Tensor:
    """x [B, C, H, W] -> [B, C', H * scale, W * scale], fp32, from tiles of at most `tile` px that share `overlap` px.

    Tiles are weighted by a linear ramp over the shared part, so that seams vanish; borders of the picture keep weight 1.
    """
    height, width = x.shape[-2:]
    total, weights = None, None
    for top in starts(height, tile, overlap):
        for left in starts(width, tile, overlap):
            piece = x[..., top : top + tile, left : left + tile]
            out = function(piece)
            if total is None:
                total = out.new_zeros(out.shape[0], out.shape[1], round(height * scale), round(width * scale))
                weights = out.new_zeros(1, 1, *total.shape[-2:])
            h, w = out.shape[-2:]
            y0, x0 = round(top * scale), round(left * scale)
            rows = ramp(h, round(overlap * scale), y0 > 0, y0 + h < total.shape[-2], out)
            columns = ramp(w, round(overlap * scale), x0 > 0, x0 + w < total.shape[-1], out)
            weight = rows[:, None] * columns[None, :]
            total[..., y0 : y0 + h, x0 : x0 + w] += out * weight
            weights[..., y0 : y0 + h, x0 : x0 + w] += weight
    return total / weights


def starts(length: int, tile: int, overlap: int) -> list[int]:
    """Where tiles begin: evenly `tile - overlap` apart, the last flush with the end (both multiples of 8 stay so)."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def ramp(length: int, overlap: int, fade_in: bool, fade_out: bool, like: Tensor) -> Tensor:
    weight = torch.ones(length, device=like.device, dtype=like.dtype)
    slope = torch.arange(1, overlap + 1, device=like.device, dtype=like.dtype) / (overlap + 1)
    if fade_in:
        weight[:overlap] *= slope
    if fade_out:
        weight[-overlap:] *= slope.flip(0)
    return weight

"""Attention in pieces of its queries, for devices where torch has only the form that makes all scores at once.

Its memory grows with the pixels, and not with their square. Nothing but matrix products is asked of a device.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS = 1024  # queries of a piece, at most
SCORES = 2**25  # numbers of a piece's scores, at most: 128 MB in fp32


class Chunked(torch.autograd.Function):
    """`models.ops.attention`, which keeps its inputs, its output and one number a query, and makes the scores again.

    q [B, S, H, d], k and v [B, L, H, d] -> [B, S, H * d]. Computed in fp32 as torch's math form is, fp64 in fp64. zeros and a
    mask exclude each other. Formulas: FlashAttention, arXiv:2205.14135, algorithm 4, without its pieces of keys.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, zeros: int) -> Tensor:
        (keys, values), lse = (heads_first(x) for x in (k, v)), []
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for rows in pieces(q, k):
            scores = scores_of(q, keys, mask, rows)
            most = scores.amax(dim=-1, keepdim=True)
            if zeros:
                most.clamp_(min=0)  # the score of a row of zeros
            total = scores.sub_(most).exp_().sum(dim=-1, keepdim=True)
            if zeros:
                total += zeros * most.neg().exp_()
            out[:, rows] = (scores @ values).div_(total).transpose(1, 2)
            lse.append(most.add_(total.log_()))
        out = out.flatten(2)
        ctx.save_for_backward(q, k, v, out, torch.cat(lse, dim=2))
        ctx.mask = mask
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, lse = ctx.saved_tensors
        keys, values = heads_first(k), heads_first(v)
        dq, dk, dv = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.zeros_like(keys), torch.zeros_like(values)
        g, out, scale = g.unflatten(-1, q.shape[2:]), out.unflatten(-1, q.shape[2:]), q.shape[-1] ** -0.5
        for rows in pieces(q, k):
            own, share = heads_first(g[:, rows]), scores_of(q, keys, ctx.mask, rows).sub_(lse[:, :, rows]).exp_()
            dv += share.transpose(-1, -2) @ own
            mean = (own * heads_first(out[:, rows])).sum(dim=-1, keepdim=True)
            change = (own @ values.transpose(-1, -2)).sub_(mean).mul_(share).mul_(scale)  # of the scores' gradient
            dq[:, rows] = (change @ keys).transpose(1, 2)
            dk += change.transpose(-1, -2) @ heads_first(q[:, rows])
        return dq, dk.transpose(1, 2).to(k.dtype), dv.transpose(1, 2).to(v.dtype), None, None


def pieces(q: Tensor, k: Tensor) -> Iterator[slice]:
    """Yield the queries that are taken at once."""
    batch, queries, heads, _ = q.shape
    rows = max(1, min(ROWS, SCORES // (batch * heads * k.shape[1])))
    return (slice(first, first + rows) for first in range(0, queries, rows))


def heads_first(x: Tensor) -> Tensor:
    """Turn [B, S, H, d] into [B, H, S, d], as precise as scores are to be."""
    return x.transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32))


def scores_of(q: Tensor, keys: Tensor, mask: Tensor | None, rows: slice) -> Tensor:
    """Return the scores of some queries, [B, H, rows, L]; -inf where they may not look."""
    scores = (heads_first(q[:, rows]) * q.shape[-1] ** -0.5) @ keys.transpose(-1, -2)
    if mask is None:
        return scores
    return scores.masked_fill_(~(mask if mask.shape[-2] == 1 else mask[..., rows, :]), float("-inf"))

"""The fast form of an adapted linear: base product and correction as one autograd function, for LoRA and for LoKr.

Saved for backward is the input x and nothing else: inner values are made again, the base layer is asked for its weight, and
factors stay where they are. Backward is small products throughout: no gradient of the base weight's size is ever formed. The
slow form, and the reference, is each type's own `forward`.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Fused(NamedTuple):
    """What a fused layer computes with, beside x and the trained factors.

    values: the factors in x's dtype. into: what the gradient of each is added to; None where autograd is to take it.
    """

    base: nn.Linear
    values: tuple[Tensor, ...]
    scale: float
    into: tuple[Tensor | None, ...]


class LoRAFunction(Function):
    """y = x Wᵀ + s (x downᵀ) upᵀ. x [..., in], down [r, in], up [out, r]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, fused: Fused) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.fused = (down, up), fused
        a, b = fused.values
        rows = flat_rows(x)
        y = F.linear(rows, fused.base.weight, fused.base.bias)
        y.addmm_(rows @ a.t(), b.t(), alpha=fused.scale)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute, with p = g up: dx = g W + s p down, d down = s pᵀ x, d up = s gᵀ (x downᵀ)."""
        base, (a, b), scale, (into_down, into_up) = ctx.fused
        down, up = ctx.factors
        needs_x, needs_down, needs_up, _ = ctx.needs_input_grad
        (x,) = ctx.saved_tensors
        rows, g = flat_rows(x), flat_rows(g)
        p = g @ b
        dx = d_down = d_up = None
        if needs_down:
            d_down = deliver(p.t(), rows, scale, down, into_down)
        if needs_up:
            d_up = deliver(g.t(), rows @ a.t(), scale, up, into_up)
        shape = x.shape
        del x, rows  # where it was made again it is needed no more
        if needs_x:
            dx = (g @ base.weight).addmm_(p, a, alpha=scale).view(shape)
        return dx, d_down, d_up, None


class LoKrFunction(Function):
    """y = x (W + s kron(w1, up down))ᵀ. x [..., m * n], w1 [l, m], up [k, r], down [r, n].

    values: also up down, which is made of all layers at once. y and dx are as in `WholeLoKrFunction`; the factors' gradients go
    through r inner values for each piece of a row, so that nothing on the way is as wide as x or y.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, up: Tensor, down: Tensor, fused: Fused) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.fused = (w1, up, down), fused
        return F.linear(x, merged(fused), fused.base.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute, with h = down xᵀ, p = upᵀ gᵀ of each row's pieces: d w1 = s p hᵀ, d up = s gᵀ (w1 h)ᵀ, d down = s w1ᵀ p x.

        h [r, N * m] and p [r, N * l] have the inner values first: w1 mixes the pieces of all rows in one plain product, and its
        own gradient is one.
        """
        _, (one, a, b, _), scale, (into_w1, into_up, into_down) = ctx.fused
        w1, up, down = ctx.factors
        needs_x, needs_w1, needs_up, needs_down, _ = ctx.needs_input_grad
        (x,) = ctx.saved_tensors
        x_pieces, g_pieces = pieces(flat_rows(x), one.shape[1]), pieces(flat_rows(g), len(one))
        h, p = (b @ x_pieces.t()).view(-1, one.shape[1]), (a.t() @ g_pieces.t()).view(-1, len(one))
        dx = d_w1 = d_up = d_down = None
        if needs_w1:
            d_w1 = deliver(p.t(), h, scale, w1, into_w1)
        if needs_up:
            d_up = deliver(g_pieces.t(), (h @ one.t()).view(len(b), -1).t(), scale, up, into_up)
        if needs_down:
            d_down = deliver((p @ one).view(len(b), -1), x_pieces, scale, down, into_down)
        shape = x.shape
        del x, x_pieces  # where it was made again it is needed no more
        if needs_x:
            dx = (flat_rows(g) @ merged(ctx.fused)).view(shape)
        return dx, d_w1, d_up, d_down, None


class WholeLoKrFunction(Function):
    """y = x (W + s kron(w1, w2))ᵀ. x [..., m * n], w1 [l, m], w2 [k, n].

    The sum is made where it is used, for y and again for dx, and dropped: one pass over W each, instead of products of
    1 / factor of the base's FLOPs and several passes over x and y. In bf16 it rounds corrections below W's own steps away,
    and adding them to y in bf16 does the same at y's: for W of 0.02, corrections of 1e-5 arrive by 40 % and by 29 %, of 1e-4
    by 98 % and 99 %, with equal errors of y (0.17 % to 0.23 %). The factors' gradients know nothing of either.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, w1: Tensor, w2: Tensor, fused: Fused) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.fused = (w1, w2), fused
        return F.linear(x, merged(fused), fused.base.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute dx = g (W + s kron(w1, w2)), d w2 = s gᵀ (w1 x), d w1 = s (g w2) xᵀ, the last two in pieces of each row."""
        _, (one, two), scale, (into_w1, into_w2) = ctx.fused
        w1, w2 = ctx.factors
        needs_x, needs_w1, needs_w2, _ = ctx.needs_input_grad
        (x,) = ctx.saved_tensors
        x_pieces, g_pieces = pieces(flat_rows(x), one.shape[1]), pieces(flat_rows(g), len(one))
        dx = d_w1 = d_w2 = None
        if needs_w1:
            d_w1 = deliver_sum(row_products(g_pieces @ two, x_pieces, one), scale, w1, into_w1)
        if needs_w2:
            d_w2 = deliver(g_pieces.t(), mix(one, x_pieces), scale, w2, into_w2)
        shape = x.shape
        del x, x_pieces  # where it was made again it is needed no more
        if needs_x:
            dx = (flat_rows(g) @ merged(ctx.fused)).view(shape)
        return dx, d_w1, d_w2, None


def merged(fused: Fused) -> Tensor:
    """Compute W + s kron(w1, w2) in one pass."""
    w1, w2, weight = fused.values[0], fused.values[-1], fused.base.weight
    blocks = weight.view(len(w1), len(w2), w1.shape[1], w2.shape[1])
    return torch.addcmul(blocks, w1[:, None, :, None], w2[None, :, None], value=fused.scale).view_as(weight)


def flat_rows(x: Tensor) -> Tensor:
    """View [..., D] as [N, D]; copies what has no such view."""
    return x.reshape(-1, x.shape[-1])


def pieces(rows: Tensor, count: int) -> Tensor:
    """View rows [N, count * n] as [N * count, n]; copies what is not contiguous."""
    return rows.reshape(len(rows) * count, -1)


def mix(w1: Tensor, x: Tensor) -> Tensor:
    """Apply w1 [l, m] to the m pieces of each row: [N * m, n] -> [N * l, n]."""
    rows = x.view(-1, w1.shape[1], x.shape[1])
    return (w1.expand(len(rows), -1, -1) @ rows).flatten(0, 1)


def row_products(p: Tensor, h: Tensor, w1: Tensor) -> Tensor:
    """Compute p hᵀ of each row: p [N * l, n], h [N * m, n] -> [N, l, m], of w1 [l, m]."""
    l, m = w1.shape  # noqa: E741, the formula's
    return p.view(-1, l, p.shape[1]) @ h.view(-1, m, h.shape[1]).mT


def product(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """Compute s left right with the scale in the GEMM: fp16 meets no value on the way that the result would not be."""
    return torch.addmm(left.new_empty(()), left, right, beta=0, alpha=scale)


def deliver(left: Tensor, right: Tensor, scale: float, factor: Tensor, into: Tensor | None) -> Tensor | None:
    """Add s left right to `into`, or return it as the gradient of a factor."""
    if into is None:
        return product(left, right, scale).to(factor.dtype)
    if into.dtype == factor.dtype:
        into.add_(product(left, right, scale))
    else:
        into.addmm_(left, right, alpha=scale)  # it was zero: a product alone is rounded no further
    return None


def deliver_sum(gradients: Tensor, scale: float, factor: Tensor, into: Tensor | None) -> Tensor | None:
    """Add s times the sum of all rows' gradients to `into`, or return it as the gradient of a factor."""
    total = gradients.sum(0, dtype=torch.float32)
    if into is None:
        return total.to(factor.dtype).mul_(scale)
    into.add_(total, alpha=scale)
    return None

"""The fast form of an adapted linear: base product and correction as one autograd function, for each type of adapter.

Saved for backward is the input x and nothing else: inner values are made again, the base layer is asked for its weight, and
factors stay where they are. Backward is small products throughout: no gradient of the base weight's size is ever formed, but
for parts of one where a LoHa's rank is so high that this is cheaper. The slow form, and the reference, is each type's own
`forward`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Fused(NamedTuple):
    """What a fused layer computes with, beside x and the trained factors.

    make: gives the factors in x's dtype, forward and again backward. into: what the gradient of each is added to; None where
    autograd is to take it. mask: of the inner values of each picture, [B, r], where not all count.
    """

    base: nn.Linear
    make: Callable[[], tuple[Tensor, ...]]
    scale: float
    into: tuple[Tensor | None, ...]
    mask: Tensor | None = None


class LoRAFunction(Function):
    """y = x Wᵀ + s (m ∘ x downᵀ) upᵀ. x [..., in], down [r, in], up [out, r], m a mask of each picture's r inner values."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, down: Tensor, up: Tensor, fused: Fused) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.fused = (down, up), fused
        a, b = fused.make()
        rows = flat_rows(x)
        y = F.linear(rows, fused.base.weight, fused.base.bias)
        y.addmm_(masked_(rows @ a.t(), fused.mask), b.t(), alpha=fused.scale)
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute, with p = m ∘ g up: dx = g W + s p down, d down = s pᵀ x, d up = s gᵀ (m ∘ x downᵀ)."""
        base, make, scale, (into_down, into_up), mask = ctx.fused
        (down, up), (a, b) = ctx.factors, make()
        needs_x, needs_down, needs_up, _ = ctx.needs_input_grad
        (x,) = ctx.saved_tensors
        rows, g = flat_rows(x), flat_rows(g)
        p = masked_(g @ b, mask)
        dx = d_down = d_up = None
        if needs_down:
            d_down = deliver(p.t(), rows, scale, down, into_down)
        if needs_up:
            d_up = deliver(g.t(), masked_(rows @ a.t(), mask), scale, up, into_up)
        shape = x.shape
        del x, rows  # where it was made again it is needed no more
        if needs_x:
            dx = (g @ base.weight).addmm_(p, a, alpha=scale).view(shape)
        return dx, d_down, d_up, None


class LoKrFunction(Function):
    """y = x (W + s kron(w1, up down))ᵀ. x [..., m * n], w1 [l, m], up [k, r], down [r, n].

    make: gives also up down, which is made of all layers at once. y and dx are as in `WholeLoKrFunction`; the factors'
    gradients go through r inner values for each piece of a row, so that nothing on the way is as wide as x or y.
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
        _, make, scale, (into_w1, into_up, into_down), _ = ctx.fused
        (w1, up, down), (one, a, b, _) = ctx.factors, make()
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
        _, make, scale, (into_w1, into_w2), _ = ctx.fused
        (w1, w2), (one, two) = ctx.factors, make()
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


class LoHaFunction(Function):
    """y = x (W + s (a1 b1) ∘ (a2 b2))ᵀ. x [..., in], a1, a2 [out, r], b1, b2 [r, in].

    The product of two products is one, of r² inner values: (a1 b1) ∘ (a2 b2) = a b, where row o of a [out, r²] holds all
    a1[o, i] a2[o, j], and column n of b [r², in] all b1[i, n] b2[j, n]. So the sum with W is one product into W, made where it
    is used and dropped, and the factors' gradients are a LoRA's of rank r², contracted: 4 r² (in + out) FLOPs a row. By the
    gradient of the whole weight they are 2 in out, see `WholeLoHaFunction`.
    make: gives the factors as they are trained: their products round less than those of rounded ones.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, fused: Fused) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.fused = (a1, b1, a2, b2), fused
        return F.linear(x, with_hadamard(fused.base.weight, fused.make(), fused.scale), fused.base.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute dx = g (W + s a b), d b = s (g a)ᵀ x, d a = s gᵀ (x bᵀ); of each pair its two factors' share."""
        base, make, scale, into, _ = ctx.fused
        values = make()
        a1, b1, a2, b2 = values
        needs_x, *needs, _ = ctx.needs_input_grad
        (x,) = ctx.saved_tensors
        rows, g, shape, rank = flat_rows(x), flat_rows(g), x.shape, len(b1)
        a, b = all_pairs(a1, a2, x.dtype, 1), all_pairs(b1, b2, x.dtype, 0)
        found: list[Tensor | None] = [None] * 4
        if needs[1] or needs[3]:
            d_b = product((g @ a).t(), rows, scale).view(rank, rank, -1)
            found[1], found[3] = (d_b * b2).sum(1), (d_b * b1[:, None]).sum(0)
        if needs[0] or needs[2]:
            d_a = product(g.t(), rows @ b.t(), scale).view(-1, rank, rank)
            found[0], found[2] = (d_a * a2[:, None]).sum(2), (d_a * a1[:, :, None]).sum(1)
        del x, rows  # where it was made again it is needed no more
        dx = (g @ with_hadamard(base.weight, values, scale)).view(shape) if needs_x else None
        return dx, *deliver_all(found, needs, ctx.factors, into), None


class WholeLoHaFunction(Function):
    """The same, for ranks whose square is large: the factors' gradients from that of the whole weight, a part of it at a time.

    A part is some rows of it, `PART`: beside the sum with W nothing of its size is there at a time. 2 in out FLOPs a row, and
    12 r in out once. make: gives the factors in x's dtype.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, fused: Fused) -> Tensor:
        ctx.save_for_backward(x)
        ctx.factors, ctx.fused = (a1, b1, a2, b2), fused
        return F.linear(x, with_hadamard_in_parts(fused.base.weight, fused.make(), fused.scale), fused.base.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute dx = g (W + D), and with G = s gᵀ x, P = G ∘ a2 b2: d a1 = P b1ᵀ, d b1 = a1ᵀ P, and so the other two."""
        base, make, scale, into, _ = ctx.fused
        values = make()
        needs_x, *needs, _ = ctx.needs_input_grad
        (x,) = ctx.saved_tensors
        rows, g, shape = flat_rows(x), flat_rows(g), x.shape
        dx = (g @ with_hadamard_in_parts(base.weight, values, scale)).view(shape) if needs_x else None
        found = [torch.zeros_like(factor, dtype=torch.float32) for factor in ctx.factors if any(needs)]
        for part in parts(g.shape[1]) if found else ():
            add_part_gradients(found, values, product(g[:, part].t(), rows, scale), part)
        return dx, *deliver_all(found, needs, ctx.factors, into), None


PART = 2048  # rows of a weight: 8 MB in bf16 of a layer of 2048 inputs, and few launches


def parts(rows: int) -> list[slice]:
    return [slice(start, min(start + PART, rows)) for start in range(0, rows, PART)]


def add_part_gradients(found: list[Tensor], values: tuple[Tensor, ...], gradient: Tensor, part: slice) -> None:
    """Add what some rows of the weight's gradient, [part, in], say of the factors' gradients, fp32."""
    a1, b1, a2, b2 = values
    for own, other, (d_a, d_b) in (((a1, b1), (a2, b2), found[:2]), ((a2, b2), (a1, b1), found[2:])):
        through = (other[0][part] @ other[1]).mul_(gradient)
        d_a[part] = through @ own[1].t()
        d_b += own[0][part].t() @ through


def all_pairs(left: Tensor, right: Tensor, dtype: torch.dtype, dim: int) -> Tensor:
    """Return the products of all pairs of slices along a dimension, [.., r, ..] twice -> [.., r², ..], in a dtype."""
    first, second = left.unsqueeze(dim + 1), right.unsqueeze(dim)
    shape = torch.broadcast_shapes(first.shape, second.shape)
    return torch.mul(first, second, out=left.new_empty(shape, dtype=dtype)).flatten(dim, dim + 1)


def with_hadamard(weight: Tensor, factors: tuple[Tensor, ...], scale: float) -> Tensor:
    """Compute W + s (a1 b1) ∘ (a2 b2), as one product of r² inner values. factors: a1, b1, a2, b2, of any dtype."""
    a1, b1, a2, b2 = factors
    return torch.addmm(weight, all_pairs(a1, a2, weight.dtype, 1), all_pairs(b1, b2, weight.dtype, 0), alpha=scale)


def with_hadamard_in_parts(weight: Tensor, factors: tuple[Tensor, ...], scale: float) -> Tensor:
    """Compute the same, as two products a part of the rows. factors: in W's dtype."""
    (a1, b1, a2, b2), total = factors, torch.empty_like(weight)
    for part in parts(len(weight)):
        torch.addcmul(weight[part], a1[part] @ b1, a2[part] @ b2, value=scale, out=total[part])
    return total


def merged(fused: Fused) -> Tensor:
    values = fused.make()
    return with_kron(fused.base.weight, values[0], values[-1], fused.scale)


def with_kron(weight: Tensor, w1: Tensor, w2: Tensor, scale: float) -> Tensor:
    """Compute W + s kron(w1, w2) in one pass. All are of one dtype."""
    blocks = weight.view(len(w1), len(w2), w1.shape[1], w2.shape[1])
    return torch.addcmul(blocks, w1[:, None, :, None], w2[None, :, None], value=scale).view_as(weight)


def flat_rows(x: Tensor) -> Tensor:
    """View [..., D] as [N, D]; copies what has no such view."""
    return x.reshape(-1, x.shape[-1])


def masked_(rows: Tensor, mask: Tensor | None) -> Tensor:
    """Multiply the rows of each picture, [B * n, r], by its mask, [B, r], in place."""
    return rows if mask is None else rows.view(len(mask), -1, rows.shape[-1]).mul_(mask[:, None]).flatten(0, 1)


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


def deliver_as_is(gradient: Tensor, factor: Tensor, into: Tensor | None) -> Tensor | None:
    """Add a gradient to `into`, or return it as that of a factor."""
    if into is None:
        return gradient.to(factor.dtype)
    into.add_(gradient)
    return None


def deliver_all(
    gradients: Sequence[Tensor | None], needs: Sequence[bool], factors: Sequence[Tensor], into: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Deliver the gradients of some factors that are needed. gradients: of all, or none."""
    every = zip(gradients or [None] * len(factors), needs, factors, into)
    return [deliver_as_is(found, factor, to) if need and found is not None else None for found, need, factor, to in every]

"""Attention without the zero rows at the end of the text: exact, by what they add to the sum of the softmax.

The projections have no biases, so a row of zeros has key 0 and value 0: its score is 0 for every query, and n of them add n to
the denominator and nothing else. With lse the logarithm of the denominator of the rows that are there,
    lse' = log(exp(lse) + n),  out' = out exp(lse - lse'),
and the kernels' own backward pass, given out' and lse', has the right gradients: it makes the probabilities from lse'.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

aten = torch.ops.aten
Gradients = tuple[Tensor, Tensor, Tensor]


class Kernels(NamedTuple):
    """One backend's passes over q, k, v [B, H, S, d].

    forward: (q, k, v) -> output, lse, and what else the backward pass takes. lse: [B, H, S], longer where a kernel fills it
    up, or [B, H, S, 1]. backward: (gradient, q, k, v, output, lse, that) -> gradients of q, k, v.
    """

    forward: Callable[..., tuple[Tensor, Tensor, Any]]
    backward: Callable[..., Gradients]


def cpu(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Any]:
    out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse, None


def cpu_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rest: None) -> Gradients:
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(g, q, k, v, out, lse, 0.0, False)


def flash(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Any]:
    out, lse, *rest = aten._scaled_dot_product_flash_attention(q, k, v)
    return out, lse, rest[:6]


def flash_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rest: Any) -> Gradients:
    *lengths, seed, offset = rest
    return aten._scaled_dot_product_flash_attention_backward(g, q, k, v, out, lse, *lengths, 0.0, False, seed, offset)


def efficient(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Any]:
    out, lse, *rest = aten._scaled_dot_product_efficient_attention(q, k, v, None, True)
    return out, lse, rest


def efficient_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rest: Any) -> Gradients:
    wanted = [True, True, True, False]  # of q, k, v and not of a bias
    found = aten._scaled_dot_product_efficient_attention_backward(g, q, k, v, None, out, lse, *rest, 0.0, wanted)
    return found[:3]


def cudnn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Any]:
    out, lse, *rest = aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)
    return out, lse, rest[:6]


def cudnn_backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, rest: Any) -> Gradients:
    *lengths, seed, offset = rest
    backward = aten._scaled_dot_product_cudnn_attention_backward
    return backward(g, q, k, v, out, lse, seed, offset, None, *lengths, 0.0, False)


# By the name of what computes attention, and the kind of device: what torch picks itself is known on the CPU alone.
KERNELS = {
    ("sdpa", "cpu"): Kernels(cpu, cpu_backward),
    ("flash", "cpu"): Kernels(cpu, cpu_backward),
    ("flash", "cuda"): Kernels(flash, flash_backward),
    ("efficient", "cuda"): Kernels(efficient, efficient_backward),
    ("cudnn", "cuda"): Kernels(cudnn, cudnn_backward),
}


class Trimmed(torch.autograd.Function):
    """`models.ops.attention` with further rows of zeros and no mask, in which these are not computed.

    q [B, S, H, d], k and v [B, L, H, d], zeros >= 1 -> [B, S, H * d].
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, zeros: int, kernels: Kernels) -> Tensor:
        out, lse, ctx.rest = kernels.forward(*(x.transpose(1, 2) for x in (q, k, v)))
        whole = torch.logaddexp(lse, torch.full_like(lse, math.log(zeros)))
        share = (lse - whole).exp_().flatten(2)[..., : q.shape[1], None]  # that the rows which are there have of the sum
        out = out.mul_(share).transpose(1, 2).flatten(2)
        ctx.save_for_backward(q, k, v, out, whole)
        ctx.kernels = kernels
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, whole = ctx.saved_tensors
        g = g if g.stride(-1) == 1 else g.contiguous()  # an expanded one, whose numbers lie in one place
        g, out = (x.unflatten(-1, q.shape[2:]).transpose(1, 2) for x in (g, out))
        found = ctx.kernels.backward(g, *(x.transpose(1, 2) for x in (q, k, v)), out, whole, ctx.rest)
        dq, dk, dv = (x.transpose(1, 2) for x in found)
        return dq, dk, dv, None, None

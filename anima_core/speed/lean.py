"""The functions of a block in fewer passes over memory, with backward passes of their own. Same numbers as `models.ops`.

They save their inputs, and of a norm one number a head: `speed.recompute` makes the rest again where that is worth it.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..models.ops import NORM_EPS, PLAIN, Ops, Rope


def rms(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Normalise x [..., d] by its root mean square, times weight [d]; return it in x's dtype, and 1 / that mean, fp32."""
    square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
    inverse = square.div_(x.shape[-1]).add_(NORM_EPS).rsqrt_()
    return (x * inverse).mul_(weight).to(x.dtype), inverse


def rms_backward(g: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    """Return the gradient of x, fp32, from that of `rms`: r (g w) - x r^3 mean(g w x)."""
    g = g * weight.float()
    mean = (g * x).mean(dim=-1, keepdim=True)
    return g.mul_(inverse).addcmul_(x, mean.mul_(inverse.pow(3)), value=-1)


def rms_fused(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Do what `rms` does in torch's one kernel."""
    return torch.ops.aten._fused_rms_norm(x, list(weight.shape), weight, NORM_EPS)


def rms_fused_backward(g: Tensor, x: Tensor, inverse: Tensor, weight: Tensor) -> Tensor:
    shape = list(weight.shape)
    return torch.ops.aten._fused_rms_norm_backward(g.to(x.dtype), x, shape, inverse, weight, [True, False])[0]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate as `models.ops.apply_rope` does, without the cast: [B, S, H, d] -> fp32."""
    out = torch.empty_like(x, dtype=torch.float32)
    (first, second), (to_first, to_second) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(first, cos, out=to_first).addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=to_second).addcmul_(first, sin)
    return out


class NormRope(torch.autograd.Function):
    """`models.ops.norm_rope`, which saves x and one number a head: [B, S, H, d], [d], two of [S, 1, d/2] or none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        fused = has_fused_norm(x.device)
        y, inverse = rms_fused(x, weight) if fused else rms(x, weight)
        ctx.save_for_backward(x, inverse)
        ctx.weight, ctx.cos, ctx.sin, ctx.fused = weight.detach(), cos, sin, fused
        return y if cos is None or sin is None else rotate(y, cos, sin).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        x, inverse = ctx.saved_tensors
        if ctx.cos is not None:
            g = rotate(g, ctx.cos, -ctx.sin)  # a rotation's transpose is its inverse
        dx = dw = None
        if ctx.needs_input_grad[1]:
            dw = (g * (x * inverse)).sum(dim=tuple(range(x.dim() - 1))).to(ctx.weight.dtype)
        if ctx.needs_input_grad[0]:
            backward = rms_fused_backward if ctx.fused else rms_backward
            dx = backward(g, x, inverse, ctx.weight).to(x.dtype)
        return dx, dw, None, None


def has_fused_norm(device: torch.device) -> bool:
    """Tell whether torch has the norm as one kernel there: CUDA, from 2.9 on. Meta tensors stand for CUDA's."""
    return device.type in ("cuda", "meta") and hasattr(torch.ops.aten, "_fused_rms_norm_backward")


def norm_rope(x: Tensor, weight: Tensor, rope: Rope | None) -> Tensor:
    return NormRope.apply(x, weight, *(rope or (None, None)))


class Gelu(torch.autograd.Function):
    """GELU, whose gradient takes the place of the one it comes from: of the widest tensors of a block there is one less."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if not g.is_contiguous():  # an expanded one, whose numbers lie in one place
            return torch.ops.aten.gelu_backward(g, x)
        return torch.ops.aten.gelu_backward.grad_input(g, x, grad_input=g)


LEAN: Ops = replace(PLAIN, norm_rope=norm_rope, gelu=Gelu.apply)

"""What the transformers compute beside their linear layers: a small record of plain functions, which a faster one may replace.

Each is the slow obvious form; `anima_core.speed.lean` has the fast ones, and the tests that they agree name both.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NORM_EPS = 1e-6  # of every norm of the model
Rope = tuple[Tensor, Tensor]  # cos and sin, see `rope_table`


def rope_table(positions: Tensor, frequencies: Tensor) -> Rope:
    """Return cos and sin of the outer product, fp32: [S] and [d/2] -> two of [S, 1, d/2], ready to meet [B, S, H, d/2]."""
    angles = torch.outer(positions.float(), frequencies.float()).unsqueeze(1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate [B, S, H, d] by half-split pairs (i, i + d/2), in fp32: bf16 rounds angles by a tenth of a radian and more."""
    cos, sin = rope
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)


def norm_rope(x: Tensor, weight: Tensor, rope: Rope | None) -> Tensor:
    """Normalise each head of x [B, S, H, d] by its root mean square, times weight [d], then rotate it if it has positions."""
    x = F.rms_norm(x, weight.shape, weight, NORM_EPS)
    return x if rope is None else apply_rope(x, rope)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply LayerNorm without affine, then modulation: x [B, N, D]; shift, scale [B, 1, D] -> their dtype."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=NORM_EPS), 1 + scale).to(shift.dtype)


def gated_add(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """Compute x + gate y, in x's dtype: x, y [B, N, D]; gate [B, 1, D]."""
    return torch.addcmul(x, gate.to(x.dtype), y.to(x.dtype))


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, zeros: int = 0) -> Tensor:
    """Compute softmax(q kᵀ / sqrt(d)) v.

    q: [B, S, H, d]; k, v: [B, L, H, d], and so many further rows of zeros of both, which are looked at as any other;
    mask: bool, broadcastable to [B, H, S, L + zeros], True where a query may look. Returns [B, S, H * d].
    """
    if zeros:
        k, v = (F.pad(x, (0, 0, 0, 0, 0, zeros)) for x in (k, v))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Ops:
    """The functions of a block, see those of the same names."""

    modulate: Callable[[Tensor, Tensor, Tensor], Tensor] = modulate
    norm_rope: Callable[[Tensor, Tensor, Rope | None], Tensor] = norm_rope
    attention: Callable[[Tensor, Tensor, Tensor, Tensor | None, int], Tensor] = attention
    gelu: Callable[[Tensor], Tensor] = F.gelu
    gated_add: Callable[[Tensor, Tensor, Tensor], Tensor] = gated_add


PLAIN = Ops()

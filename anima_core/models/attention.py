"""The one attention function and the rotary embedding that both transformers share."""

import torch
import torch.nn.functional as F
from torch import Tensor

Rope = tuple[Tensor, Tensor]  # cos and sin, see `rope_table`


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Compute softmax(q kᵀ / sqrt(d)) v.

    q: [B, S, H, d]; k, v: [B, L, H, d]; mask: bool, broadcastable to [B, H, S, L], True where a query may look.
    Returns [B, S, H * d].
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def rope_table(positions: Tensor, frequencies: Tensor) -> Rope:
    """Return cos and sin of the outer product, fp32: [S] and [d/2] -> two of [S, 1, d/2], ready to meet [B, S, H, d/2]."""
    angles = torch.outer(positions.float(), frequencies.float()).unsqueeze(1)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Rotate [B, S, H, d] by half-split pairs (i, i + d/2), in fp32: bf16 rounds angles by a tenth of a radian and more."""
    cos, sin = rope
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)

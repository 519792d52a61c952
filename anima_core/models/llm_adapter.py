"""The LLM adapter: T5 token ids, informed by Qwen hidden states, become the text embeddings of the transformer.

Six blocks of self-attention, cross-attention to Qwen and an MLP; every position sees every other. Sizes and formulas:
docs/model.md §3; ComfyUI's class is the oracle in tests.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .ops import Rope, apply_rope, attention, rope_table

ROPE_THETA = 10000.0
MIN_TEXT_ROWS = 512  # shorter embeddings are zero-padded to this: the base model was trained so, zeros act as attention sinks


@dataclass(frozen=True)
class LLMAdapterConfig:
    """Sizes, all read from the checkpoint. Released: 6 blocks, 1024 wide, 16 heads of 64, 32128 ids, MLP 4096."""

    blocks: int
    width: int
    source_dim: int  # Qwen's hidden size
    target_dim: int  # the transformer's context size
    head_dim: int
    mlp_dim: int
    vocabulary: int


class LLMAdapterAttention(nn.Module):
    def __init__(self, width: int, source_dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(source_dim, width, bias=False)
        self.v_proj = nn.Linear(source_dim, width, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=1e-6)
        self.k_norm = nn.RMSNorm(head_dim, eps=1e-6)

    def forward(self, x: Tensor, source: Tensor, rope_x: Rope, rope_source: Rope, mask: Tensor | None) -> Tensor:
        """Let x [B, T, D] look at source [B, S, C]; mask bool [B, 1, 1, S], True where it may -> [B, T, D]."""
        q, k, v = (p.unflatten(-1, (-1, self.head_dim)) for p in (self.q_proj(x), self.k_proj(source), self.v_proj(source)))
        q = apply_rope(self.q_norm(q), rope_x)
        k = apply_rope(self.k_norm(k), rope_source)
        return self.o_proj(attention(q, k, v, mask))


class LLMAdapterBlock(nn.Module):
    def __init__(self, config: LLMAdapterConfig) -> None:
        super().__init__()
        width = config.width
        self.norm_self_attn = nn.RMSNorm(width, eps=1e-6)
        self.self_attn = LLMAdapterAttention(width, width, config.head_dim)
        self.norm_cross_attn = nn.RMSNorm(width, eps=1e-6)
        self.cross_attn = LLMAdapterAttention(width, config.source_dim, config.head_dim)
        self.norm_mlp = nn.RMSNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, config.mlp_dim), nn.GELU(), nn.Linear(config.mlp_dim, width))

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        rope_x: Rope,
        rope_source: Rope,
        mask_x: Tensor | None,
        mask_source: Tensor | None,
    ) -> Tensor:
        normed = self.norm_self_attn(x)
        x = x + self.self_attn(normed, normed, rope_x, rope_x, mask_x)
        x = x + self.cross_attn(self.norm_cross_attn(x), source, rope_x, rope_source, mask_source)
        return x + self.mlp(self.norm_mlp(x))


class LLMAdapter(nn.Module):
    def __init__(self, config: LLMAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocabulary, config.target_dim)
        same = config.width == config.target_dim
        self.in_proj = nn.Identity() if same else nn.Linear(config.target_dim, config.width)
        self.blocks = nn.ModuleList(LLMAdapterBlock(config) for _ in range(config.blocks))
        self.out_proj = nn.Linear(config.width, config.target_dim)
        self.norm = nn.RMSNorm(config.target_dim, eps=1e-6)

    def forward(self, source: Tensor, ids: Tensor, source_mask: Tensor | None = None, ids_mask: Tensor | None = None) -> Tensor:
        """Map source [B, S, source_dim], ids [B, T] int; masks bool [B, S], [B, T], True for real tokens -> [B, T, target_dim].

        Without masks every token counts. Rows of padding ids come out as zeros.
        """
        x = self.in_proj(self.embed(ids).to(source.dtype))
        rope_x = self._rope(ids.shape[1], ids.device)
        rope_source = self._rope(source.shape[1], ids.device)
        mask_x = None if ids_mask is None else ids_mask[:, None, None, :]
        mask_source = None if source_mask is None else source_mask[:, None, None, :]
        for block in self.blocks:
            x = block(x, source, rope_x, rope_source, mask_x, mask_source)
        out = self.norm(self.out_proj(x))
        return out if ids_mask is None else out * ids_mask.unsqueeze(-1)

    def _rope(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        dim = self.config.head_dim
        exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
        return rope_table(torch.arange(length, device=device), 1.0 / ROPE_THETA**exponents)

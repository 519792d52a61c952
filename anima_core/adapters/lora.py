"""LoRA: y = (alpha / r) * up(down(x))."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import Dropouts, kaiming, keep_mask


class LoRA(nn.Module):
    """Low-rank correction of a Linear(in, out): delta W = (alpha / r) up down, down [r, in], up [out, r] (zero at the start).

    x [..., in] -> [..., out], in x's dtype. `dropout` and `rank_dropout` act on the r inner values, `module_dropout` on all.
    """

    zero_init = "lora_up"

    def __init__(
        self, inputs: int, outputs: int, rank: int, alpha: float, dropouts: Dropouts, layer: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.rank = rank
        self.alpha = alpha or float(rank)
        self.scale = self.alpha / rank
        self.dropouts, self.layer = dropouts, layer
        self.lora_down = nn.Parameter(kaiming((rank, inputs), generator))
        self.lora_up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(x, self.lora_down.to(x.dtype))
        factor: Tensor | float = self.scale
        if self.training and self.dropouts.active:
            factor = self.scale * self._mask(hidden)
        return F.linear(hidden * factor, self.lora_up.to(x.dtype))

    def _mask(self, hidden: Tensor) -> Tensor:
        rates, generator = self.dropouts, self.dropouts.generator(self.layer, hidden.device)
        module = (torch.rand((), generator=generator, device=hidden.device) >= rates.module_dropout).to(hidden.dtype)
        ranks = keep_mask((self.rank,), rates.rank_dropout, generator, hidden)
        if rates.dropout == 0:
            return module * ranks
        return module * ranks * keep_mask(tuple(hidden.shape), rates.dropout, generator, hidden)

    def delta_weight(self) -> Tensor:
        """[out, in], fp32: what merging adds to the base weight."""
        return self.scale * self.lora_up @ self.lora_down

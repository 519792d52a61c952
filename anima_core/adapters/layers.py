"""What LoRA and LoKr share: the linear layer with an adapter beside it, initialisation, and dropout that can be repeated."""

import hashlib
import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Dropouts:
    """Dropout masks that depend only on (seed, draw, layer), so that recomputing a block draws the same ones."""

    def __init__(self, seed: int, dropout: float, rank_dropout: float, module_dropout: float) -> None:
        self.seed = seed
        self.draw = 0
        self.dropout, self.rank_dropout, self.module_dropout = dropout, rank_dropout, module_dropout

    @property
    def active(self) -> bool:
        return max(self.dropout, self.rank_dropout, self.module_dropout) > 0

    def generator(self, layer: int, device: torch.device) -> torch.Generator:
        text = f"{self.seed}/dropout/{self.draw}/{layer}".encode()
        seed = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1
        return torch.Generator(device).manual_seed(seed)


def keep_mask(shape: tuple[int, ...], rate: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """0 with probability `rate`, else 1 / (1 - rate), so that the mean stays."""
    keep = torch.rand(shape, generator=generator, device=like.device) >= rate
    return keep.to(like.dtype) / (1 - rate)


def kaiming(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """kaiming_uniform with a = sqrt 5, torch's and LyCORIS' default for adapters: U(-b, b), b = 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def init_generator(seed: int, name: str) -> torch.Generator:
    """Seeded by layer name: neither device nor the order of layers changes the start."""
    digest = hashlib.sha256(f"{seed}/init/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Adapter(Protocol):
    """A correction of one linear layer. Parameters are fp32, whatever the base model's dtype."""

    rank: int
    alpha: float
    zero_init: str  # name of the parameter that starts at zero

    def __call__(self, x: Tensor) -> Tensor: ...
    def delta_weight(self) -> Tensor: ...


class AdaptedLinear(nn.Module):
    """y = base(x) + multiplier * adapter(x). The base layer is kept as it is, and only called."""

    def __init__(self, base: nn.Linear, adapter: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.multiplier = 1.0

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        if self.multiplier == 0:
            return y
        correction = self.adapter(x)
        return y + (correction if self.multiplier == 1 else correction * self.multiplier)


class AdaptedNorm(nn.Module):
    """RMSNorm with a trained difference on its weight, fp32, zero at the start."""

    def __init__(self, base: nn.RMSNorm) -> None:
        super().__init__()
        self.base = base
        self.w_norm = nn.Parameter(torch.zeros_like(base.weight, dtype=torch.float32))
        self.multiplier = 1.0

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.base.weight.float() + self.multiplier * self.w_norm).to(x.dtype)
        return F.rms_norm(x, self.base.normalized_shape, weight, self.base.eps)

"""What the types of adapters share: initial values, and dropout that can be repeated."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .. import seeds
from ..settings import NetworkConfig


class Part(NamedTuple):
    """Some pictures of a micro-batch that is taken in parts, and how many there are in all."""

    rows: slice
    pictures: int


class Dropouts:
    """Dropout masks that depend only on (seed, micro-batch, layer), so that recomputing a block draws the same ones.

    part: of the micro-batch, where not all of it is at work; its masks are those that it has in the whole.
    """

    def __init__(self, seed: int, dropout: float, rank_dropout: float, module_dropout: float) -> None:
        self.seed = seed
        self.micro_batch = 0
        self.part: Part | None = None
        self.dropout, self.rank_dropout, self.module_dropout = dropout, rank_dropout, module_dropout

    @classmethod
    def of(cls, config: NetworkConfig, seed: int) -> "Dropouts":
        return cls(seed, config.dropout, config.rank_dropout, config.module_dropout)

    @property
    def active(self) -> bool:
        return max(self.dropout, self.rank_dropout, self.module_dropout) > 0

    def generator(self, layer: int, device: torch.device) -> torch.Generator:
        return seeds.generator(self.seed, "dropout", self.micro_batch, layer, device=device)

    def mask(self, shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
        """Draw the mask of `dropout` for values of a shape, pictures first."""
        if self.part is None:
            return keep_mask(shape, self.dropout, generator, like)
        return keep_mask((self.part.pictures, *shape[1:]), self.dropout, generator, like)[self.part.rows]


def keep_mask(shape: tuple[int, ...], rate: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return 0 with probability `rate`, else 1 / (1 - rate), so that the mean stays."""
    keep = torch.rand(shape, generator=generator, device=like.device) >= rate
    return keep.to(like.dtype) / (1 - rate)


def kaiming(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw kaiming_uniform with a = sqrt 5, torch's and LyCORIS' default for adapters: U(-b, b), b = 1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)

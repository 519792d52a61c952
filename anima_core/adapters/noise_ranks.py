"""T-LoRA: how many of a LoRA's ranks are trained, by the noise of each picture."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..settings import NetworkConfig
from ..tensors import to_device


class NoiseRanks:
    """Masks that leave a picture at noise t the first r(t) ranks: few where all is noise, all where there is none.

    r(t) = floor(r_min + (R - r_min) p^a), p = 1 - t or, of the schedule "cosine", (1 - cos(pi (1 - t))) / 2. Linear p is the
    paper's (T-LoRA, arXiv 2507.05964), the exponent anima_lora's and LyCORIS', cosine lora-scripts-next's. What is left is not
    scaled up by R / r(t), as only the last of these does: the file is a plain LoRA, and is applied with all ranks at alpha / R.
    """

    def __init__(self, config: NetworkConfig) -> None:
        self.least, self.power, self.cosine = config.tlora_min_rank, config.tlora_alpha, config.tlora_schedule == "cosine"
        self._t: Tensor | None = None
        self._masks: dict[tuple[int, torch.dtype], Tensor] = {}

    @contextmanager
    def of_pictures(self, t: Tensor | None) -> Iterator[None]:
        """Follow the noise of a micro-batch's pictures inside, t [B] in 0..1. Without it, and outside, all ranks count."""
        self._t, self._masks = t, {}
        try:
            yield
        finally:
            self._t, self._masks = None, {}

    def of(self, rank: int, t: Tensor) -> Tensor:
        """Return r(t), [B]. A layer of no more than the least ranks trains all."""
        rest = 1 - t.double()
        progress = (1 - torch.cos(math.pi * rest)) / 2 if self.cosine else rest
        least = min(self.least, rank)
        return (least + (rank - least) * progress.pow(self.power)).floor()

    def mask(self, rank: int, like: Tensor) -> Tensor | None:
        """Return 1 for the ranks that are trained, [B, rank], for values [B, ...] of the pictures; None where all are."""
        if self._t is None or rank <= self.least:
            return None
        assert like.shape[0] == len(self._t), "a layer whose values are not one entry a picture"
        key = rank, like.dtype
        if key not in self._masks:  # made where t is drawn, so that no device rounds r(t) otherwise
            mask = torch.arange(rank, device=self._t.device) < self.of(rank, self._t)[:, None]
            self._masks[key] = to_device(mask.to(like.dtype), like.device)
        return self._masks[key]

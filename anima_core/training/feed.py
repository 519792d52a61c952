"""Micro-batches, made ahead of time by one background thread: read caches, choose captions, draw t and noise.

Every random number depends only on (seed, micro-batch number), so prefetching, previews and resuming change nothing.
"""

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .. import seeds
from ..models.transformer import PATCH
from ..settings import TrainConfig
from . import flow
from .prepare import TrainingData
from .ranks import Ranks

BATCHES_AHEAD = 2  # ready while one trains


@dataclass(frozen=True)
class Batch:
    """One micro-batch of pictures of one size. All tensors fp32."""

    number: int  # among all micro-batches of the run
    latents: Tensor  # [B, 16, h, w], normalised
    noise: Tensor  # [B, 16, h, w]
    input_noise: Tensor | None  # [B, 16, h, w], what the model's input is mixed with where that is not `noise`
    t: Tensor  # [B]
    mask: Tensor | None  # [B, 1, h, w], weighs the loss
    weight: Tensor  # [B]
    text: list[dict[str, Tensor]]
    names: list[str]
    next_position: dict[str, int]  # of the data, after this round of all processes

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in moved.items()})


class Feed:
    """Iterate for endless batches, starting with micro-batch `first`. A context manager: leaving it ends the thread.

    device: where the batches will go. A failure in the thread is raised by the iteration.
    """

    def __init__(self, data: TrainingData, config: TrainConfig, device: torch.device, first: int, ranks: Ranks) -> None:
        self._data, self._config, self._device, self._ranks = data, config, device, ranks
        self._number = first  # of the next round: each process takes one of its micro-batches
        self._queue: queue.Queue[Any] = queue.Queue(BATCHES_AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="anima-feed", daemon=True)

    def __enter__(self) -> "Feed":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = self._queue.get()
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def _work(self) -> None:
        try:
            while not self._closed.is_set():
                self._put(self._make())
        except BaseException as error:  # handed to the loop, which raises it
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _make(self) -> Batch:
        data, flow_config = self._data, self._config.flow
        draws = [next(data.batches) for _ in range(self._ranks.world)][self._ranks.rank]
        number = self._number + self._ranks.rank
        latents = torch.stack([data.latents.latents(draw) for draw in draws])
        masks = [data.latents.mask(draw) for draw in draws]
        generator = seeds.generator(self._config.seed, "noise", number)
        tokens = latents.shape[2] * latents.shape[3] // PATCH**2
        t = flow.sample_timesteps(len(draws), flow_config, generator, tokens=tokens)
        noise = flow.noise_like(latents, generator, flow_config.noise_offset)
        gamma, own = flow_config.ip_noise_gamma, seeds.generator(self._config.seed, "input noise", number)
        self._number += self._ranks.world
        batch = Batch(
            number=number,
            latents=latents,
            noise=noise,
            input_noise=flow.input_noise(noise, own, gamma) if gamma else None,
            t=t,
            mask=stack_masks(masks, latents),
            weight=torch.tensor([draw.item.picture.subset.loss_weight for draw in draws]),
            text=data.embeddings.fetch([data.caption(draw) for draw in draws]),
            names=[draw.item.picture.name for draw in draws],
            next_position=data.batches.state_dict(),
        )
        return pin(batch) if self._device.type == "cuda" else batch


def stack_masks(masks: list[Tensor | None], latents: Tensor) -> Tensor | None:
    """Stack the masks of a batch; pictures without one count everywhere. None when no picture has one."""
    if all(mask is None for mask in masks):
        return None
    ones = torch.ones(1, *latents.shape[2:])
    return torch.stack([ones if mask is None else mask for mask in masks])


def pin(batch: Batch) -> Batch:
    """Move a batch to page-locked memory, so that the copy to the device does not wait."""
    pinned = {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), Tensor)}
    return replace(batch, **{name: tensor.pin_memory() for name, tensor in pinned.items()})

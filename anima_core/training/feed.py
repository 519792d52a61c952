"""Micro-batches, made ahead of time by one background thread: read caches, choose captions, draw t and noise.

Every random number depends only on (seed, micro-batch number), so prefetching, previews and resuming change nothing.
"""

import math
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from .. import seeds
from ..adapters.dropouts import Part
from ..data.batches import Draw
from ..data.class_captions import class_caption
from ..errors import RunError, is_out_of_memory
from ..settings import SubsetConfig
from ..tensors import to_device
from . import flow
from .budget import TOKEN
from .device import current
from .preflight import Plan
from .prepare import TrainingData
from .ranks import Ranks

BATCHES_AHEAD = 2  # ready while one trains


@dataclass(frozen=True)
class Batch:
    """One micro-batch of pictures of one size, or one part of it. All tensors fp32, but the text."""

    number: int  # among all micro-batches of the run
    latents: Tensor  # [B, 16, h, w], normalised
    noise: Tensor  # [B, 16, h, w]
    input_noise: Tensor | None  # [B, 16, h, w], what the model's input is mixed with where that is not `noise`
    t: Tensor  # [B]
    mask: Tensor | None  # [B, 1, h, w], weighs the loss
    weight: Tensor  # [B]
    text: dict[str, Tensor]  # see `TextEmbeddings.fetch`
    names: list[str]
    divisor: float  # of its loss: how many micro-batches of its step each process has, on average; infinite: it counts not
    step_batches: int  # micro-batches of its step, of all processes together
    ends_step: bool  # the last one of its step in this process
    next_position: dict[str, int]  # of the data, after the step
    part: Part | None = None  # which of a whole micro-batch it is
    class_text: dict[str, Tensor] = field(default_factory=dict)  # of the class captions, as `text`, where there are any
    class_weight: Tensor | None = None  # [B], 1 for pictures that have one, else 0
    base: Tensor | None = None  # [B, 16, h, w], the base model's velocity, which is kept outside of the mask, see `prior`
    target: Tensor | None = None  # [B, 16, h, w], the velocity that is asked for where that is not eps - x0

    @property
    def noisy(self) -> Tensor:
        """What the model sees, x_t."""
        return flow.interpolate(self.latents, self.noise if self.input_noise is None else self.input_noise, self.t)

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda tensor: to_device(tensor, device))

    def pinned(self) -> "Batch":
        """Return it in page-locked memory, so that the copy to the device does not wait."""
        return self._each(Tensor.pin_memory)

    def split(self, count: int) -> list["Batch"]:
        """Return it in at most so many parts, the losses of which add up to its own."""
        pictures = len(self.latents)
        size = math.ceil(pictures / count)
        return [self] if count == 1 else [self._rows(slice(i, min(i + size, pictures))) for i in range(0, pictures, size)]

    def _rows(self, rows: slice) -> "Batch":
        part, whole = self._each(lambda tensor: tensor[rows]), self.part or Part(slice(0, None), len(self.latents))
        share, start = len(part.latents) / len(self.latents), whole.rows.start
        own = Part(slice(start + rows.start, start + rows.stop), whole.pictures)
        return replace(part, names=self.names[rows], divisor=self.divisor / share, part=own)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        for text in ("text", "class_text"):
            changed[text] = {name: change(tensor) for name, tensor in values[text].items()}
        return replace(self, **changed)


class Feed:
    """Iterate for the batches of so many steps, starting with micro-batch `first`. Leaving the context ends the thread.

    Not one batch more is made: captions of an epoch that the run does not reach are cached nowhere. A failure in the thread is
    raised by the iteration.
    """

    def __init__(self, data: TrainingData, plan: Plan, first: int, steps: int, ranks: Ranks) -> None:
        self._data, self._plan, self._ranks = data, plan, ranks
        self._number = first  # of the first micro-batch of the next step
        self._steps = steps
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
        if isinstance(batch, RuntimeError) and is_out_of_memory(batch):  # the thread has ended: no second try
            way_out = "set `train.caption_variants` above 0, so that Qwen leaves the device"
            said = str(batch).partition("\n")[0][:120]
            raise RunError(f"out of memory while a batch was made ({said}); {way_out}")
        if isinstance(batch, BaseException):
            raise batch
        return batch

    def _work(self) -> None:
        try:
            with current(self._plan.device):
                for _ in range(self._steps):
                    for batch in self._make_step():
                        self._put(batch)
                    if self._closed.is_set():
                        return
        except BaseException as error:  # handed to the loop, which raises it
            self._put(error)

    def _put(self, item: Any) -> None:
        while not self._closed.is_set():
            try:
                return self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue

    def _make_step(self) -> Iterator[Batch]:
        """Make this process' micro-batches of the next step: in turn with the other processes.

        At the end of an epoch a step may be short. Where a process has none left it repeats the last with no weight, because
        all take part in the mean of the gradients.
        """
        drawn = self._data.batches.take(self._plan.batches_per_step)
        position, world = self._data.batches.state_dict(), self._ranks.world
        for first in range(0, len(drawn), world):
            index = min(first + self._ranks.rank, len(drawn) - 1)
            alone = first + self._ranks.rank == index
            place = {
                "number": self._number + index,
                "divisor": len(drawn) / world if alone else math.inf,
                "step_batches": len(drawn),
                "ends_step": first + world >= len(drawn),
                "next_position": position,
            }
            yield from self._make(drawn[index], place)
        self._number += len(drawn)

    def _make(self, draws: list[Draw], place: dict[str, Any]) -> Iterator[Batch]:
        """Make a micro-batch: in two parts, of a size each, where some of its draws train smaller and others do not."""
        config, number = self._plan.config, place["number"]
        generator, further = (seeds.generator(config.seed, purpose, number) for purpose in ("noise", "input noise"))
        width, height = draws[0].item.bucket
        t = flow.draw_timesteps(subsets_of(draws), config.flow, generator, width * height // TOKEN**2)
        small = flow.trains_smaller(t, config.flow).tolist()
        sizes = [rows for size in (True, False) if (rows := [row for row, is_so in enumerate(small) if is_so is size])]
        start = 0
        for rows in sizes:
            stop = start + len(rows)
            part = {
                "divisor": place["divisor"] / (len(rows) / len(draws)),
                "ends_step": place["ends_step"] and stop == len(draws),
                "part": Part(slice(start, stop), len(draws)) if len(sizes) > 1 else None,
            }
            some = [draws[row].smaller(config.flow.lowres_scale) if small[row] else draws[row] for row in rows]
            yield self._make_part(some, t[rows], generator, further, place | part)
            start = stop

    def _make_part(
        self, draws: list[Draw], t: Tensor, generator: torch.Generator, further: torch.Generator, place: dict[str, Any]
    ) -> Batch:
        """Make a batch of pictures of one size. generator, further: of the noise, and of the input's own."""
        data, config = self._data, self._plan.config.flow
        latents = torch.stack([data.latents.latents(draw) for draw in draws])
        masks = [data.latents.mask(draw) for draw in draws]
        captions = [data.caption(draw) for draw in draws]
        noise = flow.draw_noise(latents, config, generator)
        batch = Batch(
            latents=latents,
            noise=noise,
            input_noise=flow.input_noise(noise, further, config.ip_noise_gamma) if config.ip_noise_gamma else None,
            t=t,
            mask=stack_masks(masks, latents),
            weight=torch.tensor([subset.loss_weight for subset in subsets_of(draws)]),
            text=data.embeddings.fetch(captions),
            names=[draw.item.picture.name for draw in draws],
            **self._class_of(captions),
            **place,
        )
        return batch.pinned() if self._plan.device.type == "cuda" else batch

    def _class_of(self, captions: list[str]) -> dict[str, Any]:
        """Return what a batch has of its class captions; nothing where no picture has one."""
        found = [class_caption(caption, self._plan.config.prior) for caption in captions]
        if all(caption is None for caption in found):
            return {}
        text = self._data.embeddings.fetch([caption or "" for caption in found])
        return {"class_text": text, "class_weight": torch.tensor([float(caption is not None) for caption in found])}


def subsets_of(draws: list[Draw]) -> list[SubsetConfig]:
    return [draw.item.picture.subset for draw in draws]


def stack_masks(masks: list[Tensor | None], latents: Tensor) -> Tensor | None:
    """Stack the masks of a batch; pictures without one count everywhere. None when no picture has one."""
    if all(mask is None for mask in masks):
        return None
    ones = torch.ones(1, *latents.shape[2:])
    return torch.stack([ones if mask is None else mask for mask in masks])

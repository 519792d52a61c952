"""Which pictures meet in which batch, in an order that (seed, epoch, position) alone decides."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

import torch

from .. import seeds
from ..settings import DatasetConfig
from .buckets import Size, choose_bucket, smaller
from .folder import Picture, without_collector


class Item(NamedTuple):
    """One picture at one resolution; repeats are items of their own."""

    picture: Picture
    bucket: Size
    dataset: int
    number: int  # position among all items

    def smaller(self, scale: float) -> "Item":
        """Return it at a bucket with sides `scale` times as long."""
        return self._replace(bucket=smaller(self.bucket, scale))


@dataclass(frozen=True)
class Draw:
    """An item as it is met in an epoch."""

    item: Item
    flip: bool
    epoch: int
    caption_seed: int

    def smaller(self, scale: float) -> "Draw":
        return replace(self, item=self.item.smaller(scale))


@without_collector()
def build_items(datasets: Sequence[DatasetConfig], pictures: Sequence[Sequence[Picture]]) -> list[Item]:
    """List every picture of every dataset, at each resolution, as often as it repeats."""
    items: list[Item] = []
    for index, (dataset, group) in enumerate(zip(datasets, pictures)):
        for resolution in dataset.resolutions:
            choose = cache(partial(choose_bucket, dataset=dataset, resolution=resolution))  # many pictures share a size
            for picture in group:
                bucket = choose(picture.size)
                for _ in range(picture.repeats):
                    items.append(Item(picture, bucket, index, len(items)))
    return items


class Batches:
    """Endless batches of draws. In each epoch every item comes exactly once; what does not fill a batch makes a smaller one."""

    def __init__(self, items: list[Item], datasets: Sequence[DatasetConfig], seed: int) -> None:
        self.items, self.datasets, self.seed = items, datasets, seed
        self.epoch, self.index = 0, 0
        self._plan: list[list[int]] = self._plan_epoch(0)

    def len_epoch(self) -> int:
        return len(self._plan)  # the same in every epoch: groups do not change

    def sizes(self) -> set[tuple[int, Size]]:
        """Return how many pictures of which size meet in the batches of the run."""
        return {(len(batch), self.items[batch[0]].bucket) for batch in self._plan}

    def state_dict(self) -> dict[str, int]:
        """Return the position of the next batch."""
        return {"epoch": self.epoch, "index": self.index}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.index = state["epoch"], state["index"]
        self._plan = self._plan_epoch(self.epoch)

    def take(self, count: int = 1) -> list[list[Draw]]:
        """Return the next `count` batches, or those that are left of the epoch: no step crosses its end."""
        if self.index >= len(self._plan):
            self.load_state_dict({"epoch": self.epoch + 1, "index": 0})
        taken = self._plan[self.index : self.index + count]
        self.index += len(taken)
        return [[self._draw(number) for number in batch] for batch in taken]

    @without_collector()
    def _plan_epoch(self, epoch: int) -> list[list[int]]:
        generator = seeds.generator(self.seed, "order", epoch)
        groups: dict[tuple[int, Size], list[int]] = defaultdict(list)
        for number in torch.randperm(len(self.items), generator=generator).tolist():
            item = self.items[number]
            groups[(item.dataset, item.bucket)].append(number)
        batches = []
        for (dataset, _), numbers in sorted(groups.items()):
            size = self.datasets[dataset].batch_size
            batches += [numbers[i : i + size] for i in range(0, len(numbers), size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]

    def _draw(self, number: int) -> Draw:
        return draw_of(self.items[number], self.epoch, self.seed)


def draw_of(item: Item, epoch: int, seed: int) -> Draw:
    """Return an item as a run of this seed meets it in an epoch."""
    own = seeds.seed_of(seed, "draw", epoch, item.number)
    return Draw(item, item.picture.subset.flip_aug and bool(own & 1), epoch, own)

"""Where a picture that is larger than its bucket is cropped, when that is drawn."""

from dataclasses import dataclass

import torch

from .. import seeds
from .batches import Item
from .buckets import cover

Corner = tuple[int, int]  # left, top: of the crop in the picture that was resized to cover its bucket


@dataclass(frozen=True)
class Crops:
    """Every picture of a subset with `random_crop` has so many crops, which its draws take in turn, epoch by epoch.

    seed: the run's. variants: crops of each picture. epochs: of the run, which may meet fewer of them.
    """

    seed: int = 0
    variants: int = 1
    epochs: int = 1

    def corner(self, item: Item, epoch: int) -> Corner | None:
        """Return where an item is cropped in an epoch; None for the centre.

        As sd-scripts' random_crop, uniform over all places along each side that is longer than the bucket's. The same share
        of it at each bucket: the picture at another size shows the same.
        """
        if not item.picture.subset.random_crop:
            return None
        (width, height), (left, top, right, bottom) = cover(item.picture.size, item.bucket)
        variant = (item.number + epoch) % self.variants
        across, down = torch.rand(2, generator=seeds.generator(self.seed, "crop", item.picture.digest, variant)).tolist()
        drawn = int(across * (width - (right - left) + 1)), int(down * (height - (bottom - top) + 1))
        return None if drawn == (left, top) else drawn

    def corners(self, item: Item) -> list[Corner | None]:
        """List where an item is cropped in all epochs, each place once."""
        if not item.picture.subset.random_crop:
            return [None]
        return list(dict.fromkeys(self.corner(item, epoch) for epoch in range(min(self.epochs, self.variants))))

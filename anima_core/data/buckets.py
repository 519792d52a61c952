"""Aspect-ratio buckets: the few sizes that pictures are brought to, so that a batch is one tensor. Sizes: (width, height)."""

import math
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from ..settings import DatasetConfig

Size = tuple[int, int]
LATENT_STEP = 16  # VAE 8 x patch 2


@lru_cache(maxsize=64)
def bucket_sizes(resolution: Size, low: int, high: int, step: int) -> tuple[Size, ...]:
    """Return every size with sides in multiples of `step` within [low, high] and an area of at most the resolution's.

    As in kohya's trainers: for each width the tallest height that fits, mirrored, and the square.
    """
    area = resolution[0] * resolution[1]
    side = int(math.sqrt(area)) // step * step
    sizes = {(side, side)} if low <= side <= high else set()
    for width in range(math.ceil(low / step) * step, high + 1, step):
        height = min(high, area // width // step * step)
        if height >= low and height > 0:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def choose_bucket(size: Size, dataset: DatasetConfig, resolution: Size) -> Size:
    """Choose the size that a picture is trained at."""
    if not dataset.enable_bucket:
        return resolution
    if dataset.bucket_no_upscale:
        return own_bucket(size, resolution, dataset.bucket_reso_steps)
    sizes = bucket_sizes(resolution, dataset.min_bucket_reso, dataset.max_bucket_reso, dataset.bucket_reso_steps)
    return closest(size, sizes) if sizes else resolution


def closest(size: Size, sizes: tuple[Size, ...]) -> Size:
    """Choose the nearest aspect ratio, of equal ones the largest. In logarithms: 2:1 and 1:2 are equally far from square."""
    ratio = math.log(size[0] / size[1])
    return min(sizes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - ratio), 9), -s[0] * s[1]))


def own_bucket(size: Size, resolution: Size, step: int) -> Size:
    """Return the picture's own size, for bucket_no_upscale, reduced to the area, sides rounded down to `step`."""
    scale = min(1.0, math.sqrt(resolution[0] * resolution[1] / (size[0] * size[1])))
    width, height = (max(round_down(side * scale, step), round_down(side * scale, LATENT_STEP, LATENT_STEP)) for side in size)
    return width, height


def round_down(value: float, step: int, least: int = 0) -> int:
    return max(least, int(value + 1e-6) // step * step)


def cover(size: Size, bucket: Size) -> tuple[Size, tuple[int, int, int, int]]:
    """Return how to fill a bucket: the size to resize to, and the centred box (left, top, right, bottom) to crop from it."""
    scale = max(bucket[0] / size[0], bucket[1] / size[1])
    resized = max(bucket[0], round(size[0] * scale)), max(bucket[1], round(size[1] * scale))
    left, top = (resized[0] - bucket[0]) // 2, (resized[1] - bucket[1]) // 2
    return resized, (left, top, left + bucket[0], top + bucket[1])


def bucket_table(buckets: Iterable[Size], batch_size: int) -> list[str]:
    """Return lines for a report: size, draws, batches, and how many batches are smaller than asked."""
    lines = []
    for (width, height), count in sorted(Counter(buckets).items()):
        batches = math.ceil(count / batch_size)
        note = f", the last of {count % batch_size}" if count % batch_size else ""
        lines.append(f"{width}x{height}: {count} pictures, {batches} batches{note}")
    return lines

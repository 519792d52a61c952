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

    As in kohya's trainers: for each width the tallest height that fits, mirrored, and the square; where the bounds are no
    multiples of the step, the lower one is rounded down, the upper one up.
    """
    area, low, high = resolution[0] * resolution[1], max(step, low // step * step), math.ceil(high / step) * step
    side = int(math.sqrt(area)) // step * step
    sizes = {(side, side)} if low <= side <= high else set()
    for width in range(low, high + 1, step):
        height = min(high, area // width // step * step)
        if height >= low:
            sizes |= {(width, height), (height, width)}
    return tuple(sorted(sizes))


def choose_bucket(size: Size, dataset: DatasetConfig, resolution: Size) -> Size:
    """Choose the size that a picture is trained at."""
    if not dataset.enable_bucket:
        return resolution
    if dataset.bucket_no_upscale:
        return own_bucket(size, resolution, dataset.bucket_reso_steps)
    sizes = bucket_sizes(resolution, dataset.min_bucket_reso, dataset.max_bucket_reso, dataset.bucket_reso_steps)
    return closest(size, sizes) if sizes else own_bucket(resolution, resolution, LATENT_STEP)


def closest(size: Size, sizes: tuple[Size, ...]) -> Size:
    """Choose the nearest aspect ratio, of equal ones the largest. In logarithms: 2:1 and 1:2 are equally far from square."""
    ratio = math.log(size[0] / size[1])
    return min(sizes, key=lambda s: (round(abs(math.log(s[0] / s[1]) - ratio), 9), -s[0] * s[1]))


def own_bucket(size: Size, resolution: Size, step: int) -> Size:
    """Return the size of a picture that is not to be enlarged: its own, or the area's, with sides cut down to `step`.

    As sd-scripts' `BucketManager.select_bucket` with no_upscale: a picture that is larger than the area is reduced so that
    the side which changes the shape less is a multiple of `step`. A side below one step is a multiple of 16 here.
    """
    width, height = size if size[0] * size[1] <= resolution[0] * resolution[1] else reduced(size, resolution, step)
    return cut_down(width, step), cut_down(height, step)


def reduced(size: Size, resolution: Size, step: int) -> Size:
    """Return a picture's size within an area, the width or the height a multiple of `step`, whichever keeps its shape."""
    ratio = size[0] / size[1]
    width = math.sqrt(resolution[0] * resolution[1] * ratio)
    by_width, by_height = nearest_down(width, step), nearest_down(width / ratio, step)
    error_by_width = abs(by_width / nearest_down(by_width / ratio, step) - ratio)
    error_by_height = abs(nearest_down(by_height * ratio, step) / by_height - ratio)
    if error_by_width < error_by_height:
        return by_width, int(by_width / ratio + 0.5)
    return int(by_height * ratio + 0.5), by_height


def nearest_down(value: float, step: int) -> int:
    """Round to a whole pixel, then down to a multiple of `step`; of 16 for less than one step."""
    return cut_down(int(value + 0.5), step)


def cut_down(side: int, step: int) -> int:
    return side // step * step or max(LATENT_STEP, side // LATENT_STEP * LATENT_STEP)


def smaller(bucket: Size, scale: float) -> Size:
    """Return a bucket whose sides are `scale` times as long, to the nearest multiple of 16."""
    width, height = (max(LATENT_STEP, round(side * scale / LATENT_STEP) * LATENT_STEP) for side in bucket)
    return width, height


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

"""What is to be seen at once about single pictures of a dataset: a short word on each with a problem."""

from collections import Counter
from collections.abc import Sequence
from functools import cache, partial
from typing import NamedTuple

from ..settings import DatasetConfig
from .buckets import Size, choose_bucket
from .check import MUCH_CROPPED, MUCH_ENLARGED, fit
from .folder import Picture


class Mark(NamedTuple):
    """warns: whether it is a problem, or only something to know. word: what it is, in a few letters."""

    warns: bool
    word: str


def marks(dataset: DatasetConfig, pictures: Sequence[Picture]) -> list[list[Mark]]:
    """Return what is to be said about each picture, the most important first; nothing about most."""
    copies = Counter(picture.digest for picture in pictures)
    choosers = [cache(partial(choose_bucket, dataset=dataset, resolution=resolution)) for resolution in dataset.resolutions]
    return [
        sorted(
            {*own_marks(picture, copies[picture.digest])}
            | {mark for choose in choosers for mark in fit_marks(picture.size, choose(picture.size))},
            key=lambda mark: (not mark.warns, mark.word),
        )
        for picture in pictures
    ]


def own_marks(picture: Picture, copies: int) -> list[Mark]:
    found = [Mark(True, "not trained")] if picture.blank else []
    found += [] if picture.caption else [Mark(True, "no caption")]
    return found + ([Mark(True, f"{copies} copies")] if copies > 1 else [])


def fit_marks(size: Size, bucket: Size) -> list[Mark]:
    scale, lost = fit(size, bucket)
    found = [Mark(scale > MUCH_ENLARGED, f"enlarged {scale:.1f}x")] if round(scale, 1) > 1 else []
    return found + ([Mark(True, f"cropped {lost:.0%}")] if lost > MUCH_CROPPED else [])

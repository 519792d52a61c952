"""Weights whose numbers take more room while they are made than when they are done."""

from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from ..frozen import FrozenWeight

PIECE = 1 << 22  # numbers at a time: 16 MB in fp32, two to four times over


class InPieces(FrozenWeight):
    """A weight that is written some rows at a time, so that what they are made from stays small beside it.

    data: as many rows as these are, of outputs or blocks.
    """

    data: Tensor

    @abstractmethod
    def rows(self, some: slice, dtype: torch.dtype) -> Tensor:
        """Return the numbers of some rows in any dtype. dtype: what they will be rounded to."""

    def write(self, into: Tensor) -> None:
        lines = into.view(len(self.data), -1)
        for some in pieces(lines.shape):
            lines[some].copy_(self.rows(some, into.dtype))


def pieces(shape: torch.Size) -> Iterator[slice]:
    """Yield the rows of [rows, columns] in pieces of about `PIECE` numbers."""
    step = max(1, PIECE // max(1, shape[1]))
    return (slice(begin, begin + step) for begin in range(0, shape[0], step))

"""The adapters' parameters in the model's dtype, while a micro-batch runs: one copy for each flat tensor."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from .adapter_type import Adapter
from .flat import Flat


class Casts:
    """Copies of parameters in a lower precision, laid out once and made anew before each use. In fp32 they are no copies.

    flats: where the parameters lie that are in flat tensors; others are copied one by one.
    """

    def __init__(self, adapters: Sequence[Adapter], flats: Sequence[Flat], dtype: torch.dtype) -> None:
        self.adapters = adapters
        self.sources: list[Tensor] = []
        self.copies: list[Tensor] = []
        casts: dict[int, Tensor] = {}
        for flat in flats:
            casts |= {id(p): piece for p, piece in zip(flat.parameters, flat.split(self._lay_out(flat.whole, dtype)))}
        self.of_adapters = [
            {name: casts[id(p)] if id(p) in casts else self._lay_out(p, dtype) for name, p in adapter.named_parameters()}
            for adapter in adapters
        ]

    def _lay_out(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        source = parameter.detach()
        copy = source.to(dtype)
        if copy.dtype != source.dtype:
            self.sources.append(source)
            self.copies.append(copy)
        return copy

    @property
    def bytes(self) -> int:
        """What the copies take."""
        return sum(copy.nbytes for copy in self.copies)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make the copies anew and let the adapters have them inside."""
        if self.copies:
            torch._foreach_copy_(self.copies, self.sources)
        try:
            for adapter, casts in zip(self.adapters, self.of_adapters):
                adapter.casts = casts
            yield
        finally:
            for adapter in self.adapters:
                adapter.casts = None

"""What fused layers compute with while a micro-batch runs: the adapters' parameters in the model's dtype.

What can be done for all layers in a few launches is done here: casts, products of factors, sums of gradients.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from .adapter_type import Adapter
from .flat import Flat


class Products(NamedTuple):
    """Products of layers whose factors have one shape: lefts [k, r], rights [r, n], and all of them, values [layers, k, n]."""

    lefts: list[Tensor]
    rights: list[Tensor]
    values: Tensor


class Casts:
    """Copies of parameters in a lower precision, laid out once and made anew before each use. In fp32 they are no copies.

    flats: where the parameters lie that are in flat tensors; others are copied one by one. of_adapters: the copies of each
    adapter by name, with its products. sums: of a micro-batch's gradients, laid out as a flat tensor, for adapters that gather.
    """

    def __init__(self, adapters: Sequence[Adapter], flats: Sequence[Flat], dtype: torch.dtype) -> None:
        self.adapters = adapters
        self.sources: list[Tensor] = []
        self.copies: list[Tensor] = []
        self.sums: list[tuple[Flat, Tensor]] = []
        casts: dict[int, Tensor] = {}
        sums: dict[int, Tensor] = {}
        gather = any(adapter.gathers for adapter in adapters)
        for flat in flats:
            copy = self._lay_out(flat.whole, dtype)
            casts |= {id(p): piece for p, piece in zip(flat.parameters, flat.split(copy))}
            if gather and copy.dtype != flat.whole.dtype:
                self.sums.append((flat, torch.zeros_like(copy)))
                sums |= {id(p): piece for p, piece in zip(flat.parameters, flat.split(self.sums[-1][1]))}
        self.of_adapters = [
            {name: casts[id(p)] if id(p) in casts else self._lay_out(p, dtype) for name, p in adapter.named_parameters()}
            for adapter in adapters
        ]
        self.sums_of_adapters = [
            {name: sums[id(p)] for name, p in adapter.named_parameters() if adapter.gathers and id(p) in sums}
            for adapter in adapters
        ]
        self.products = self._lay_out_products()

    def _lay_out(self, parameter: Tensor, dtype: torch.dtype) -> Tensor:
        source = parameter.detach()
        copy = source.to(dtype)
        if copy.dtype != source.dtype:
            self.sources.append(source)
            self.copies.append(copy)
        return copy

    def _lay_out_products(self) -> list[Products]:
        """Make room for the products of all adapters, those of one shape together, and name them among the casts."""
        alike = defaultdict(list)
        for adapter, casts in zip(self.adapters, self.of_adapters):
            for name, (left, right) in adapter.products.items():
                alike[casts[left].shape, casts[right].shape].append((casts, name, casts[left], casts[right]))
        found = []
        for layers in alike.values():
            holders, names, lefts, rights = zip(*layers)
            values = lefts[0].new_empty(len(layers), lefts[0].shape[0], rights[0].shape[1])
            found.append(Products([*lefts], [*rights], values))
            for casts, name, value in zip(holders, names, values):
                casts[name] = value
        return found

    @property
    def tensors(self) -> list[Tensor]:
        """What is held beside the parameters."""
        return [*self.copies, *(products.values for products in self.products), *(total for _, total in self.sums)]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Make the copies anew and let the adapters have them inside; then add the sums of gradients to the gradients."""
        self._begin()
        try:
            for adapter, casts, sums in zip(self.adapters, self.of_adapters, self.sums_of_adapters):
                adapter.casts, adapter.sums, adapter.norm = casts, sums, None
            yield
        finally:
            for adapter in self.adapters:
                adapter.casts, adapter.sums, adapter.norm = None, {}, None
        for flat, total in self.sums:
            if flat.whole.grad is not None:
                flat.whole.grad.add_(total)

    def _begin(self) -> None:
        if self.copies:
            torch._foreach_copy_(self.copies, self.sources)
        for lefts, rights, values in self.products:
            torch.bmm(torch.stack(lefts), torch.stack(rights), out=values)
        for _, total in self.sums:
            total.zero_()

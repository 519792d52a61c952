"""What a type of adapter is, for everything that handles adapters without knowing the types."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from ..settings import NetworkConfig
from .dropouts import Dropouts
from .noise_ranks import NoiseRanks


@dataclass(frozen=True)
class Layer:
    """A linear layer that gets an adapter. rank: its own, see `network.ranks`; number: its place among those adapted."""

    inputs: int
    outputs: int
    rank: int
    number: int
    dropouts: Dropouts
    generator: torch.Generator  # of the initial values: neither device nor the order of layers changes them
    noise_ranks: NoiseRanks | None = None  # where noise decides how many of the ranks are trained


class Fast(NamedTuple):
    """The fast form of an adapted layer: an autograd function, and its inputs after x."""

    function: type[Function]
    inputs: tuple[Any, ...]


class Adapter(nn.Module):
    """A correction of one linear layer: its input x [..., in] and output y [..., out] -> what is added to y, in x's dtype.

    Its parameters are fp32, whatever the base model's dtype, and named as in the file (see `AdapterType.tensors`).
    """

    alpha: float
    zero_init: str  # name of the parameter that starts at zero
    products: Mapping[str, tuple[str, str]] = {}  # that its fast form computes with beside the parameters: two factors each
    in_graphs = True  # of torch.compile: its `forward` makes nothing of the weight's size, nor what differs between steps
    gathers = False  # gradients in the model's dtype: one launch less for each factor, and the bytes of its casts once more

    # While a micro-batch runs, in the model's dtype, see `casts`: parameters and products; what gathers the gradients
    casts: Mapping[str, Tensor] | None = None
    sums: Mapping[str, Tensor] = {}
    norm: Tensor | None = None  # of the columns of base weight and correction, where it was asked for, see `dora`

    def fused(self, x: Tensor, base: nn.Linear) -> Fast | None:
        """Return base(x) and the correction as one autograd function; None where a type, or its dropout, has no such form."""
        return None

    @abstractmethod
    def merged(self, weight: Tensor) -> Tensor:
        """Return base weight and correction in one new tensor, [out, in] in the weight's dtype, without gradient."""

    def cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return a parameter or a product in a dtype, without gradient."""
        if self.casts is not None:
            return self.casts[name].to(dtype)
        if name in self.products:
            left, right = self.products[name]
            return self.cast(left, dtype) @ self.cast(right, dtype)
        return getattr(self, name).detach().to(dtype)

    def into(self, name: str) -> Tensor | None:
        """Return what the gradient of a parameter is to be added to; None where autograd is to take it."""
        grad = getattr(self, name).grad
        return None if self.casts is None or grad is None else self.sums.get(name, grad)


class Size(NamedTuple):
    """rank: None for a layer of whole factors; alpha: None where the file gives none."""

    rank: int | None
    alpha: float | None


class InFile(NamedTuple):
    """What layers of a file are: a size for each, and the settings of `network` that only their type has."""

    sizes: list[Size]
    settings: dict[str, Any]


@dataclass(frozen=True)
class AdapterType:
    """One type of adapter.

    name: in `network.type`. modules: the words of --network_module that mean it, ours first.
    tensors: what a layer's tensors are called in a file; a parameter may leave out a final `.weight`.
    build: the adapter of a layer. Raises SettingError for settings that the type does not have.
    read: what layers of a file are. delta: what a layer adds to the base weight, [out, in] fp32, from its tensors and that
    weight.
    """

    name: str
    modules: tuple[str, ...]
    tensors: frozenset[str]
    build: Callable[[Layer, NetworkConfig], Adapter]
    read: Callable[[Sequence[Mapping[str, Tensor]]], InFile]
    delta: Callable[[Mapping[str, Tensor], Tensor], Tensor]


def alpha_of(tensors: Mapping[str, Tensor]) -> float | None:
    """Return the alpha of a layer of a file, where it gives one."""
    return tensors["alpha"].item() if "alpha" in tensors else None

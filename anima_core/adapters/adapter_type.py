"""What a type of adapter is, for everything that handles adapters without knowing the types."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..settings import NetworkConfig
from .dropouts import Dropouts


@dataclass(frozen=True)
class Layer:
    """A linear layer that gets an adapter. rank: its own, see `network.ranks`; number: its place among those adapted."""

    inputs: int
    outputs: int
    rank: int
    number: int
    dropouts: Dropouts
    generator: torch.Generator  # of the initial values: neither device nor the order of layers changes them


class Adapter(nn.Module):
    """A correction of one linear layer: its input x [..., in] and output y [..., out] -> what is added to y, in x's dtype.

    Its parameters are fp32, whatever the base model's dtype, and named as in the file (see `AdapterType.tensors`).
    """

    alpha: float
    zero_init: str  # name of the parameter that starts at zero
    casts: Mapping[str, Tensor] | None = None  # while a micro-batch runs: its parameters in the model's dtype

    def fused(self, x: Tensor, base: nn.Linear) -> Tensor | None:
        """Return base(x) and the correction as one autograd function; None where a type, or its dropout, has no such form."""
        return None

    def cast(self, name: str, dtype: torch.dtype) -> Tensor:
        """Return a parameter in a dtype, without gradient."""
        held = getattr(self, name).detach() if self.casts is None else self.casts[name]
        return held.to(dtype)


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

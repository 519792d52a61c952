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


class Size(NamedTuple):
    """rank: None for a layer of whole factors; alpha: None where the file gives none."""

    rank: int | None
    alpha: float | None


@dataclass(frozen=True)
class AdapterType:
    """One type of adapter.

    name: in `network.type`. modules: the words of --network_module that mean it, ours first.
    tensors: what a layer's tensors are called in a file; a parameter may leave out a final `.weight`.
    build: the adapter of a layer. Raises SettingError for settings that the type does not have.
    size: rank and alpha of a layer of a file. delta: what it adds to the base weight, [out, in] fp32, from those tensors and
    that weight. own_settings: the settings of `network` that only this type has, as the layers of a file have them.
    """

    name: str
    modules: tuple[str, ...]
    tensors: frozenset[str]
    build: Callable[[Layer, NetworkConfig], Adapter]
    size: Callable[[Mapping[str, Tensor]], Size]
    delta: Callable[[Mapping[str, Tensor], Tensor], Tensor]
    own_settings: Callable[[Sequence[Mapping[str, Tensor]]], dict[str, Any]] = lambda layers: {}


def alpha_of(tensors: Mapping[str, Tensor]) -> float | None:
    """Return the alpha of a layer of a file, where it gives one."""
    return tensors["alpha"].item() if "alpha" in tensors else None

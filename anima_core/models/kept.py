"""Which weights of a model stay in memory in another way than as plain tensors of its dtype."""

import re
from collections.abc import Callable

import torch
from torch import nn

from .frozen import FloatWeight, FrozenWeight
from .int8 import quantised

# A weight by its model's name -> what is kept of it in another way, or None to have it as a plain tensor
Store = Callable[[str, FrozenWeight], FrozenWeight | None]

# The layers that may: nine tenths of the weights, each multiplied by whole pictures
FREEZABLE = re.compile(r"blocks\.(\d+)\.(self_attn|cross_attn|mlp)\.(\w+_proj|layer[12])\.weight")


def all_plain(name: str, weight: FrozenWeight) -> None:
    """Keep no weight as it is stored."""


def nothing(name: str) -> bool:
    """Tell of no weight that it is special."""
    return False


def as_stored(name: str, weight: FrozenWeight) -> FrozenWeight | None:
    """Keep the weights of the blocks' attention and MLP as they are stored, where that is in fewer bytes."""
    return weight if FREEZABLE.fullmatch(name) and weight.kind != FloatWeight.kind else None


def outer(blocks: int) -> tuple[int, int]:
    """Return the numbers of the first and the last of so many blocks: errors of their weights cost most."""
    return 0, blocks - 1


def in_int8(blocks: int, device: torch.device | str) -> Store:
    """Keep such weights of floats in 8 bits, but for those of the outer two of so many blocks.

    They are rounded on the device, where that is a matter of seconds. What is too coarse in 8 bits stays plain, and what a
    file has quantised already stays so.
    """

    def store(name: str, weight: FrozenWeight) -> FrozenWeight | None:
        place = FREEZABLE.fullmatch(name)
        if weight.kind != FloatWeight.kind or place is None or int(place[1]) in outer(blocks):
            return as_stored(name, weight)
        return quantised(weight.numbers(torch.float32, "meta" if weight.is_meta else device))

    return store


def left_plain(model: nn.Module, blocks: int) -> int:
    """Count the weights that `in_int8` would have kept in 8 bits in a model of so many blocks, had that been exact enough."""
    places = [FREEZABLE.fullmatch(f"{name}.weight") for name, layer in model.named_modules() if type(layer) is nn.Linear]
    return sum(int(place[1]) not in outer(blocks) for place in places if place)


def store_for(dtype: str, blocks: int, device: torch.device | str) -> Store:
    """Return what `model.dtype` asks for."""
    return in_int8(blocks, device) if dtype == "int8" else as_stored

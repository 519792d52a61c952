"""How one tensor of a model lies in its file: the parts that it is made from, and what makes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..checkpoint import FORMATS, TensorInfo
from ..frozen import FrozenWeight

Parts = Mapping[str, Tensor]  # part -> tensor: "weight", and what else a format needs, as "scale"
Settings = Mapping[str, Any]  # what a file says about one layer, as {"format": "int8_tensorwise", "convrot": true}


@dataclass(frozen=True)
class Format:
    """A way to store a weight [out, in].

    name: ComfyUI's, in a layer's settings. dtypes: the numbers' own, by safetensors' names. sides: its other parts, by
    name. make: the weight from its parts and settings, which may be meta tensors; raises ValueError for parts that do not
    fit one another, TypeError or ValueError for settings that are none.
    """

    name: str
    dtypes: tuple[str, ...]
    sides: tuple[str, ...]
    make: Callable[[Parts, Settings], FrozenWeight]


@dataclass(frozen=True)
class Stored:
    """A tensor of a model in a file. keys: where its parts are, by part. infos: theirs. make: the weight from them."""

    keys: dict[str, str]
    infos: dict[str, TensorInfo]
    make: Callable[[Parts], FrozenWeight]

    @cached_property
    def empty(self) -> FrozenWeight:
        """The weight without its numbers, on the meta device."""
        sizes = {part: (info.shape, FORMATS[info.dtype]) for part, info in self.infos.items()}
        return self.make({part: torch.empty(shape, dtype=dtype, device="meta") for part, (shape, dtype) in sizes.items()})

    def check(self) -> None:
        """Raise what `make` does where the parts do not fit one another."""
        assert self.empty is not None

    @property
    def shape(self) -> torch.Size:
        return self.empty.shape

    @property
    def kind(self) -> str:
        return self.empty.kind

    @property
    def key(self) -> str:
        return self.keys["weight"]

    def weight(self, tensors: Mapping[str, Tensor]) -> FrozenWeight:
        """Make the weight from its tensors by their keys in the file."""
        return self.make({part: tensors[key] for part, key in self.keys.items()})

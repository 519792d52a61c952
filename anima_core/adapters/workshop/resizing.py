"""An adapter of another rank: the largest singular values of what each layer adds; no matrix of that rank is nearer to it."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import SettingError
from ..keys import Layers
from ..low_rank import Delta, Svd, delta_of
from ..recognise import DORA, type_of
from .loaded import LoadedAdapter, counted, dtype_of, plain

START = 32  # singular values that are computed first, where it is not known how many hold the energy
NOTHING = 1e-6  # a singular value's share of the largest, below which it is rounding

Progress = Callable[[int, int], None]


def quiet(done: int, total: int) -> None:
    """Hear of progress, and do nothing."""


@dataclass(frozen=True)
class Keep:
    """How much of a layer is kept: at most a rank, 0 for any, and so many ranks as hold a share of its energy.

    The energy is the sum of squares of what a layer adds.
    """

    rank: int = 0
    energy: float = 1.0

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise SettingError(f"rank={self.rank}: a rank is a positive number, or 0 for any; choose another")
        if not 0 < self.energy <= 1:
            raise SettingError(f"energy={self.energy:g}: a share is above 0 and at most 1; 0.99 keeps nearly all")

    def check(self, what: str) -> None:
        """Raise SettingError where neither says anything. what: is to be done."""
        if self == Keep():
            raise SettingError(f"{what}: neither a rank nor a share of the energy is given; give one of them, such as rank 32")


@torch.no_grad()
def resize(adapter: LoadedAdapter, keep: Keep, on_layer: Progress = quiet) -> LoadedAdapter:
    """Return an adapter as LoRA of another rank, each layer's its own where a share of the energy decides.

    A DoRA keeps its lengths. What has no rank, such as a norm, stays as it is. Raises SettingError.
    """
    keep.check("resize")
    layers, counts = Layers(), Counter[str]()
    for number, (name, tensors) in enumerate(adapter.layers.items(), 1):
        kind = type_of(tensors)
        if kind is None:
            counts["stay as they are: they have no rank"] += 1
            layers[name] = tensors
        elif found := lora_of(delta_of(kind, plain(tensors), torch.empty(0)), keep, dtype_of(tensors), name):
            counts[f"were {kind.name} and are LoRA"] += kind.name != "lora"
            layers[name] = found | {key: value for key, value in tensors.items() if key == DORA}
        else:
            counts["are left out: they add nothing"] += 1
        on_layer(number, len(adapter.layers))
    return adapter.done("resize", layers, counted(+counts), **vars(keep))


def lora_of(delta: Delta, keep: Keep, dtype: torch.dtype, name: str = "adapter") -> dict[str, Tensor]:
    """Return a delta as the tensors of a LoRA, both factors equally large, alpha the rank; empty where it adds nothing.

    name: the layer's. Raises SettingError for NaN or infinity.
    """
    left, values, right = shortened(delta, keep, name)
    root = values.sqrt()
    if not len(values):
        return {}
    down, up = (root[:, None] * right).to(dtype).contiguous(), (left * root).to(dtype).contiguous()
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(len(values)))}


def shortened(delta: Delta, keep: Keep, name: str = "adapter") -> Svd:
    """Return the largest singular values of a delta, as many as are to be kept. Those that are rounding are none.

    Raises SettingError for NaN or infinity.
    """
    energy = delta.inner(delta)
    if not math.isfinite(energy):
        raise SettingError(f"{name}: holds NaN or infinity; use a file that is not broken")
    most = min(keep.rank or min(delta.shape), *delta.shape)
    count = most if keep.energy == 1 else min(START, most)
    found = delta.largest(count)
    while count < most and float(found.values.square().sum()) < keep.energy * energy:
        count = min(2 * count, most)
        found = delta.largest(count)
    real = int((found.values > NOTHING * found.values[:1]).sum())
    return found.first(real if keep.energy == 1 else min(real, holding(found.values, keep.energy * energy)))


def holding(values: Tensor, energy: float) -> int:
    """Return how many of the largest singular values hold an energy, the sum of their squares."""
    return int((values.double().square().cumsum(0) < energy).sum()) + 1

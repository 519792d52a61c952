"""LoHa: delta W = scale * (w1_a w1_b) ∘ (w2_a w2_b), of rank up to r² by two products of rank r (FedPara, arXiv 2108.06098).

Names, initial values and scale are LyCORIS'.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...settings import NetworkConfig
from ...settings.network import FULL_MATRIX_RANK
from ...settings.setting import require
from ..adapter_type import Adapter, AdapterType, Fast, InFile, Layer, Size, alpha_of
from ..dropouts import keep_mask
from ..functions import Fused, LoHaFunction, WholeLoHaFunction, with_hadamard, with_hadamard_in_parts

FACTORS = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")


class LoHa(Adapter):
    """Hadamard correction of a Linear(in, out): w1_a, w2_a [out, r], w1_b, w2_b [r, in]; scale alpha / r.

    w2_a is zero at the start, w1_a is drawn from N(0, 0.1²), the others from N(0, 1).
    `dropout` acts on x, `rank_dropout` on the r inner values of w1, `module_dropout` on all. (LyCORIS has no dropout of values,
    and its rank dropout leaves out outputs.)
    """

    zero_init = "hada_w2_a"
    in_graphs = False

    def __init__(self, layer: Layer, alpha: float) -> None:
        super().__init__()
        self.rank = layer.rank
        self.alpha = alpha or float(layer.rank)
        self.scale = self.alpha / layer.rank
        self.dropouts, self.number = layer.dropouts, layer.number
        sides, inner = (layer.outputs, layer.rank), (layer.rank, layer.inputs)
        self.hada_w1_a = nn.Parameter(normal(sides, 0.1, layer.generator))
        self.hada_w1_b = nn.Parameter(normal(inner, 1.0, layer.generator))
        self.hada_w2_a = nn.Parameter(torch.zeros(sides))
        self.hada_w2_b = nn.Parameter(normal(inner, 1.0, layer.generator))
        self.through_pairs = 2 * layer.rank**2 * (layer.inputs + layer.outputs) <= layer.inputs * layer.outputs  # is less work

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        w1_a: Tensor = self.hada_w1_a
        if self.training and self.dropouts.active:
            inputs, ranks = self._masks(x)
            x, w1_a = x * inputs, w1_a * ranks
        delta = self.scale * (w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)
        return F.linear(x, delta.to(x.dtype))

    def fused(self, x: Tensor, base: nn.Linear) -> Fast | None:
        if self.training and self.dropouts.active:
            return None
        dtype = x.dtype  # not x, which must not be kept
        fused = Fused(base, lambda: self._values(dtype), self.scale, tuple(self.into(name) for name in FACTORS))
        function = LoHaFunction if self.through_pairs else WholeLoHaFunction
        return Fast(function, (*(getattr(self, name) for name in FACTORS), fused))

    def merged(self, weight: Tensor) -> Tensor:
        add = with_hadamard if self.through_pairs else with_hadamard_in_parts
        return add(weight.detach(), self._values(weight.dtype), self.scale)

    def _values(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return the factors without gradient: as they are where products of pairs are rounded, else rounded themselves."""
        if self.through_pairs:
            return tuple(getattr(self, name).detach() for name in FACTORS)
        return tuple(self.cast(name, dtype) for name in FACTORS)

    def _masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rates, generator = self.dropouts, self.dropouts.generator(self.number, x.device)
        module = (torch.rand((), generator=generator, device=x.device) >= rates.module_dropout).to(x.dtype)
        ranks = keep_mask((self.rank,), rates.rank_dropout, generator, self.hada_w1_a)
        inputs = rates.mask(tuple(x.shape), generator, x) if rates.dropout > 0 else 1.0
        return module * inputs, ranks


def normal(shape: tuple[int, ...], std: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).normal_(0, std, generator=generator)


def build(layer: Layer, config: NetworkConfig) -> LoHa:
    require(layer.rank < FULL_MATRIX_RANK, "network.rank", layer.rank, "means a full matrix, which only lokr has")
    return LoHa(layer, config.alpha)


def size(tensors: Mapping[str, Tensor]) -> Size:
    inner = tensors.get("hada_w1_b")
    return Size(None if inner is None else inner.shape[0], alpha_of(tensors))


def delta(tensors: Mapping[str, Tensor], base: Tensor) -> Tensor:
    """Compute (alpha / r) (w1_a w1_b) ∘ (w2_a w2_b); without an alpha the scale is 1, as in ComfyUI."""
    rank, alpha = size(tensors)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    w1_a, w1_b, w2_a, w2_b = (tensors[name].float() for name in FACTORS)
    return scale * (w1_a @ w1_b) * (w2_a @ w2_b)


TYPE = AdapterType(
    name="loha",
    modules=("networks.loha",),
    tensors=frozenset(FACTORS),
    build=build,
    read=lambda layers: InFile([size(tensors) for tensors in layers], {}),
    delta=delta,
)

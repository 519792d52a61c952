"""LoKr: delta W = scale * kron(w1, w2), applied as two small products.

Rules of factorisation, decomposition, initialisation and scale are LyCORIS', docs/model.md §7.3.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...settings import NetworkConfig
from ...settings.network import FULL_MATRIX_RANK
from ..adapter_type import Adapter, AdapterType, Fast, InFile, Layer, Size, alpha_of
from ..dropouts import kaiming, keep_mask
from ..functions import Fused, LoKrFunction, WholeLoKrFunction, with_kron


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """Split a dimension into (small, large), small * large = dimension, small as near to `factor` as its divisors allow.

    factor -1 balances the two.
    """
    if factor > 0 and dimension % factor == 0:
        return min(factor, dimension // factor), max(factor, dimension // factor)
    limit = dimension if factor < 0 else factor
    small, large = 1, dimension
    length = small + large
    while small < large:
        candidate = small + 1
        while dimension % candidate:
            candidate += 1
        other = dimension // candidate
        if candidate + other > length or candidate > limit:
            break
        small, large = candidate, other
    return min(small, large), max(small, large)


class LoKr(Adapter):
    """Kronecker correction of a Linear(in, out): out = l * k, in = m * n, w1 [l, m], w2 [k, n].

    Either factor may be a product of rank r: w1 = w1_a [l, r] w1_b [r, m], w2 = w2_a [k, r] w2_b [r, n].
    scale = alpha / r, and 1 when both factors are whole (alpha is then stored as r, which ComfyUI ignores).
    `dropout` acts on x, `rank_dropout` on w2's r values, `module_dropout` on all.
    """

    def __init__(self, layer: Layer, alpha: float, factor: int, full_matrix: bool, decompose_both: bool) -> None:
        super().__init__()
        (l, k), (m, n) = factorization(layer.outputs, factor), factorization(layer.inputs, factor)  # noqa: E741, the formula's
        rank, generator = layer.rank, layer.generator
        self.shape = (l, k, m, n)
        self.rank = min(rank, max(k, n))
        self.dropouts, self.number = layer.dropouts, layer.number
        whole_w1 = full_matrix or not decompose_both or rank >= max(l, m) / 2
        whole_w2 = full_matrix or rank >= max(k, n) / 2
        if whole_w1:
            self.lokr_w1 = nn.Parameter(kaiming((l, m), generator))
        else:
            self.lokr_w1_a = nn.Parameter(kaiming((l, rank), generator))
            self.lokr_w1_b = nn.Parameter(kaiming((rank, m), generator))
        if whole_w2:
            self.lokr_w2 = nn.Parameter(torch.zeros(k, n))
        else:
            self.lokr_w2_a = nn.Parameter(kaiming((k, rank), generator))
            self.lokr_w2_b = nn.Parameter(torch.zeros(rank, n))
        self.zero_init = "lokr_w2" if whole_w2 else "lokr_w2_b"
        self.products = {} if whole_w2 else {"lokr_w2": ("lokr_w2_a", "lokr_w2_b")}
        self.gathers = not whole_w2
        both_whole = whole_w1 and whole_w2
        self.alpha = float(self.rank) if both_whole else alpha or float(rank)
        self.scale = 1.0 if both_whole else self.alpha / rank

    def w1(self) -> Tensor:
        return self.lokr_w1 if hasattr(self, "lokr_w1") else self.lokr_w1_a @ self.lokr_w1_b

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        _, _, m, n = self.shape
        masks = self._masks(x) if self.training and self.dropouts.active else None
        if masks is not None:
            x = x * masks[0]
        w1, x = (self.scale * self.w1()).to(x.dtype), x.unflatten(-1, (m, n))
        if hasattr(self, "lokr_w2"):
            return F.linear(torch.matmul(w1, x), self.lokr_w2.to(x.dtype)).flatten(-2)
        hidden = F.linear(x, self.lokr_w2_b.to(x.dtype))  # [..., m, r]
        if masks is not None:
            hidden = hidden * masks[1]
        return F.linear(torch.matmul(w1, hidden), self.lokr_w2_a.to(x.dtype)).flatten(-2)

    def fused(self, x: Tensor, base: nn.Linear) -> Fast | None:
        if self.training and self.dropouts.active:
            return None
        dtype, whole, into = x.dtype, hasattr(self, "lokr_w2"), self.into("lokr_w1") if hasattr(self, "lokr_w1") else None
        names = ("lokr_w2",) if whole else ("lokr_w2_a", "lokr_w2_b")

        def make() -> tuple[Tensor, ...]:
            return self._cast_w1(dtype), *(self.cast(name, dtype) for name in (*names, *self.products))

        fused = Fused(base, make, self.scale, (into, *(self.into(name) for name in names)))
        function = WholeLoKrFunction if whole else LoKrFunction
        return Fast(function, (self.w1(), *(getattr(self, name) for name in names), fused))

    def merged(self, weight: Tensor) -> Tensor:
        w1 = self._cast_w1(weight.dtype)
        return with_kron(weight.detach(), w1, self.cast("lokr_w2", weight.dtype), self.scale)

    def _cast_w1(self, dtype: torch.dtype) -> Tensor:
        return self.cast("lokr_w1", dtype) if hasattr(self, "lokr_w1") else self.w1().detach().to(dtype)

    def _masks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        rates, generator = self.dropouts, self.dropouts.generator(self.number, x.device)
        module = (torch.rand((), generator=generator, device=x.device) >= rates.module_dropout).to(x.dtype)
        ranks = keep_mask((self.rank,), rates.rank_dropout, generator, x)
        inputs = rates.mask(tuple(x.shape), generator, x) if rates.dropout > 0 else 1.0
        return module * inputs, ranks


def build(layer: Layer, config: NetworkConfig) -> LoKr:
    full = config.full_matrix or layer.rank >= FULL_MATRIX_RANK
    return LoKr(layer, config.alpha, config.factor, full, config.decompose_both)


def size(tensors: Mapping[str, Tensor]) -> Size:
    """Return the rank of w2 where that is a product, else of w1; none when both are whole, and alpha then means nothing."""
    inner = next((tensors[name].shape[0] for name in ("lokr_w2_b", "lokr_w1_b") if name in tensors), None)
    return Size(inner, None if inner is None else alpha_of(tensors))


def factor_of(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    if name in tensors:
        return tensors[name].float()
    return tensors[f"{name}_a"].float() @ tensors[f"{name}_b"].float()


def delta(tensors: Mapping[str, Tensor], base: Tensor) -> Tensor:
    """Compute (alpha / r) kron(w1, w2); without a rank or an alpha the scale is 1, as in ComfyUI."""
    rank, alpha = size(tensors)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    return scale * torch.kron(factor_of(tensors, "lokr_w1"), factor_of(tensors, "lokr_w2"))


def own_settings(layers: Sequence[Mapping[str, Tensor]]) -> dict[str, Any]:
    """Return factor and decompose_both of a file's layers; no factor where none explains all of their shapes."""
    splits = {split for tensors in layers for split in zip(factor_shape(tensors, "lokr_w1"), factor_shape(tensors, "lokr_w2"))}
    candidates = [*sorted({small for small, _ in splits}, reverse=True), -1]
    fitting = [f for f in candidates if all(factorization(small * large, f) == (small, large) for small, large in splits)]
    found: dict[str, Any] = {"factor": fitting[0]} if fitting else {}
    return found | ({"decompose_both": True} if any("lokr_w1_a" in tensors for tensors in layers) else {})


def factor_shape(tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """Return the rows and columns of w1 or w2, whole or a product."""
    rows, columns = factor_of({key: tensor.to("meta") for key, tensor in tensors.items()}, name).shape
    return rows, columns


TYPE = AdapterType(
    name="lokr",
    modules=("networks.lokr_anima", "networks.lokr"),
    tensors=frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}),
    build=build,
    read=lambda layers: InFile([size(tensors) for tensors in layers], own_settings(layers)),
    delta=delta,
)

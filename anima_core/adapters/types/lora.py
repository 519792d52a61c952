"""LoRA: y = (alpha / r) * up(down(x))."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...settings import NetworkConfig
from ...settings.network import FULL_MATRIX_RANK
from ...settings.setting import require
from ..adapter_type import Adapter, AdapterType, Fast, InFile, Layer, Size, alpha_of
from ..dropouts import kaiming, keep_mask
from ..functions import Fused, LoRAFunction


class LoRA(Adapter):
    """Low-rank correction of a Linear(in, out): delta W = (alpha / r) up down, down [r, in], up [out, r] (zero at the start).

    `dropout` and `rank_dropout` act on the r inner values, `module_dropout` on all. T-LoRA's mask of ranks, see `NoiseRanks`,
    acts on the inner values of each picture.
    """

    zero_init = "lora_up"

    def __init__(self, layer: Layer, alpha: float) -> None:
        super().__init__()
        self.rank = layer.rank
        self.alpha = alpha or float(layer.rank)
        self.scale = self.alpha / layer.rank
        self.dropouts, self.number, self.noise_ranks = layer.dropouts, layer.number, layer.noise_ranks
        self.in_graphs = layer.noise_ranks is None
        self.lora_down = nn.Parameter(kaiming((layer.rank, layer.inputs), layer.generator))
        self.lora_up = nn.Parameter(torch.zeros(layer.outputs, layer.rank))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = F.linear(x, self.lora_down.to(x.dtype))
        if (ranks := self._ranks(hidden)) is not None:
            hidden = hidden * ranks.view(len(ranks), *[1] * (hidden.dim() - 2), -1)
        factor: Tensor | float = self.scale
        if self.training and self.dropouts.active:
            factor = self.scale * self._mask(hidden)
        return F.linear(hidden * factor, self.lora_up.to(x.dtype))

    def fused(self, x: Tensor, base: nn.Linear) -> Fast | None:
        if self.training and self.dropouts.active:
            return None
        dtype, into = x.dtype, (self.into("lora_down"), self.into("lora_up"))

        def make() -> tuple[Tensor, ...]:
            return self.cast("lora_down", dtype), self.cast("lora_up", dtype)

        return Fast(LoRAFunction, (self.lora_down, self.lora_up, Fused(base, make, self.scale, into, self._ranks(x))))

    def merged(self, weight: Tensor) -> Tensor:
        up, down = self.cast("lora_up", weight.dtype), self.cast("lora_down", weight.dtype)
        return torch.addmm(weight.detach(), up, down, alpha=self.scale)

    def _ranks(self, like: Tensor) -> Tensor | None:
        """Return the ranks of each picture that are trained, [B, r] of 0 and 1; None where all are."""
        return self.noise_ranks.mask(self.rank, like) if self.noise_ranks is not None and self.training else None

    def _mask(self, hidden: Tensor) -> Tensor:
        rates, generator = self.dropouts, self.dropouts.generator(self.number, hidden.device)
        module = (torch.rand((), generator=generator, device=hidden.device) >= rates.module_dropout).to(hidden.dtype)
        ranks = keep_mask((self.rank,), rates.rank_dropout, generator, hidden)
        if rates.dropout == 0:
            return module * ranks
        return module * ranks * rates.mask(tuple(hidden.shape), generator, hidden)


def build(layer: Layer, config: NetworkConfig) -> LoRA:
    require(layer.rank < FULL_MATRIX_RANK, "network.rank", layer.rank, "means a full matrix, which only lokr has")
    return LoRA(layer, config.alpha)


def size(tensors: Mapping[str, Tensor]) -> Size:
    down = tensors.get("lora_down.weight")
    return Size(None if down is None else down.shape[0], alpha_of(tensors))


def delta(tensors: Mapping[str, Tensor], base: Tensor) -> Tensor:
    """Compute (alpha / r) up down; without an alpha the scale is 1, as in ComfyUI."""
    rank, alpha = size(tensors)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    return scale * tensors["lora_up.weight"].float() @ tensors["lora_down.weight"].float()


TYPE = AdapterType(
    name="lora",
    modules=("networks.lora_anima", "networks.tlora_anima"),
    tensors=frozenset({"lora_down.weight", "lora_up.weight"}),
    build=build,
    read=lambda layers: InFile([size(tensors) for tensors in layers], {}),
    delta=delta,
)

"""What an adapted layer costs in its fast form: launches, bytes and FLOPs, beside those of its base layer."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from anima_core.adapters.casts import Casts
from anima_core.adapters.dora import DoRALinear, decompose
from anima_core.adapters.flat import Flat
from anima_core.adapters.functions import PART
from anima_core.adapters.layers import AdaptedLinear
from anima_core.adapters.types.loha import LoHa
from anima_core.adapters.types.lokr import LoKr
from anima_core.adapters.types.lora import LoRA
from anima_core.speed.counting import Meter, Work

from .tiny import layer as layer_of

# Of a layer of 2048 x 2048 at 4096 rows in bf16, forward and backward: launches, bytes in those of x, FLOPs in those of x Wᵀ.
# The base layer alone: 1 launch, 2.5, 1, and the same backward.
WORK = {
    "lora": (lambda layer: LoRA(layer, 32.0), (3, 5.6, 1.04), (8, 8.7, 1.08)),
    "lokr": (lambda layer: LoKr(layer, 32.0, 8, False, False), (2, 3.6, 1.0), (9, 8.8, 1.07)),
    "lokr, whole": (lambda layer: LoKr(layer, 32.0, 8, True, False), (2, 3.6, 1.0), (9, 11.7, 1.26)),
    "loha of rank 8": (lambda layer: LoHa(replace(layer, rank=8), 8.0), (4, 3.6, 1.02), (22, 8.3, 1.15)),
    "loha of rank 16": (lambda layer: LoHa(replace(layer, rank=16), 8.0), (4, 3.8, 1.07), (22, 10.2, 1.57)),
    "loha": (lambda layer: LoHa(layer, 32.0), (4, 5.6, 1.02), (25, 14.6, 2.07)),
    "dora of lora": (lambda layer: LoRA(layer, 32.0), (8, 9.1, 1.04), (14, 16.8, 1.08)),
}


def metered(make, rows: int, inputs: int, outputs: int, rank: int = 32, dora: bool = False) -> tuple[Meter, Work]:
    """A layer in bf16 on the meta device within a micro-batch, forward and backward; and what the forward pass was of it."""
    base = nn.Linear(inputs, outputs, bias=False).to("meta", torch.bfloat16).requires_grad_(False)
    layer = AdaptedLinear(base, make(layer_of(inputs, outputs, rank)).to("meta"))
    if dora:
        decompose(layer.adapter, base)
        layer = DoRALinear(base, layer.adapter)
    flat = Flat(list(layer.adapter.parameters()))
    flat.whole.grad = torch.zeros_like(flat.whole)
    flat.share_gradient()
    x = torch.empty(rows, inputs, dtype=torch.bfloat16, device="meta", requires_grad=True)
    with Casts([layer.adapter], (flat,), torch.bfloat16).in_use(), Meter() as meter:
        y = layer(x)
        first = meter.work
        assert meter.live <= y.nbytes + 8 * inputs, "a DoRA keeps its columns' lengths, nobody else anything"
        y.backward(torch.empty_like(y))
    return meter, first


@pytest.mark.parametrize("name", WORK)
def test_the_work_of_a_layer_does_not_grow(name):
    make, forward, backward = WORK[name]
    width, rows = 2048, 4096
    meter, first = metered(make, rows, width, width, dora=name.startswith("dora"))
    for work, most in zip((first, meter.work - first), (forward, backward)):
        found = work.launches, work.bytes / (rows * width * 2), work.flops / (2 * rows * width**2)
        assert all(a <= b for a, b in zip(found, most)), found


@pytest.mark.parametrize("inputs, outputs", [(2048, 2048), (2048, 8192), (8192, 2048)])
@pytest.mark.parametrize("rank", [4, 16, 32, 64])
def test_of_a_lohas_weight_there_is_no_more_than_one_at_a_time(rank, inputs, outputs):
    """A LoRA makes none. What else is there is of a part of the weight, or as small as the factors."""
    peaks = [metered(lambda layer, kind=kind: kind(layer, 1.0), 1024, inputs, outputs, rank)[0].peak for kind in (LoRA, LoHa)]
    part = min(PART, outputs) * inputs * 2 if rank > 28 else 0
    assert peaks[1] - peaks[0] <= inputs * outputs * 2 + 2 * part + 12 * rank**2 * (inputs + outputs)

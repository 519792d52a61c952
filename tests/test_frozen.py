"""Frozen weights stored in another way: the numbers and gradients of a plain layer of what they write, and nothing kept."""

import pytest
import torch
from torch import Tensor, nn

from anima_core.adapters.casts import Casts
from anima_core.adapters.layers import AdaptedLinear
from anima_core.adapters.types.loha import LoHa
from anima_core.adapters.types.lokr import LoKr
from anima_core.adapters.types.lora import LoRA
from anima_core.models.frozen import FloatWeight, FrozenLinear, FrozenWeight, Scratch, numbers_at_home
from anima_core.models.int8 import COARSE, Int8Weight, quantised, rounded
from anima_core.models.int8 import error as lost
from anima_core.speed.counting import Meter
from anima_core.speed.probe import weight_difference

from .tiny import layer as layer_of

ADAPTERS = {
    "lora": lambda layer: LoRA(layer, 3.0),
    "lokr": lambda layer: LoKr(layer, 3.0, 8, False, False),
    "lokr whole": lambda layer: LoKr(layer, 3.0, 8, True, False),
    "loha": lambda layer: LoHa(layer, 3.0),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(kind: str, dtype: torch.dtype = torch.float32, bias: bool = False) -> FrozenLinear:
    weight = random(80, 48) / 7
    weights: dict[str, FrozenWeight] = {"float": FloatWeight(weight.to(dtype)), "int8": rounded(weight, 3)}
    return FrozenLinear(weights[kind], Scratch(dtype, "cpu"), random(80, seed=5).to(dtype) if bias else None)


def plain(layer: FrozenLinear) -> nn.Linear:
    """A plain layer of the numbers that a frozen one writes."""
    same = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    same.weight = nn.Parameter(layer.weight.clone(), requires_grad=False)
    if layer.bias is not None:
        same.bias = layer.bias
    return same


def results(layer: nn.Module, dtype: torch.dtype) -> list[Tensor]:
    x = random(3, 5, 48, seed=1).to(dtype).requires_grad_()
    trained = [p for p in layer.parameters() if p.requires_grad]
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *trained], random(*y.shape, seed=2).to(dtype))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", ["float", "int8"])
def test_a_layer_and_its_gradient_are_to_the_bit_those_of_the_numbers_it_writes(kind, bias, dtype):
    layer = stored(kind, dtype, bias)
    for ours, theirs in zip(results(layer, dtype), results(plain(layer), dtype), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_learns_on_it_as_on_the_numbers_it_writes(adapter, dtype, fused):
    """Also where a second layer has overwritten the scratch before the backward pass."""

    def adapted(base: nn.Linear) -> AdaptedLinear:
        module = AdaptedLinear(base, ADAPTERS[adapter](layer_of(48, 80, 4)))
        for number, parameter in enumerate(module.adapter.parameters()):
            parameter.data.copy_(random(*parameter.shape, seed=number))
        module.fused = fused
        return module

    layer = stored("int8", dtype)
    other = FrozenLinear(rounded(random(48, 80, seed=9), 1), layer.scratch)
    ours, theirs = (nn.Sequential(adapted(base), after) for base, after in ((layer, other), (plain(layer), plain(other))))
    for left, right in zip(results(ours, dtype), results(theirs, dtype), strict=True):
        assert left.isfinite().all() and left.abs().sum() > 0
        assert torch.equal(left, right)


def test_no_copy_of_a_weight_is_kept_for_the_backward_pass():
    layer = FrozenLinear(rounded(random(512, 512), 1), Scratch(torch.float32, "cpu"))
    adapted = AdaptedLinear(layer, LoRA(layer_of(512, 512, 4), 3.0))
    x = random(2, 512).requires_grad_()
    with Meter() as meter, Casts([adapted.adapter], (), torch.float32).in_use():
        y = adapted(x)
        kept = meter.live - layer.scratch.room.nbytes
        assert kept == y.nbytes, "the output alone"
        y.sum().backward()
    assert layer.scratch.room.nbytes == 512 * 512 * 4


def test_layers_share_one_scratch_of_the_largest_and_it_grows():
    scratch = Scratch(torch.float32, "cpu")
    small, large = (FrozenLinear(rounded(random(side, side), 1), scratch) for side in (8, 16))
    first = small.weight
    assert large.weight.data_ptr() == small.weight.data_ptr() != first.data_ptr()
    assert scratch.room.numel() == 16 * 16


def test_it_follows_a_model_to_a_device_but_not_into_another_dtype():
    layer = FrozenLinear(rounded(random(8, 8), 1), Scratch(torch.float32, "cpu"))
    model = nn.Sequential(layer, nn.Linear(8, 8)).to(torch.bfloat16)
    assert (layer.stored.q.dtype, layer.stored.scale.dtype) == (torch.int8, torch.float32)
    assert model[1].weight.dtype == torch.bfloat16
    model.to("meta")
    assert {buffer.device.type for buffer in model.buffers()} == {"meta"}


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_what_is_read_of_a_weight_that_waits_elsewhere_is_where_it_computes(kind):
    """As a DoRA does before the first step: here the host is the CPU, and meta the device."""
    layer = stored(kind)
    assert torch.equal(numbers_at_home(layer), layer.weight)
    layer.scratch = Scratch(torch.bfloat16, "meta")
    found = numbers_at_home(layer)
    assert (found.device.type, found.dtype, found.shape) == ("meta", torch.bfloat16, (80, 48))
    assert next(layer.stored.buffers()).device.type == "cpu", "it still waits there"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("groups", [1, 4])
def test_int8_writes_its_product_with_the_scale_rounded_once(groups, dtype):
    weight = random(24, 64)
    found = rounded(weight, groups)
    slow = torch.empty_like(weight)
    for row in range(24):
        for group in range(groups):
            columns = slice(group * 64 // groups, (group + 1) * 64 // groups)
            slow[row, columns] = found.q[row, columns].float() * found.scale[row, group]
    into = torch.empty(24, 64, dtype=dtype)
    found.write(into)
    assert torch.equal(into, slow.to(dtype))
    steps = found.scale.repeat_interleave(64 // groups, dim=1)
    assert ((slow - weight).abs() <= 0.5001 * steps).all() and found.q.abs().amax() == 127


def heavy_tailed(share: int) -> Tensor:
    """Gaussian numbers of which one in `share` is twenty times as large."""
    weight = random(256, 1024)
    weight[(torch.rand(256, 1024, generator=torch.Generator().manual_seed(4)) < 1 / share)] *= 20
    return weight


def test_a_weight_is_as_coarse_as_its_error_allows():
    gauss = random(256, 2048)
    assert quantised(gauss).scale.shape == (256, 1) and lost(quantised(gauss), gauss) < 0.009
    column = random(256, 2048)
    column[:, 7] *= 30
    assert lost(rounded(column, 1), column) > COARSE
    assert quantised(column).scale.shape == (256, 16), "one input channel that stands out costs its own group alone"
    assert quantised(heavy_tailed(100)) is None, "numbers that stand out everywhere are kept as they are"
    assert quantised(column[:, :100]) is None, "no groups of one size"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_stays_as_it_is(bad):
    weight = random(8, 128)
    weight[3, 3] = bad
    assert quantised(weight) is None


def test_zeros_stay_zeros():
    weight = random(8, 128)
    weight[3] = 0
    found = quantised(weight)
    into = torch.empty_like(weight)
    found.write(into)
    assert (into[3] == 0).all() and into[2].abs().sum() > 0
    assert quantised(torch.zeros(8, 128)) is not None


class Off(Int8Weight):
    """Writes one number otherwise each time: as another device might."""

    times = 0

    def write(self, into: Tensor) -> None:
        super().write(into)
        Off.times += 1
        into[0, 0] += Off.times


def test_a_weight_is_compared_with_what_the_cpu_writes():
    good, like = rounded(random(24, 64), 4), torch.empty(0, dtype=torch.bfloat16)
    assert weight_difference(good, like) == 0
    assert weight_difference(Off(good.q, good.scale), like) > 0.01


def test_what_stands_for_a_weight_on_meta_has_its_bytes():
    found = rounded(random(24, 64), 4)
    assert found.on_meta().bytes == found.bytes == 24 * 64 + 24 * 4 * 4
    assert Int8Weight.empty(torch.Size((24, 64))).bytes == 24 * 64 + 24 * 4
    assert found.q.device.type == "cpu"

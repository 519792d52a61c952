"""LoHa: LyCORIS' delta and start, gradients of the dense product, and what each of its two fast forms costs."""

import math

import pytest
import torch
from torch import nn

from anima_core.adapters.adapter_type import Adapter
from anima_core.adapters.functions import LoHaFunction, WholeLoHaFunction
from anima_core.adapters.types import loha
from anima_core.adapters.types.loha import FACTORS, LoHa
from anima_core.errors import SettingError
from anima_core.settings import NetworkConfig

from .conftest import relative_error
from .tiny import layer as layer_of


def moved(rank: int, alpha: float, inputs: int = 24, outputs: int = 40) -> LoHa:
    layer = LoHa(layer_of(inputs, outputs, rank), alpha)
    for number, parameter in enumerate(layer.parameters()):
        parameter.data.normal_(generator=torch.Generator().manual_seed(number))
    return layer


def delta(adapter: Adapter) -> torch.Tensor:
    return loha.delta(dict(adapter.named_parameters()) | {"alpha": torch.tensor(adapter.alpha)}, torch.empty(0))


@pytest.mark.parametrize("rank, alpha", [(2, 2.0), (4, 1.0), (3, 0.0), (1, 5.0)])
def test_the_delta_is_lycoris_own(rank, alpha):
    module = pytest.importorskip("lycoris.modules.loha").LohaModule("x", nn.Linear(24, 40), 1.0, rank, alpha)
    ours = moved(rank, alpha)
    for name in FACTORS:
        getattr(module, name).data.copy_(getattr(ours, name))
    assert relative_error(delta(ours), module.get_weight((40, 24))) < 1e-6
    assert float(module.alpha) == ours.alpha
    assert set(module.custom_state_dict()) == {*FACTORS, "alpha"}


def test_the_start_is_lycoris_own():
    """Normal with 0.1 for w1_a and 1 for w1_b and w2_b, zero for w2_a: compared by their spread over many numbers."""
    theirs = pytest.importorskip("lycoris.modules.loha").LohaModule("x", nn.Linear(900, 1000), 1.0, 16, 16)
    ours = LoHa(layer_of(900, 1000, 16), 16)
    for name in FACTORS:
        a, b = getattr(ours, name).data, getattr(theirs, name).data
        assert a.shape == b.shape and math.isclose(a.std(), b.std(), rel_tol=0.03, abs_tol=0) and abs(a.mean()) < 0.05
    assert not ours.get_parameter(LoHa.zero_init).any()


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_forward_and_gradients_are_those_of_the_dense_product(rank):
    layer, x = moved(rank, 2.0), torch.randn(3, 5, 24, requires_grad=True)
    wanted, ours = x @ delta(layer).T, layer(x, torch.empty(0))
    g, sources = torch.randn_like(wanted), [x, *layer.parameters()]
    assert relative_error(ours, wanted) < 1e-5
    for a, b in zip(torch.autograd.grad(ours, sources, g), torch.autograd.grad(wanted, sources, g)):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("inputs, outputs, last", [(2048, 2048, 22), (2048, 8192, 28), (8192, 2048, 28), (1024, 2048, 18)])
def test_of_the_two_fast_forms_the_one_with_fewer_flops_is_taken(inputs, outputs, last):
    """Through r² inner values a row costs 4 r² (in + out), through the gradient of the whole weight 2 in out."""
    for rank, function in ((last, LoHaFunction), (last + 1, WholeLoHaFunction)):
        layer = LoHa(layer_of(inputs, outputs, rank), 1.0)
        fast = layer.fused(torch.empty(1, inputs), nn.Linear(inputs, outputs, bias=False, device="meta"))
        assert fast is not None and fast.function is function
        assert (4 * rank**2 * (inputs + outputs) <= 2 * inputs * outputs) is (function is LoHaFunction)


def test_a_full_matrix_is_refused():
    with pytest.raises(SettingError, match=r"network.rank=100000: means a full matrix, which only lokr has"):
        loha.build(layer_of(8, 8, 100000), NetworkConfig(type="loha", rank=100000))

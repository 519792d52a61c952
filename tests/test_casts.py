"""What is done for all layers at once while a micro-batch runs: casts, products of factors, sums of gradients."""

from collections import Counter

import pytest
import torch
from torch import nn

from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.random_transformer import TINY, random_state
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import NetworkConfig, OptimizerConfig
from anima_core.speed.counting import Meter
from anima_core.training.gradient import FlatGradient
from anima_core.training.state import fresh_state

from .conftest import relative_error
from .test_fused import NETWORKS, gradients, loss_of, network_of, share_gradients


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_factors_are_cast_once_in_a_micro_batch(kind, flat):
    """In one copy of one flat tensor; again in the next micro-batch; what changes in between is seen at once."""
    network = network_of(NETWORKS[kind], torch.bfloat16)
    parameters = list(network.parameters())
    if flat:
        network.flatten(network.parameter_groups(1e-3, 0.0))
    with network.micro_batch(0):
        before = loss_of(network)
        for parameter in parameters:
            parameter.data.mul_(2)
        assert torch.equal(loss_of(network), before)  # reads the casts, which no step may outlive
    assert not torch.equal(loss_of(network), before)
    assert all(module.adapter.casts is None for module in network.linears)
    changed = loss_of(network)
    with Meter() as meter, network.micro_batch(1):
        pass
    sizes = [copy.numel() for copy in network.casts.copies]
    assert meter.ops - Counter(stack=6, bmm=3, zero_=1) == {"_foreach_copy_": 1}  # of a LoKr what is done for all layers
    assert len(sizes) == (1 if flat else len(parameters))
    with network.micro_batch(2):
        assert torch.equal(loss_of(network), changed)
    with pytest.raises(ZeroDivisionError), network.micro_batch(1):
        raise ZeroDivisionError
    assert all(module.adapter.casts is None for module in network.linears) and network.dropouts.micro_batch == 1


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_all_layers_are_made_at_once_and_anew(dtype, flat):
    """Of every shape: each layer's own, as outside of a micro-batch; what is held for them is counted."""
    network = network_of(NETWORKS["lokr of two ranks"], dtype)
    if flat:
        network.flatten(network.parameter_groups(1e-3, 0.0))
    adapters = [module.adapter for module in network.linears]
    ranked = [adapter for adapter in adapters if adapter.products]
    assert len({adapter.shape for adapter in ranked}) > 1 and len(ranked) < len(adapters), "some are whole"
    for number in (0, 1):
        with network.micro_batch(number):
            inside = [adapter.cast("lokr_w2", dtype).clone() for adapter in adapters]
        for adapter, product in zip(adapters, inside):
            assert product.dtype == dtype and relative_error(product, adapter.cast("lokr_w2", dtype)) < 1e-6
        for parameter in network.parameters():
            parameter.data.mul_(1.5)
    numbers = sum(product.numel() for adapter, product in zip(adapters, inside) if adapter.products)
    numbers += sum(copy.numel() for copy in network.casts.copies) * (2 if flat and dtype == torch.bfloat16 else 1)
    assert network.casts.bytes == numbers * dtype.itemsize


def gathering() -> tuple[AdapterNetwork, FlatGradient, list[nn.Parameter]]:
    """A network, where its gradients end, and the parameters whose gradients are gathered in a micro-batch on the way."""
    network = network_of(NETWORKS["lokr of two ranks"], torch.bfloat16)
    gradient = share_gradients(network, network.parameter_groups(1e-3, 0.0))
    gathered = [p for module in network.linears if module.adapter.gathers for p in module.adapter.parameters()]
    return network, gradient, gathered


def test_gradients_are_gathered_as_they_leave_a_product_and_added_once():
    network, _, gathered = gathering()
    with Meter() as meter, network.micro_batch(0):
        loss_of(network).backward()
        before = meter.ops["add_"]
        assert not any(p.grad.any() for p in gathered)
    assert meter.ops["add_"] == before + 1
    for parameter, wanted in zip(network.parameters(), gradients(network)):
        assert relative_error(parameter.grad, wanted) < 1e-6


def test_an_aborted_micro_batch_adds_nothing_and_leaves_nothing_for_the_next():
    """As when memory runs out: a run zeroes the gradients and tries again."""
    network, gradient, gathered = gathering()
    with pytest.raises(ZeroDivisionError), network.micro_batch(0):
        loss_of(network).backward()
        raise ZeroDivisionError
    assert not any(p.grad.any() for p in gathered)
    gradient.zero()
    with network.micro_batch(0):
        loss_of(network).backward()
    for parameter, wanted in zip(network.parameters(), gradients(network)):
        assert relative_error(parameter.grad, wanted) < 1e-6


def test_a_layer_that_is_called_twice_gathers_both_gradients():
    network, *_ = gathering()
    with network.micro_batch(0):
        (loss_of(network, 2) + loss_of(network, 3)).backward()
    wanted = [
        sum(pair) for pair in zip(*(torch.autograd.grad(loss_of(network, seed), [*network.parameters()]) for seed in (2, 3)))
    ]
    for parameter, total in zip(network.parameters(), wanted):
        assert relative_error(parameter.grad, total) < 1e-2  # in bf16 the second is added with a rounding


@pytest.mark.parametrize("kind", ["lora", "lokr"])
def test_without_casts_that_are_held_gradients_are_the_same(kind):
    """To the bit where a factor's gradients are added one by one; a LoKr's are gathered in bf16 before, rounded once more."""
    found = []
    for holds in (True, False):
        model = AnimaTransformer(TINY)
        model.load_state_dict(random_state(TINY, torch.Generator().manual_seed(0)))
        model.to(torch.bfloat16).requires_grad_(False)
        network = AdapterNetwork.inject(model, NetworkConfig(type=kind, rank=4, alpha=4), 0).train()
        network.holds_casts = holds
        state = fresh_state(network, OptimizerConfig(), False)
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.data.normal_(std=0.1)
        for number in range(2):
            with network.micro_batch(number):
                inputs = torch.randn(1, 16, 8, 8), torch.rand(1), torch.randn(1, 512, 64)
                state.gradient.backward(model(*inputs).square().mean())
        assert (network.casts.bytes > 0) == holds
        found.append(state.gradient.buffer.clone())
    held, made = found
    assert held.abs().sum() > 0
    assert torch.equal(held, made) if kind == "lora" else (held - made).norm() < 0.02 * held.norm()

"""A network that is switched off is not there: to the bit, in every form, and nothing of a step depends on its having been."""

import pytest
import torch

from anima_core.adapters.network import AdapterNetwork
from anima_core.speed.forms import LEVELS, apply_levels, make_lean
from anima_core.speed.stream import Away

from . import test_stream
from .test_adapters import LAYOUTS, inputs, model, trained
from .test_stream import BLOCKS, EVERYTHING, built, same, step, streamed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_in_the_form_of_a_training_it_is_the_model_without_a_network(layout, dtype):
    base, adapted = model().to(dtype), model().to(dtype)
    network = AdapterNetwork.inject(adapted, LAYOUTS[layout], 0)
    network.load_state_dict(trained(LAYOUTS[layout]).state_dict())
    for transformer in (base, adapted):
        make_lean(transformer)
    base.modulations = adapted.modulations  # a table, which trained layers have not, sums in another order
    with network.train().micro_batch(0, t=inputs()[1]), torch.no_grad():
        with network.disabled():
            off = adapted(*inputs())
        assert torch.equal(off, base(*inputs()))
        assert not torch.equal(off, adapted(*inputs()))


def test_what_is_not_finite_does_not_reach_through():
    network = trained(LAYOUTS["lora all norms"])
    for parameter in network.parameters():
        parameter.data.fill_(float("inf"))
    with network.disabled():
        assert torch.equal(network.model(*inputs()), model()(*inputs()))


@pytest.mark.parametrize("away", [Away(), EVERYTHING])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("network", ["lora", "dropout"])
def test_a_pass_of_the_base_model_before_it_changes_no_number_of_a_step(network, level, away, monkeypatch):
    transformer, adapters = built(network)
    apply_levels(transformer, [level] * BLOCKS)
    streamed(transformer, away)
    alone = step(transformer, adapters)
    forward, found = type(transformer).forward, []

    def after_the_base(self, *given):
        with torch.no_grad(), adapters.disabled():
            found.append(forward(self, *given))
        return forward(self, *given)

    monkeypatch.setattr(type(transformer), "forward", after_the_base)
    assert same(step(transformer, adapters), alone)
    monkeypatch.undo()
    adapters.eject()
    assert len(found) == 2 and torch.equal(found[0], transformer(*test_stream.inputs()).detach())

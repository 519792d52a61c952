"""The loop's small parts: the flat gradient, the loss reader, the watchdogs, drawing, optimizer state on disk."""

import math

import pytest
import torch
from torch import nn

from anima_core import seeds
from anima_core.adapters.network import AdapterNetwork
from anima_core.errors import RunError
from anima_core.training.events import Events
from anima_core.training.gradient import FlatGradient
from anima_core.training.reporting import LossReader, StepRecord
from anima_core.training.state import flatten_optimizer, unflatten_optimizer
from anima_core.training.watchdog import Watchdog


def small_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def test_clipping_equals_torchs():
    ours, theirs = small_model(), small_model()
    x = torch.randn(4, 5)
    gradient = FlatGradient(list(ours.parameters()), fp16=False)
    gradient.backward(ours(x).square().sum())
    norm = gradient.finish(max_norm=0.1)
    theirs(x).square().sum().backward()
    expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
    assert torch.allclose(norm, expected)
    for a, b in zip(ours.parameters(), theirs.parameters()):
        assert torch.allclose(a.grad, b.grad, rtol=1e-5)
    gradient.zero()
    assert all(p.grad.abs().max() == 0 for p in ours.parameters())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_gradient_becomes_zero(bad):
    model = small_model()
    gradient = FlatGradient(list(model.parameters()), fp16=False)
    gradient.backward(model(torch.ones(1, 5)).sum() * bad)
    norm = gradient.finish(max_norm=1.0)
    assert not norm.isfinite()
    assert all(p.grad.abs().max() == 0 for p in model.parameters())


def test_fp16_scale_halves_on_overflow_and_cancels_out():
    model, plain = small_model(), small_model()
    gradient, reference = FlatGradient(list(model.parameters()), fp16=True), FlatGradient(list(plain.parameters()), fp16=False)
    x = torch.randn(4, 5)
    gradient.backward(model(x).square().mean())
    reference.backward(plain(x).square().mean())
    assert torch.allclose(gradient.finish(0), reference.finish(0), rtol=1e-5)
    before = gradient.scale.item()
    gradient.backward(model(x).sum() * math.inf)
    gradient.finish(0)
    assert gradient.scale.item() == before / 2


def test_losses_come_in_order():
    reader = LossReader()
    for step in (1, 2):
        reader.push(StepRecord(step, 1e-4, ["a.png"]), torch.tensor([float(step), 0.0, 0.0, 0.5, 1.0]))
    records = reader.ready()
    assert [(r.step, r.loss, r.grad_norm) for r in records] == [(1, 1.0, 0.5), (2, 2.0, 0.5)]
    assert reader.ready() == []


class FakeNetwork(AdapterNetwork):
    def __init__(self, value: float = 0.0) -> None:
        nn.Module.__init__(self)
        self.flat = ()
        self.up = nn.Parameter(torch.full((2, 2), value))

    def zero_init_parameters(self):
        return [("up", self.up)]


def test_a_non_finite_loss_names_its_pictures_and_stops_after_three():
    dog = Watchdog(FakeNetwork(1.0))
    names = ["broken.png"]
    assert "broken.png" in dog.check(1, math.nan, math.nan, names)
    assert dog.check(2, 0.5, 1.0, names) is None
    dog.check(3, math.inf, math.nan, names)
    dog.check(4, math.nan, math.nan, names)
    with pytest.raises(RunError, match=r"step 5: the loss was not finite 3 times in a row.*broken\.png.*learning_rate"):
        dog.check(5, math.nan, math.nan, names)


def test_a_non_finite_gradient_counts_like_a_non_finite_loss():
    dog = Watchdog(FakeNetwork(1.0))
    assert dog.check(1, 0.5, math.inf, ["a.png"]) == "step 1: the gradient is inf; the step was left out (pictures: a.png)"
    dog.check(2, math.nan, math.nan, ["a.png"])
    with pytest.raises(RunError, match=r"step 3: the gradient was not finite 3 times in a row \(pictures: b\.png.*model file"):
        dog.check(3, 0.5, math.nan, ["b.png"])


def test_the_search_for_the_fp16_scale_may_take_many_steps_but_has_an_end():
    """Each overflow halves the scale on the device; at its least an overflow counts as anywhere."""
    model, dog = small_model(), Watchdog(FakeNetwork(1.0))
    gradient = FlatGradient(list(model.parameters()), fp16=True)
    scales = []
    with pytest.raises(RunError, match="the gradient was not finite 3 times in a row"):
        for step in range(1, 40):
            gradient.zero()
            gradient.backward(model(torch.ones(1, 5)).sum() * math.inf)
            norm = gradient.finish(0)
            scales.append(gradient.used_scale.item())
            dog.check(step, 0.5, norm.item(), ["a.png"], scales[-1])
    assert scales == [2.0**n for n in range(14, -1, -1)] + [1.0, 1.0]


def test_a_run_without_any_good_step_is_an_error():
    dog = Watchdog(FakeNetwork(0.0))
    dog.check_trained()  # a run that was continued at its end has no steps to take
    dog.check(1, math.nan, math.nan, [])
    with pytest.raises(RunError, match="none of 1 steps had a finite loss and gradient"):
        dog.check_trained()
    dog.check(2, 0.5, 1.0, [])
    dog.check_trained()


def test_steps_that_were_left_out_do_not_count_against_an_adapter_that_has_not_moved():
    dog = Watchdog(FakeNetwork(0.0))
    for step in range(1, 9):
        dog.check(step, 0.5, math.inf, [], scale=2.0)
    for step in range(9, 13):
        dog.check(step, 0.5, 1.0, [])
    with pytest.raises(RunError, match="still zero"):
        dog.check(13, 0.5, 1.0, [])


def test_the_last_good_adapter_comes_back():
    network = FakeNetwork(1.0)
    dog = Watchdog(network)
    network.up.data.fill_(2.0)
    dog.keep(100)
    network.up.data.fill_(math.nan)
    dog.keep(200)
    assert dog.restore_if_broken() == 100
    assert torch.equal(network.up.data, torch.full((2, 2), 2.0))
    assert dog.restore_if_broken() is None


def test_an_adapter_that_does_not_move_is_an_error():
    with pytest.raises(RunError, match="still zero"):
        Watchdog(FakeNetwork(0.0)).check_moving()
    Watchdog(FakeNetwork(0.1)).check_moving()


def test_draws_depend_on_their_position_only():
    a = torch.randn(4, generator=seeds.generator(1, "noise", 5))
    assert torch.equal(a, torch.randn(4, generator=seeds.generator(1, "noise", 5)))
    for other in (seeds.generator(2, "noise", 5), seeds.generator(1, "noise", 6), seeds.generator(1, "t", 5)):
        assert not torch.equal(a, torch.randn(4, generator=other))


def test_optimizer_state_survives_plain_files():
    import json

    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().mean().backward()
        optimizer.step()
    tensors, scalars = flatten_optimizer(optimizer.state_dict())
    stripped = {name.removeprefix("optimizer."): tensor for name, tensor in tensors.items()}
    restored = unflatten_optimizer(stripped, json.loads(json.dumps(scalars)))
    other = torch.optim.AdamW(small_model().parameters(), lr=0.5)
    other.load_state_dict(restored)
    assert other.param_groups[0]["lr"] == 0.01 and other.param_groups[0]["betas"] == (0.9, 0.999)
    for index, entries in optimizer.state_dict()["state"].items():
        assert all(torch.equal(other.state_dict()["state"][index][k], v) for k, v in entries.items())


def test_events_reach_the_log_and_the_listener(tmp_path):
    seen = []

    def listener(event):
        seen.append(event["event"])
        return "stop" if event["event"] == "step" else None

    events = Events(tmp_path / "run" / "log.jsonl", listener)
    events.emit("note", text="日本語")
    assert events.command is None
    events.emit("step", step=1, loss=None)
    assert events.command == "stop"
    events.close()
    lines = (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 2 and "日本語" in lines[0] and seen == ["note", "step"]

"""Steps whose loss or gradient is not finite: nothing moves, everybody is told, and a run of nothing else is an error."""

import dataclasses
import itertools
import json
import math

import pytest
import torch
from safetensors.torch import load_file

from anima_core import train
from anima_core.demo.pictures import write_pictures
from anima_core.errors import RunError
from anima_core.settings import OutputConfig
from anima_core.training.ema import EMA
from anima_core.training.gradient import FlatGradient
from anima_core.training.optimizers import step_if_finite
from anima_core.training.state import flatten_optimizer

from .test_optimizers import ALL, TARGET, built, factor
from .tiny import same_tensors, train_changed, train_config

pytestmark = pytest.mark.slow


class Trained:
    """A factor, its optimizer and average, as a run has them."""

    def __init__(self, name: str, averaged: bool) -> None:
        self.parameter = factor()
        self.optimizer = built(name, self.parameter, weight_decay=0.01)
        self.gradient = FlatGradient([self.parameter], fp16=False)
        self.ema = EMA([self.parameter], 0.9) if averaged else None

    def step(self, poison: float = 1.0) -> None:
        self.gradient.backward((self.parameter - TARGET).square().mean() * poison)
        step_if_finite(self.optimizer, self.ema, self.gradient.finish(1.0))
        self.gradient.zero()

    def everything(self) -> tuple[dict[str, torch.Tensor], str]:
        tensors, numbers = flatten_optimizer(self.optimizer.state_dict())
        tensors["parameter"] = self.parameter.detach()
        tensors |= {} if self.ema is None else {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        return {k: v.clone() for k, v in tensors.items()}, json.dumps(numbers)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("averaged", [False, True], ids=["plain", "ema"])
@pytest.mark.parametrize("name", ALL)
def test_a_step_that_is_left_out_moves_nothing(name, averaged, bad):
    """Neither weights nor moments nor counters; what follows is as if it had not been."""
    whole, cut = Trained(name, averaged), Trained(name, averaged)
    for _ in range(4):
        whole.step()
        cut.step()
    before = cut.everything()
    cut.step(bad)
    after = cut.everything()
    assert same_tensors(before[0], after[0]) and before[1] == after[1]
    for _ in range(3):
        whole.step()
        cut.step()
    assert same_tensors(whole.everything()[0], cut.everything()[0]) and whole.everything()[1] == cut.everything()[1]


@pytest.mark.parametrize("name", ALL)
def test_a_first_step_that_is_left_out_moves_nothing(name):
    whole, cut = Trained(name, averaged=False), Trained(name, averaged=False)
    cut.step(math.nan)
    assert not cut.parameter.any()
    for _ in range(3):
        whole.step()
        cut.step()
    assert same_tensors(whole.everything()[0], cut.everything()[0])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


def warnings_of(events: list[dict]) -> list[str]:
    return [e["text"] for e in events if e["event"] == "warning"]


def gradient_is_nan(steps: range):
    """Let the gradients of some steps be NaN while the losses are not, as a faulty attention kernel does."""

    def change(run):
        real, calls = run.state.gradient.backward, itertools.count(1)

        def backward(loss):
            real(loss)
            if next(calls) in steps:
                run.state.gradient.buffer[7] = math.nan

        run.state.gradient.backward = backward

    return change


def test_gradients_that_stay_nan_end_the_run_with_the_pictures_named(model, pictures, tmp_path):
    events = []
    with pytest.raises(RunError, match=r"step 8: the gradient was not finite 3 times in a row \(pictures: .*\.png"):
        train_changed(train_config(model, pictures, tmp_path, max_train_steps=30), gradient_is_nan(range(6, 31)), events.append)
    said = warnings_of(events)
    assert [text.split(";")[0] for text in said[:2]] == [f"step {n}: the gradient is nan" for n in (6, 7)]
    assert all("the step was left out (pictures: " in text for text in said[:2])
    assert [e["loss"] is not None for e in events if e["event"] == "step"] == [True] * 8


def test_one_gradient_that_is_nan_costs_one_step(model, pictures, tmp_path):
    events = []
    result = train_changed(train_config(model, pictures, tmp_path), gradient_is_nan(range(3, 4)), events.append)
    assert result.steps == 6 and len(warnings_of(events)) == 1


@pytest.mark.parametrize("steps", [1, 2])
def test_a_run_without_one_finite_loss_is_an_error(model, pictures, tmp_path, steps):
    """A model file with NaN weights: an adapter of zeros is no success."""

    def change(run):
        with torch.no_grad():
            run.model.t_embedding_norm.weight.fill_(math.nan)

    config = train_config(model, pictures, tmp_path, max_train_steps=steps)
    with pytest.raises(RunError, match=f"none of {steps} steps had a finite loss and gradient: nothing was trained; check"):
        train_changed(config, change)
    assert not (tmp_path / "test.safetensors").exists()
    assert not list(tmp_path.rglob("state.safetensors"))  # else the next start would go on from the end, and call it done
    assert train(config).steps == steps


def test_a_run_that_turns_bad_after_it_was_resumed_keeps_the_steps_before(model, pictures, tmp_path):
    """Its adapter is known to be good up to where it was resumed."""
    output = OutputConfig(str(tmp_path), "test", save_dtype="fp32")
    first = train(train_config(model, pictures, tmp_path, max_train_steps=3, output=output))
    good = load_file(first.adapter_path)

    def poison(run):
        real = run.state.optimizer.step

        def step():
            real()
            with torch.no_grad():
                next(run.state.network.parameters()).fill_(math.nan)

        run.state.optimizer.step = step

    events = []
    config = train_config(model, pictures, tmp_path, output=dataclasses.replace(output, resume="latest"), ema_decay=0.9)
    config = dataclasses.replace(config, output=dataclasses.replace(config.output, resume_with_changes=True))
    with pytest.raises(RunError, match=r"not finite"):
        train_changed(config, poison, events.append)
    assert any("the one of step 3 is kept" in text for text in warnings_of(events))
    kept = load_file(tmp_path / "test-run" / "test-step00000003.safetensors")
    assert same_tensors(kept, good)
    assert [path.name for path in (tmp_path / "test-run" / "checkpoints").iterdir()] == ["step-00000003"]


def test_an_adapter_that_is_not_finite_pushes_no_good_one_out(model, pictures, tmp_path):
    def poison(run):
        real = run.between_steps

        def between_steps():
            if run.state.step == 3:
                with torch.no_grad():
                    next(run.state.network.parameters()).fill_(math.nan)
            real()

        run.between_steps = between_steps

    output = OutputConfig(str(tmp_path), "test", save_every_n_steps=1, save_last_n=1)
    with pytest.raises(RunError, match="step 3: the adapter is not finite any more"):
        train_changed(train_config(model, pictures, tmp_path, output=output), poison)
    (kept,) = tmp_path.glob("test-step*")
    assert kept.name == "test-step00000002.safetensors"
    assert all(tensor.isfinite().all() for tensor in load_file(kept).values())


def test_where_the_device_does_not_look_at_the_flag_the_host_decides(monkeypatch):
    """The MPS kernel of fused AdamW takes `found_inf` and steps all the same."""
    asked = []

    class Fused(torch.optim.AdamW):
        _step_supports_amp_scaling = True

        def step(self):
            asked.append(1)

    class OnMps(torch.Tensor):
        device = torch.device("mps")

        def isfinite(self):
            return torch.isfinite(torch.tensor(math.nan))

    step_if_finite(Fused([torch.nn.Parameter(torch.zeros(1))]), None, torch.zeros(()).as_subclass(OnMps))
    assert not asked

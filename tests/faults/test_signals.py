"""Signals, and failures within an optimizer step: what is saved is always the state between two steps."""

import dataclasses
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from anima_core import train
from anima_core.errors import Interrupted, RunError
from anima_core.settings import OptimizerConfig, OutputConfig, SampleConfig
from anima_core.training import optimizers, signals

from ..tiny import same_tensors, train_changed, train_config


@pytest.fixture(autouse=True)
def none_ignored(_signals):
    """A shell may have started pytest with some signals ignored, and a run leaves those alone."""
    for number in signals.ENDING_SIGNALS:
        signal.signal(number, signal.default_int_handler)


def in_the_middle_of_step(number: int, action, monkeypatch) -> None:
    """Call `action` when the optimizer has updated half of the parameters of its step `number`, and go on if it returns."""
    real, calls = optimizers.build_optimizer, []

    def build(groups, config):
        optimizer = real(groups, config)
        if "name" in groups[0]:  # not one that is tried on small tensors before
            whole_step, params = optimizer.step, optimizer.param_groups[0]["params"]

            def step():
                calls.append(1)
                if len(calls) == number:
                    half = params[: len(params) // 2]
                    optimizer.param_groups[0]["params"] = half
                    whole_step()
                    action()
                    optimizer.param_groups[0]["params"] = params[len(params) // 2 :]
                    whole_step()
                    optimizer.param_groups[0]["params"] = params
                else:
                    whole_step()

            optimizer.step = step
        return optimizer

    monkeypatch.setattr(optimizers, "build_optimizer", build)


def configured(model, pictures, folder, resume="", **changes):
    output = OutputConfig(str(folder), "test", save_dtype="fp32", checkpoint_every_n_steps=2, resume=resume)
    return train_config(model, pictures, folder, output=output, **changes)


@pytest.mark.parametrize("number", signals.ENDING_SIGNALS, ids=lambda n: n.name)
def test_a_signal_within_an_optimizer_step_waits_for_its_end(model, pictures, tmp_path, monkeypatch, number):
    whole = train(configured(model, pictures, tmp_path / "whole"))
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        in_the_middle_of_step(3, lambda: signal.raise_signal(number), patch)
        with pytest.raises(Interrupted, match="cancelled at step 3 of 6"):
            train(configured(model, pictures, tmp_path / "parts"))
    assert signal.getsignal(number) == before
    resumed = train(configured(model, pictures, tmp_path / "parts", resume="latest"))
    assert resumed.losses == whole.losses
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))


def test_a_signal_between_micro_batches_leaves_the_step_untaken(model, pictures, tmp_path):
    settings, calls = dict(gradient_accumulation_steps=3), []
    whole = train(configured(model, pictures, tmp_path / "whole", **settings))

    def change(run):
        real = run.forward

        def forward(batch):
            calls.append(batch.number)
            if len(calls) == 5:
                signal.raise_signal(signal.SIGTERM)
            return real(batch)

        run.forward = forward

    with pytest.raises(Interrupted, match="cancelled at step 1 of 6"):
        train_changed(configured(model, pictures, tmp_path / "parts", **settings), change)
    assert calls == [0, 1, 2, 3, 4]  # the second step's last micro-batch was left out
    resumed = train(configured(model, pictures, tmp_path / "parts", resume="latest", **settings))
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))


def test_a_signal_in_the_middle_of_a_preview_ends_there(model, pictures, tmp_path):
    settings = dict(samples=SampleConfig(prompts=("a", "b"), width=64, height=64, steps=20, every_n_steps=2, cfg=1.0))
    whole = train(configured(model, pictures, tmp_path / "whole", **settings))
    drawn = []

    def listener(event):
        if event.get("stage") == "preview":
            drawn.append(event["done"])
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="cancelled at step 2"):
        train(configured(model, pictures, tmp_path / "parts", **settings), listener)
    assert drawn == [1] and not list((tmp_path / "parts" / "test-run" / "samples").glob("*.png"))
    resumed = train(configured(model, pictures, tmp_path / "parts", resume="latest", **settings))
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))


def test_a_second_signal_ends_at_once_and_the_last_checkpoint_stays(model, pictures, tmp_path, monkeypatch):
    """Once it cannot be a launcher that passes on what the terminal sent already."""
    whole = train(configured(model, pictures, tmp_path / "whole"))
    seconds, survived = [0.0], []
    monkeypatch.setattr(signals, "time", SimpleNamespace(monotonic=lambda: seconds[0]))

    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # together with the first
        seconds[0] = signals.SECOND_CTRL_C_AFTER + 0.1
        signal.raise_signal(signal.SIGTERM)  # no person's impatience
        survived.append("all three")
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("not reached")

    with monkeypatch.context() as patch:
        in_the_middle_of_step(5, twice, patch)
        with pytest.raises(KeyboardInterrupt):
            train(configured(model, pictures, tmp_path / "parts"))
    assert survived == ["all three"]
    names = [path.name for path in sorted((tmp_path / "parts" / "test-run" / "checkpoints").iterdir())]
    assert names == ["step-00000002", "step-00000004"]
    resumed = train(configured(model, pictures, tmp_path / "parts", resume="latest"))
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_signal_that_was_ignored_stays_ignored(model, pictures, tmp_path):
    """A run under nohup outlives its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    hang_up = lambda event: signal.raise_signal(signal.SIGHUP) if event["event"] == "step" else None  # noqa: E731
    assert train(configured(model, pictures, tmp_path), hang_up).steps == 6


def test_a_failure_within_an_optimizer_step_saves_no_half_step(model, pictures, tmp_path, monkeypatch):
    whole = train(configured(model, pictures, tmp_path / "whole"))

    def fail():
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    events = []
    with monkeypatch.context() as patch:
        in_the_middle_of_step(6, fail, patch)
        with pytest.raises(RunError, match="^out of memory .*free memory on cpu, or use a smaller network.rank"):
            train(configured(model, pictures, tmp_path / "parts"), events.append)
    assert any("failed within step 6: the checkpoint before is the last" in e.get("text", "") for e in events)
    names = [path.name for path in sorted((tmp_path / "parts" / "test-run" / "checkpoints").iterdir())]
    assert names == ["step-00000002", "step-00000004"]
    resumed = train(configured(model, pictures, tmp_path / "parts", resume="latest"))
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))


def test_a_kill_while_a_checkpoint_is_replaced_finds_the_one_before(model, pictures, tmp_path):
    """A run that is resumed and ended at once writes the checkpoint of the same step again."""
    config = configured(model, pictures, tmp_path)
    train(config, lambda e: "stop" if e.get("step") == 4 else None)
    folder = tmp_path / "test-run" / "checkpoints"
    newest = folder / "step-00000004"
    newest.rename(folder / ".step-00000004.replaced")  # here the kill came
    shutil.rmtree(folder / "step-00000002")
    resume = configured(model, pictures, tmp_path, resume="latest")
    events = []
    with pytest.raises(Interrupted):
        train(resume, lambda e: events.append(e) or ("cancel" if "resumed" in e.get("text", "") else None))
    assert any(e.get("text") == "resumed at step 4 from .step-00000004.replaced" for e in events)
    assert [path.name for path in folder.glob("*step-00000004*")] == ["step-00000004"]
    assert train(dataclasses.replace(resume, optimizer=OptimizerConfig(learning_rate=2e-3))).steps == 6

"""Memory that runs out in a step: nothing of the failed try stays, the next takes less, and no number changes."""

import dataclasses
import gc
import random
import weakref
from collections.abc import Iterable

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from anima_core import train
from anima_core.errors import RunError
from anima_core.settings import NetworkConfig, OptimizerConfig, OutputConfig, TrainConfig
from anima_core.speed.counting import tensors_in
from anima_core.speed.plan import summary
from anima_core.training import loop
from anima_core.training.events import Listener
from anima_core.training.loop import TrainResult

from ..tiny import same_tensors, train_changed, train_config


def out_of_memory(times: int):
    """Let a run's first forward passes run out of memory."""

    def change(run):
        calls, real = [], run.forward

        def forward(batch):
            calls.append(1)
            if len(calls) <= times:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return real(batch)

        run.forward = forward

    return change


def warnings_of(events: list[dict]) -> list[str]:
    return [e["text"] for e in events if e["event"] == "warning"]


class RunsOut(TorchDispatchMode):
    """Lets memory run out at some allocations, by number."""

    def __init__(self, at: Iterable[int] = ()) -> None:
        super().__init__()
        self.at, self.count = set(at), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        allocates = not func.is_view and any(kind.alias_info is None for kind in func._schema.returns)
        if allocates and any(not tensor.is_meta for tensor in tensors_in(result)):
            self.count += 1
            if self.count in self.at:
                raise torch.OutOfMemoryError(f"CUDA out of memory (simulated, {func})")
        return result


def train_with(mode: RunsOut, config: TrainConfig, on_event: Listener | None = None) -> TrainResult:
    """Train with all steps inside a mode."""

    def change(run):
        def take_steps(real=run.take_steps):
            with mode:
                return real()

        run.take_steps = take_steps

    return train_changed(config, change, on_event)


EVERYTHING = NetworkConfig(rank=4, dropout=0.2, module_dropout=0.1, train_norm=True, targets="attn+mlp+adaln")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"network": EVERYTHING, "gradient_accumulation_steps": 2, "ema_decay": 0.9},
        {"network": NetworkConfig(type="lokr", rank=4, factor=4), "optimizer": OptimizerConfig(max_grad_norm=0.01)},
    ],
    ids=["LoRA", "dropout, norms, adaLN, accumulation, EMA", "LoKr, clipped"],
)
def test_memory_that_runs_out_anywhere_in_the_steps_changes_no_bit(model, pictures, tmp_path, changes):
    """Forward, backward, recomputed, clipping, the optimizer: twice in each run, at random."""
    whole = RunsOut()
    plain = train_with(whole, train_config(model, pictures, tmp_path / "plain", **changes))
    chance = random.Random(0)
    for number in range(4):
        mode, events = RunsOut(chance.sample(range(1, whole.count), 2)), []
        other = train_with(mode, train_config(model, pictures, tmp_path / str(number), **changes), events.append)
        assert same_tensors(load_file(plain.adapter_path), load_file(other.adapter_path)), sorted(mode.at)
        assert plain.losses == other.losses and all("out of memory; tried again" in text for text in warnings_of(events))


def test_a_try_that_would_take_no_less_is_not_made(model, pictures, tmp_path):
    """Where every block is recomputed already, the next try takes less all the same."""
    taken = []

    def change(run):
        out_of_memory(2)(run)
        inner = run.forward

        def forward(batch):
            taken.append((len(batch.latents), run.fit.counter.worst.peak(run.fit.levels)))
            return inner(batch)

        run.forward = forward

    config = train_config(model, pictures, tmp_path, memory="recompute", dataset=dict(batch_size=4, enable_bucket=False))
    train_changed(dataclasses.replace(config, max_train_steps=1), change)
    assert taken[0] > taken[1] > taken[2] and len(taken) > 2


def test_memory_that_runs_out_at_the_first_allocation_of_a_step(model, pictures, tmp_path):
    """With every block recomputed only smaller parts are left to try, and how many there can be is the batch's to say."""
    tries = []

    def change(run):
        real = run.accumulate

        def accumulate(feed, batches):
            tries.append(len(batches))
            if len(tries) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return real(feed, batches)

        run.accumulate = accumulate

    config = train_config(model, pictures, tmp_path, memory="recompute", dataset=dict(enable_bucket=False))
    train_changed(dataclasses.replace(config, max_train_steps=1), change)
    assert tries == [1, 1]


def test_each_time_less_is_kept_and_in_the_end_a_micro_batch_is_split(model, pictures, tmp_path):
    """The mean of its parts is that of the whole, and so are the dropout masks: only sums are in another order."""
    data = dict(batch_size=4, enable_bucket=False)
    common = dict(network=EVERYTHING, gradient_accumulation_steps=2, dataset=data, max_train_steps=3)
    plain = train(train_config(model, pictures, tmp_path / "a", **common))
    events, taken = [], []

    def change(run):
        out_of_memory(3)(run)
        inner = run.forward

        def forward(batch):
            taken.append((run.fit.counter.worst.peak(run.fit.levels), len(batch.latents), run.fit.levels))
            return inner(batch)

        run.forward = forward

    other = train_changed(train_config(model, pictures, tmp_path / "b", **common), change, events.append)
    first, second, third = (peak for peak, _, _ in taken[:3])
    assert first > second > third and {count for _, count, _ in taken[:3]} == {4}
    assert {(peak, count) for peak, count, _ in taken[3:]} == {(third, 2)}
    said = [text.partition("from here on ")[2] for text in warnings_of(events) if "out of memory" in text]
    assert said == [summary(taken[1][2]), summary(taken[2][2]), f"{summary(taken[2][2])}, each micro-batch in 2 parts"]
    assert other.losses == pytest.approx(plain.losses, rel=1e-5)
    before, after = load_file(plain.adapter_path), load_file(other.adapter_path)
    assert all(torch.allclose(before[name], after[name], rtol=1e-2, atol=1e-5) for name in before)


def test_nothing_of_a_step_that_ran_out_of_memory_is_alive_in_the_next_try(model, pictures, tmp_path):
    """In the backward pass, where the peak is: the loss of the failed try owns its whole graph."""
    kept = []

    def change(run):
        forward, backward = run.forward, run.state.gradient.backward
        kept.append(weakref.ref(run.model.blocks[0].register_forward_hook(lambda *call: kept.append(weakref.ref(call[2])))))

        def watched(batch):
            loss = forward(batch)
            kept.append(weakref.ref(loss))
            return loss

        def failing(loss):
            kept.append(weakref.ref(loss))
            if len(tries) == 0:
                tries.append([ref for ref in kept[1:]])
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            tries.append([ref() is None for ref in tries[0]])
            backward(loss)

        run.forward, run.state.gradient.backward = watched, failing

    tries = []
    train_changed(train_config(model, pictures, tmp_path, max_train_steps=1, max_train_epochs=0), change)
    assert len(tries[0]) == 3 and tries[1] == [True, True, True]


def test_a_step_that_never_fits_says_what_would(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path, memory="recompute", memory_gb=8.0, dataset=dict(enable_bucket=False))
    advice = r"use a smaller dataset.resolutions or network.rank, or a higher memory_gb than 8"
    with pytest.raises(RunError, match=rf"out of memory at one picture of 64x64 with every block recomputed .*{advice}"):
        train_changed(config, out_of_memory(10**6))


def test_a_step_that_fits_no_more_ends_with_its_state_saved(model, pictures, tmp_path):
    """A larger bucket after hours, or another program that took memory: what it says in a plain RuntimeError counts too."""
    whole = train(train_config(model, pictures, tmp_path / "whole"))
    output = OutputConfig(dir=str(tmp_path / "parts"), name="test", save_dtype="fp32")
    config = train_config(model, pictures, tmp_path / "parts", output=output)

    def change(run):
        real = run.forward

        def forward(batch):
            if run.state.step == 4:
                raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
            return real(batch)

        run.forward = forward

    with pytest.raises(RunError, match=r"out of memory at one picture .*use"):
        train_changed(config, change)
    (checkpoint,) = (tmp_path / "parts" / "test-run" / "checkpoints").iterdir()
    assert checkpoint.name == "step-00000004"
    resumed = train(dataclasses.replace(config, output=dataclasses.replace(output, resume="latest"), memory="recompute"))
    assert resumed.steps == 6 and resumed.losses == pytest.approx(whole.losses, rel=1e-4)


def test_memory_that_runs_out_while_a_batch_is_made_ends_the_run_too(model, pictures, tmp_path):
    """The thread that makes batches has ended then: a second try must not wait for it."""

    def change(run):
        def fetch(captions):
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

        run.data.embeddings.fetch = fetch

    with pytest.raises(RunError, match="out of memory while a batch was made .*caption_variants"):
        train_changed(train_config(model, pictures, tmp_path), change)


def test_a_run_that_fails_while_it_is_made_ready_frees_its_model_too(model, pictures, tmp_path, monkeypatch):
    refs, load = [], loop.load_transformer

    def watched(*args, **kwargs):
        loaded = load(*args, **kwargs)
        refs.append(weakref.ref(loaded))
        return loaded

    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory (simulated)")

    monkeypatch.setattr(loop, "load_transformer", watched)
    monkeypatch.setattr(loop, "with_embeddings", fail)
    with pytest.raises(RunError, match="^out of memory .*free memory on cpu") as failed:
        train(train_config(model, pictures, tmp_path))
    gc.collect()
    assert failed.value.__traceback__ is not None and [ref() for ref in refs] == [None]


@pytest.mark.parametrize("where", ["in a step", "while saving"])
def test_a_failed_run_frees_its_model_although_its_error_lives(model, pictures, tmp_path, where):
    """ComfyUI keeps the traceback for its report; the next node needs the memory."""
    refs = []

    def fail(*call):
        raise RuntimeError("CUDA error: device-side assert triggered")

    def change(run):
        refs.extend(weakref.ref(thing) for thing in (run.model, run.state.network, run.state.gradient, run.data))
        if where == "in a step":
            run.model.blocks[0].register_forward_pre_hook(fail)
        else:
            run.saver.finish = fail

    with pytest.raises(RuntimeError, match="device-side assert") as failed:
        train_changed(train_config(model, pictures, tmp_path), change)
    gc.collect()
    assert failed.value.__traceback__ is not None and [ref() for ref in refs] == [None] * 4

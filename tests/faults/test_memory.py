"""Memory that runs out in a step: nothing of the failed try stays, the next takes less, and no number changes."""

import dataclasses
import gc
import weakref

import pytest
import torch
from safetensors.torch import load_file

from anima_core import train
from anima_core.errors import RunError
from anima_core.settings import NetworkConfig, OutputConfig
from anima_core.speed.forms import recomputes_blocks
from anima_core.training import loop

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


def test_a_step_out_of_memory_is_tried_once_more_and_from_there_on_with_less(model, pictures, tmp_path):
    network = NetworkConfig(rank=4, dropout=0.2, module_dropout=0.1)
    common = dict(network=network, gradient_accumulation_steps=2)
    plain = train(train_config(model, pictures, tmp_path / "a", **common))
    events, recomputed = [], []

    def change(run):
        out_of_memory(1)(run)
        inner = run.forward

        def forward(batch):
            recomputed.append(recomputes_blocks(run.model))
            return inner(batch)

        run.forward = forward

    other = train_changed(train_config(model, pictures, tmp_path / "b", **common), change, events.append)
    assert warnings_of(events) == [
        "step 1: out of memory; trying once more after freeing, and from here on with blocks recomputed, which is slower"
    ]
    assert not recomputed[0] and len(recomputed) > 6 and all(recomputed[1:])
    assert same_tensors(load_file(plain.adapter_path), load_file(other.adapter_path))


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
    config = train_config(model, pictures, tmp_path, memory="recompute", dataset=dict(enable_bucket=False))
    advice = r"use dataset.batch_size=1 with gradient_accumulation_steps=2"
    with pytest.raises(RunError, match=rf"out of memory at 2 pictures of 64x64 .*{advice}"):
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

    with pytest.raises(RunError, match=r"out of memory at \d pictures .*use"):
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

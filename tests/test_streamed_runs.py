"""Runs whose weights wait in host memory: loaded there, planned, taken over, and no number of them another one."""

import dataclasses
import json
import re

import pytest
import torch
from safetensors.torch import load_file

from anima_core import train
from anima_core.demo.pictures import write_pictures
from anima_core.demo.random_transformer import TINY, write_random_transformer
from anima_core.errors import RunError
from anima_core.models import transformer
from anima_core.speed.cards import FRAGMENTS, GB
from anima_core.speed.stream import NOWHERE, Away
from anima_core.training import loop
from anima_core.training.fit import FILE
from anima_core.training.forecast import forecast

from .conftest import relative_error
from .tiny import same_tensors, train_changed, train_config

pytestmark = [pytest.mark.slow, pytest.mark.long]

BLOCKS = 6


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    """A run of three steps on a model of six blocks."""
    folder = tmp_path_factory.mktemp("streamed")
    write_pictures(folder / "pictures", 4)
    write_random_transformer(folder / "six.safetensors", dataclasses.replace(TINY, blocks=BLOCKS))
    deeper = dataclasses.replace(model, transformer=str(folder / "six.safetensors"))
    return train_config(deeper, folder / "pictures", folder, memory="auto", max_train_steps=3, dataset=dict(batch_size=1))


@pytest.fixture(scope="module")
def plain(base):
    return train(base)


def another(base, folder, **changes):
    """The same run in a folder of its own, with some settings changed."""
    return dataclasses.replace(base, output=dataclasses.replace(base.output, dir=str(folder)), **changes)


def same(one, other) -> bool:
    return one.losses == other.losses and same_tensors(load_file(one.adapter_path), load_file(other.adapter_path))


@pytest.mark.parametrize("memory", ["keep", "offload"])
def test_swapped_blocks_change_no_bit(base, plain, tmp_path, memory):
    config = another(base, tmp_path, blocks_to_swap=4, memory=memory)
    with loop.opened(config) as run:
        assert run.fit.streaming.away == Away(4) and set(run.fit.levels) == {memory}
        result = run.go()
    assert same(result, plain)
    assert json.loads((result.run_dir / FILE).read_text())["away"] == {"blocks": 4, "adaln": False}


def test_in_8_bits_too(base, tmp_path):
    eight = dataclasses.replace(base.model, dtype="int8")
    resident = train(another(base, tmp_path / "resident", model=eight))
    assert same(train(another(base, tmp_path / "streamed", model=eight, blocks_to_swap=BLOCKS)), resident)


def test_more_blocks_than_there_are_means_all(base, tmp_path):
    with loop.opened(another(base, tmp_path, blocks_to_swap=99)) as run:
        assert run.fit.streaming.away == Away(BLOCKS)


def tight(base, folder, away: Away):
    """The run with a budget in which no less must be in host memory than this."""
    with loop.opened(another(base, folder / "measured", memory_gb=8.0)) as run:
        budget = run.fit.budget.streaming(away)
        assert run.fit.streaming.away == NOWHERE, "there is room"
        limit = budget.resident + FRAGMENTS * budget.costs.peak(["offload"] * BLOCKS)
    return another(base, folder, memory_gb=limit * 1.0001 / GB)


def test_what_does_not_fit_is_loaded_into_host_memory(base, plain, tmp_path, monkeypatch):
    loaded, real, events = [], transformer.load_strict, []

    def load(*args, on_host, **kwargs):
        loaded.extend(name for name in transformer.shapes_of(args[0]) if on_host(name))
        return real(*args, on_host=on_host, **kwargs)

    monkeypatch.setattr(transformer, "load_strict", load)
    config = tight(base, tmp_path, Away(4, adaln=True))
    loaded.clear()
    with loop.opened(config, events.append) as run:
        away = run.fit.streaming.away
        assert away.blocks >= 4 and away.adaln and run.fit.budget.fits(run.fit.levels)
        result = run.go()
    assert sum(".mlp." in name for name in loaded) == 2 * away.blocks and sum("adaln" in name for name in loaded) == 6 * BLOCKS
    notes = [event["text"] for event in events if event["event"] == "note" and event["text"].startswith("memory:")]
    assert f"the weights of {away.blocks} and the modulation's are streamed from host memory" in notes[0]
    ours, theirs = (torch.cat([t.flatten() for t in load_file(r.adapter_path).values()]) for r in (result, plain))
    assert relative_error(ours, theirs) < 1e-3, "modulation is made block by block, in another order of sums"


def test_a_forecast_says_what_would_be_streamed(base, tmp_path):
    (line, *_) = forecast(tight(base, tmp_path, Away(4, adaln=True)), None)
    assert re.search("the weights of [456] and the modulation's are streamed from host memory", line)


def test_a_run_that_goes_on_streams_what_it_did_before(base, tmp_path):
    config = another(base, tmp_path, blocks_to_swap=4)
    output = dataclasses.replace(config.output, checkpoint_every_n_steps=1)

    def stop(run):
        run.fit.lower(1, [], "out of memory (simulated)")
        run.reporter.total = 2

    train_changed(dataclasses.replace(config, output=output), stop)
    with loop.opened(dataclasses.replace(config, output=dataclasses.replace(output, resume="latest"))) as run:
        assert run.fit.streaming.away == Away(4) and "keep" not in run.fit.levels[:1]


def test_out_of_memory_is_answered_by_streaming_more_when_nothing_is_kept(base, plain, tmp_path):
    config = another(base, tmp_path, memory="offload", memory_gb=8.0)
    with loop.opened(config) as run:
        seen = []
        while run.fit.streaming.away != Away(BLOCKS, adaln=True):
            run.fit.lower(1, [], "out of memory (simulated)")
            seen.append(run.fit.streaming.away)
        assert seen == [Away(0, True), Away(3, True), Away(BLOCKS, True)]
        assert run.go().losses == pytest.approx(plain.losses, rel=1e-4)


def test_when_all_is_streamed_nothing_is_left_but_to_say_so(base, tmp_path):
    with loop.opened(another(base, tmp_path, memory="offload", blocks_to_swap=BLOCKS, memory_gb=8.0)) as run:
        batch = type("Batch", (), {"latents": torch.zeros(1, 16, 8, 8)})()
        with pytest.raises(RunError, match="out of memory"):
            for _ in range(3):
                run.fit.lower(1, [batch], "out of memory (simulated)")

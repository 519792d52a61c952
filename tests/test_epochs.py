"""An epoch is ceil(batches / (accumulation x processes)) steps; its last step averages what is left of it."""

import dataclasses
import json
import math
import types

import pytest
from safetensors.torch import load_file

from anima_core.demo.pictures import write_pictures
from anima_core.files import digest
from anima_core.settings import OutputConfig, SampleConfig
from anima_core.training.feed import Feed
from anima_core.training.loop import train
from anima_core.training.preflight import preflight
from anima_core.training.previews import Previews

from .tiny import prepared, same_tensors, train_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 3)
    return folder


def one_by_one(model, pictures, folder, **changes):
    """Three pictures, three batches an epoch."""
    return train_config(model, pictures, folder, dataset={"batch_size": 1}, **changes)


def micro_batches(config, count, ranks):
    """The first batches of each of the processes."""
    data, _, _ = prepared(config)
    found = []
    for rank in range(ranks):
        data.batches.load_state_dict({"epoch": 0, "index": 0})
        plan = types.SimpleNamespace(config=config, device=preflight(config).device)
        plan.batches_per_step = config.gradient_accumulation_steps * ranks
        with Feed(data, plan, 0, count, types.SimpleNamespace(world=ranks, rank=rank)) as feed:
            found.append([next(feed) for _ in range(count)])
    return found


def test_no_step_crosses_the_end_of_an_epoch(model, pictures, tmp_path):
    (batches,) = micro_batches(one_by_one(model, pictures, tmp_path, gradient_accumulation_steps=2), 6, ranks=1)
    assert [batch.number for batch in batches] == [0, 1, 2, 3, 4, 5]
    assert [batch.ends_step for batch in batches] == [False, True, True] * 2
    assert [batch.divisor for batch in batches] == [2, 2, 1] * 2
    assert [batch.step_batches for batch in batches] == [2, 2, 1] * 2
    assert [batch.next_position for batch in batches[:3]] == [{"epoch": 0, "index": 2}] * 2 + [{"epoch": 0, "index": 3}]
    for epoch in (batches[:3], batches[3:]):
        assert len({batch.names[0] for batch in epoch}) == 3


def test_a_process_that_has_none_left_repeats_the_last_without_weight(model, pictures, tmp_path):
    first, second = micro_batches(one_by_one(model, pictures, tmp_path), 3, ranks=2)
    assert [batch.number for batch in first] == [0, 2, 3] and [batch.number for batch in second] == [1, 2, 4]
    assert [batch.divisor for batch in first] == [1, 0.5, 1] and [batch.divisor for batch in second] == [1, math.inf, 1]
    # the mean over both processes is the mean over the step's micro-batches
    assert sum(1 / batch.divisor for batch in (first[1], second[1])) / 2 == 1


def test_accumulation_beyond_an_epoch_is_the_epoch(model, pictures, tmp_path):
    results = [
        train(one_by_one(model, pictures, tmp_path / str(n), gradient_accumulation_steps=n, max_train_steps=3))
        for n in (3, 100)
    ]
    assert results[0].losses == results[1].losses
    assert same_tensors(*(load_file(result.adapter_path) for result in results))


def test_length_saves_previews_and_header_go_by_the_same_rule(model, pictures, tmp_path):
    output = OutputConfig(str(tmp_path), "x", save_every_n_epochs=1)
    events = []
    config = one_by_one(model, pictures, tmp_path, gradient_accumulation_steps=2, max_train_epochs=3, output=output)
    result = train(config, events.append)
    assert result.steps == 6 and "one epoch: 3 batches, 2 steps" in [event.get("text") for event in events]
    assert [path.stem for path in sorted(tmp_path.glob("x-step*"))] == ["x-step00000002", "x-step00000004"]
    previews = Previews(SampleConfig(prompts=("a",), every_n_epochs=1, at_end=False), "", 0, tmp_path, None)
    assert [step for step in range(1, 7) if previews.due(step, 6, epoch_steps=2)] == [2, 4, 6]
    from safetensors import safe_open

    with safe_open(result.adapter_path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_num_epochs"], metadata["ss_num_batches_per_epoch"]) == ("3", "3")


def test_a_run_resumed_within_an_epoch_ends_its_steps_where_the_whole_one_does(model, pictures, tmp_path):
    def run(folder, steps, resume=""):
        output = OutputConfig(str(folder), "x", save_dtype="fp32", resume=resume)
        settings = dict(gradient_accumulation_steps=2, max_train_steps=steps, output=output)
        return load_file(train(one_by_one(model, pictures, folder, **settings)).adapter_path)

    whole = run(tmp_path / "whole", 5)
    run(tmp_path / "parts", 3)
    assert same_tensors(whole, run(tmp_path / "parts", 5, resume="latest"))


def test_a_checkpoint_of_steps_that_crossed_epochs_goes_on_and_says_so(model, pictures, tmp_path):
    config = one_by_one(model, pictures, tmp_path, gradient_accumulation_steps=2, max_train_steps=1)
    first = train(config)
    (checkpoint,) = (first.run_dir / "checkpoints").iterdir()
    plain = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
    (checkpoint / "state.json").write_text(json.dumps(plain | {"version": 2}), encoding="utf-8")
    digests = json.loads((checkpoint / "sha256.json").read_text(encoding="utf-8"))
    digests["state.json"] = digest(checkpoint / "state.json")
    (checkpoint / "sha256.json").write_text(json.dumps(digests), encoding="utf-8")
    events = []
    output = dataclasses.replace(config.output, resume="latest")
    assert train(dataclasses.replace(config, output=output, max_train_steps=2), events.append).steps == 2
    assert any("a step ends with its epoch now" in event.get("text", "") for event in events)


def test_no_caption_is_made_for_an_epoch_that_the_run_does_not_reach(model, pictures, tmp_path):
    """The feeding thread is ahead of the steps, but not of the last one."""
    events = []
    config = one_by_one(model, pictures, tmp_path, max_train_epochs=2, subset=dict(shuffle_caption=True))
    assert train(config, events.append).steps == 6
    assert [event["text"] for event in events if event["event"] == "warning"] == []


def test_a_run_that_has_all_its_steps_says_so(model, pictures, tmp_path):
    config, events = one_by_one(model, pictures, tmp_path, max_train_steps=3), []
    first = train(config)
    output = dataclasses.replace(config.output, resume="latest")
    assert train(dataclasses.replace(config, output=output, max_train_steps=2), events.append).losses == first.losses
    assert any("max_train_steps`=2: all are done, and no step is trained" in event.get("text", "") for event in events)

"""What the store of runs believes: unfinished ones from their records, names, finished adapters. Needs no ComfyUI."""

import json
import os
from pathlib import Path

import pytest

from anima_core.config import DatasetConfig, ModelConfig, OutputConfig, SubsetConfig, TrainConfig, to_dict
from anima_core.toml_file import dump_toml

from .pack import import_nodes


@pytest.fixture
def runs(tmp_path, monkeypatch):
    return import_nodes(tmp_path, monkeypatch)("runs")


def config_of(runs, name: str) -> TrainConfig:
    folder = runs.store_folder()
    output = OutputConfig(dir=str(folder), name=name, adapter_dir=str(folder))
    data = (DatasetConfig((SubsetConfig("pictures"),)),)
    return TrainConfig(ModelConfig("t", "v", "q", "s"), data, output=output, max_train_steps=900)


def record(runs, key: str, text: str, age: int = 0) -> Path:
    path = runs.store_folder() / "unfinished" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def run_on_disk(runs, name: str, steps: tuple[int, ...] = (20, 40), age: int = 0) -> Path:
    folder = runs.run_folder(name)
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        os.utime(checkpoint, (1e9 - age, 1e9 - age))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(dump_toml(to_dict(config_of(runs, name))), encoding="utf-8")
    return folder


def finished_run(runs, name: str):
    adapter = runs.store_folder() / f"{name}.safetensors"
    adapter.write_bytes(name.encode())
    return runs.FinishedRun(str(adapter), runs.file_identity(adapter), str(runs.run_folder(name)), [0.1], 900, [])


def test_unfinished_runs_are_listed_the_newest_first(runs):
    for name, age in (("old", 50), ("new", 5), ("middle", 20)):
        run_on_disk(runs, name, age=age)
        record(runs, f"key_{name}", json.dumps({"name": name}))
    found = runs.unfinished()
    assert [run.name for run in found] == ["new", "middle", "old"]
    assert found[0] == runs.UnfinishedRun("new", "key_new", 40, 900, 1e9 - 5)


def test_the_record_decides_and_a_checkpoint_must_be_there(runs):
    run_on_disk(runs, "finished")  # a finished run has checkpoints, too
    run_on_disk(runs, "too_early", steps=())
    record(runs, "a", json.dumps({"name": "too_early"}))
    record(runs, "b", json.dumps({"name": "deleted"}))
    assert runs.unfinished() == []


GARBAGE = [
    "",
    "{",
    "[]",
    "7",
    "null",
    "{}",
    '{"name": 5}',
    '{"name": null}',
    '{"name": "../x"}',
    '{"name": "/etc"}',
    '{"name": ""}',
]


@pytest.mark.parametrize("text", GARBAGE)
def test_a_garbled_record_is_passed_over(runs, text):
    run_on_disk(runs, "good")
    record(runs, "good", json.dumps({"name": "good"}))
    record(runs, "bad", text)
    assert [run.name for run in runs.unfinished()] == ["good"]


@pytest.mark.parametrize("broken", ["config.toml", "checkpoint"])
def test_a_run_that_cannot_be_read_is_not_offered(runs, broken):
    folder = run_on_disk(runs, "broken", steps=(20,))
    record(runs, "key", json.dumps({"name": "broken"}))
    if broken == "config.toml":
        (folder / "config.toml").write_text("[", encoding="utf-8")
    else:
        (folder / "checkpoints" / "step-00000020").rename(folder / "checkpoints" / "step-x")
    assert runs.unfinished() == []


def test_a_name_of_two_records_is_listed_once_as_the_later_one_s(runs):
    """The folder of the first was deleted, and its name given anew."""
    run_on_disk(runs, "twice")
    record(runs, "later", json.dumps({"name": "twice"}), age=5)
    record(runs, "earlier", json.dumps({"name": "twice"}), age=50)
    assert [(run.name, run.key) for run in runs.unfinished()] == [("twice", "later")]


def test_a_name_that_is_given_anew_has_one_record(runs):
    stale = record(runs, "first", json.dumps({"name": "anew"}))
    claimed = runs.claim(config_of(runs, "anew"), "second", go_on=True)
    assert claimed.output.name == "anew" and claimed.output.resume == "" and not stale.exists()
    run_on_disk(runs, "anew")
    assert runs.claim(config_of(runs, "anew"), "second", go_on=True).output.resume == "latest"
    other = runs.claim(config_of(runs, "anew"), "first", go_on=True).output
    assert (other.name, other.resume) == ("anew-2", "")


def test_a_run_that_is_started_over_is_still_offered(runs):
    for name in ("first", "second"):
        claimed = runs.claim(config_of(runs, name), "key", go_on=False)
        assert (claimed.output.name, claimed.output.resume) == (name, "")
        run_on_disk(runs, name)
    assert sorted(run.name for run in runs.unfinished()) == ["first", "second"]
    assert runs.claim(config_of(runs, "third"), "key", go_on=False).output.name == "third"
    assert sorted(run.name for run in runs.unfinished()) == ["first", "second"]  # the third has no checkpoint yet
    run_on_disk(runs, "third")
    again = runs.claim(config_of(runs, "third"), "key", go_on=True).output
    assert (again.name, again.resume) == ("third", "latest")  # the graph goes on with the newest


def test_a_finished_run_is_found_by_key_and_by_name_and_offered_no_more(runs):
    run_on_disk(runs, "done")
    record(runs, "key", json.dumps({"name": "done"}))
    record(runs, "stale", json.dumps({"name": "done"}))
    run = finished_run(runs, "done")
    runs.remember("key", run)
    assert runs.unfinished() == [] and runs.find("key") == run == runs.finished_under("done")
    Path(run.adapter).write_bytes(b"another")
    assert runs.find("key") is None and runs.finished_under("done") is None


def test_a_run_that_went_on_with_other_data_is_not_the_first_graph_s(runs):
    run_on_disk(runs, "mixed")
    record(runs, "key", json.dumps({"name": "mixed"}))
    (found,) = runs.unfinished()
    key = runs.set_apart(found)
    (found,) = runs.unfinished()
    assert found.key == key != "key" and runs.set_apart(found) == key
    assert runs.claim(config_of(runs, "mixed"), "key", go_on=True).output.name == "mixed-2"
    runs.remember(key, finished_run(runs, "mixed"))
    assert runs.find("key") is None and runs.finished_under("mixed") is not None


def test_the_key_leaves_out_what_shapes_no_number(runs):
    """A run that went out of memory goes on when only `memory` is changed; any other setting is another run."""
    import dataclasses
    from types import SimpleNamespace

    config = config_of(runs, "key")

    def key(**changes):
        return runs.run_key(SimpleNamespace(config=dataclasses.replace(config, **changes), pictures=()))

    same = dict(
        device="cpu", cache_dir="x", cache_latents=False, cache_text=False, gradient_checkpointing=False, strict_data=True
    )
    assert {key(**{name: value}) for name, value in same.items()} == {key()}
    often = dataclasses.replace(config.output, checkpoint_every_n_steps=7, dir="x", comment="y")
    assert key(output=often) == key()
    other = [dict(seed=7), dict(max_train_steps=901), dict(ema_decay=0.9), dict(vae_tile=512)]
    assert len({key(), *(key(**change) for change in other)}) == 5

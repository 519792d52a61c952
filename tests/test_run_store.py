"""The store of runs: what its keys depend on, which records it believes, and that no name is given twice."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from anima_core import files, run_store
from anima_core.errors import SettingError
from anima_core.run_store import FinishedRun, RunStore, UnfinishedRun, run_key
from anima_core.settings import DatasetConfig, ModelConfig, OutputConfig, SubsetConfig, TrainConfig, to_dict, walk
from anima_core.settings.toml_file import dump_toml
from anima_core.training.preflight import preflight

from .tiny import train_config


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path / "store")


def write(folder: Path, name="a.png", colour="red", caption="red"):
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def key(config) -> str:
    return run_key(preflight(config))


def test_the_key_follows_everything_that_shapes_the_result(model, tmp_path):
    write(tmp_path / "p")
    config = train_config(model, tmp_path / "p", tmp_path)
    first = key(config)
    assert key(config) == first
    changes = [
        dict(seed=1),
        dict(max_train_steps=7),
        dict(ema_decay=0.5),
        dict(network=dataclasses.replace(config.network, rank=5)),
        dict(optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-5)),
        dict(flow=dataclasses.replace(config.flow, loss="l1")),
        dict(samples=dataclasses.replace(config.samples, prompts=("x",))),
        dict(output=dataclasses.replace(config.output, save_dtype="bf16")),
        dict(output=dataclasses.replace(config.output, name="other")),
    ]
    keys = [key(dataclasses.replace(config, **change)) for change in changes]
    assert len({first, *keys}) == len(changes) + 1
    (tmp_path / "p" / "a.txt").write_text("crimson", encoding="utf-8")
    caption = key(config)
    write(tmp_path / "p", colour="blue", caption="crimson")
    picture = key(config)
    write(tmp_path / "p", "b.png")
    assert len({first, caption, picture, key(config)}) == 4


def test_the_key_ignores_where_things_are(model, tmp_path):
    write(tmp_path / "p")
    config = train_config(model, tmp_path / "p", tmp_path)
    shutil.copytree(tmp_path / "p", tmp_path / "moved")
    copied = tmp_path / "model.safetensors"
    shutil.copy(model.transformer, copied)
    moved = train_config(dataclasses.replace(model, transformer=str(copied)), tmp_path / "moved", tmp_path / "elsewhere")
    assert key(moved) == key(config)
    cadence = dataclasses.replace(config.output, checkpoint_every_n_steps=50, dir=str(tmp_path / "x"))
    assert key(dataclasses.replace(config, output=cadence)) == key(config)


def test_a_finished_run_is_found_while_its_file_is_as_it_was(store, tmp_path):
    adapter = tmp_path / "a.safetensors"
    adapter.write_bytes(b"weights")
    run = FinishedRun(str(adapter), files.identity(adapter), "dir", [0.5], 4, [])
    assert store.find("k") is None
    store.remember("k", run)
    assert store.find("k") == run and store.find("other") is None
    adapter.write_bytes(b"edited since")
    assert store.find("k") is None
    adapter.unlink()
    assert store.find("k") is None
    next((store.folder / "finished").iterdir()).write_text("{ not json", encoding="utf-8")
    assert store.find("k") is None


def test_other_numbers_of_a_new_version_train_again_and_say_so(store, tmp_path, monkeypatch):
    adapter = tmp_path / "a.safetensors"
    adapter.write_bytes(b"weights")
    store.remember("k", FinishedRun(str(adapter), files.identity(adapter), "dir", [0.5], 4, []))
    run_on_disk(store, "begun")
    record(store, "u", json.dumps({"name": "begun", "result_version": run_store.RESULT_VERSION}))
    assert store.find("k") is not None
    monkeypatch.setattr(run_store, "RESULT_VERSION", run_store.RESULT_VERSION + 1)
    assert store.find("k") is None and store.last_checkpoint("k") is None
    why = "trains again: a.safetensors was made by an earlier version of this program"
    assert store.why_again("k", plan_of(config_of(store, "new"))) == why
    assert store.assign_name(config_of(store, "new"), "u", resume=True).output.name == "new"
    assert [run.name for run in store.unfinished()] == ["begun"]  # the picker still offers it


@pytest.mark.parametrize("own", [{}, {"made_from": {"seed": 1}, "result_version": 1}], ids=["without reasons", "other numbers"])
def test_a_run_of_an_earlier_version_is_named_though_its_key_is_another(store, own):
    """What changes its numbers changes no key, but a version: an upgrade finds none of the runs before it."""
    store.folder.mkdir()
    store.remember("old", dataclasses.replace(finished_run(store, "style-2"), **own))
    why = store.why_again("new", plan_of(config_of(store, "style")))
    assert why == "trains again: style-2.safetensors was made by an earlier version of this program"
    assert store.why_again("new", plan_of(config_of(store, "other"))) == ""


def test_settings_at_their_default_are_no_part_of_a_key(model, tmp_path, store):
    """As all are that a later version brings; nor are they a reason to train anew."""
    write(tmp_path / "p")
    write(tmp_path / "p", "b.png")
    config = train_config(model, tmp_path / "p", tmp_path)
    plan = preflight(config)
    settings = run_store.shaping(plan)["settings"]
    usual = {found.place: found.default for found in walk(config)}
    assert settings and all(value != usual[place] for place, value in settings.items())
    assert "network.rank" in settings and "network.dora" not in settings
    split = dataclasses.replace(plan, pictures=(plan.pictures[0][:1], plan.pictures[0][1:]))
    assert run_key(split) != run_key(plan), "which dataset a picture is in shapes the batches"
    older = {place: value for place, value in run_store.made_from(plan).items() if place != "network.dora"}
    store.folder.mkdir()
    store.remember("old", dataclasses.replace(finished_run(store, config.output.name), made_from=older))
    assert store.why_again("new", plan) == ""
    dora = preflight(dataclasses.replace(config, network=dataclasses.replace(config.network, dora=True)))
    assert run_key(dora) != run_key(plan) and "`network.dora` was False, now True" in store.why_again("new", dora)


def test_a_run_of_an_earlier_version_is_told_what_has_changed_since():
    """Whoever raises the version says with what."""
    assert list(run_store.WHAT_CHANGED) == list(range(2, run_store.RESULT_VERSION + 1))
    *_, before, last = run_store.WHAT_CHANGED.values()
    versions = [run_store.RESULT_VERSION - age for age in (2, 1, 0)]
    told = [run_store.UnfinishedRun("x", "k", 1, 2, 0.0, version).changed_since for version in versions]
    assert told == [f"{before}; {last}", last, ""]


def test_an_unfinished_run_that_its_graph_finds_no_more_is_named(store):
    plan = plan_of(config_of(store, "style"))
    run_on_disk(store, "other")
    record(store, "other", json.dumps({"name": "other"}))
    assert store.left_behind("new", plan) is None
    run_on_disk(store, "style")
    old = record(store, "old", json.dumps({"name": "style", "result_version": 1}))
    left = store.left_behind("new", plan)
    assert left is not None and (left.name, left.key, left.step, left.result_version) == ("style", "old", 40, 1)
    assert store.left_behind("old", plan) == left  # found, and not gone on with: its numbers are others
    old.write_text(json.dumps({"name": "style"}), encoding="utf-8")
    assert store.left_behind("old", plan) is None  # it goes on
    store.assign_name(config_of(store, "style"), "old", resume=False)
    assert store.left_behind("old", plan) is None  # the user let it start over
    store.remember("old", dataclasses.replace(finished_run(store, "style"), steps=40, total=900))
    assert store.left_behind("new", plan) is None  # kept on purpose, and named by `why_again`


def test_runs_that_are_set_apart_one_after_the_other_keep_their_records(store):
    """Two graphs of one key, each continued with other data; then one more, when the first is finished."""
    keys = []
    for name in ("first", "second"):
        run_on_disk(store, name)
        record(store, "key", json.dumps({"name": name}))
        keys.append(store.set_apart(next(run for run in store.unfinished() if run.name == name)))
    assert sorted(run.name for run in store.unfinished()) == ["first", "second"]
    store.remember(keys[0], finished_run(store, "first"))
    run_on_disk(store, "third")
    record(store, "key", json.dumps({"name": "third"}))
    third = store.set_apart(next(run for run in store.unfinished() if run.name == "third"))
    assert len({*keys, third}) == 3 and store.finished_under("first") is not None


def test_names_are_never_taken_twice_and_unfinished_runs_keep_theirs(store, tmp_path):
    output = OutputConfig(dir=str(store.folder), name="x", adapter_dir=str(tmp_path / "loras"))
    config = dataclasses.replace(config_of(store, "x"), output=output)
    (tmp_path / "loras").mkdir()
    assert store.assign_name(config, "k1", resume=True).output.name == "x"
    (tmp_path / "loras" / "x.safetensors").write_bytes(b"")
    assert store.assign_name(config, "k2", resume=True).output.name == "x-2"
    checkpoint = store.folder / "x-2-run" / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    again = store.assign_name(config, "k2", resume=True)
    assert (again.output.name, again.output.resume) == ("x-2", "latest")
    anew = store.assign_name(config, "k2", resume=False)
    assert (anew.output.name, anew.output.resume) == ("x-3", "")


@pytest.mark.parametrize(
    "name", ["a/b", "..", "", "  ", "a:b", "con", "LPT1", ".hidden", "x\0y", "a\\b", 'q"', "\ud800", "風" * 61]
)
def test_names_that_leave_their_folder_or_fit_no_file_system_are_refused(name):
    with pytest.raises(SettingError, match="use a plain file name|use at most 180"):
        files.safe_name(name)


@pytest.mark.parametrize("name", ["style v2", "風格", "my.lora", "a-b_c (1)"])
def test_plain_names_of_any_script_are_kept(name, tmp_path):
    assert files.safe_name(f" {name}.safetensors ") == name
    for expected in (name, f"{name}-2", f"{name}-3"):
        path = files.unused(tmp_path / f"{name}.safetensors")
        assert path.name == f"{expected}.safetensors"
        path.write_bytes(b"")


def config_of(store, name: str) -> TrainConfig:
    folder = store.folder
    output = OutputConfig(dir=str(folder), name=name, adapter_dir=str(folder))
    data = (DatasetConfig((SubsetConfig("pictures"),)),)
    return TrainConfig(ModelConfig("t", "v", "q", "s"), data, output=output, max_train_steps=900)


def plan_of(config: TrainConfig, pictures: tuple = ()):
    return SimpleNamespace(config=config, pictures=pictures, held_out=())


def record(store, key: str, text: str, age: int = 0) -> Path:
    path = store.folder / "unfinished" / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def run_on_disk(store, name: str, steps: tuple[int, ...] = (20, 40), age: int = 0) -> Path:
    folder = store.run_folder(name)
    for step in steps:
        checkpoint = folder / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        os.utime(checkpoint, (1e9 - age, 1e9 - age))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(dump_toml(to_dict(config_of(store, name))), encoding="utf-8")
    return folder


def finished_run(store, name: str):
    adapter = store.folder / f"{name}.safetensors"
    adapter.write_bytes(name.encode())
    return FinishedRun(str(adapter), files.identity(adapter), str(store.run_folder(name)), [0.1], 900, [])


def test_unfinished_runs_are_listed_the_newest_first(store):
    for name, age in (("old", 50), ("new", 5), ("middle", 20)):
        run_on_disk(store, name, age=age)
        record(store, f"key_{name}", json.dumps({"name": name}))
    found = store.unfinished()
    assert [run.name for run in found] == ["new", "middle", "old"]
    assert found[0] == UnfinishedRun("new", "key_new", 40, 900, 1e9 - 5)


def test_the_record_decides_and_a_checkpoint_must_be_there(store):
    run_on_disk(store, "finished")  # a finished run has checkpoints, too
    run_on_disk(store, "too_early", steps=())
    record(store, "a", json.dumps({"name": "too_early"}))
    record(store, "b", json.dumps({"name": "deleted"}))
    assert store.unfinished() == []


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
def test_a_garbled_record_is_passed_over(store, text):
    run_on_disk(store, "good")
    record(store, "good", json.dumps({"name": "good"}))
    record(store, "bad", text)
    assert [run.name for run in store.unfinished()] == ["good"]


@pytest.mark.parametrize("broken", ["config.toml", "checkpoint"])
def test_a_run_that_cannot_be_read_is_not_offered(store, broken):
    folder = run_on_disk(store, "broken", steps=(20,))
    record(store, "key", json.dumps({"name": "broken"}))
    if broken == "config.toml":
        (folder / "config.toml").write_text("[", encoding="utf-8")
    else:
        (folder / "checkpoints" / "step-00000020").rename(folder / "checkpoints" / "step-x")
    assert store.unfinished() == []


def test_a_name_of_two_records_is_listed_once_as_the_later_one_s(store):
    """The folder of the first was deleted, and its name given anew."""
    run_on_disk(store, "twice")
    record(store, "later", json.dumps({"name": "twice"}), age=5)
    record(store, "earlier", json.dumps({"name": "twice"}), age=50)
    assert [(run.name, run.key) for run in store.unfinished()] == [("twice", "later")]


def test_a_name_that_is_given_anew_has_one_record(store):
    stale = record(store, "first", json.dumps({"name": "anew"}))
    assigned = store.assign_name(config_of(store, "anew"), "second", resume=True)
    assert assigned.output.name == "anew" and assigned.output.resume == "" and not stale.exists()
    run_on_disk(store, "anew")
    assert store.assign_name(config_of(store, "anew"), "second", resume=True).output.resume == "latest"
    other = store.assign_name(config_of(store, "anew"), "first", resume=True).output
    assert (other.name, other.resume) == ("anew-2", "")


def test_a_run_that_is_started_over_is_still_offered(store):
    for name in ("first", "second"):
        assigned = store.assign_name(config_of(store, name), "key", resume=False)
        assert (assigned.output.name, assigned.output.resume) == (name, "")
        run_on_disk(store, name)
    assert sorted(run.name for run in store.unfinished()) == ["first", "second"]
    assert store.assign_name(config_of(store, "third"), "key", resume=False).output.name == "third"
    assert sorted(run.name for run in store.unfinished()) == ["first", "second"]  # the third has no checkpoint yet
    run_on_disk(store, "third")
    again = store.assign_name(config_of(store, "third"), "key", resume=True).output
    assert (again.name, again.resume) == ("third", "latest")  # the graph goes on with the newest


def test_a_finished_run_is_found_by_key_and_by_name_and_offered_no_more(store):
    run_on_disk(store, "done")
    record(store, "key", json.dumps({"name": "done"}))
    record(store, "stale", json.dumps({"name": "done"}))
    run = finished_run(store, "done")
    store.remember("key", run)
    assert store.unfinished() == [] and store.find("key") == run == store.finished_under("done")
    Path(run.adapter).write_bytes(b"another")
    assert store.find("key") is None and store.finished_under("done") is None


def test_a_run_that_went_on_with_other_data_is_not_the_first_graph_s(store):
    run_on_disk(store, "mixed")
    record(store, "key", json.dumps({"name": "mixed"}))
    (found,) = store.unfinished()
    key = store.set_apart(found)
    (found,) = store.unfinished()
    assert found.key == key != "key" and store.set_apart(found) == key
    assert store.assign_name(config_of(store, "mixed"), "key", resume=True).output.name == "mixed-2"
    store.remember(key, finished_run(store, "mixed"))
    assert store.find("key") is None and store.finished_under("mixed") is not None


def test_the_key_leaves_out_what_shapes_no_number(store):
    """A run that went out of memory goes on when only `memory` is changed; any other setting is another run."""
    config = config_of(store, "key")

    def key(**changes):
        return run_key(plan_of(dataclasses.replace(config, **changes)))

    same = dict(device="cpu", cache_dir="x", cache_latents=False, cache_text=False, memory="keep", strict_data=True)
    assert {key(**{name: value}) for name, value in same.items()} == {key()}
    often = dataclasses.replace(config.output, checkpoint_every_n_steps=7, dir="x", comment="y")
    assert key(output=often) == key()
    other = [dict(seed=7), dict(max_train_steps=901), dict(ema_decay=0.9), dict(vae_tile=512)]
    assert len({key(), *(key(**change) for change in other)}) == 5

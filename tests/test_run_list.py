"""Runs as a list: where each stands; a copy that goes on; deletion, which takes nothing else with it."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from anima_core import run_list
from anima_core.demo.pictures import write_pictures
from anima_core.errors import FileError, Interrupted, RunError, SettingError
from anima_core.run_folders import branch, branch_key, delete_run
from anima_core.run_history import LOG, Log
from anima_core.run_list import RunList
from anima_core.run_record import RunRecord, id_of_name, read_record, write_record
from anima_core.run_store import RunStore, describe, run_key
from anima_core.settings import SampleConfig, TrainConfig
from anima_core.training.loop import train
from anima_core.training.preflight import preflight
from anima_core.training.rundir import locked
from anima_core.training.state import checkpoints_in

from .tiny import same_tensors, train_config

pytestmark = pytest.mark.slow

GRAPH = {"nodes": [{"id": 1}], "name": "風格"}


def log_of(folder: Path) -> Log:
    log = Log(folder / LOG)
    log.read()
    return log


@pytest.fixture
def config(model, tmp_path) -> TrainConfig:
    """A run as ComfyUI places it: the adapter beside others, the run folder elsewhere."""
    write_pictures(tmp_path / "pics", 2)
    (tmp_path / "loras").mkdir()
    samples = SampleConfig(prompts=("a",), width=64, height=64, steps=1, cfg=1.0, every_n_steps=2)
    config = train_config(model, tmp_path / "pics", tmp_path / "store", max_train_steps=4, samples=samples)
    output = dataclasses.replace(config.output, name="style", adapter_dir=str(tmp_path / "loras"))
    return dataclasses.replace(config, output=output)


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path / "store", [tmp_path / "loras"])


def named(config: TrainConfig, name: str, **output) -> TrainConfig:
    return dataclasses.replace(config, output=dataclasses.replace(config.output, name=name, **output))


def trained(store: RunStore, config: TrainConfig, stop_at: int = 0, command: str = "stop") -> str:
    """Train as a graph does; return the key."""
    plan = preflight(config)
    key = run_key(plan)
    placed = store.assign_name(config, key, resume=True)
    result = train(placed, lambda event: command if stop_at and event.get("step") == stop_at else None)
    store.remember(key, describe(result, plan))
    return key


def listed(store: RunStore) -> dict[str, dict]:
    return {run.name: dataclasses.asdict(run) for run in RunList().runs(store)}


def test_where_each_run_stands(config, store, tmp_path):
    trained(store, config)
    trained(store, named(config, "kept"), stop_at=2)
    with pytest.raises(Interrupted, match="cancelled at step 3"):
        trained(store, named(config, "cancelled"), stop_at=3, command="cancel")
    (store.folder / "begun-run").mkdir()  # before anything was saved
    (store.folder / "finished" / "bad.json").write_text("{", encoding="utf-8")
    write_record(store.run_folder("cancelled"), RunRecord("0123456789ab", "12:5", GRAPH, 7.0, "cancelled", "cancelled at 3"))
    runs = listed(store)
    shown = {name: (run["state"], run["step"], run["total"], run["can_continue"]) for name, run in runs.items()}
    assert shown == {
        "style": ("finished", 4, 4, True),
        "kept": ("kept", 2, 4, True),
        "cancelled": ("unfinished", 3, 4, True),
        "begun": ("unfinished", 0, 0, False),
    }
    assert runs["style"]["loss"] == log_of(store.run_folder("style")).columns["mean_loss"][-1]
    assert runs["style"]["adapter"] == str(tmp_path / "loras" / "style.safetensors") and runs["cancelled"]["adapter"] == ""
    assert [runs[name]["samples"] for name in ("style", "kept", "begun")] == [2, 0, 0]  # a stop ends the preview that was due
    assert (runs["style"]["picture"], runs["begun"]["picture"]) == ("step-00000004-0.png", "")
    assert {run["network"] for run in runs.values()} == {"LoRA rank 4", ""}
    told = runs["cancelled"]
    assert (told["id"], told["has_graph"], told["started"], told["error"]) == ("0123456789ab", True, 7.0, "")
    assert read_record(store.run_folder("cancelled")).workflow == GRAPH
    write_record(store.run_folder("cancelled"), RunRecord("0123456789ab", outcome="failed", sentence="out of memory"))
    assert listed(store)["cancelled"]["error"] == "out of memory"
    os.remove(tmp_path / "loras" / "style.safetensors")
    assert listed(store)["style"]["adapter"] == ""


def test_the_run_that_was_saved_last_stands_first_and_what_has_not_changed_is_not_read_again(store, monkeypatch):
    for number, name in enumerate(("old", "new", "middle")):
        folder = store.run_folder(name)
        folder.mkdir(parents=True)
        (folder / "log.jsonl").write_text(json.dumps({"event": "step", "step": 5, "total": 9, "mean_loss": number}) + "\n")
        age = {"old": 50, "new": 5, "middle": 20}[name]
        os.utime(folder, (1e9 - age, 1e9 - age))
    runs, asked = RunList(), []
    read = run_list.last_step
    monkeypatch.setattr(run_list, "last_step", lambda log: asked.append(log) or read(log))
    assert [run.name for run in runs.runs(store)] == ["new", "middle", "old"]
    found = {run.name: run for run in runs.runs(store)}
    assert len(asked) == 3 and (found["old"].loss, found["old"].total) == (0, 9)
    with open(store.run_folder("old") / "log.jsonl", "a") as log:
        log.write('{"event": "step", "step": 6, "total": 9, "mean_loss": 3}\n' + '{"event": "progress"}\n' * 5000 + "{")
    assert {run.name: run.loss for run in runs.runs(store)}["old"] == 3 and len(asked) == 4


def test_a_copied_folder_has_an_id_of_its_own(store):
    for name in ("a", "b"):
        store.run_folder(name).mkdir(parents=True)
        write_record(store.run_folder(name), RunRecord("0123456789ab"))
    folders = RunList().folders(store)
    assert folders == {"0123456789ab": store.run_folder("a"), id_of_name(store.run_folder("b")): store.run_folder("b")}
    assert RunList().run(store, "nobody") is None and RunList().run(store, "0123456789ab").name == "a"


DAMAGED = ["", "{", "[]", "[" * 50_000, '{"id": "../../x"}', '{"id": 7, "workflow": "", "started": "y"}', '{"started": 1e400}']


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_record_is_none(tmp_path, text):
    (tmp_path / "run.json").write_text(text, encoding="utf-8")
    assert read_record(tmp_path) == RunRecord(id_of_name(tmp_path))


def test_a_graph_that_no_json_can_hold_is_left_out(tmp_path):
    write_record(tmp_path, RunRecord("0123456789ab", "1", {"x": float("nan")}, 1.0))
    assert read_record(tmp_path) == RunRecord("0123456789ab", "1", None, 1.0)


def test_a_finished_run_goes_on_as_a_copy_and_its_graph_keeps_what_it_has(config, store, tmp_path):
    """To the same numbers as a run that was to take so many steps from the beginning."""
    key = trained(store, config)
    write_record(store.run_folder("style"), RunRecord("0123456789ab", "1", GRAPH, 7.0, "done", "done"))
    before = load_file(tmp_path / "loras" / "style.safetensors")
    assert store.extended("style", 4) is None and store.extended("nobody", 9) is None
    run = store.extended("style", 7)
    longer = dataclasses.replace(store.frozen_config("style"), max_train_steps=7)
    plan = preflight(named(longer, "style", resume="latest"))
    copy = branch(store, run, branch_key(key, plan), longer)
    assert (copy.name, copy.step, copy.total) == ("style-2", 4, 4) and copy in store.unfinished()
    record = read_record(store.run_folder("style-2"))
    assert record.id != "0123456789ab" and record.workflow == GRAPH and record.sentence == ""
    result = train(named(longer, "style-2", resume="latest"))
    store.remember(copy.key, describe(result, plan))
    assert store.find(key).adapter == str(tmp_path / "loras" / "style.safetensors")
    assert same_tensors(load_file(tmp_path / "loras" / "style.safetensors"), before)
    assert store.find(branch_key(key, plan)).adapter == str(tmp_path / "loras" / "style-2.safetensors")
    assert [run["state"] for run in listed(store).values()] == ["finished"] * 2 and store.unfinished() == []
    assert list(log_of(store.run_folder("style-2")).columns["step"]) == [1, 2, 3, 4, 5, 6, 7]
    assert [s.step for s in log_of(store.run_folder("style-2")).samples_there()] == [2, 4, 6]
    at_once = named(dataclasses.replace(config, max_train_steps=7), "at_once")
    assert same_tensors(load_file(train(at_once).adapter_path), load_file(result.adapter_path))
    (kept,) = checkpoints_in(store.run_folder("style"))
    assert kept.name == "step-00000004"


def test_a_run_whose_last_checkpoint_is_gone_does_not_go_on(config, store):
    trained(store, config)
    shutil.rmtree(store.run_folder("style") / "checkpoints")
    with pytest.raises(SettingError, match="the last checkpoint of style is gone"):
        store.extended("style", 7)
    assert not listed(store)["style"]["can_continue"]


def test_a_copy_that_finds_no_room_leaves_nothing(config, store, monkeypatch):
    trained(store, config)
    run = store.extended("style", 7)

    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("anima_core.run_folders.shutil.copy2", full)
    with pytest.raises(FileError, match=r"style cannot be copied there \(No space left on device\); free some space"):
        branch(store, run, "key-changed", store.frozen_config("style"))
    assert sorted(listed(store)) == ["style"] and store.unfinished() == []
    assert not [path for path in store.folder.iterdir() if path.name.endswith(".tmp")]


def test_a_deleted_run_is_gone_with_its_records_and_its_adapter_stays(config, store, tmp_path):
    trained(store, config)
    trained(store, named(config, "kept"), stop_at=2)
    with locked(preflight(named(config, "kept"))), pytest.raises(RunError, match="kept: is training now; stop it first"):
        delete_run(store, "kept")
    delete_run(store, "kept")
    assert list(listed(store)) == ["style"] and store.unfinished() == [] and store.finished_under("kept") is None
    assert sorted(path.name for path in (tmp_path / "loras").iterdir()) == ["kept.safetensors", "style.safetensors"]
    assert sorted(path.name for path in store.folder.iterdir() if "kept" in path.name) == []


def test_of_a_run_that_is_a_link_only_the_link_is_deleted(store, tmp_path):
    from .comfyui.server import link_folder

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"mine")
    store.folder.mkdir()
    link_folder(tmp_path / "elsewhere", store.run_folder("linked"))
    delete_run(store, "linked")
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"mine" and not Path(store.run_folder("linked")).exists()

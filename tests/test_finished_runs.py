"""Finished runs whose adapter was renamed, moved, deleted or stopped early: found, written again, or trained with a reason."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from anima_core import files, run_store
from anima_core.demo.pictures import write_pictures
from anima_core.errors import AnimaError, CheckpointError
from anima_core.models.checkpoint import read_metadata
from anima_core.run_store import FinishedRun, RunStore, describe, run_key
from anima_core.settings import OptimizerConfig, TrainConfig
from anima_core.training.export import write_again
from anima_core.training.loop import train
from anima_core.training.preflight import preflight
from anima_core.training.rundir import locked
from anima_core.training.state import DIGESTS, FILES

from .comfyui.server import link_folder
from .tiny import same_tensors, train_config

pytestmark = pytest.mark.slow


@pytest.fixture
def config(model, tmp_path) -> TrainConfig:
    """A run as ComfyUI places it: the adapter beside others, the run folder elsewhere."""
    write_pictures(tmp_path / "pics", 2)
    (tmp_path / "loras").mkdir()
    config = train_config(model, tmp_path / "pics", tmp_path / "store", max_train_steps=4)
    output = dataclasses.replace(config.output, name="style", adapter_dir=str(tmp_path / "loras"))
    return dataclasses.replace(config, output=output)


@pytest.fixture
def store(tmp_path) -> RunStore:
    return RunStore(tmp_path / "store", [tmp_path / "other_loras", tmp_path / "loras"])


def trained(store: RunStore, config: TrainConfig, stop_at: int = 0) -> tuple[str, FinishedRun]:
    """Train as a graph does, to the end or until it is stopped and kept; return the key and the record."""
    plan = preflight(config)
    key = run_key(plan)
    placed = store.assign_name(config, key, resume=True)
    result = train(placed, lambda event: "stop" if stop_at and event.get("step") == stop_at else None)
    return key, store.remember(key, describe(result, plan))


@pytest.mark.parametrize("place", ["renamed.safetensors", "styles/mine/style.safetensors", "../other_loras/x.safetensors"])
def test_a_renamed_or_moved_adapter_is_found(config, store, tmp_path, place):
    key, run = trained(store, config)
    target = tmp_path / "loras" / place
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(run.adapter, target)
    found = store.find(key)
    assert found is not None and Path(found.adapter).samefile(target) and found.losses == run.losses
    assert store.finished_under("style") == found == RunStore(store.folder).find(key)  # remembered where it is now


def test_an_adapter_behind_a_link_is_found(config, store, tmp_path):
    """ComfyUI lists those, and people keep their files on another disk."""
    key, run = trained(store, config)
    (tmp_path / "big_disk").mkdir()
    link_folder(tmp_path / "big_disk", tmp_path / "loras" / "linked")
    os.replace(run.adapter, tmp_path / "big_disk" / "x.safetensors")
    found = store.find(key)
    assert found is not None and Path(found.adapter) == tmp_path / "loras" / "linked" / "x.safetensors"


def test_only_headers_are_read_of_files_that_cannot_be_it(config, store, tmp_path, monkeypatch):
    """Folders of adapters have hundreds of gigabytes."""
    key, run = trained(store, config)
    loras = tmp_path / "loras"
    os.replace(run.adapter, loras / "z.safetensors")
    tensors = load_file(loras / "z.safetensors")
    save_file(tensors, loras / "another.safetensors", {"ss_output_name": "another", "ss_steps": "4"})
    save_file(tensors, loras / "earlier.safetensors", {"ss_output_name": "style", "ss_steps": "2"})
    save_file(tensors, loras / "plain.safetensors")
    (loras / "broken.safetensors").write_bytes(b"no safetensors at all")
    digested = []
    monkeypatch.setattr(run_store.files, "identity", lambda path: digested.append(Path(path).name) or files.digest(Path(path)))
    found = store.find(key)
    assert found is not None and found.adapter.endswith("z.safetensors") and digested == ["z.safetensors"]


def test_an_adapter_of_the_same_name_and_steps_that_holds_something_else_is_not_it(config, store, tmp_path):
    key, run = trained(store, config)
    tensors, metadata = load_file(run.adapter), read_metadata(run.adapter)
    Path(run.adapter).unlink()
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, tmp_path / "loras" / "merged.safetensors", metadata)
    assert store.find(key) is None


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.5}, {"optimizer": OptimizerConfig("RAdamScheduleFree", 2e-3)}])
@pytest.mark.parametrize("stop_at", [0, 2])
def test_a_deleted_adapter_is_written_again_bit_for_bit_without_a_step(config, store, tmp_path, changes, stop_at):
    """Also what an average of weights had become, and what was kept before its end."""
    key, run = trained(store, dataclasses.replace(config, **changes), stop_at)
    before = load_file(run.adapter)
    Path(run.adapter).unlink()
    assert store.find(key) is None
    found, checkpoint = store.last_checkpoint(key)
    placed = dataclasses.replace(config, output=dataclasses.replace(config.output, name=run.name), **changes)
    path, events = tmp_path / "again.safetensors", []
    write_again(placed, checkpoint, path, events.append)
    assert same_tensors(load_file(path), before) and found == run
    assert not [event for event in events if event["event"] == "step"]
    assert read_metadata(path)["ss_steps"] == str(run.steps)
    assert store.last_checkpoint(key) == (found, checkpoint)  # the run folder is as it was


def test_stop_and_keep_is_what_the_graph_gets_and_can_still_be_continued(config, store):
    key, run = trained(store, config, stop_at=2)
    assert run.is_kept and (run.steps, run.total) == (2, 4)
    assert store.find(key) == run
    assert [(r.name, r.step, r.total) for r in store.unfinished()] == [("style", 2, 4)]
    result = train(store.assign_name(config, key, resume=True))  # as Continue Anima Run does
    done = store.remember(key, describe(result, preflight(config)))
    assert not done.is_kept and store.find(key) == done and store.unfinished() == []


def test_a_damaged_checkpoint_is_no_way_back(config, store):
    key, run = trained(store, config)
    Path(run.adapter).unlink()
    _, checkpoint = store.last_checkpoint(key)
    with open(checkpoint / "state.safetensors", "r+b") as file:
        file.truncate(1000)
    assert store.last_checkpoint(key) is None


@pytest.mark.parametrize(
    "file, before, after", [("state.json", '"version": ', '"version": 9'), ("config.toml", "seed =", "sed =")]
)
def test_a_checkpoint_of_another_version_is_told_from_a_disk_that_is_full_or_a_name_that_is_locked(
    config, store, tmp_path, file, before, after
):
    """Only the first means that hours of training are needed."""
    key, run = trained(store, config)
    _, checkpoint = store.last_checkpoint(key)
    placed, again = renamed(config, run.name), tmp_path / "again.safetensors"
    with locked(preflight(placed)), pytest.raises(AnimaError) as refused:
        write_again(placed, checkpoint, again)
    assert not isinstance(refused.value, CheckpointError)
    text = (checkpoint / file).read_text(encoding="utf-8")
    (checkpoint / file).write_text(text.replace(before, after), encoding="utf-8")
    digests = {name: files.digest(checkpoint / name) for name in FILES}
    (checkpoint / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
    with pytest.raises(CheckpointError):
        write_again(placed, checkpoint, again)


def test_nothing_trains_again_without_a_reason(config, store, tmp_path):
    key, run = trained(store, config)
    plan = preflight(config)
    shutil.rmtree(run.run_dir)
    Path(run.adapter).unlink()
    assert store.find(key) is None and store.last_checkpoint(key) is None
    assert store.why_again(key, plan).startswith("trains again: style.safetensors was changed or deleted")
    assert store.why_again("never", preflight(renamed(config, "new"))) == ""


def renamed(config: TrainConfig, name: str) -> TrainConfig:
    return dataclasses.replace(config, output=dataclasses.replace(config.output, name=name))


def test_the_reason_names_what_differs_from_the_last_run_of_the_name(config, store, tmp_path):
    trained(store, config)

    def why(**changes) -> str:
        plan = preflight(dataclasses.replace(config, **changes))
        return store.why_again(run_key(plan), plan)

    assert why(seed=7) == "trains anew, not as style.safetensors: `train.seed` was 42, now 7"
    assert why(max_train_steps=9) == "trains anew, not as style.safetensors: `train.max_train_steps` was 4, now 9"
    (caption,) = list((tmp_path / "pics").glob("*.txt"))[:1]
    caption.write_text("another caption", encoding="utf-8")
    assert why() == "trains anew, not as style.safetensors: the set of pictures and captions is not what it was"


def test_a_record_of_an_earlier_version_is_still_read(store, tmp_path):
    """It says neither how many steps were asked for nor what it was made from."""
    adapter = tmp_path / "loras" / "old.safetensors"
    adapter.parent.mkdir()
    adapter.write_bytes(b"weights")
    old = {"adapter": str(adapter), "adapter_sha256": files.identity(adapter), "run_dir": "old-run", "losses": [0.5]}
    files.write_whole(store.folder / "finished" / "k.json", run_store.json.dumps(old | {"steps": 4, "samples": []}))
    found = store.find("k")
    assert found is not None and not found.is_kept and found.name == "old"

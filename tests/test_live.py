"""What pages are told of a training while it goes, and what they may ask of it; without a ComfyUI."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from PIL import Image

from .comfyui.pack import import_nodes
from .test_node_texts import Bar, Interrupt, progress, stand_in, step


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """-> a function from the name of a module of nodes/ to that module; ComfyUI's own are only looked at."""
    found = import_nodes(tmp_path, monkeypatch)
    stand_in(monkeypatch, "comfy_api.latest", io=MagicMock(Input=object, ComfyNode=object))
    flag = dict(processing_interrupted=lambda: False, InterruptProcessingException=Interrupt)
    stand_in(monkeypatch, "comfy.model_management", **flag)
    stand_in(monkeypatch, "comfy.utils", ProgressBar=Bar)
    Bar.moved, Bar.cancelled = [], False
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    found = tmp_path / "output" / "anima_trainer" / "x-run"
    found.mkdir(parents=True)
    return found


@pytest.fixture
def clock(nodes, monkeypatch) -> list[float]:
    """Let a moment pass: `clock[0]`."""
    now = [100.0]
    monkeypatch.setattr(nodes("live"), "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 7.5))
    return now


def sent(kind: str) -> list[dict]:
    found = [payload for name, payload in sys.modules["server"].sent if name == f"anima_trainer.{kind}"]
    assert json.dumps(found, allow_nan=False)
    return found


def start(prompts: int = 1) -> dict:
    return {"event": "start", "name": "x", "prompts": prompts}


GRAPH = {"id": "5d1c", "nodes": []}


def test_a_training_is_told_from_its_beginning_to_its_end(nodes, folder, clock):
    live, listener = nodes("live"), nodes("bridge").NodeListener("12:5", workflow=GRAPH)
    with listener:
        assert live.nodes() == ["12:5"]
        listener(start())
        (begun,) = sent("begin")
        assert begun == {"run": listener.training.run, "node": "12:5", "graph": "5d1c", "name": "x"}
        record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        assert record == {
            "id": begun["run"], "node": "12:5", "workflow": GRAPH, "started": 7.5, "outcome": "", "sentence": ""
        }  # fmt: skip
        (folder / "samples").mkdir()
        Image.new("RGB", (8, 8)).save(folder / "samples" / "step-00000002-1.png")
        listener({"event": "sample", "step": 2, "path": str(folder / "samples" / "step-00000002-1.png"), "prompt": "a cat"})
        listener({"event": "saved", "step": 2, "path": "x"})
        listener({"event": "checkpoint", "step": 2, "path": str(folder)})
        listener({"event": "warning", "text": "careful"})
        listener.ends("done", "done: x")
    same = {"run": begun["run"], "node": "12:5", "graph": "5d1c"}
    assert live.nodes() == []
    sample = {"step": 2, "index": 1, "prompt": "a cat", "file": "step-00000002-1.png"}
    assert sent("sample") == [same | {"sample": sample}] and sent("saved") == [same | {"step": 2}]
    assert sent("warning") == [same | {"text": "careful"}]
    assert sent("end") == [same | {"name": "x", "outcome": "done", "sentence": "done: x"}]
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (record["outcome"], record["sentence"], record["workflow"]) == ("done", "done: x", GRAPH)


def test_a_run_that_goes_on_keeps_its_id_its_graph_and_its_beginning(nodes, folder, clock):
    with nodes("bridge").NodeListener("1", workflow=GRAPH) as first:
        first(start())
    clock[0] += 1000
    with nodes("bridge").NodeListener("go", workflow=None) as again:
        again(start())
        assert again.training.run == first.training.run
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    assert (record["id"], record["node"], record["workflow"]) == (first.training.run, "go", GRAPH)


def test_progress_is_told_four_times_a_second_at_most_and_no_step_is_lost(nodes, folder, clock):
    with nodes("bridge").NodeListener("1") as listener:
        listener(start())
        for number in range(1, 11):
            listener(step(number, 20, loss=number / 10, lr=1e-3, grad_norm=None))
            clock[0] += 0.1
        clock[0] += 0.2
        listener(progress("preview", 1, 30, picture=1, pictures=2))
        listener.ends("kept", "kept at step 10 of 20")
    told = sent("progress")
    assert [message["points"]["step"] for message in told] == [[1], [2, 3, 4], [5, 6, 7], [8, 9, 10], []]
    assert told[1]["points"]["loss"] == [0.2, 0.3, 0.4] and told[1]["points"]["grad_norm"] == [None] * 3
    assert told[1]["latest"]["step"] == 4 and told[1]["latest"]["total"] == 20 and told[1]["progress"] is None
    assert told[-1]["progress"] == {"stage": "preview", "done": 1, "total": 30, "picture": 1, "pictures": 2}
    assert {message["state"] for message in told} == {"running"}


def test_the_held_out_loss_is_told_as_it_comes_and_its_best_at_the_end(nodes, folder, clock):
    event = {"event": "held_out", "step": 2, "loss": 0.3, "t": [0.5], "levels": [0.3], "base": 0.4, "base_levels": [0.4]}
    event |= {"ema": None, "ema_levels": None, "best_step": 1, "best_loss": 0.25, "pictures": 3, "text": "it rises"}
    with nodes("bridge").NodeListener("1") as listener:
        listener(start())
        listener(event)
        assert nodes("sentences").best(listener.held_out) == "held-out loss best at step 1 (0.2500)"
        listener.ends("done", "done")
    told = sent("held_out")
    assert len(told) == 1 and told[0]["held_out"]["best_step"] == 1 and told[0]["held_out"]["levels"] == (0.3,)


def test_the_last_steps_are_told_before_the_end(nodes, folder, clock):
    with nodes("bridge").NodeListener("1") as listener:
        for number in (1, 2, 3):
            listener(step(number, 3))
        listener.ends("done", "done")
    assert [message["points"]["step"] for message in sent("progress")] == [[1], [2, 3]]
    assert [kind for kind, _ in sys.modules["server"].sent][-1] == "anima_trainer.end"


@pytest.mark.parametrize("error, outcome", [("RunError", "failed"), ("Interrupted", "cancelled"), ("ValueError", "failed")])
def test_a_failure_is_told_with_the_line_that_helps(nodes, folder, error, outcome):
    errors = sys.modules[nodes("bridge").AnimaError.__init__.__globals__["__name__"]]
    cls = getattr(errors, error, ValueError)
    with pytest.raises(cls), nodes("bridge").NodeListener("1") as listener:
        listener(start())
        raise cls("`network.rank`=1000: use a lower one")
    (end,) = sent("end")
    said = "network.rank=1000: use a lower one" if cls is not ValueError else "`network.rank`=1000: use a lower one"
    assert (end["outcome"], end["sentence"]) == (outcome, said)
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["outcome"] == outcome


def test_a_disk_that_is_full_costs_the_record_and_not_the_training(nodes, folder, monkeypatch, caplog):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nodes("live"), "write_record", full)
    with nodes("bridge").NodeListener("1") as listener:
        assert listener(start()) is None
        assert nodes("run_pages").RunPages().curve(listener.training.run, 10)["steps"] == 0  # it is shown nevertheless
        listener.ends("done", "done")
    assert "run.json: cannot be written (No space left on device)" in caplog.text


def test_what_is_asked_for_is_done_once_between_steps_and_the_end_at_any_time(nodes):
    live = nodes("live")
    with nodes("bridge").NodeListener("1") as listener:
        training = listener.training
        assert live.chosen("1", None) == live.chosen(None, training.run) == live.chosen("1", training.run) == [training]
        assert live.chosen("2", None) == live.chosen(None, "another") == live.chosen("1", "another") == []
        training.asked |= {"save", "preview"}
        assert listener(progress("latents", 1, 2)) is None  # a scan would hear it, and not the run
        assert {listener(step(1, 9)), listener(step(2, 9))} == {"save", "preview"} and listener(step(3, 9)) is None
        training.asked.add("stop")
        assert listener(progress("latents", 1, 2)) == listener(step(4, 9)) == "stop"
        training.asked.add("cancel")
        assert listener(progress("latents", 1, 2)) == "cancel" and listener.is_cancelled


def test_a_training_that_leaves_takes_no_other_with_it(nodes):
    live, bridge = nodes("live"), nodes("bridge")
    first = bridge.NodeListener("1")
    first.__enter__()
    with bridge.NodeListener("1") as second:
        live.leave(first.training)
        assert live.trainings() == [second.training]

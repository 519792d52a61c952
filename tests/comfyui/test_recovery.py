"""Lost servers, folders that a graph may not name, hostile requests: what a real ComfyUI makes of them."""

import json
import os
import re
import signal
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from ..conftest import needs_signals
from ..processes import HANGS
from .graphs import Graph
from .server import ComfyUI, error_of, sentence, status


def store(base: Path) -> Path:
    return base / "output" / "anima_trainer"


def log_text(base: Path, name: str) -> str:
    log = store(base) / f"{name}-run" / "log.jsonl"
    return log.read_text(encoding="utf-8") if log.is_file() else ""


def offered(server) -> list[str]:
    """What the run picker's list shows."""
    options = server.get("/object_info/AnimaContinueRun")["AnimaContinueRun"]["input"]["required"]["run"]
    return options[1]["options"] if isinstance(options[0], str) else options[0]


def wait_for(text: str, server: ComfyUI, name: str) -> None:
    server.wait_until(lambda: text in log_text(server.base, name))


def test_a_killed_server_offers_its_run_again(comfyui, base, request):
    """SIGKILL in the middle of a training; a new server lists the run, goes on with it, and the old graph finds it done."""
    steps, began = 250, time.time()
    with ComfyUI(*comfyui, base) as victim:
        graph = Graph(victim)
        graph.training(output_name="crashed", steps=steps, checkpoint_every=10)
        victim.queue(graph.prompt)
        wait_for('"event": "checkpoint", ', victim, "crashed")
        wait_for('"step": 30,', victim, "crashed")
        victim.process.kill()
    server = request.getfixturevalue("server")  # starts now, unless another test came first
    (run,) = [run for run in server.get("/anima_trainer/runs")["runs"] if run["name"] == "crashed"]
    assert 20 <= run["step"] < steps and run["total"] == steps and began < run["saved_at"] < time.time()
    assert (run["state"], run["can_continue"]) == ("unfinished", True)
    assert "crashed" in offered(server)
    picker = Graph(server)
    picker.add("go", "AnimaContinueRun", run="crashed")
    picker.add("loss", "LossGraphNode", loss=["go", 2])
    entry = server.run(picker.prompt)
    assert status(entry) == "success", error_of(entry)
    assert sentence(entry, "go").startswith(f"done: models/loras/crashed.safetensors, {steps} steps, loss ")
    assert f"resumed at step {run['step']} from" in log_text(base, "crashed")
    assert "crashed" not in offered(server)
    again = server.run(graph.prompt)  # the graph that was cut off
    assert sentence(again) == f"already trained: models/loras/crashed.safetensors, {steps} steps"
    assert not (base / "models" / "loras" / "crashed-2.safetensors").exists()
    picked = Graph(server)
    picked.add("go", "AnimaContinueRun", run="crashed")  # a saved graph still names the run that is finished now
    picked.add("loss", "LossGraphNode", loss=["go", 2])
    picked.prompt["loss"]["inputs"]["filename_prefix"] = "other"
    assert status(server.run(picked.prompt)) == "success"


@needs_signals
@pytest.mark.parametrize(
    "number, status_",
    [
        pytest.param(signal.SIGINT, 0, id="SIGINT", marks=pytest.mark.long),
        pytest.param(signal.SIGTERM, -signal.SIGTERM, id="SIGTERM"),
    ],
)
def test_a_server_that_is_ended_saves_its_training_first(comfyui, base, number, status_):
    """Ctrl-C in ComfyUI's console; SIGTERM from systemd or Docker. No checkpoint is due: it is written on the way out."""
    name = f"ended_{number.name}"
    with ComfyUI(*comfyui, base) as ended:
        graph = Graph(ended)
        graph.training(output_name=name, steps=100_000, checkpoint_every=0)
        ended.queue(graph.prompt)
        wait_for('"step": 12,', ended, name)
        ended.process.send_signal(number)
        assert ended.process.wait(HANGS) == status_, ended.text()[-3000:]
    assert "saving the training before the end" in ended.text()
    (checkpoint,) = (store(base) / f"{name}-run" / "checkpoints").iterdir()
    logged = [json.loads(line) for line in log_text(base, name).splitlines()]
    last = max(event["step"] for event in logged if event["event"] == "step")
    assert last >= 12 and checkpoint.name == f"step-{last:08d}"
    assert [event["reason"] for event in logged if event["event"] == "finish"] == ["Interrupted"]


def steps_of(server, name: str) -> int:
    (run,) = [run for run in server.get("/anima_trainer/runs")["runs"] if run["name"] == name]
    return run["step"]


def stop_early(server, base, name: str) -> Graph:
    graph = Graph(server)
    graph.training(output_name=name, steps=3000, checkpoint_every=0)
    prompt = server.queue(graph.prompt)
    wait_for('"step": 5,', server, name)
    server.post("/interrupt", {})
    server.result(prompt)
    return graph


def test_a_run_whose_pictures_changed_is_named_and_goes_on_when_told_to(server, base):
    folder = base / "input" / "changing"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("red", encoding="utf-8")
    graph = Graph(server)
    graph.add("own", "AnimaDatasetFolder", folder="changing", resolution="64", bucket_step=16, min_side=64)
    graph.training(output_name="changing", steps=100, dataset=["own", 0], checkpoint_every=5)
    prompt = server.queue(graph.prompt)
    wait_for('"step": 10,', server, "changing")
    server.post("/interrupt", {})
    server.result(prompt)
    (folder / "a.txt").write_text("crimson", encoding="utf-8")
    picker = Graph(server)
    picker.add("go", "AnimaContinueRun", run="changing")
    assert "content of the data is not what it was" in error_of(server.run(picker.prompt))
    picker.prompt["go"]["inputs"]["with_changes"] = True
    entry = server.run(picker.prompt)
    assert status(entry) == "success", error_of(entry)
    assert "changing" not in offered(server)
    (folder / "a.txt").write_text("red", encoding="utf-8")  # what the first graph asks for is still not trained
    entry = server.run(graph.prompt)
    assert sentence(entry).startswith("done: models/loras/changing-2.safetensors, 100 steps")


def test_a_run_goes_on_with_other_steps_and_another_learning_rate(server, base):
    stop_early(server, base, "longer")
    picker = Graph(server)
    picker.add("go", "AnimaContinueRun", run="longer", steps=40, learning_rate=1e-5)
    assert "learning_rate was 0.001, now 1e-05); allow it with with_changes" in error_of(server.run(picker.prompt))
    picker.prompt["go"]["inputs"]["with_changes"] = True
    entry = server.run(picker.prompt)
    assert status(entry) == "success", error_of(entry)
    assert sentence(entry, "go").startswith("done: models/loras/longer.safetensors, 40 steps")
    logged = [json.loads(line) for line in log_text(base, "longer").splitlines()]
    rates = [event["lr"] for event in logged if event["event"] == "step"]
    assert len(rates) == 40 and rates[0] == 1e-3 and rates[-1] == 1e-5
    assert len(list((store(base) / "finished").glob("*-changed.json"))) >= 1  # the graph that began it finds none
    assert "longer" not in offered(server)


def test_a_run_is_finished_at_once_with_as_many_steps_as_it_has(server, base):
    stop_early(server, base, "enough")
    steps = steps_of(server, "enough")
    picker = Graph(server)
    picker.add("go", "AnimaContinueRun", run="enough", steps=steps)
    entry = server.run(picker.prompt)
    assert sentence(entry, "go").startswith(f"done: models/loras/enough.safetensors, {steps} steps")
    assert (base / "models" / "loras" / "enough.safetensors").is_file()


def test_a_run_that_an_earlier_version_began_goes_on_and_says_that_its_numbers_are_of_two(server, base):
    """Its graph says so too, and does not take the adapter for its own."""
    graph = stop_early(server, base, "older")
    (record,) = [p for p in (store(base) / "unfinished").glob("*.json") if '"older"' in p.read_text(encoding="utf-8")]
    record.write_text(json.dumps({"name": "older", "result_version": 1}), encoding="utf-8")
    graph.prompt["train"]["inputs"]["steps"] = 2
    told = sentence(server.run(graph.prompt))
    assert re.search(r"older was begun by an earlier version .* is left at step \d+: Continue Anima Run goes on with it", told)
    picker = Graph(server)
    picker.add("go", "AnimaContinueRun", run="older", steps=steps_of(server, "older"), with_changes=True)
    told = sentence(server.run(picker.prompt), "go")
    assert re.search(r"older was begun by an earlier version of this program; from step \d+ on its numbers are others", told)
    assert (store(base) / "finished" / f"{record.stem}-changed.json").is_file()


def test_a_run_goes_on_when_only_memory_is_changed(server, base):
    """After an out of memory, say. And a graph that was saved before `strict` was there still runs."""
    graph = Graph(server)
    graph.training(output_name="memory", steps=100, checkpoint_every=5, memory="keep activations (fastest)")
    del graph.prompt["train"]["inputs"]["strict"]
    prompt = server.queue(graph.prompt)
    wait_for('"step": 10,', server, "memory")
    server.post("/interrupt", {})
    server.result(prompt)
    graph.prompt["train"]["inputs"]["memory"] = "recompute (least memory)"
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    assert "resumed at step" in log_text(base, "memory")


def test_a_run_of_a_toml_goes_on_when_queued_again(server, base):
    first = Graph(server)
    first.training(output_name="source", steps=1)
    assert status(server.run(first.prompt)) == "success"
    text = (store(base) / "source-run" / "config.toml").read_text(encoding="utf-8")
    text = text.replace("max_train_steps = 1\n", "max_train_steps = 100\n").replace("every_n_steps = 250", "every_n_steps = 5")
    (base / "input" / "longer.toml").write_text(text, encoding="utf-8")
    graph = Graph(server)
    graph.add("train", "AnimaTrainFromTOML", path="longer.toml", output_name="from_toml")
    prompt = server.queue(graph.prompt)
    wait_for('"step": 10,', server, "from_toml")
    server.post("/interrupt", {})
    server.result(prompt)
    assert "from_toml" in offered(server)
    entry = server.run(graph.prompt)
    assert status(entry) == "success" and "resumed at step" in log_text(base, "from_toml")
    assert sentence(entry).startswith("done: models/loras/from_toml.safetensors, 100 steps")
    assert "from_toml" not in offered(server)


def test_a_run_that_was_killed_after_its_last_step_is_only_saved(server, base):
    """Between the last checkpoint and the record of the finished run there is a moment, too."""
    graph = Graph(server)
    graph.training(output_name="last_moment", steps=8)
    assert status(server.run(graph.prompt)) == "success"
    (done,) = [p for p in (store(base) / "finished").glob("*.json") if "last_moment" in p.read_text(encoding="utf-8")]
    done.rename(store(base) / "unfinished" / done.name)
    (store(base) / "unfinished" / done.name).write_text(json.dumps({"name": "last_moment"}), encoding="utf-8")
    picker = Graph(server)
    picker.add("go", "AnimaContinueRun", run="last_moment")
    del picker.prompt["go"]["inputs"]["with_changes"]
    entry = server.run(picker.prompt)
    assert status(entry) == "success", error_of(entry)
    assert sentence(entry, "go").startswith("done: models/loras/last_moment.safetensors, 8 steps")


def test_a_run_that_was_deleted_since_is_one_line(server, base):
    import shutil

    picker = Graph(server)
    stop_early(server, base, "vanishing")
    assert "vanishing" in offered(server)
    picker.add("go", "AnimaContinueRun", run="vanishing")
    shutil.rmtree(store(base) / "vanishing-run")
    assert "no unfinished run of this name; press R and choose one of the list" in error_of(server.run(picker.prompt))


@pytest.mark.parametrize("name", ["../escape", "/etc", "(none)", "nobody", "", 7, {"x": 1}, None])
def test_the_picker_takes_names_of_the_list_only(server, base, name):
    picker = Graph(server)
    picker.add("go", "AnimaContinueRun", run=name)
    answer = server.post("/prompt", {"prompt": picker.prompt, "client_id": server.client})
    text = error_of(server.result(answer["prompt_id"])) if "prompt_id" in answer else json.dumps(answer)
    assert "no unfinished run of this name" in text or "error" in answer


def toml_for(folder: Path, base: Path) -> str:
    return f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{folder}'\n"


@pytest.mark.parametrize("kind", ["folder", "mask", "dots", "dataset toml", "image_dir", "training toml", "prompts"])
def test_folders_outside_of_comfyui_are_refused(server, base, tmp_path, kind):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a secret caption", encoding="utf-8")
    (tmp_path / "x.toml").write_text(toml_for(base / "input" / "pics", base), encoding="utf-8")
    (base / "input" / "in.toml").write_text(toml_for(tmp_path, base), encoding="utf-8")
    (base / "input" / "train.toml").write_text(f"sample_prompts = '{tmp_path / 'a.txt'}'\n", encoding="utf-8")
    graph = Graph(server)
    node, inputs = {
        "folder": ("AnimaDatasetFolder", dict(folder=str(tmp_path))),
        "mask": ("AnimaDatasetFolder", dict(folder="pics", mask_folder=str(tmp_path))),
        "dots": ("AnimaDatasetFolder", dict(folder="../../../../../etc")),
        "dataset toml": ("AnimaDatasetTOML", dict(path=str(tmp_path / "x.toml"))),
        "image_dir": ("AnimaDatasetTOML", dict(path="in.toml")),
        "training toml": ("AnimaTrainFromTOML", dict(path=str(tmp_path / "x.toml"))),
        "prompts": ("AnimaTrainFromTOML", dict(path="train.toml")),
    }[kind]
    graph.add("bad", node, **inputs)
    if node != "AnimaTrainFromTOML":
        graph.add("look", "AnimaDatasetInspect", dataset=["bad", 0])
    entry = server.run(graph.prompt)
    assert "outside of the folders that this server reads" in error_of(entry), json.dumps(entry)[-2000:]
    assert "a secret caption" not in json.dumps(entry)


def test_the_owner_may_allow_more_and_a_server_without_a_training_ends_as_ever(comfyui, base, tmp_path, monkeypatch):
    """By the environment, and by any key of extra_model_paths.yaml."""
    places = {name: tmp_path / name for name in ("environment", "yaml", "neither")}
    for name, place in places.items():
        place.mkdir()
        Image.new("RGB", (64, 64)).save(place / "a.png")
        (place / "a.txt").write_text(f"of {name}", encoding="utf-8")
    (tmp_path / "paths.yaml").write_text(f"mine:\n  anima_datasets: {places['yaml']}\n", encoding="utf-8")
    monkeypatch.setenv("ANIMA_TRAINER_ROOTS", str(places["environment"]))
    entries = {}
    with ComfyUI(*comfyui, base, "--extra-model-paths-config", str(tmp_path / "paths.yaml")) as other:
        for name, place in places.items():
            graph = Graph(other)
            graph.add("data", "AnimaDatasetFolder", folder=str(place))
            graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
            entries[name] = other.run(graph.prompt)
        other.process.terminate()  # without a training a server ends as ever
        ended = other.process.wait(HANGS)
        assert "saving the training" not in other.text() and (os.name == "nt" or ended == -signal.SIGTERM)
    for name in ("environment", "yaml"):
        said = entries[name]["outputs"]["look"]["text"][0]
        assert re.search(rf"^  a.png\n    always, \d+ tokens: of {name}$", said, re.MULTILINE)
    assert "outside of the folders that this server reads" in error_of(entries["neither"])


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'{"nodes": "11"}', b'{"node": ["x"]}', b'{"node": "../../etc"}', b"\xff\xfe\x00", b"[" * 50000]
)
def test_hostile_stop_requests(server, body):
    request = urllib.request.Request(server.url("/anima_trainer/stop"), body, {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(request, timeout=HANGS)
    answer = json.loads(error.value.read())
    assert error.value.code == 400 and "\n" not in answer["error"]
    assert server.get("/anima_trainer/running") == {"running": [], "runs": []}


def test_strict_refuses_what_is_otherwise_counted(server, base):
    folder = base / "input" / "flawed"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    Image.new("RGB", (64, 64), "blue").save(folder / "b.png")
    (folder / "a.txt").write_text("red", encoding="utf-8")

    def run(strict: bool):
        graph = Graph(server)
        graph.add("own", "AnimaDatasetFolder", folder="flawed", resolution="64", bucket_step=16, min_side=64)
        graph.training(output_name="flawed", dataset=["own", 0], strict=strict)
        return server.run(graph.prompt)

    assert "strict: 1 warnings about the data (pictures without a caption file: 1 (b.png))" in error_of(run(True))
    assert status(run(False)) == "success"
    assert "pictures without a caption file: 1 (b.png)" in log_text(base, "flawed")


def test_a_scan_can_be_cancelled_and_goes_on_where_it_was(server, base):
    """Many pictures: Cancel arrives while they are looked at, or right after; nothing is trained."""
    from benchmarks.scan import write_pictures

    write_pictures(base / "input" / "many", 1500)
    graph = Graph(server)
    graph.add("own", "AnimaDatasetFolder", folder="many", resolution="128", bucket_step=16, min_side=64)
    graph.training(output_name="many", dataset=["own", 0])
    prompt = server.queue(graph.prompt)
    server.wait_until(lambda: server.get("/anima_trainer/running")["running"], every=0.01)
    server.post("/interrupt", {})
    entry = server.result(prompt)
    assert any(m[0] == "execution_interrupted" for m in entry["status"]["messages"])
    assert not (base / "models" / "loras" / "many.safetensors").exists()

"""The routes about runs in a real ComfyUI: what a page sees, what it may ask for, and what strangers get."""

import io
import json
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from ..processes import HANGS
from ..tiny import same_tensors
from .graphs import Graph
from .server import sentence, status, was_interrupted
from .texts import Texts

WORKFLOW = {"nodes": [{"id": 5, "type": "AnimaTrain"}], "extra": {"name": "風格 ☃"}}
STEPS = 3000  # more than are taken before somebody stops it


def ask(server, path: str, body: dict | bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Ask a route, by POST where there is a body. Return its status and what it answers."""
    data = json.dumps(body).encode() if isinstance(body, dict) else body
    request = urllib.request.Request(server.url(f"/anima_trainer/{path}"), data, headers)
    try:
        with urllib.request.urlopen(request, timeout=HANGS) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def told(server, path: str, body: dict | bytes | None = None) -> dict:
    status_, answer = ask(server, path, body)
    assert status_ == 200, answer[:500]
    return json.loads(answer)


def refused(server, path: str, body: dict | bytes | None = None) -> tuple[int, str]:
    status_, answer = ask(server, path, body)
    line = json.loads(answer)["error"]
    assert line and "\n" not in line and len(line) < 300
    return status_, line


def store(base: Path) -> Path:
    return base / "output" / "anima_trainer"


def steps_in_log(base: Path, name: str) -> list[dict]:
    log = store(base) / f"{name}-run" / "log.jsonl"
    lines = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    return [json.loads(line) for line in lines if line.startswith('{"event": "step"') and line.endswith("}")]


def as_columns(steps: list[dict]) -> dict[str, list]:
    return {name: [step[name] for step in steps] for name in ("step", "loss", "mean_loss", "lr", "grad_norm", "seconds")}


def listed(server, name: str) -> dict:
    (run,) = [run for run in told(server, "runs")["runs"] if run["name"] == name]
    return run


def watched(server, name: str, **inputs) -> str:
    """Queue a training within a subgraph, as a page does: with its graph."""
    graph = Graph(server)
    graph.add("samples", "AnimaSamplePrompts", prompts="red\nblue", width=64, height=64, steps=1, cfg=1.0, at_first=False)
    graph.training("12:5", output_name=name, steps=STEPS, checkpoint_every=0, samples=["samples", 0], **inputs)
    extra = {"extra_pnginfo": {"workflow": WORKFLOW}}
    body = {"prompt": graph.prompt, "client_id": server.client, "extra_data": extra}
    return server.post("/prompt", body)["prompt_id"]


def test_a_training_is_watched_asked_and_cancelled_by_a_page(comfyui, server, base, tmp_path):
    _, python = comfyui
    with Texts(server, python, tmp_path / "texts") as texts:
        prompt = watched(server, "watched")
        server.wait_until(lambda: len(steps_in_log(base, "watched")) > 5)
        (begun,) = texts.messages("begin")
        run = begun["run"]
        assert begun == {"run": run, "node": "12:5", "graph": WORKFLOW.get("id"), "name": "watched"}
        sees(server, run)
        saves_and_previews(server, base, texts, run)
        asks_what_is_refused(server, run)
        assert told(server, "cancel", {"run": run}) == {"cancelling": ["12:5"]}
        assert was_interrupted(server.result(prompt))
        server.wait_until(lambda: texts.messages("end"))
        (end,) = texts.messages("end")
        assert (end["run"], end["outcome"]) == (run, "cancelled") and end["sentence"] == texts.of("12:5")[-1]
        finds(server, base, run, end["sentence"])
        progress = texts.messages("progress")
        points = [step for message in progress for step in message["points"]["step"] if message["name"] == "watched"]
        assert points == [step["step"] for step in steps_in_log(base, "watched")]
        assert progress[-1]["latest"] == told(server, f"runs/{run}")["latest"]
    deletes(server, base, run)


def sees(server, run: str) -> None:
    now = told(server, "running")
    assert now["running"] == ["12:5"]
    assert [(r["id"], r["state"], r["node"], r["total"]) for r in now["runs"]] == [(run, "running", "12:5", STEPS)]
    assert told(server, "runs")["runs"][0]["id"] == run and listed(server, "watched")["step"] > 0
    whole = told(server, f"runs/{run}")
    assert (whole["settings"]["network.rank"], whole["network"], whole["plan"]) == (4, "LoRA rank 4", "2 of 2 blocks keep")
    assert whole["settings"]["model.transformer"] == "models/diffusion_models/tiny.safetensors"
    assert whole["latest"]["total"] == STEPS and whole["latest"]["pictures_per_second"] > 0


def saves_and_previews(server, base, texts, run: str) -> None:
    assert told(server, "save", {"run": run}) == {"saving": ["12:5"]}
    server.wait_until(lambda: texts.messages("saved"))
    (saved,) = texts.messages("saved")
    name = f"watched-step{saved['step']:08d}.safetensors"
    server.wait_until((store(base) / "watched-run" / "checkpoints" / f"step-{saved['step']:08d}").is_dir)
    assert (base / "models" / "loras" / name).is_file()
    assert told(server, "preview", {"node": "12:5"}) == {"previewing": ["12:5"]}
    server.wait_until(lambda: len(texts.messages("sample")) == 2)
    samples = [message["sample"] for message in texts.messages("sample")]
    assert told(server, f"runs/{run}")["pictures"] == samples and [s["prompt"] for s in samples] == ["red", "blue"]
    _, picture = ask(server, f"runs/{run}/samples/{samples[0]['file']}")
    assert picture == (store(base) / "watched-run" / "samples" / samples[0]["file"]).read_bytes()
    _, small = ask(server, f"runs/{run}/samples/{samples[1]['file']}?side=64")
    assert Image.open(io.BytesIO(small)).format == "JPEG" and max(Image.open(io.BytesIO(small)).size) <= 64


def asks_what_is_refused(server, run: str) -> None:
    """A stale tab names a run that is over, or what runs on its node by another name."""
    for word in ("stop", "save", "preview", "cancel"):
        assert refused(server, word, {"run": "0" * 12})[0] == 404
        assert refused(server, word, {"run": "0" * 12, "node": "12:5"})[0] == 404
    assert refused(server, "cancel", {}) == (400, 'say which training: {"run": "<id>"} or {"node": "<id>"}')
    assert refused(server, f"runs/{run}/delete", {"name": "watched"}) == (409, "watched: is training now; stop it first")
    assert told(server, "running")["running"] == ["12:5"]


def finds(server, base, run: str, ended: str) -> None:
    """As a page that is opened now does."""
    assert told(server, "running") == {"running": [], "runs": []}
    found = listed(server, "watched")
    steps = steps_in_log(base, "watched")
    assert (found["id"], found["state"], found["step"], found["node"]) == (run, "unfinished", steps[-1]["step"], None)
    assert found["loss"] == steps[-1]["mean_loss"] and found["has_graph"] and found["can_continue"] and found["lora"] is None
    whole = told(server, f"runs/{run}")
    assert whole["sentence"] == ended and ended.startswith(f"cancelled at step {steps[-1]['step']} of {STEPS}, saved")
    assert whole["error"] is None and whole["progress"] is None and len(whole["pictures"]) == 2
    assert told(server, f"runs/{run}/graph") == WORKFLOW
    curve = told(server, f"runs/{run}/curve?points=4000")
    assert curve == {"columns": as_columns(steps), "steps": len(steps), "held_out": []}


def deletes(server, base, run: str) -> None:
    (kept,) = (base / "models" / "loras").glob("watched-step*.safetensors")
    status_, line = refused(server, f"runs/{run}/delete", {"name": "other"})
    assert (status_, line) == (400, "'other' is not the name of this run; nothing is deleted")
    assert told(server, f"runs/{run}/delete", {"name": "watched"}) == {"deleted": "watched"}
    assert refused(server, f"runs/{run}")[0] == 404 and kept.is_file()
    assert not list(store(base).glob("*watched*")) and not list(store(base).glob(".*watched*"))


def test_a_finished_run_goes_on_with_more_steps_and_its_graph_keeps_its_adapter(server, base):
    graph = Graph(server)
    graph.training(output_name="extended", steps=3)
    assert status(server.run(graph.prompt)) == "success"
    loras = base / "models" / "loras"
    before = load_file(loras / "extended.safetensors")
    run = listed(server, "extended")
    assert (run["state"], run["step"], run["lora"], run["can_continue"]) == ("finished", 3, "extended.safetensors", True)
    assert not run["has_graph"] and refused(server, f"runs/{run['id']}/graph")[0] == 404  # queued without a page
    go = Graph(server)
    go.add("anima_continue", "AnimaContinueRun", run="extended", steps=6)
    entry = server.run(go.prompt)
    ended = sentence(entry, "anima_continue")
    assert ended.startswith("done: models/loras/extended-2.safetensors, 6 steps")
    assert ended.endswith("\nextended stays as it is, for the graph that trained it; extended-2, a copy of it, goes on")
    assert told(server, f"runs/{listed(server, 'extended-2')['id']}/curve")["columns"]["step"] == [1, 2, 3, 4, 5, 6]
    go.prompt["anima_continue"]["inputs"]["with_changes"] = True  # executed anew, as after a restart
    assert sentence(server.run(go.prompt), "anima_continue") == "already trained: models/loras/extended-2.safetensors, 6 steps"
    graph.add("behind", "AnimaSaveAdapter", lora=["train", 0], name="copy of extended")
    assert sentence(server.run(graph.prompt)) == "already trained: models/loras/extended.safetensors, 3 steps"
    assert same_tensors(load_file(loras / "extended.safetensors"), before)
    assert listed(server, "extended")["id"] == run["id"] != listed(server, "extended-2")["id"]
    goes_on_twice_in_one_copy(server, base, go)


def goes_on_twice_in_one_copy(server, base, go: Graph) -> None:
    """One that was cancelled goes on when it is asked for again."""
    go.prompt["anima_continue"]["inputs"]["steps"] = STEPS
    for _ in range(2):
        before = len(steps_in_log(base, "extended-3"))
        prompt = server.queue(go.prompt)
        server.wait_until(lambda before=before: len(steps_in_log(base, "extended-3")) > before + 5)
        assert refused(server, "preview", {"node": "anima_continue"})[0] == 409  # it has no prompts
        assert told(server, "cancel", {"node": "anima_continue"})["cancelling"]
        assert was_interrupted(server.result(prompt))
    steps = [step["step"] for step in steps_in_log(base, "extended-3")]
    assert steps == list(range(1, len(steps) + 1)) and not (store(base) / "extended-4-run").exists()
    assert (listed(server, "extended-3")["state"], listed(server, "extended-3")["step"]) == ("unfinished", steps[-1])


def test_a_hundred_thousand_steps_are_told_in_a_thousand_points(server, base, capsys):
    folder = store(base) / "long-run"
    folder.mkdir(parents=True)
    same = {"event": "step", "time": 1.0, "total": 100_000, "lr": 1e-4, "grad_norm": 0.123456789, "seconds": 1.23, "peak_gb": 9}
    with open(folder / "log.jsonl", "w", encoding="utf-8") as log:
        for n in range(1, 100_001):
            step = {"step": n, "loss": 1 + (n * 7919 % 1000) / 1e3, "mean_loss": 1.5 - n / 1e6}
            log.write(json.dumps(same | step) + "\n")
    run = next(r["id"] for r in told(server, "runs")["runs"] if r["name"] == "long")
    for points in (1000, 4000):
        began = time.perf_counter()
        _, answer = ask(server, f"runs/{run}/curve?points={points}")
        seconds, curve = time.perf_counter() - began, json.loads(answer)
        with capsys.disabled():
            print(f"\n100,000 steps as {points} points: {len(answer):,} bytes, {seconds:.2f} s")
        shown = curve["columns"]["step"]
        assert curve["steps"] == 100_000 and points / 2 < len(shown) <= points and shown == sorted(set(shown))
        assert shown[0] == 1 and shown[-1] == 100_000 and len(answer) < 100 * points
        assert all(len(column) == len(shown) for column in curve["columns"].values())


HOSTILE = [
    "runs/..",
    "runs/../runs.json",
    "runs/%2e%2e%2f%2e%2e/curve",
    "runs/nobody",
    "runs/%00",
    "runs/" + "a" * 5000,
    "runs/%E2%98%83",
    "runs/%FF%FE/graph",
    "runs/{id}/samples/..%2f..%2fconfig.toml",
    "runs/{id}/samples/config.toml",
    "runs/{id}/samples/%2e%2e%2fconfig.toml?side=64",
    "runs/{id}/samples/step-00000001-0.png%00",
    "runs/{id}/samples/step-00000001-0.png?side=",
    "runs/{id}/curve?points=5",
    "runs/{id}/curve?points=99999999999999999999",
    "runs/{id}/curve?points=nan",
]


@pytest.fixture
def stranger(base) -> str:
    """The id of a run into whose samples somebody has put a link to elsewhere."""
    folder = store(base) / "hostile-run"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps({"id": "00000000feed", "started": 1.0}), encoding="utf-8")
    return "00000000feed"


@pytest.mark.parametrize("path", HOSTILE)
def test_no_address_leads_out_of_the_store(server, stranger, path):
    status_, answer = ask(server, path.replace("{id}", stranger))
    assert status_ in (400, 404) and b"Traceback" not in answer and b"secret" not in answer
    assert told(server, "running") == {"running": [], "runs": []}


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"name": 7}', b'{"names": "x"}', b"\xff\xfe", b"[" * 9000, b"[" * 3_000_000])
def test_hostile_deletions(server, base, stranger, body):
    assert refused(server, f"runs/{stranger}/delete", body)[0] == 400
    assert refused(server, "runs/..%2f..%2finput/delete", {"name": "input"})[0] == 404
    assert (store(base) / "hostile-run").is_dir() and (base / "input" / "pics").is_dir()


def test_other_pages_may_neither_read_nor_ask(server, stranger):
    evil = {"Origin": "http://evil.example"}
    for path in ("running", "runs", f"runs/{stranger}", f"runs/{stranger}/curve", f"runs/{stranger}/graph"):
        assert ask(server, path, **evil)[0] == 403, path
    for path in ("stop", "save", "preview", "cancel", f"runs/{stranger}/delete"):
        assert ask(server, path, {"name": "hostile"}, **evil)[0] == 403, path
    assert ask(server, "stop", {}, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert told(server, f"runs/{stranger}")["name"] == "hostile"

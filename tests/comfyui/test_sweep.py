"""A sweep as a node: a grid with a bad point, its winner in the graph, found again, interrupted and continued."""

import json

from PIL import Image
from safetensors.torch import load_file

from .graphs import Graph
from .server import error_of, sentence, status, was_interrupted

LINKS = ("transformer", "vae", "qwen", "t5_tokenizer", "dataset", "network", "optimizer")


def sweep_graph(server, vary: str, **settings) -> Graph:
    graph = Graph(server)
    graph.training()
    inputs = graph.prompt.pop("train")["inputs"]
    links = {name: inputs[name] for name in LINKS}
    graph.add("sweep", "AnimaSweep", **(links | {"vary": vary, "steps": 2, "batch_size": 2} | settings))
    graph.add("saved", "SaveLoRA", lora=["sweep", 0], prefix="loras/winner")
    return graph


def test_a_grid_is_trained_compared_and_its_winner_handed_on(server, base):
    graph = sweep_graph(server, "rank = 2, 0\nlearning_rate = 1e-3, 1e-2", output_name="grid")
    graph.add("prompts", "AnimaSamplePrompts", prompts="red circle", width=64, height=64, steps=1, cfg=1.0, at_first=False)
    graph.prompt["sweep"]["inputs"]["samples"] = ["prompts", 0]
    graph.add("sheet", "SaveImage", images=["sweep", 3], filename_prefix="grid")
    graph.add("table", "PreviewAny", source=["sweep", 2])
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    folder = base / "output" / "anima_trainer" / "grid-sweep"
    told = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    assert [point["state"] for point in told["points"]] == ["finished", "finished", "refused", "refused"]
    winner = base / "models" / "loras" / "grid-sweep" / f"{told['winner']}.safetensors"
    first, careful, failed = sentence(entry, "sweep").splitlines()
    label = next(point["label"] for point in told["points"] if point["name"] == told["winner"])
    assert first.startswith(f"2 finished, 2 refused; winner {label}, the lowest smoothed training loss, ")
    assert first.endswith(f": models/loras/grid-sweep/{told['winner']}.safetensors")
    assert careful.startswith("careful: ") and failed.startswith(
        "rank 0, lr 0.001: rank=0: must be at least 1; rank 0, lr 0.01: "
    )
    assert load_file(winner).keys() == load_file(next((base / "output" / "loras").glob("winner*"))).keys()
    page = (folder / "index.html").read_text(encoding="utf-8")
    assert page.count("<img ") == 2 and str(base) not in page
    (saved,) = entry["outputs"]["sheet"]["images"]
    assert Image.open(base / "output" / saved["filename"]).height > 2 * 64
    runs = server.get("/anima_trainer/runs")["runs"]
    assert {run["name"] for run in runs} >= {"grid-rank2-lr0.001", "grid-rank2-lr0.01"}
    assert {run["state"] for run in runs if run["name"].startswith("grid-")} == {"finished"}


def test_an_interrupted_sweep_goes_on(server, base):
    graph = sweep_graph(server, "lr = 1e-3, 2e-3", output_name="halved", steps=40)
    prompt = server.queue(graph.prompt)
    runs = base / "output" / "anima_trainer"
    second = runs / "halved-lr0.002-run" / "log.jsonl"
    server.wait_until(lambda: second.is_file() and '"step": 2,' in second.read_text(encoding="utf-8"))
    server.post("/interrupt", {})
    assert was_interrupted(server.result(prompt))
    told = json.loads((runs / "halved-sweep" / "results.json").read_text(encoding="utf-8"))
    assert [point["state"] for point in told["points"]] == ["finished", "unfinished"]
    before = (runs / "halved-lr0.001-run" / "log.jsonl").read_bytes()
    entry = server.run(graph.prompt)
    assert sentence(entry, "sweep").startswith("2 finished; winner "), error_of(entry)
    assert "resumed at step" in second.read_text(encoding="utf-8")
    assert (runs / "halved-lr0.001-run" / "log.jsonl").read_bytes() == before


def test_a_sweep_that_cannot_be_is_said_on_the_node(server):
    for vary, more, text in (
        ("", {}, "sweep: 0 points; say what varies"),
        ("rank = 2\nranc = 3", {}, "vary 'ranc': no setting has this name; did you mean rank?"),
        ("rank = 2", {"pick": "best"}, "pick='best': write auto, held_out, smoothed_loss"),
        ("weights = /etc/passwd", {}, "outside of the folders that this server reads"),
        ("rank = 0", {}, "the sweep has no winner: rank 0: rank=0: must be at least 1"),
    ):
        entry = server.run(sweep_graph(server, vary, output_name="refused", **more).prompt)
        assert status(entry) == "error" and text in error_of(entry), (vary, error_of(entry))

"""The nodes in a real ComfyUI: what a user does with them, through the server's API."""

# ruff: noqa: E501 (tables of cases)

import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from .graphs import Graph
from .make_workflows import specs
from .server import ComfyUI, cached_nodes, error_of, sentence, status, was_interrupted

SNAPSHOT = Path(__file__).with_name("schema.json")
NODES = 40


def loras(base: Path) -> list[str]:
    return sorted(p.name for p in (base / "models" / "loras").glob("*.safetensors"))


def run_dir(base: Path, name: str) -> Path:
    return base / "output" / "anima_trainer" / f"{name}-run"


def notes(folder: Path) -> str:
    events = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return "\n".join(e["text"] for e in events if e["event"] in ("note", "warning"))


def wait_for_step(server: ComfyUI, name: str, step: int) -> None:
    log = run_dir(server.base, name) / "log.jsonl"
    server.wait_until(lambda: log.is_file() and f'"step": {step},' in log.read_text(encoding="utf-8"))


def shape_of(info: dict) -> dict:
    """What shared workflows rely on: ids, inputs with types in their order, which of them must be given, outputs."""
    found = {}
    for name, node in sorted(info.items()):
        if name.startswith("Anima") and node["category"].startswith("Anima Trainer"):
            inputs = {key: kind if isinstance(kind, str) else "COMBO" for key, kind, _ in specs(node)}
            required = list(node["input"].get("required", {}))
            found[name] = {"inputs": inputs, "required": required, "outputs": dict(zip(node["output_name"], node["output"]))}
    return found


def test_schema_is_the_snapshot(server):
    text = json.dumps(shape_of(server.get("/object_info")), indent=1) + "\n"
    assert text.count('"outputs"') == NODES
    if os.environ.get("UPDATE_SCHEMA"):
        SNAPSHOT.write_text(text, encoding="utf-8")
    assert text == SNAPSHOT.read_text(encoding="utf-8"), "a breaking change? else UPDATE_SCHEMA=1"


def test_every_input_has_a_tooltip(server):
    info = server.get("/object_info")
    for name in shape_of(info):
        for key, kind, options in specs(info[name]):
            assert options.get("tooltip") or kind == "COMFY_AUTOGROW_V3", f"{name}.{key}"


def test_import_is_quick_and_quiet(server):
    line = next(line for line in server.text().splitlines() if "seconds" in line and "ComfyUI-Anima-Trainer" in line)
    seconds = float(line.split("seconds")[0].split()[-1])
    assert "IMPORT FAILED" not in line and seconds < server.start_seconds / 3  # of this machine, as busy as it is


def test_held_out_pictures_are_measured_and_the_best_adapter_is_in_the_list(server, base):
    graph = Graph(server)
    graph.add("held", "AnimaHeldOut", share=0.5, every_n_steps=2)
    graph.training(output_name="measured", held_out=["held", 0])
    assert sentence(server.run(graph.prompt)).startswith("done: ")
    log = (run_dir(base, "measured") / "log.jsonl").read_text(encoding="utf-8").splitlines()
    found = [event for event in map(json.loads, log) if event["event"] == "held_out"]
    assert [(event["step"], event["pictures"]) for event in found] == [(0, 2), (2, 2), (4, 2)]
    assert {"measured.safetensors", "measured-best.safetensors"} <= set(loras(base))
    graph.prompt["held"]["inputs"] |= {"folder": "pics"}
    assert "of its pictures are trained as well" in error_of(server.run(graph.prompt))


@pytest.mark.parametrize("network", ["AnimaLoRANetwork", "AnimaLoKrNetwork"])
def test_train_and_hand_on(server, base, network):
    graph = Graph(server)
    graph.training(network=network, output_name=f"first_{network}")
    graph.add("loss", "LossGraphNode", loss=["train", 2])
    graph.add("saved", "SaveLoRA", lora=["train", 0], prefix="loras/stock")
    graph.add("own", "AnimaSaveAdapter", lora=["train", 0], name=f"copy_{network}", format="lora_unet")
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    assert entry["outputs"]["loss"]["images"]
    original = load_file(base / "models" / "loras" / f"first_{network}.safetensors")
    copy = load_file(base / "models" / "loras" / f"copy_{network}.safetensors")
    assert len(original) == len(copy) and all(key.startswith("lora_unet_") for key in copy)
    names = server.get("/object_info/LoraLoaderModelOnly")["LoraLoaderModelOnly"]["input"]["required"]["lora_name"]
    assert f"first_{network}.safetensors" in json.dumps(names)  # selectable without a restart


def test_the_same_inputs_never_train_twice(server, base):
    graph = Graph(server)
    graph.training(output_name="once")
    assert status(server.run(graph.prompt)) == "success"
    stamp = (base / "models" / "loras" / "once.safetensors").stat().st_mtime_ns
    other = Graph(server)
    other.add("sheet", "AnimaDatasetInspect", dataset=[other.add("d", "AnimaDatasetFolder", folder="pics"), 0])
    assert status(server.run(other.prompt)) == "success"  # ComfyUI's own cache forgets the first prompt now
    again = Graph(server)
    again.training(output_name="once")
    entry = server.run(again.prompt)
    assert sentence(entry) == "already trained: models/loras/once.safetensors, 4 steps"
    assert (base / "models" / "loras" / "once.safetensors").stat().st_mtime_ns == stamp
    changed = Graph(server)
    changed.training(output_name="once", seed=7)
    entry = server.run(changed.prompt)
    assert sentence(entry).startswith("done: models/loras/once-2.safetensors, 4 steps, loss ")  # nothing overwritten
    assert sentence(entry).endswith("\ntrains anew, not as once.safetensors: seed was 42, now 7")


def test_a_changed_caption_and_a_new_picture_are_noticed(server, base):
    def train_once() -> str:
        graph = Graph(server)
        graph.add("own", "AnimaDatasetFolder", folder="own", resolution="64", bucket_step=16, min_side=64)
        graph.training(dataset=["own", 0], output_name="noticed")
        entry = server.run(graph.prompt)
        return sentence(entry).split("models/loras/")[1].split(",")[0]

    folder = base / "input" / "own"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("red", encoding="utf-8")
    assert train_once() == "noticed.safetensors"
    (folder / "a.txt").write_text("crimson", encoding="utf-8")
    assert train_once() == "noticed-2.safetensors"
    Image.new("RGB", (64, 64), "blue").save(folder / "b.png")
    (folder / "b.txt").write_text("blue", encoding="utf-8")
    assert train_once() == "noticed-3.safetensors"


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda g: g.add("optimizer", "AnimaOptimizer", optimizer="RAdamScheduleFree", lr_scheduler="cosine"), "optimizer=RAdamScheduleFree requires lr_scheduler=constant"),
        (lambda g: g.add("optimizer", "AnimaOptimizer", optimizer="RAdamScheduleFree", lr_warmup_steps=5), "optimizer=RAdamScheduleFree requires lr_warmup_steps=0"),
        (lambda g: g.prompt["train"]["inputs"].update(output_name="../escape"), "output_name='../escape': use a plain file name"),
        (lambda g: g.prompt["data"]["inputs"].update(folder="missing"), "no such folder of pictures; check folder"),
        (lambda g: g.prompt["data"]["inputs"].update(folder=""), "folder='': name a folder of captioned pictures"),
        (lambda g: g.prompt["data"]["inputs"].update(resolution=""), "resolution='': write 1024, or 768,1024 for several"),
        (lambda g: g.add("train", "AnimaTrainFromTOML", path=""), "path='': name a file"),
        (lambda g: g.prompt["train_network"]["inputs"].update(include="nothing.like.this"), "include 'nothing.like.this': matches no layer"),
    ],
)  # fmt: skip
def test_bad_settings_are_refused_on_the_node_in_its_own_words(server, base, change, text):
    before = loras(base)
    graph = Graph(server)
    graph.training(output_name="refused")
    change(graph)
    entry = server.run(graph.prompt)
    assert status(entry) == "error" and text in error_of(entry)
    assert loras(base) == before


def test_cancel_saves_and_the_same_graph_continues(server, base):
    graph = Graph(server)
    graph.training(output_name="cancelled", steps=3000)
    prompt = server.queue(graph.prompt)
    folder = run_dir(base, "cancelled")
    wait_for_step(server, "cancelled", 5)
    server.post("/interrupt", {})
    entry = server.result(prompt)
    assert was_interrupted(entry)
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert "cancelled.safetensors" not in loras(base)
    again = server.queue(graph.prompt)
    server.wait_until(lambda: f"resumed at step {int(checkpoint.name[5:])}" in notes(folder))
    assert server.post("/anima_trainer/stop", {})["stopping"] == ["train"]
    assert status(server.result(again)) == "success" and "cancelled.safetensors" in loras(base)


def test_stop_and_keep_lets_the_graph_go_on(server, base):
    graph = Graph(server)
    graph.training(output_name="kept", steps=3000)
    graph.add("loss", "LossGraphNode", loss=["train", 2])
    prompt = server.queue(graph.prompt)
    server.wait_until(lambda: server.get("/anima_trainer/running")["running"] == ["train"])
    wait_for_step(server, "kept", 5)
    assert server.post("/anima_trainer/stop", {"node": "nobody"})["error"] == "node nobody is not training"
    assert server.post("/anima_trainer/stop", {"node": "train"})["stopping"] == ["train"]
    entry = server.result(prompt)
    assert status(entry) == "success" and entry["outputs"]["loss"]["images"]
    steps = int(sentence(entry).removeprefix("kept at step ").split()[0])
    assert 5 <= steps < 3000 and "kept.safetensors" in loras(base)
    again = server.run(graph.prompt)  # ComfyUI executes nothing, and the node says it again
    assert "train" in cached_nodes(again) and sentence(again) == sentence(entry)
    graph.add("go", "AnimaContinueRun", run="kept", steps=steps + 3, with_changes=True)
    told = sentence(server.run(graph.prompt), "go")  # as a copy: the graph keeps what it has
    assert told.startswith(f"done: models/loras/kept-2.safetensors, {steps + 3} steps")


def test_two_trainings_in_one_graph_and_a_prompt_behind_them(server, base):
    graph = Graph(server)
    graph.training("train", output_name="left", seed=1)
    graph.training("second", network="AnimaLoKrNetwork", output_name="right", seed=1)
    first = server.queue(graph.prompt)
    behind = Graph(server)
    behind.training(output_name="behind", seed=3)
    second = server.queue(behind.prompt)
    assert status(server.result(first)) == "success" and status(server.result(second)) == "success"
    assert {"left.safetensors", "right.safetensors", "behind.safetensors"} <= set(loras(base))


def test_pictures_from_the_graph_with_masks(server, base):
    for name, size in (("a.png", (64, 64)), ("b.png", (64, 64))):
        Image.new("RGB", size, "green").save(base / "input" / name)
    graph = Graph(server)
    graph.add("a", "LoadImage", image="a.png")
    graph.add("b", "LoadImage", image="b.png")
    graph.add("batch", "ImageBatch", image1=["a", 0], image2=["b", 0])
    graph.add("mask", "SolidMask", value=0.5, width=64, height=64)
    images = dict(resolution="64", bucket_step=16, min_side=64, captions="a green picture")
    graph.add("images", "AnimaDatasetImages", images=["batch", 0], masks=["mask", 0], **images)
    graph.add("both", "AnimaDatasetCombine", **{"datasets.dataset0": ["images", 0], "datasets.dataset1": ["data", 0]})
    graph.training(output_name="from_graph", dataset=["both", 0])
    graph.add("data", "AnimaDatasetFolder", folder="pics", resolution="64", bucket_step=16, min_side=64)
    graph.add("look", "AnimaDatasetInspect", dataset=["both", 0])
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    text = entry["outputs"]["look"]["text"][0]
    assert "2 pictures, 2 with repeats" in text and "4 pictures, 4 with repeats" in text and "a green picture" in text


def test_the_black_masks_of_load_image_are_refused(server, base):
    """It gives one of 64 x 64 px for every picture without transparency."""
    Image.new("RGB", (80, 64), "green").save(base / "input" / "opaque.png")
    graph = Graph(server)
    graph.add("a", "LoadImage", image="opaque.png")
    graph.add("images", "AnimaDatasetImages", images=["a", 0], masks=["a", 1], captions="green", resolution="64", min_side=64)
    graph.add("look", "AnimaDatasetInspect", dataset=["images", 0])
    assert "masks: all 1 are black everywhere, so nothing would be trained" in error_of(server.run(graph.prompt))


def test_numbered_sub_folders_are_the_sets_of_a_folder(server, base):
    """As on the command line; the number of the node counts only where there are none."""
    folder = base / "input" / "numbered"
    for place in ("3_a cat", "0_off", ""):
        (folder / place).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), "green" if place else "red").save(folder / place / "a.png")
    graph = Graph(server)
    graph.add("data", "AnimaDatasetFolder", folder="numbered", repeats=2, resolution="64", min_side=64)
    graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
    text = server.run(graph.prompt)["outputs"]["look"]["text"][0]
    assert text.startswith("1 pictures, 3 with repeats") and re.search(r"a.png\n    always, \d+ tokens: a cat", text)
    assert "pictures beside the folders N_words, left out: 1 (a.png)" in text
    assert "repeats without effect: the numbers of sub-folders count: 1 (numbered: 2)" in text


def test_json_captions_are_shown_as_they_are_trained(server, base):
    folder = base / "input" / "json captions"
    folder.mkdir()
    Image.new("RGB", (64, 64), "green").save(folder / "a.png")
    data = {"nl": "Green.", "artist": "@x", "tags": "b, c", "count": "no humans", "id": 7}
    (folder / "a.json").write_text(json.dumps(data), encoding="utf-8")
    graph = Graph(server)
    read = dict(caption_extension=".json", shuffle_caption=True, resolution="64", min_side=64)
    graph.add("data", "AnimaDatasetFolder", folder="json captions", **read)
    graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    text = entry["outputs"]["look"]["text"][0]
    assert "warning: keys of JSON captions that mean nothing here, not read: 1 (a.json: id)" in text
    drawn = set(re.findall(r"epoch \d, \d+ tokens: (.*)", text))
    assert drawn == {"no humans, @x, b, c. Green.", "no humans, @x, c, b. Green."}


def test_lists_of_pictures_and_captions(server, base):
    """Stock nodes that make lists: pictures of different sizes, a caption for each."""
    graph = Graph(server)
    graph.add("folder", "LoadImageTextDataSetFromFolder", folder="pics")
    graph.add(
        "images",
        "AnimaDatasetImages",
        images=["folder", 0],
        captions=["folder", 1],
        resolution="128",
        bucket_step=32,
        min_side=64,
    )
    graph.training(output_name="from_lists", dataset=["images", 0])
    graph.add("look", "AnimaDatasetInspect", dataset=["images", 0])
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    text = entry["outputs"]["look"]["text"][0]
    assert "4 pictures" in text and "warning" not in text and "160x96" in text and "96x160" in text


def test_a_node_inside_a_subgraph(server, base):
    """Its id has the subgraph's in front: 12:5. It is stopped by that name."""
    graph = Graph(server)
    graph.training("12:5", output_name="inside", steps=3000)
    prompt = server.queue(graph.prompt)
    wait_for_step(server, "inside", 3)
    assert server.get("/anima_trainer/running")["running"] == ["12:5"]
    assert server.post("/anima_trainer/stop", {"node": "12:5"})["stopping"] == ["12:5"]
    assert status(server.result(prompt)) == "success"


@pytest.mark.long
def test_a_folder_with_odd_characters(comfyui, tmp_path):
    with ComfyUI(*comfyui, tmp_path, folder="Anima Trainer (é) v1.2") as odd:
        assert len(shape_of(odd.get("/object_info"))) == NODES


def test_a_run_s_own_file_trains_it_again(server, base):
    graph = Graph(server)
    graph.training(output_name="as_toml", seed=11)
    assert status(server.run(graph.prompt)) == "success"
    toml = Graph(server)
    toml.add("train", "AnimaTrainFromTOML", path="as_toml-run/config.toml", output_name="again")
    entry = server.run(toml.prompt)
    assert status(entry) == "success", error_of(entry)
    one, two = (load_file(base / "models" / "loras" / f"{name}.safetensors") for name in ("as_toml", "again"))
    assert all((one[k] == two[k]).all() for k in one)


def test_a_failure_leaves_comfyui_as_it_was(server):
    """After a refused and an interrupted training stock nodes still work, outside of gradients."""
    graph = Graph(server)
    size = graph.add("size", "EmptyImage", width=64, height=64, batch_size=1, color=255)
    graph.add("big", "ImageScaleBy", image=[size, 0], upscale_method="bilinear", scale_by=2.0)
    graph.add("show", "PreviewImage", images=["big", 0])
    assert status(server.run(graph.prompt)) == "success"


def test_finished_runs_survive_a_restart(server, base, comfyui):
    graph = Graph(server)
    graph.training(output_name="restart", seed=21)
    assert status(server.run(graph.prompt)) == "success"
    stamp = (base / "models" / "loras" / "restart.safetensors").stat().st_mtime_ns
    with ComfyUI(*comfyui, base) as other:
        entry = other.run(graph.prompt)
    assert sentence(entry) == "already trained: models/loras/restart.safetensors, 4 steps"
    assert (base / "models" / "loras" / "restart.safetensors").stat().st_mtime_ns == stamp

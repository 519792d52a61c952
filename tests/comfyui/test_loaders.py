"""The node that picks all model files, and the order of the dropdowns, in a real ComfyUI."""

import json
import shutil
import urllib.error
from urllib.parse import urlencode

import pytest
from safetensors.torch import load_file, save_file

from .. import layouts
from .graphs import Graph
from .schema import our_nodes
from .server import error_of, sentence

KINDS = ("diffusion_models", "vae", "text_encoders")


def options(server, node: str, name: str) -> list[str]:
    found = server.get(f"/object_info/{node}")[node]["input"]
    kind, *settings = (found.get("required", {}) | found.get("optional", {}))[name]
    return settings[0]["options"] if kind == "COMBO" else kind


def test_one_node_picks_the_files_and_trains(server):
    graph = Graph(server)
    graph.training(output_name="one_loader")
    for number, name in enumerate(("transformer", "vae", "qwen", "t5")):
        graph.prompt.pop(name)
        slot = "t5_tokenizer" if name == "t5" else name
        graph.prompt["train"]["inputs"][slot] = ["models", number]
    chosen = {"transformer": "tiny.safetensors", "vae": "tiny.safetensors", "qwen": "tiny_qwen/", "tokenizer": "tiny_t5/"}
    graph.add("models", "AnimaLoader", **chosen)
    assert sentence(server.run(graph.prompt)).startswith("done: models/loras/one_loader.safetensors, 4 steps")


def test_a_wrong_file_is_named_by_its_widget(server, base):
    shutil.copy(base / "models" / "vae" / "tiny.safetensors", base / "models" / "diffusion_models" / "zzz_vae.safetensors")
    graph = Graph(server)
    chosen = {"transformer": "zzz_vae.safetensors", "vae": "tiny.safetensors", "qwen": "tiny_qwen/", "tokenizer": "tiny_t5/"}
    graph.add("models", "AnimaLoader", **chosen)
    graph.add("look", "PreviewAny", source=["models", 0])
    assert "zzz_vae.safetensors: not an Anima transformer" in error_of(server.run(graph.prompt))


def test_dropdowns_begin_with_what_their_node_wants(server, base):
    """The first entry is what a new node has; no entry is lost, and none is a default that a saved workflow lacks."""
    others = [base / "models" / kind / f"0_other_{number}.safetensors" for kind in KINDS for number in range(3)]
    for path in others:
        path.write_bytes(b"not one")
    wanted = {
        ("AnimaLoader", "transformer"): "tiny.safetensors",
        ("AnimaLoader", "vae"): "tiny.safetensors",
        ("AnimaLoader", "qwen"): "tiny_qwen/qwen.safetensors",
        ("AnimaTransformerLoader", "transformer"): "tiny.safetensors",
        ("AnimaVAELoader", "vae"): "tiny.safetensors",
        ("AnimaQwenLoader", "qwen"): "tiny_qwen/qwen.safetensors",
    }
    for (node, name), first in wanted.items():
        server.wait_until(lambda node=node, name=name, first=first: options(server, node, name)[0] == first, every=0.2)
        assert sum(entry.startswith("0_other_") for entry in options(server, node, name)) == 3
    info = our_nodes(server.get("/object_info"))
    for (node, name), first in wanted.items():
        options_of = info[node]["input"]["required"][name][1]
        assert "default" not in options_of, (node, name)
        assert options_of.get("fitting") == (first if node == "AnimaLoader" else None), (node, name)
    for path in others:
        path.unlink()


def test_nodes_are_in_sub_categories_and_found_by_what_people_type(server):
    nodes = our_nodes(server.get("/object_info"))
    assert all(node["category"].startswith("Anima Trainer/") for node in nodes.values())
    assert len({node["category"] for node in nodes.values()}) == 6
    for typed in ("anima train", "training", "resume", "fine tune", "finetune", "train lora", "lora 训练"):
        found = [name for name, node in nodes.items() if typed in json.dumps(node["search_aliases"] or [], ensure_ascii=False)]
        assert found, typed


def test_one_checkpoint_or_one_folder_is_all_models_and_is_told_before_anything_runs(server, base):
    """An all-in-one file of models/checkpoints and a diffusers folder, each chosen in three lists: the losses are the same."""
    models = base / "models"
    qwen = models / "text_encoders" / "tiny_qwen" / "qwen.safetensors"
    files = [models / "diffusion_models" / "tiny.safetensors", models / "vae" / "tiny.safetensors", qwen]
    (models / "checkpoints").mkdir(exist_ok=True)
    save_file(layouts.all_in_one(*map(load_file, files)), models / "checkpoints" / "all_tiny.safetensors")
    folder = layouts.write_diffusers(models / "diffusers" / "tiny_pipe", *map(str, files))
    shutil.copytree(qwen.parent, folder / "tokenizer", ignore=shutil.ignore_patterns("*.safetensors"))
    shutil.copytree(qwen.parent, models / "checkpoints", ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    said = []
    for name in ("checkpoints/all_tiny.safetensors", "diffusers/tiny_pipe/"):
        graph = Graph(server)
        graph.training(output_name=f"of_{len(said)}")
        graph.prompt["transformer"]["inputs"]["transformer"] = name
        graph.prompt["vae"]["inputs"]["vae"] = name
        graph.prompt["qwen"]["inputs"]["qwen"] = name
        said.append(sentence(server.run(graph.prompt)))
        for kind in KINDS:
            told = server.get(f"/anima_trainer/describe?{urlencode({'kind': kind, 'name': name})}")["text"]
            assert told.endswith("of a diffusers folder" if name.endswith("/") else "(transformer, VAE, text encoder)"), told
    assert all(text.startswith("done: ") for text in said), said
    assert said[0].split("loss")[1] == said[1].split("loss")[1]
    shutil.rmtree(folder)
    for path in (models / "checkpoints").iterdir():  # the folder itself stays: ComfyUI remembers it
        path.unlink() if path.is_file() else shutil.rmtree(path)


def test_only_what_is_in_the_lists_is_described(server):
    for name in ("../../input/x.safetensors", "/etc/passwd", "nothing.safetensors"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            server.get(f"/anima_trainer/describe?{urlencode({'kind': 'diffusion_models', 'name': name})}")

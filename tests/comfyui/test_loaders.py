"""The node that picks all model files, and the order of the dropdowns, in a real ComfyUI."""

import json
import shutil

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
    assert len({node["category"] for node in nodes.values()}) == 5
    for typed in ("anima train", "training", "resume", "fine tune", "finetune", "train lora", "lora 训练"):
        found = [name for name, node in nodes.items() if typed in json.dumps(node["search_aliases"] or [], ensure_ascii=False)]
        assert found, typed

"""What may be left out of a prompt, and how folders and files are named in it, in a real ComfyUI."""

import shutil

from PIL import Image

from .graphs import Graph
from .schema import our_nodes
from .server import error_of, sentence


def test_what_has_a_default_may_be_left_out(server, base):
    """Prompts that scripts write, and those saved before an input was there. What is left out has the widget's default."""
    for network, optimizer in (("AnimaLoRANetwork", {}), ("AnimaLoKrNetwork", {"optimizer": "AdamW"})):
        full = Graph(server)
        full.training(network=network, output_name=f"left_out_{network}")
        full.add("optimizer", "AnimaOptimizer")
        assert sentence(server.run(full.prompt)).startswith("done: ")
        short = Graph(server)
        short.training(network=network, output_name=f"left_out_{network}")
        short.prompt["optimizer"]["inputs"] = optimizer
        for name in ("transformer", "data", "train_network", "train"):
            node, kept = short.prompt[name], ("folder", "resolution", "bucket_step", "min_side", "rank", "alpha", "steps")
            required = short.info[node["class_type"]]["input"].get("required", {})
            inputs = {k: v for k, v in node["inputs"].items() if k in (*required, *kept, "batch_size", "output_name")}
            assert len(inputs) < len(node["inputs"])
            node["inputs"] = inputs
        assert sentence(server.run(short.prompt)) == f"already trained: models/loras/left_out_{network}.safetensors, 4 steps"


def test_a_dataset_of_pictures_needs_captions_and_says_so_itself(server):
    graph = Graph(server)
    graph.add("picture", "EmptyImage", width=64, height=64, batch_size=1, color=255)
    graph.prompt["data"] = {"class_type": "AnimaDatasetImages", "inputs": {"images": ["picture", 0]}}
    graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
    assert error_of(server.run(graph.prompt)).startswith("captions='': write what the pictures show")
    graph.prompt["data"]["inputs"]["captions"] = "grey"
    assert "1 pictures" in sentence(server.run(graph.prompt), "look")


def test_nothing_with_a_default_is_required(server):
    for name, node in our_nodes(server.get("/object_info")).items():
        for key, (kind, *rest) in node["input"].get("required", {}).items():
            assert kind != "COMFY_DYNAMICCOMBO_V3" and "default" not in (rest[0] if rest else {}), f"{name}.{key}"


def test_a_toml_whose_path_a_link_brings_is_read_in_every_run_and_names_folders_from_its_own_on(server, base):
    folder = base / "input" / "project" / "cats"
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a red cat", encoding="utf-8")
    subsets = "".join(f"[[datasets.subsets]]\nimage_dir = '{name}'\n" for name in ("cats", "pics"))
    (folder.parent / "sets.toml").write_text(f"[[datasets]]\nresolution = 64\n{subsets}", encoding="utf-8")
    graph = Graph(server)
    graph.add("path", "PrimitiveString", value="project/sets.toml")
    graph.add("data", "AnimaDatasetTOML", path=["path", 0])
    graph.add("look", "AnimaDatasetInspect", dataset=["data", 0])
    text = sentence(server.run(graph.prompt), "look")
    assert "5 pictures" in text and "a red cat" in text
    (folder / "a.txt").write_text("a crimson cat", encoding="utf-8")
    assert "a crimson cat" in sentence(server.run(graph.prompt), "look")


def test_a_folder_is_found_as_comfyuis_own_training_nodes_name_it(server, base):
    (base / "input" / "datasets").mkdir()
    shutil.copytree(base / "input" / "pics", base / "input" / "datasets" / "mine")
    graph = Graph(server)
    graph.add("look", "AnimaDatasetInspect", dataset=[graph.add("data", "AnimaDatasetFolder", folder="datasets/mine"), 0])
    assert "4 pictures" in sentence(server.run(graph.prompt), "look")

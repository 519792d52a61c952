"""What is wrong with a file or a folder is said by the node that names it, before the training node is reached."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from .graphs import Graph
from .server import error_of, failed_node, status

LAYER = "lora_unet_blocks_0_self_attn_q_proj"


@pytest.fixture(autouse=True, scope="module")
def files(base):
    for folder in ("empty", "bare"):
        (base / "input" / folder).mkdir()
    Image.new("RGB", (64, 64), "red").save(base / "input" / "bare" / "a.png")
    text = f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{base / 'input' / 'empty'}'\n"
    (base / "input" / "data.toml").write_text(text, encoding="utf-8")
    transformer = load_file(base / "models" / "diffusion_models" / "tiny.safetensors")
    vae = load_file(base / "models" / "vae" / "tiny.safetensors")
    whole = {f"model.diffusion_model.{k}": v for k, v in transformer.items()} | {
        f"first_stage_model.{k}": v for k, v in vae.items()
    }
    (base / "models" / "checkpoints").mkdir(exist_ok=True)
    save_file(whole, base / "models" / "checkpoints" / "whole.safetensors")
    (base / "models" / "diffusion_models" / "none.safetensors").write_bytes(b"")
    (base / "models" / "loras").mkdir(exist_ok=True)
    save_file({f"{LAYER}.oft_blocks": torch.zeros(4, 4, 4)}, base / "models" / "loras" / "oft.safetensors")
    save_file(vae, base / "models" / "loras" / "vae.safetensors")


def from_toml(graph: Graph) -> None:
    graph.add("toml", "AnimaDatasetTOML", path="data.toml")
    graph.prompt["train"]["inputs"]["dataset"] = ["toml", 0]


def start_from(graph: Graph, adapter: str) -> None:
    graph.add("start", "AnimaLoadAdapter", adapter=adapter)
    graph.prompt["train_network"]["inputs"]["start_from"] = ["start", 0]


def keep(graph: Graph, **words: str) -> None:
    graph.add("prior", "AnimaPrior", **words)
    graph.prompt["train"]["inputs"]["prior"] = ["prior", 0]


def rule(graph: Graph, **settings: str) -> None:
    graph.add("rules", "AnimaCaptionRules", **settings)
    graph.prompt["data"]["inputs"]["caption_rules"] = ["rules", 0]


@pytest.mark.parametrize(
    "change, node, text",
    [
        (lambda g: g.prompt["data"]["inputs"].update(folder="empty"), "data", "empty: no pictures"),
        (
            lambda g: g.prompt["data"]["inputs"].update(folder="bare"),
            "data",
            "bare: no captions; put .txt files beside the pictures",
        ),
        (from_toml, "toml", "empty: no pictures"),
        (
            lambda g: g.prompt["qwen"]["inputs"].update(qwen="checkpoints/whole.safetensors"),
            "qwen",
            "it is an all-in-one checkpoint that holds transformer and VAE: give a Qwen3 text encoder of its own",
        ),
        (
            lambda g: g.prompt["transformer"]["inputs"].update(transformer="none.safetensors"),
            "transformer",
            "is empty (0 bytes); download it again",
        ),
        (
            lambda g: start_from(g, "oft.safetensors"),
            "train_network",
            "start_from: the type of blocks.0.self_attn.q_proj is oft, which is not trained here",
        ),
        (lambda g: keep(g, trigger="red", class_words="red"), "prior", "class_words='red': is the same as trigger"),
        (lambda g: rule(g, caption_blacklist="red\nre:("), "rules", "caption_blacklist='re:(': is no pattern"),
        (lambda g: rule(g, category_shuffle="artists"), "rules", "category_shuffle='artists': 'artists' is no category"),
        (lambda g: keep(g, trigger="sks"), "train", "'sks': all 4 pictures do not have it in their caption"),
    ],
)
def test_the_node_that_names_it_says_what_is_wrong(server, change, node, text):
    graph = Graph(server)
    graph.training(output_name="refused")
    change(graph)
    entry = server.run(graph.prompt)
    assert status(entry) == "error" and text in error_of(entry) and failed_node(entry) == node

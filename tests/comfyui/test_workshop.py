"""The adapter workshop in a real ComfyUI: its nodes, and weights of blocks as ComfyUI's own models have them afterwards."""

import re

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from anima_core.adapters.workshop.conversion import PLACES
from anima_core.demo.random_transformer import COMFYUI_TINY, write_random_transformer

from ..conftest import relative_error
from .graphs import Graph
from .server import error_of, sentence, status

MODEL = "workshop.safetensors"
KINDS = ("self_attn.q_proj", "mlp.layer1")


def layers(base) -> dict[str, torch.Tensor]:
    """The weights of the model by their names in ours."""
    found = load_file(base / "models" / "diffusion_models" / MODEL)
    return {key.removeprefix("net.").removesuffix(".weight"): tensor for key, tensor in found.items()}


@pytest.fixture(scope="module", autouse=True)
def files(base):
    write_random_transformer(base / "models" / "diffusion_models" / MODEL, COMFYUI_TINY, dtype=torch.float32)
    (base / "models" / "loras").mkdir(exist_ok=True)
    for seed, name in enumerate(("first", "second")):
        g, state = torch.Generator().manual_seed(seed), {}
        for layer, weight in layers(base).items():
            if layer.startswith("blocks.") and layer.endswith(KINDS):
                key = f"diffusion_model.{layer}"
                state[f"{key}.lora_down.weight"] = torch.randn(2, weight.shape[1], generator=g) / 8
                state[f"{key}.lora_up.weight"] = torch.randn(weight.shape[0], 2, generator=g) / 8
                state[f"{key}.alpha"] = torch.tensor(1.0)
        save_file(state, base / "models" / "loras" / f"ws_{name}.safetensors")


def deltas(path) -> dict[str, torch.Tensor]:
    state = load_file(path)
    names = [key.removesuffix(".lora_up.weight") for key in state if key.endswith(".lora_up.weight")]
    return {
        name.removeprefix("diffusion_model."): state[f"{name}.alpha"] / state[f"{name}.lora_down.weight"].shape[0]
        * state[f"{name}.lora_up.weight"] @ state[f"{name}.lora_down.weight"]
        for name in names
    }  # fmt: skip


def two(server) -> Graph:
    graph = Graph(server)
    for name in ("first", "second"):
        graph.add(name, "AnimaLoadAdapter", adapter=f"ws_{name}.safetensors")
    return graph


def changes(base, path) -> dict[str, torch.Tensor]:
    """What a model's file adds to the weights of the base."""
    after = {
        key.split("blocks.", 1)[-1]: t for key, t in load_file(path).items() if ".blocks." in key and "llm_adapter" not in key
    }
    before = {name: weight for name, weight in layers(base).items() if name.startswith("blocks.") and name.endswith(KINDS)}
    return {name: after[f"{name.removeprefix('blocks.')}.weight"].float() - weight for name, weight in before.items()}


def test_weights_of_blocks_are_applied_and_baked_alike(server, base):
    graph, text = two(server), "0=0\nother=0"
    graph.add("unet", "UNETLoader", unet_name=MODEL, weight_dtype="default")
    graph.add("apply", "AnimaApplyAdapter", model=["unet", 0], lora=["first", 0], strength=0.5, block_weights=text)
    graph.add("save", "ModelSave", model=["apply", 0], filename_prefix="applied")
    graph.add("bake", "AnimaBakeAdapter", model=MODEL, lora=["first", 0], strength=0.5, name="baked", block_weights=text)
    entry = server.run(graph.prompt)
    assert sentence(entry, "bake") == "saved: models/diffusion_models/baked.safetensors"
    (saved,) = (base / "output").glob("applied*.safetensors")
    ours, theirs = changes(base, base / "models" / "diffusion_models" / "baked.safetensors"), changes(base, saved)
    wanted = deltas(base / "models" / "loras" / "ws_first.safetensors")
    for name, delta in wanted.items():
        weight = 0.0 if name.startswith("blocks.0.") else 0.5
        assert relative_error(ours[name], weight * delta) < 1e-4 if weight else not ours[name].any()
        assert (ours[name] - theirs[name]).abs().max() < 1e-2 * delta.abs().max()  # ComfyUI saves in its own precision
    assert len(ours) == len(wanted)


def test_what_does_not_fit_is_said_by_the_node(server, base):
    graph = two(server)
    graph.add("unet", "UNETLoader", unet_name=MODEL, weight_dtype="default")
    graph.add("apply", "AnimaApplyAdapter", model=["unet", 0], lora=["first", 0], block_weights="40=0")
    graph.add("save", "ModelSave", model=["apply", 0], filename_prefix="never")
    assert error_of(server.run(graph.prompt)).startswith("block_weights=40: the model's blocks are 0 to ")
    graph = two(server)
    graph.add("merge", "AnimaMergeAdapters", **{"loras.lora0": ["first", 0], "loras.lora1": ["second", 0]}, weights="1\n2\n3")
    graph.add("save", "AnimaSaveAdapter", lora=["merge", 0], name="never")
    assert error_of(server.run(graph.prompt)) == "weights: 3 for 2 adapters; write one a line for each, or none\n"
    graph = two(server)
    graph.add("blocks", "AnimaConvertBlocks", lora=["first", 0], blocks="28")
    graph.add("save", "AnimaSaveAdapter", lora=["blocks", 0], name="never")
    assert "is for 28 blocks; to 28 are converted those of 40" in error_of(server.run(graph.prompt))


def test_adapters_are_merged_resized_scaled_converted_and_analysed(server, base):
    graph = two(server)
    two_loras = {"loras.lora0": ["first", 0], "loras.lora1": ["second", 0]}
    graph.add("merge", "AnimaMergeAdapters", **two_loras, weights="1, 0.5", block_weights="\n1=0")
    graph.add("resize", "AnimaResizeAdapter", lora=["merge", 0], rank=4)
    graph.add("scale", "AnimaScaleBlocks", lora=["resize", 0], strength=2.0)
    graph.add("blocks", "AnimaConvertBlocks", lora=["scale", 0], blocks="40")
    for source in ("merge", "scale", "blocks"):
        graph.add(source[:2], "AnimaSaveAdapter", lora=[source, 0], name=f"ws_{source}")
    graph.add("transformer", "AnimaTransformerLoader", transformer=MODEL)
    graph.add("look", "AnimaAnalyseAdapter", lora=["first", 0], other=["merge", 0], transformer=["transformer", 0])
    graph.add("picture", "SaveImage", images=["look", 1], filename_prefix="map")
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    names = ("first", "second", "merge", "scale", "blocks")
    found = {name: deltas(base / "models" / "loras" / f"ws_{name}.safetensors") for name in names}
    for name, delta in found["merge"].items():
        weight = 0.0 if name.startswith("blocks.1.") else 0.5
        wanted = found["first"][name] + weight * found["second"][name]
        assert relative_error(delta, wanted) < 1e-5
        assert relative_error(found["scale"][name], 2 * wanted) < 1e-4
    moved = {re.sub(r"blocks\.(\d+)", lambda n: f"blocks.{PLACES[int(n[1])]}", name) for name in found["scale"]}
    assert found["blocks"].keys() == moved
    assert "it is akin to other" in sentence(entry, "look") or "nearly the same as other" in sentence(entry, "look")
    (picture,) = entry["outputs"]["picture"]["images"]
    assert Image.open(base / "output" / picture["filename"]).width > 400


def test_a_dora_is_merged_over_the_model_it_is_for(server, base):
    weights = layers(base)
    found = load_file(base / "models" / "loras" / "ws_first.safetensors")
    for layer in deltas(base / "models" / "loras" / "ws_first.safetensors"):
        found[f"diffusion_model.{layer}.dora_scale"] = 1.5 * weights[layer].norm(dim=0, keepdim=True)
    save_file(found, base / "models" / "loras" / "ws_dora.safetensors")
    graph = two(server)
    graph.add("dora", "AnimaLoadAdapter", adapter="ws_dora.safetensors")
    inputs = {"loras.lora0": ["dora", 0], "loras.lora1": ["second", 0], "rank": 1024}
    graph.add("merge", "AnimaMergeAdapters", **inputs)
    graph.add("save", "AnimaSaveAdapter", lora=["merge", 0], name="ws_over")
    assert "needs the base weights; give the model" in error_of(server.run(graph.prompt))
    graph.add("transformer", "AnimaTransformerLoader", transformer=MODEL)
    graph.add("merge", "AnimaMergeAdapters", **inputs, transformer=["transformer", 0])
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    first, second, merged = (deltas(base / "models" / "loras" / f"ws_{n}.safetensors") for n in ("first", "second", "over"))
    for name, delta in first.items():
        whole = weights[name] + delta
        wanted = whole * (1.5 * weights[name].norm(dim=0) / whole.norm(dim=0)) - weights[name] + second[name]
        assert relative_error(merged[name], wanted) < 1e-3


def test_an_adapter_is_extracted_from_two_models(server, base):
    graph = two(server)
    graph.add("bake", "AnimaBakeAdapter", model=MODEL, lora=["second", 0], name="ws_tuned")
    assert status(server.run(graph.prompt)) == "success"
    graph = Graph(server)
    graph.add("extract", "AnimaExtractAdapter", tuned="ws_tuned.safetensors", base=MODEL, rank=2, dtype="fp32")
    graph.add("save", "AnimaSaveAdapter", lora=["extract", 0], name="ws_extracted")
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)
    ours, wanted = (deltas(base / "models" / "loras" / f"ws_{name}.safetensors") for name in ("extracted", "second"))
    assert ours.keys() == wanted.keys() and all(relative_error(ours[name], wanted[name]) < 1e-4 for name in wanted)

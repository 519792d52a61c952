"""What is trained is what is sampled: the graph's outputs, the saved file and our previews against stock KSampler.

Stock loaders fix most sizes, so these files are large: a 157M transformer and a full-size random Qwen, 1.5 GB.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from anima_core.demo.pictures import write_pictures
from anima_core.demo.random_transformer import COMFYUI_TINY, write_random_transformer
from anima_core.demo.random_vae import linear_vae_state

from .graphs import Graph, prompt_of
from .make_workflows import FOLDER
from .server import ComfyUI, error_of, status

PROMPT = "red circle, white background, drawing"
SMALL = {  # what the template's nodes are set to here, so that it takes seconds
    "AnimaLoader": {"transformer": "anima.safetensors", "vae": "vae.safetensors", "qwen": "qwen.safetensors", "dtype": "fp32"},
    "UNETLoader": {"unet_name": "anima.safetensors"},
    "CLIPLoader": {"clip_name": "qwen.safetensors"},
    "VAELoader": {"vae_name": "vae.safetensors"},
    "AnimaDatasetFolder": {"folder": "pics", "resolution": "64", "bucket_step": 16, "min_side": 64},
    "AnimaLoRANetwork": {"alpha": 16.0},
    "AnimaOptimizer": {"learning_rate": 1e-2},
    "AnimaTrain": {"steps": 4, "batch_size": 2, "output_name": "template"},
    "EmptyLatentImage": {"width": 128, "height": 96},
    "KSampler": {"steps": 4},
}
NEEDED = 4_000_000_000  # bytes of disk


def write_full_qwen(path: Path) -> None:
    """Qwen3-0.6B's shapes with random bf16 weights."""
    g = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=g) / math.sqrt(shape[-1])).bfloat16()

    state = {"model.embed_tokens.weight": random(151936, 1024), "model.norm.weight": torch.ones(1024).bfloat16()}
    shapes = {"q_proj": (2048, 1024), "k_proj": (1024, 1024), "v_proj": (1024, 1024), "o_proj": (1024, 2048)}
    mlp = {"gate_proj": (3072, 1024), "up_proj": (3072, 1024), "down_proj": (1024, 3072)}
    for i in range(28):
        layer = f"model.layers.{i}."
        state |= {f"{layer}self_attn.{name}.weight": random(*shape) for name, shape in shapes.items()}
        state |= {f"{layer}mlp.{name}.weight": random(*shape) for name, shape in mlp.items()}
        norms = {"self_attn.q_norm": 128, "self_attn.k_norm": 128, "input_layernorm": 1024, "post_attention_layernorm": 1024}
        state |= {f"{layer}{name}.weight": torch.ones(size).bfloat16() for name, size in norms.items()}
    save_file(state, path)


@pytest.fixture(scope="module")
def base(tmp_path_factory, comfyui):
    folder = tmp_path_factory.mktemp("parity")
    if shutil.disk_usage(folder).free < NEEDED:
        pytest.skip("needs 4 GB of free disk")
    models = folder / "models"
    for name in ("diffusion_models", "vae", "text_encoders"):
        (models / name).mkdir(parents=True)
    write_random_transformer(models / "diffusion_models" / "anima.safetensors", COMFYUI_TINY, dtype=torch.bfloat16)
    save_file(linear_vae_state(), models / "vae" / "vae.safetensors")
    write_full_qwen(models / "text_encoders" / "qwen.safetensors")
    write_pictures(folder / "input" / "pics", 4)
    yield folder
    shutil.rmtree(models)


@pytest.fixture(scope="module")
def server(comfyui, base):
    with ComfyUI(*comfyui, base) as running:
        yield running


def sampler(graph: Graph, tag: str, model: list, how: tuple[str, str]) -> None:
    """Stock nodes, as the official template wires them. how: sampler and schedule."""
    if "unet" not in graph.prompt:
        graph.add("unet", "UNETLoader", unet_name="anima.safetensors", weight_dtype="default")
        graph.add("clip", "CLIPLoader", clip_name="qwen.safetensors", type="stable_diffusion")
        graph.add("image_vae", "VAELoader", vae_name="vae.safetensors")
        graph.add("positive", "CLIPTextEncode", text=PROMPT, clip=["clip", 0])
        graph.add("negative", "CLIPTextEncode", text="", clip=["clip", 0])
        graph.add("size", "EmptyLatentImage", width=128, height=96, batch_size=1)
    links = dict(model=model, positive=["positive", 0], negative=["negative", 0], latent_image=["size", 0])
    settings = dict(seed=42, steps=4, cfg=4.0, sampler_name=how[0], scheduler=how[1], denoise=1.0)
    graph.add(f"k_{tag}", "KSampler", **settings, **links)
    graph.add(f"d_{tag}", "VAEDecode", samples=[f"k_{tag}", 0], vae=["image_vae", 0])
    graph.add(tag, "SaveImage", images=[f"d_{tag}", 0], filename_prefix=tag)


def picture(base: Path, entry: dict, tag: str) -> np.ndarray:
    (image,) = entry["outputs"][tag]["images"]
    return np.array(Image.open(base / "output" / image["subfolder"] / image["filename"]).convert("RGB")).astype(float) / 255


def training(server: ComfyUI, network: str, how: tuple[str, str]) -> Graph:
    """A graph that trains a few steps, with previews before the first and after the last."""
    graph = Graph(server)
    graph.add("transformer", "AnimaTransformerLoader", transformer="anima.safetensors", dtype="fp32")
    graph.add("vae", "AnimaVAELoader", vae="vae.safetensors")
    graph.add("qwen", "AnimaQwenLoader", qwen="qwen.safetensors")
    graph.add("t5", "AnimaT5TokenizerLoader")
    graph.add("data", "AnimaDatasetFolder", folder="pics", resolution="64", bucket_step=16, min_side=64)
    graph.add("network", network, rank=8, alpha=8.0)
    graph.add("optimizer", "AnimaOptimizer", learning_rate=1e-2)
    shown = dict(prompts=PROMPT, negative="", width=128, height=96, steps=4, cfg=4.0, seed=42, every_n_steps=0)
    graph.add("previews", "AnimaSamplePrompts", at_first=True, at_end=True, sampler=how[0], scheduler=how[1], **shown)
    links = {"transformer": ["transformer", 0], "vae": ["vae", 0], "qwen": ["qwen", 0], "t5_tokenizer": ["t5", 0]}
    links |= {"dataset": ["data", 0], "network": ["network", 0], "optimizer": ["optimizer", 0], "samples": ["previews", 0]}
    settings = dict(steps=4, batch_size=2, output_name=network, save_precision="fp32", model=["unet", 0])
    graph.add("train", "AnimaTrain", **links, **settings)
    return graph


@pytest.mark.parametrize("network, how", [("AnimaLoRANetwork", ("euler", "simple")), ("AnimaLoKrNetwork", ("er_sde", "beta"))])
def test_graph_file_and_preview_are_one_picture(server, base, network, how):
    graph = training(server, network, how)
    sampler(graph, "base", ["unet", 0], how)
    sampler(graph, "trained", ["train", 1], how)
    graph.add("applied", "LoraModelLoader", model=["unet", 0], lora=["train", 0], strength_model=1.0)
    sampler(graph, "handed_on", ["applied", 0], how)
    graph.add("nothing", "AnimaApplyAdapter", model=["unet", 0], lora=["train", 0], strength=0.0)
    sampler(graph, "strength_0", ["nothing", 0], how)
    graph.add("preview", "SaveImage", images=["train", 3], filename_prefix="preview")
    entry = server.run(graph.prompt)
    assert status(entry) == "success", error_of(entry)

    file = Graph(server)
    file.add("lora", "LoraLoaderModelOnly", model=["unet", 0], lora_name=f"{network}.safetensors", strength_model=1.0)
    sampler(file, "file", ["lora", 0], how)
    from_file = picture(base, server.run(file.prompt), "file")

    trained, plain = picture(base, entry, "trained"), picture(base, entry, "base")
    assert abs(trained - plain).mean() > 0.01
    assert abs(trained - picture(base, entry, "handed_on")).max() == 0
    assert abs(trained - from_file).max() == 0
    assert abs(plain - picture(base, entry, "strength_0")).max() == 0
    assert abs(trained - picture(base, entry, "preview")).mean() < 1e-3
    samples = base / "output" / "anima_trainer" / f"{network}-run" / "samples"
    first = np.array(Image.open(samples / "step-00000000-0.png")).astype(float) / 255
    assert abs(plain - first).mean() < 1e-3  # before the first step a preview is the base model's picture
    log = server.text()
    assert "lora key not loaded" not in log and "NOT LOADED" not in log and "ERROR lora" not in log


def test_the_template_draws_with_what_it_trained(server, base):
    flow = json.loads((FOLDER / "Train and draw - Anima training.json").read_text(encoding="utf-8"))
    prompt = prompt_of(flow, server.get("/object_info"))
    for node in prompt.values():
        node["inputs"] |= SMALL.get(node["class_type"], {})
    number = {node["class_type"]: key for key, node in prompt.items()}
    sampler = prompt[number["KSampler"]]["inputs"]
    assert sampler["model"] == [number["AnimaTrain"], 1]
    entry = server.run(prompt)
    assert status(entry) == "success", error_of(entry)
    trained = picture(base, entry, number["SaveImage"])
    sampler["model"] = [number["UNETLoader"], 0]
    plain = picture(base, server.run(prompt), number["SaveImage"])
    assert trained.shape == plain.shape == (96, 128, 3) and abs(trained - plain).mean() > 0.01

"""What a model's file is, in a line, from its headers alone: sizes of the released files, whose weights are holes here."""

import math
import time
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core.demo.random_transformer import REAL
from anima_core.models.described import described, described_transformer
from anima_core.models.qwen import QwenConfig
from anima_core.models.transformer import AnimaTransformer

from . import layouts
from .test_candidates import write_header

QWEN = QwenConfig(vocabulary=151936, hidden=1024, intermediate=3072, layers=28, heads=16, key_heads=8, head_dim=128)


def shapes(blocks: int) -> dict[str, list[int]]:
    with torch.device("meta"):
        model = AnimaTransformer(replace(REAL, blocks=blocks))
    return {f"net.{name}": list(tensor.shape) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("blocks, text", [(28, "Anima, 28 blocks, bf16, 4.18 GB"), (40, "Anima-2.9B, 40 blocks, bf16, 5.84")])
def test_released_sizes_are_told_in_a_moment(tmp_path, blocks, text):
    path = write_header(tmp_path / "anima.safetensors", shapes(blocks))
    began = time.perf_counter()
    assert described("transformer", path).startswith(text)
    assert time.perf_counter() - began < 5, "no weight is read"


def test_the_real_text_encoder_is_named(tmp_path):
    names = {f"model.{name}": list(shape) for name, shape in QWEN.shapes().items()}
    path = write_header(tmp_path / "qwen.safetensors", names)
    size = 2 * sum(math.prod(shape) for shape in names.values()) / 1e9
    assert described("qwen", path) == f"Qwen3-0.6B, 28 layers of 1024, bf16, {size:.2f} GB"


def test_parts_and_folders_say_what_they_are_of(model, tmp_path):
    checkpoint = tmp_path / "all.safetensors"
    save_file(layouts.all_in_one(load_file(model.transformer), load_file(model.vae), load_file(model.qwen)), checkpoint)
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen)
    sizes = {kind: described(kind, getattr(model, kind)).split(", fp32, ")[1] for kind in ("transformer", "vae", "qwen")}
    for kind, files in (("transformer", 3), ("vae", 1), ("qwen", 2)):
        parts = "(transformer, VAE, text encoder)"
        assert described(kind, checkpoint).endswith(f"fp32, {sizes[kind]}, of an all-in-one checkpoint of 0.02 GB {parts}")
        count = f"{files} files" if files > 1 else "1 file"
        assert described(kind, folder).endswith(f"fp32, {sizes[kind]}, {count} of a diffusers folder")
    assert described("qwen", folder / "text_encoder").endswith("GB, 2 files")
    assert "its LLM adapter from all.safetensors" in described_transformer(model.transformer, checkpoint)


def test_a_quantised_file_says_how(tmp_path, model):
    state = load_file(model.transformer)
    weight = state.pop("net.blocks.1.mlp.layer1.weight")
    scale = weight.abs().amax() / 448
    state |= {"net.blocks.1.mlp.layer1.weight": (weight / scale).to(torch.float8_e4m3fn)}
    save_file(state | {"net.blocks.1.mlp.layer1.weight_scale": scale.float()}, tmp_path / "fp8.safetensors")
    text = f"Anima, 2 blocks, fp8 scaled (float8_e4m3fn): 1 of {len(state)} tensors, fp32"
    assert described("transformer", tmp_path / "fp8.safetensors").startswith(text)


def test_what_is_none_says_why(model):
    assert "not an Anima transformer (no blocks); it is a Qwen-Image VAE" in described("transformer", model.vae)

"""Files and folders that are not what their place wants are told for what they are, from their first bytes or their header."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core.demo.random_transformer import REAL, TINY, random_state
from anima_core.errors import FileError
from anima_core.models.checkpoint import read_header
from anima_core.models.qwen import check_qwen
from anima_core.models.transformer import check_transformer, load_transformer
from anima_core.models.vae import check_vae
from anima_core.training.preflight import preflight

from .tiny import train_config, write


@pytest.mark.parametrize(
    "data, text",
    [
        (b"", r"is empty \(0 bytes\); download it again"),
        (b"GGUF\x03\x00\x00\x00" + bytes(32), "is a GGUF file, which only transformers and text encoders are read"),
        (b"<!DOCTYPE html><html>sign in</html>", "is a web page that was saved under this name"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer, not the file itself"),
        (b'{"metadata": {"total_size": 1}}', "is a JSON text, not safetensors"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00", "is a pickle, which can run code"),
        (b"\xff" * 64, "not a safetensors file, or a damaged one; download it again"),
    ],
)
def test_a_file_that_is_no_safetensors_says_what_it_is(tmp_path, data, text):
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileError, match=f"model.safetensors: {text}"):
        read_header(path)


@pytest.mark.parametrize("length", [0x0280, 0x4B50, 0x227B])
def test_a_header_whose_length_looks_like_a_pickle_or_a_text_is_read(tmp_path, length):
    path = tmp_path / "a.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode().ljust(length)
    path.write_bytes(length.to_bytes(8, "little") + header + bytes(4))
    assert list(read_header(path)) == ["a"]


def refused(path, state, check, text):
    save_file(state, path)
    with pytest.raises(FileError, match=text):
        check(path)


ZERO = torch.zeros(1, 1)


@pytest.mark.parametrize(
    "names, text",
    [
        (["transformer_blocks.0.attn1.to_q.weight"], "it is another model's transformer, with diffusers' names: use an Anima"),
        (["llm_adapter.blocks.0.norm_cross_attn.weight", "embed.weight"], "it is only a part of one"),
        (["blocks.0.norm_cross_attn.weight"], "it is an LLM adapter alone: give it as model.llm_adapter"),
        (["model.layers.0.self_attn.q_norm.weight"], "it is a Qwen3 text encoder: give Qwen3-0.6B as the qwen file"),
        (["encoder.block.0.layer.0.SelfAttention.q.weight"], "it is another text encoder: use qwen_3_06b_base"),
        (["lora_unet_blocks_0_mlp_layer1.hada_w1_a"], "it is an adapter: give it as network.weights"),
        (["blocks.0.adaln_modulation_self_attn.1.weight"], "it is a Cosmos-Predict2 model without Anima's LLM adapter"),
        (["net.llm_adapter.embed.weight"], "it is only a part of one, or its names are others"),
        (["something.weight"], "check that this is the right file"),
    ],
)
def test_a_file_in_the_transformers_place_says_what_it_is(tmp_path, names, text):
    refused(tmp_path / "x.safetensors", {name: ZERO.clone() for name in names}, check_transformer, text)


def test_another_text_encoder_is_not_advised_as_the_qwen_file(tmp_path):
    names = [f"model.layers.0.self_attn.{leaf}_proj.weight" for leaf in "qkv"] + ["model.embed_tokens.weight"]
    refused(tmp_path / "x.safetensors", {n: ZERO.clone() for n in names}, check_qwen, "it is another text encoder: use qwen_3")
    names = ["foo.layers.0.self_attn.q_norm.weight"]
    refused(
        tmp_path / "y.safetensors", {n: ZERO.clone() for n in names}, check_qwen, "only a part of one, or its names are others"
    )


def test_an_all_in_one_checkpoint_that_lacks_a_part_says_which_it_has(tmp_path, model):
    whole = {f"model.diffusion_model.{k.removeprefix('net.')}": v for k, v in load_file(model.transformer).items()}
    whole |= {f"first_stage_model.{k}": v for k, v in load_file(model.vae).items()}
    text = "it is an all-in-one checkpoint that holds transformer and VAE: give a Qwen3 text encoder of its own"
    refused(tmp_path / "all.safetensors", whole, check_qwen, text)


def test_the_qwen_of_an_all_in_one_checkpoint_alone_is_read(tmp_path, model):
    state = {f"cond_stage_model.qwen3_06b.transformer.{k}": v for k, v in load_file(model.qwen).items()}
    save_file(state, tmp_path / "qwen.safetensors")
    assert check_qwen(tmp_path / "qwen.safetensors") == check_qwen(model.qwen)


def test_a_diffusers_folder_without_a_part_is_named(tmp_path):
    (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    for check, part in ((check_transformer, "transformer"), (check_vae, "vae"), (check_qwen, "text_encoder")):
        with pytest.raises(FileError, match=f"a folder in diffusers' layout without its sub-folder {part}; download it whole"):
            check(tmp_path)


def test_anima_3_8b_is_refused_for_its_text_encoder(tmp_path):
    """Its 52 blocks would load by their shapes, and train on the wrong text."""
    from dataclasses import replace

    save_file(random_state(replace(TINY, blocks=52), torch.Generator().manual_seed(0)), tmp_path / "x.safetensors")
    for read in (check_transformer, load_transformer):
        with pytest.raises(FileError, match=r"is Anima-3.8B \(52 blocks\), which reads captions with Qwen3.5-4B"):
            read(tmp_path / "x.safetensors")
    assert REAL.blocks == 28


@pytest.mark.parametrize("place", ["transformer", "vae", "qwen"])
def test_a_tensor_that_is_missing_is_named_before_anything_is_cached(tmp_path, model, place):
    from dataclasses import replace

    state = load_file(getattr(model, place))
    gone = next(
        name for name in reversed(sorted(state)) if ".1." in name and not {"time_conv", "x_embedder"} & set(name.split("."))
    )
    path = tmp_path / "part.safetensors"
    save_file({name: tensor for name, tensor in state.items() if name != gone}, path)
    write(tmp_path / "pictures", "a.png")
    tokenizer = {"qwen_tokenizer_dir": str((tmp_path / model.qwen).parent)}
    config = train_config(replace(model, **{place: str(path)}, **tokenizer), tmp_path / "pictures", tmp_path / "out")
    with pytest.raises(FileError, match="part.safetensors: 1 tensors of the .* are missing, first .*; use a whole file"):
        preflight(config)
    assert not (tmp_path / "out").exists()

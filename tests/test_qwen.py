"""The text encoder: one result per caption whatever its batch, from either layout of files, every tensor accounted for.

Its parity with ComfyUI's is in test_tokenizers.py, from caption to hidden states.
"""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anima_core.models.tokenizers as tokenizers_module
from anima_core.demo.random_text import qwen_state, write_qwen_tokenizer, write_tiny_qwen
from anima_core.errors import FileError, SettingError
from anima_core.models.loading import shapes_of
from anima_core.models.qwen import load_qwen, meta_qwen, qwen_config
from anima_core.models.tokenizers import qwen_tokenizer_dir

from . import processes
from .conftest import relative_error

ROOT = Path(__file__).resolve().parents[1]

CAPTIONS = ["1girl, solo", "", "A girl stands by the sea, the wind in her hair.", "smile", "漢字 😀, " * 30, "\n"]


@pytest.fixture
def folder(tmp_path):
    write_tiny_qwen(tmp_path, ["masterpiece, 1girl, solo, smile", "A girl stands by the sea."])
    return tmp_path


@pytest.fixture
def path(folder):
    return folder / "qwen.safetensors"


def test_sizes_come_from_the_file(path):
    config = qwen_config(path)
    heads = (config.heads, config.key_heads, config.head_dim)
    assert (config.layers, config.hidden, config.intermediate, heads) == (2, 64, 128, (4, 2, 16))
    assert config.vocabulary == load_file(path)["model.embed_tokens.weight"].shape[0]


def test_the_tensors_that_a_file_must_have_are_those_of_transformers_model(path):
    config = qwen_config(path)
    assert config.shapes() == shapes_of(meta_qwen(config))


def test_looking_at_a_file_loads_no_transformers(path):
    code = (
        f"import sys; from anima_core.models.qwen import check_qwen; check_qwen({str(path)!r}); import anima_core.training.loop"
    )
    done = processes.run([sys.executable, "-c", f"{code}; assert 'transformers' not in sys.modules"], cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_caption_does_not_depend_on_its_batch(path):
    qwen = load_qwen(path)
    batched = qwen.encode(CAPTIONS, batch_size=4)
    alone = [qwen.encode([caption])[0] for caption in CAPTIONS]
    assert [len(h) for h in batched] == [len(ids) for ids in qwen.tokenizer.encode(CAPTIONS)]
    assert max((a - b).abs().max().item() for a, b in zip(batched, alone)) < 1e-5
    assert max(h.std().item() for h in alone) > 0.5


def test_empty_caption_is_one_pad_token(path):
    qwen = load_qwen(path)
    (hidden,) = qwen.encode([""])
    assert hidden.shape == (1, 64)
    assert torch.equal(hidden, qwen.encode(["<|endoftext|>"])[0])
    assert qwen.encode([]) == []


def test_no_token_sees_what_follows(path):
    whole, part = load_qwen(path).encode(["1girl, solo\n\nsmile", "1girl"])
    assert len(part) < len(whole) and relative_error(part, whole[: len(part)]) < 1e-6


def test_results_carry_no_gradient_and_own_their_memory(path):
    hidden = load_qwen(path).encode(CAPTIONS)
    assert not any(h.requires_grad for h in hidden)
    assert all(h.untyped_storage().nbytes() == h.nbytes for h in hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotary_frequencies_are_exact_in_any_dtype(path, dtype):
    qwen = load_qwen(path, dtype=dtype)
    expected = 1e6 ** (-torch.arange(0, 16, 2, dtype=torch.float64) / 16)
    assert qwen.model.rotary_emb.inv_freq.dtype == torch.float32
    assert relative_error(qwen.model.rotary_emb.inv_freq, expected) < 1e-7
    assert qwen.encode(["1girl"])[0].dtype == dtype
    assert {p.dtype for p in qwen.model.parameters()} == {dtype} and not any(p.requires_grad for p in qwen.model.parameters())


def test_bf16_stays_near_fp32(path):
    exact, rounded = load_qwen(path).encode(CAPTIONS), load_qwen(path, dtype=torch.bfloat16).encode(CAPTIONS)
    assert 1e-3 < max(relative_error(r, e) for r, e in zip(rounded, exact)) < 0.03


@pytest.mark.parametrize("shard", ["5GB", "100KB"])
def test_hugging_face_directory_equals_the_single_file(path, folder, shard):
    single = load_qwen(path)
    single.model.save_pretrained(folder / "hf", max_shard_size=shard)
    write_qwen_tokenizer(folder / "hf", ["1girl"])
    assert len(list((folder / "hf").glob("*.safetensors"))) == (1 if shard == "5GB" else 4)
    directory = load_qwen(folder / "hf", tokenizer_dir=folder)
    assert all(torch.equal(a, b) for a, b in zip(directory.encode(CAPTIONS), single.encode(CAPTIONS)))


@pytest.mark.parametrize("prefix", ["", "model.", "qwen3_06b.transformer.model.", "text_encoders.qwen3_06b.transformer.model."])
def test_known_prefixes_and_unused_tensors(folder, path, prefix):
    other = folder / "other.safetensors"
    state = {prefix + name.removeprefix("model."): tensor for name, tensor in load_file(path).items()}
    extra = {"lm_head.weight": torch.zeros(9, 64), "qwen3_06b.logit_scale": torch.zeros(())}
    save_file(state | extra, other)
    assert torch.equal(load_qwen(other).encode(["solo"])[0], load_qwen(path).encode(["solo"])[0])


def without(state, *names):
    return {key: tensor for key, tensor in state.items() if key not in names}


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: without(s, "model.norm.weight"), "1 tensors of the Qwen3 text encoder are missing, first norm.weight"),
        (lambda s: s | {"model.visual.weight": torch.zeros(2, 2)}, "1 tensors do not belong .* first visual.weight"),
        (lambda s: s | {"model.norm.weight": torch.ones(3)}, r"model.norm.weight has shape \[3\], expected \[64\]"),
        (
            lambda s: without(s, "model.layers.0.self_attn.q_norm.weight"),
            "not a Qwen3 text encoder .no layers.0.self_attn.q_norm.weight",
        ),
        (lambda s: {"net.llm_adapter.embed.weight": torch.zeros(2, 2)}, "it is an Anima transformer"),
        (lambda s: s | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}, "is quantised"),
    ],
)
def test_wrong_files_are_refused(path, change, message):
    state = change(load_file(path))
    save_file(state, path)
    with pytest.raises(FileError, match=f"qwen.safetensors: .*{message}"):
        load_qwen(path)


def test_a_quantised_file_is_refused_from_its_header(path):
    save_file(load_file(path) | {"model.norm.weight": torch.ones(64, dtype=torch.int8)}, path)
    with pytest.raises(FileError, match="is quantised"):
        qwen_config(path)


def test_a_directory_without_weights_is_refused(folder, path):
    path.unlink()
    with pytest.raises(FileError, match="no .safetensors file in this folder"):
        qwen_config(folder)


def test_tokenizer_lookup(folder, path, tmp_path, monkeypatch):
    bare = tmp_path / "bare"
    bare.mkdir()
    path.rename(bare / "qwen.safetensors")
    monkeypatch.setattr(tokenizers_module, "comfyui_tokenizers", lambda: None)
    with pytest.raises(FileError, match="no Qwen tokenizer .* beside it; set model.qwen_tokenizer_dir"):
        load_qwen(bare / "qwen.safetensors")
    with pytest.raises(SettingError, match="qwen_tokenizer_dir="):
        qwen_tokenizer_dir(bare / "qwen.safetensors", bare)
    assert qwen_tokenizer_dir(bare / "qwen.safetensors", str(folder)) == folder
    monkeypatch.setattr(tokenizers_module, "comfyui_tokenizers", lambda: (folder, folder))
    assert qwen_tokenizer_dir(bare / "qwen.safetensors") == folder
    write_qwen_tokenizer(bare, ["1girl"])
    assert qwen_tokenizer_dir(bare / "qwen.safetensors") == bare == qwen_tokenizer_dir(bare)


def test_a_tokenizer_too_large_for_the_model_is_refused(path):
    save_file(qwen_state(100, 64, torch.Generator().manual_seed(0)), path)
    with pytest.raises(FileError, match="100 embeddings, its tokenizer needs"):
        load_qwen(path)

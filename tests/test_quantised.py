"""Quantised files: read as they are, kept so in memory, and trained on as on the plain numbers that they stand for."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from anima_core import files
from anima_core.demo.pictures import write_pictures
from anima_core.errors import FileError
from anima_core.models.candidates import Candidates, transformer_rank
from anima_core.models.checkpoint import read_metadata
from anima_core.models.frozen import FrozenWeight, Scratch, frozen_linears
from anima_core.models.kept import store_for
from anima_core.models.quantised import fp8, pieces, read_stored, read_weights
from anima_core.models.qwen import check_qwen, load_qwen
from anima_core.models.transformer import check_transformer, load_transformer, meta_transformer
from anima_core.models.vae import check_vae
from anima_core.training.loop import train

from .quantised import SAMPLES, gradients, linears, mark, quantised, same_numbers, write
from .test_model_files import Held
from .tiny import train_config

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
EXACT = [kind for kind in SAMPLES if "ConvRot" not in kind]  # a rotation is a sum, whose order is not ours to choose


@pytest.fixture
def state(model) -> dict[str, Tensor]:
    return load_file(model.transformer)


def one(kind: str, shape: tuple[int, int], tmp_path: Path) -> tuple[FrozenWeight, Tensor]:
    """Return a weight out of a file, and its numbers by the slow formula."""
    sample = SAMPLES[kind](*shape, torch.Generator().manual_seed(0))
    path = write(tmp_path / "one.safetensors", {f"layer.{part}": tensor for part, tensor in sample.tensors.items()})
    ((key, weight),) = read_weights(path)
    assert key == "layer.weight" and weight.kind == kind and weight.shape == sample.numbers.shape
    return weight, sample.numbers


# --- numbers


@pytest.mark.parametrize("kind", SAMPLES)
@pytest.mark.parametrize("shape", [(80, 128), (130, 64)])
def test_numbers_are_those_of_the_slow_formula(tmp_path, kind, shape):
    weight, numbers = one(kind, shape, tmp_path)
    found = weight.numbers(torch.float32, "cpu")
    assert torch.equal(found, numbers) if kind in EXACT else torch.allclose(found, numbers, atol=1e-6)
    for dtype in DTYPES[1:]:
        # some formats round before they multiply: twice, and the product once
        near = weight.numbers(dtype, "cpu").float()
        assert torch.allclose(near, numbers, rtol=3 * torch.finfo(dtype).eps, atol=2e-6)


@pytest.mark.parametrize("kind", SAMPLES)
def test_numbers_do_not_depend_on_the_pieces_in_which_they_are_written(tmp_path, monkeypatch, kind):
    weight, _ = one(kind, (130, 64), tmp_path)
    whole = weight.numbers(torch.bfloat16, "cpu")
    for rows in (1, 7, 129):
        monkeypatch.setattr(pieces, "PIECE", rows * 64)
        found = weight.numbers(torch.bfloat16, "cpu")
        assert torch.equal(found, whole) if kind in EXACT else torch.allclose(found, whole, rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_device_without_8_bit_floats_has_their_numbers(tmp_path, monkeypatch, kind):
    weight, _ = one(kind, (130, 64), tmp_path)
    found = weight.numbers(torch.bfloat16, "cpu")
    monkeypatch.setattr(fp8, "WITHOUT_FLOAT8", {"cpu"})
    assert torch.equal(weight.numbers(torch.bfloat16, "cpu"), found)
    assert not any(buffer.dtype.itemsize == 1 and buffer.is_floating_point() for buffer in weight.buffers())


def test_every_8_bit_float_is_found_in_the_table(monkeypatch):
    data = torch.arange(256, dtype=torch.uint8)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        real = data.view(dtype).float()
        monkeypatch.setattr(fp8, "WITHOUT_FLOAT8", {"cpu"})
        found = fp8.float8(data, dtype)
        assert torch.equal(found[~real.isnan()], real[~real.isnan()]) and torch.equal(found.isnan(), real.isnan())


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_weight_on_meta_has_the_bytes_of_a_real_one_and_writes(tmp_path, kind):
    weight, _ = one(kind, (128, 64), tmp_path)
    empty = read_stored(tmp_path / "one.safetensors")["layer.weight"].empty
    assert (empty.shape, empty.bytes, empty.kind) == (weight.shape, weight.bytes, weight.kind)
    scratch = Scratch(torch.bfloat16, "meta")
    assert empty.tensor(scratch).shape == weight.shape and scratch.room.is_meta


def test_a_scale_for_each_output_may_lack_its_second_side(tmp_path):
    weight, _ = one("int8, a scale per output", (64, 64), tmp_path)
    parts = load_file(tmp_path / "one.safetensors")
    path = write(tmp_path / "two.safetensors", parts | {"layer.weight_scale": parts["layer.weight_scale"][:, None]})
    ((_, other),) = read_weights(path)
    assert torch.equal(weight.numbers(torch.float32, "cpu"), other.numbers(torch.float32, "cpu"))


# --- models


@pytest.mark.parametrize("kind", SAMPLES)
def test_blocks_stay_as_they_are_stored_and_the_rest_is_made_plain(state, tmp_path, kind):
    others = ["net.llm_adapter.out_proj", "net.final_layer.linear", "net.blocks.1.adaln_modulation_mlp.1"]
    file, plain = quantised(state, kind, [*linears(state), *others])
    path = write(tmp_path / "file.safetensors", file)
    ours = load_transformer(path, torch.bfloat16)
    kept = {f"net.{name}": layer.stored for name, layer in frozen_linears(ours)}
    assert kept.keys() == set(linears(state)) and {weight.kind for weight in kept.values()} == {kind}
    assert same_numbers(ours, plain, torch.bfloat16)
    assert all(not parameter.requires_grad for parameter in ours.parameters())
    empty = meta_transformer(path, torch.bfloat16)
    assert {f"net.{n}": layer.stored.bytes for n, layer in frozen_linears(empty)} == {n: w.bytes for n, w in kept.items()}
    assert empty.dtype == torch.bfloat16 and all(tensor.is_meta for tensor in (*empty.parameters(), *empty.buffers()))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("kind", SAMPLES)
def test_an_adapter_learns_on_a_quantised_model_as_on_the_numbers_that_it_writes(state, tmp_path, kind, fused):
    """Its gradients, those of all before it, and the velocity: to the bit."""
    path = write(tmp_path / "file.safetensors", quantised(state, kind)[0])
    ours = load_transformer(path)
    numbers = {f"net.{name}.weight": layer.weight.clone() for name, layer in frozen_linears(ours)}
    plain = load_transformer(write(tmp_path / "plain.safetensors", state | numbers))
    assert len(numbers) == len(linears(state)) and not dict(frozen_linears(plain))
    for left, right in zip(gradients(ours, fused), gradients(plain, fused), strict=True):
        assert left.isfinite().all() and left.abs().sum() > 0
        assert torch.equal(left, right)


def test_int8_of_floats_leaves_what_a_file_has_quantised(state, tmp_path):
    file, _ = quantised(state, "fp8 scaled (float8_e4m3fn)", linears(state)[:3])
    path = write(tmp_path / "file.safetensors", file)
    kinds = [layer.stored.kind for _, layer in frozen_linears(load_transformer(path, store=store_for("int8", 8, "cpu")))]
    assert kinds.count("fp8 scaled (float8_e4m3fn)") == 3 and "int8" in kinds


def test_a_quantised_text_encoder_has_the_numbers_that_it_stands_for(model, tmp_path):
    state = load_file(model.qwen)
    names = [key.removesuffix(".weight") for key, tensor in state.items() if tensor.ndim == 2]
    file, plain = quantised(state, "fp8 scaled (float8_e4m3fn)", names)
    folder = Path(model.qwen).parent
    ours = load_qwen(write(tmp_path / "file.safetensors", file), tokenizer_dir=folder)
    theirs = load_qwen(write(tmp_path / "plain.safetensors", plain), tokenizer_dir=folder)
    assert check_qwen(tmp_path / "file.safetensors") == check_qwen(model.qwen)
    assert torch.equal(ours.encode(["a red circle"])[0], theirs.encode(["a red circle"])[0])


def test_a_quantised_file_is_read_once_and_its_digest_known(state, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_digests", {})
    path = write(tmp_path / "file.safetensors", quantised(state, "nvfp4")[0])
    load_transformer(path)
    assert files.known(path) == files.digest(path)


def test_no_weight_that_stays_quantised_is_held_twice_while_it_is_loaded(state, tmp_path):
    path = write(tmp_path / "file.safetensors", quantised(state, FP8)[0])
    with Held() as held:
        model = load_transformer(path)
    layers = [layer.stored for _, layer in frozen_linears(model)]
    largest = max(parameter.nbytes for parameter in model.parameters())
    assert held.now <= sum(parameter.nbytes for parameter in model.parameters()) + sum(weight.bytes for weight in layers) + 1000
    assert held.peak <= held.now + largest


def test_a_plain_file_is_meant_before_a_quantised_one(model, state, tmp_path):
    found = Candidates(transformer_rank)
    path = write(tmp_path / "file.safetensors", quantised(state, "mxfp8")[0])
    assert found.rank(model.transformer) == 0 and found.rank(str(path)) == 1


# --- what is refused

LAYER = "net.blocks.0.mlp.layer1"


def changed(kind: str, change: Callable[[dict[str, Tensor]], object], metadata=None):
    def make(state: dict[str, Tensor], path: Path) -> None:
        file, _ = quantised(state, kind)
        change(file)
        write(path, file, metadata)

    return make


def settings(**said) -> Callable[[dict[str, Tensor]], object]:
    return lambda file: file.update({f"{LAYER}.comfy_quant": mark(**said)})


FP8, INT8, ROTATED = "fp8 scaled (float8_e4m3fn)", "int8, a scale per tensor", "int8 ConvRot (groups of 64)"
REFUSED = [
    (changed(INT8, settings(format="asym_w4a8")), r"is quantised as 'asym_w4a8' \(.*layer1.weight\), which is not read; use"),
    (changed(INT8, settings(format=["a"])), r"is quantised as \['a'\]"),
    (changed(INT8, settings(note="none")), "is quantised as None"),
    (changed(INT8, lambda f: f.pop(f"{LAYER}.weight_scale")), "layer1.weight_scale is missing, without which"),
    (changed("nvfp4", lambda f: f.pop(f"{LAYER}.weight_scale_2")), "layer1.weight_scale_2 is missing"),
    (changed(FP8, lambda f: f.pop(f"{LAYER}.weight")), "layer1.weight_scale is there and .*layer1.weight is missing"),
    (changed(INT8, settings(format="float8_e4m3fn")), "layer1.weight is marked as float8_e4m3fn and is of I8"),
    (changed(FP8, lambda f: f.update({f"{LAYER}.weight_scale_2": torch.ones(())})), "layer1.weight_scale_2 does not belong"),
    (changed(FP8, lambda f: f.update({f"{LAYER}.weight_scale": torch.ones(7)})), r"a scale of \[7\] does not fit"),
    (changed("nvfp4", lambda f: f.update({f"{LAYER}.weight_scale": torch.ones(7).byte()})), r"scales of \[7\] do not fit"),
    (changed(ROTATED, settings(format="int8_tensorwise", convrot=True, convrot_groupsize=48)), "is no power of 4"),
    (changed(ROTATED, settings(format="int8_tensorwise", convrot=True)), "groups of 256 do not divide a weight"),
    (
        changed(ROTATED, settings(format="int8_tensorwise", convrot=True, convrot_groupsize="x")),
        "=x is no number",
    ),
    (changed(FP8, lambda f: f.update({f"{LAYER}.comfy_quant": torch.zeros(3).byte()})), "layer1.comfy_quant is damaged"),
    (changed(FP8, lambda f: f.update({f"{LAYER}.comfy_quant": torch.zeros(3)})), "layer1.comfy_quant is damaged"),
    (changed(FP8, lambda f: None, {"_quantization_metadata": "[1]"}), "_quantization_metadata is damaged"),
    (changed(FP8, lambda f: None, {"_quantization_metadata": '{"layers": 3}'}), "_quantization_metadata. in its header is"),
    (changed(FP8, lambda f: f.update({f"{LAYER}.weight.absmax": torch.ones(3)})), "is quantised by bitsandbytes"),
    (changed(FP8, lambda f: f.update({f"{LAYER}.qweight": torch.ones(3)})), "is quantised by GPTQ or AWQ"),
    (changed(FP8, lambda f: f.update({f"{LAYER}.weight_packed": torch.ones(3)})), "is quantised by compressed-tensors"),
    (changed(FP8, lambda f: f.update({f"{LAYER}.weight_scale_inv": torch.ones(3)})), "Hugging Face's fp8 in blocks"),
    (changed(INT8, lambda f: (f.pop(f"{LAYER}.comfy_quant"), f.pop(f"{LAYER}.weight_scale"))), "in a way that is not read"),
    (changed("nvfp4", lambda f: f.pop(f"{LAYER}.comfy_quant")), "is quantised as U8 with a scale"),
    (changed(FP8, lambda f: f.pop("net.x_embedder.proj.1.weight")), "not an Anima transformer"),
    (
        changed(FP8, lambda f: [f.pop(f"net.blocks.0.mlp.layer2.{part}") for part in ("weight", "weight_scale")]),
        "1 tensors of the Anima transformer are missing, first blocks.0.mlp.layer2.weight",
    ),
]


@pytest.mark.parametrize("make, text", REFUSED, ids=[text[:40] for _, text in REFUSED])
def test_what_is_not_whole_or_not_known_is_refused_with_the_way_out(state, tmp_path, make, text):
    path = tmp_path / "file.safetensors"
    make(state, path)
    for read in (check_transformer, load_transformer):
        with pytest.raises(FileError, match=f"file.safetensors: .*{text}") as error:
            read(path)
        assert "\n" not in str(error.value) and ";" in str(error.value)


def test_a_vae_is_not_read_quantised(model, tmp_path):
    state = load_file(model.vae)
    name = next(key for key in state if key.endswith(".weight"))
    path = write(tmp_path / "vae.safetensors", state | {name: state[name].to(torch.float8_e4m3fn)})
    with pytest.raises(FileError, match=r"is quantised \(.*, fp8 without scales .*; use the bf16, fp16 or fp32"):
        check_vae(path)


# --- runs


def trained(model, tmp_path, file: dict[str, Tensor], **changes):
    """Train a few steps on a transformer; return its events and its adapter."""
    write_pictures(tmp_path / "p", 2)
    path = write(tmp_path / "base.safetensors", file)
    events: list[dict] = []
    config = train_config(replace(model, transformer=str(path)), tmp_path / "p", tmp_path, **changes)
    result = train(config, events.append)
    return events, result.adapter_path


def said(events: list[dict], kind: str) -> list[str]:
    return [event["text"] for event in events if event["event"] == kind and "base.safetensors" in event["text"]]


def test_a_run_on_a_quantised_file_learns_and_says_what_it_learnt_on(model, state, tmp_path):
    name = "net.llm_adapter.out_proj"
    events, adapter = trained(model, tmp_path, quantised(state, FP8, [*linears(state), name])[0])
    wanted = f"base.safetensors is quantised: {FP8}: 20 layers stay so in memory, 1 others are made plain numbers"
    assert said(events, "note") == [wanted] and said(events, "warning") == []
    assert read_metadata(adapter)["ss_base_quantization"] == FP8
    ups = [tensor for key, tensor in load_file(adapter).items() if key.endswith("lora_up.weight")]
    assert len(ups) >= 20 and all(up.abs().sum() > 0 for up in ups), "each began at zero and has moved"
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 6 and all(torch.tensor(losses).isfinite())


def test_a_run_on_a_plain_cast_is_warned(model, state, tmp_path):
    file, _ = quantised(state, "fp8 without scales (float8_e4m3fn)")
    events, adapter = trained(model, tmp_path, file, max_train_steps=1)
    (warning,) = said(events, "warning")
    assert "20 of its tensors are fp8 without scales" in warning and "; use the bf16 file, or one in scaled fp8" in warning
    assert read_metadata(adapter)["ss_base_quantization"] == "fp8 without scales (float8_e4m3fn)"


def test_a_run_on_a_plain_file_says_that_it_was_one(model, state, tmp_path):
    events, adapter = trained(model, tmp_path, state, max_train_steps=1)
    assert said(events, "note") == said(events, "warning") == []
    assert read_metadata(adapter)["ss_base_quantization"] == "none"


def test_settings_of_layers_may_stand_in_the_header(state, tmp_path):
    """Under the names that the file has, or without its prefix."""
    file, _ = quantised(state, ROTATED)
    plain = load_transformer(write(tmp_path / "marks.safetensors", file))
    layers = {f"{name}.comfy_quant": json.loads(bytes(file.pop(f"{name}.comfy_quant").tolist())) for name in linears(state)}
    for prefix in ("net.", ""):
        named = {key.removesuffix(".comfy_quant").replace("net.", prefix, 1): said for key, said in layers.items()}
        metadata = {"_quantization_metadata": json.dumps({"layers": named})}
        found = load_transformer(write(tmp_path / "header.safetensors", file, metadata))
        for (_, ours), (_, theirs) in zip(frozen_linears(found), frozen_linears(plain), strict=True):
            assert ours.stored.kind == ROTATED and torch.equal(ours.weight.clone(), theirs.weight)

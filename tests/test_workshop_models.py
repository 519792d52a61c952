"""Models in the workshop: baked, against ComfyUI's patched weights; extracted from; a tensor at a time. And the commands."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core.adapters.formats import adapter_state, save_adapter
from anima_core.adapters.recognise import type_of
from anima_core.adapters.workshop.baking import bake
from anima_core.adapters.workshop.block_weights import BlockWeights
from anima_core.adapters.workshop.extracting import extract
from anima_core.adapters.workshop.loaded import RECORD, load_adapter, of_state
from anima_core.adapters.workshop.merging import Part
from anima_core.adapters.workshop.resizing import Keep
from anima_core.cli import main
from anima_core.errors import FileError, SettingError
from anima_core.models.checkpoint import read_header, read_metadata, read_tensors
from anima_core.settings import NetworkConfig
from anima_core.speed.counting import Meter

from .conftest import relative_error
from .test_adapters import model as tiny_transformer
from .test_adapters import trained
from .test_analysis import NETWORKS, numbers
from .test_workshop import adapter, delta

KINDS = {
    **NETWORKS,
    "dora": NetworkConfig(rank=4, alpha=2, dora=True),
    "norms": NetworkConfig(rank=4, train_norm=True, targets="all"),
}


def write_base(path, prefix="net.", dtype=torch.float32, metadata=None):
    state = {f"{prefix}{name}": tensor.to(dtype).contiguous() for name, tensor in tiny_transformer().state_dict().items()}
    save_file(state, path, metadata=metadata)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_a_baked_model_has_comfyuis_patched_weights(kind, comfyui_oracle, tmp_path):
    base, state = write_base(tmp_path / "base.safetensors"), adapter_state(trained(KINDS[kind]))
    second = adapter_state(trained(NETWORKS["lora"], 2))
    assert bake(base, [Part(of_state(state), 0.7), Part(of_state(second), -0.5)], tmp_path / "out.safetensors") == ()
    ours, plain = load_file(tmp_path / "out.safetensors"), load_file(base)
    once = comfyui_oracle("oracle_adapters.py", asked(plain, state), strength=0.7)
    assert once.pop("unused") == 0
    patched = {k.removeprefix("net."): tensor for k, tensor in plain.items()} | once
    twice = comfyui_oracle("oracle_adapters.py", asked(patched, second), strength=-0.5)
    twice.pop("unused")
    theirs = patched | twice
    assert len(once) >= 20
    for name, tensor in ours.items():
        before, after = plain[name], theirs[name.removeprefix("net.")]
        assert (
            torch.equal(tensor, before)
            if torch.equal(after, before)
            else relative_error(tensor - before, after - before) < 1e-5
        )


def asked(base: dict, lora: dict) -> dict:
    return {f"base.{k.removeprefix('net.')}": v for k, v in base.items()} | {f"lora.{k}": v for k, v in lora.items()}


@pytest.mark.parametrize("prefix, dtype", [("net.", torch.bfloat16), ("model.diffusion_model.", torch.float16)])
def test_layout_names_precision_and_metadata_stay(prefix, dtype, tmp_path):
    base = write_base(tmp_path / "base.safetensors", prefix, dtype, {"made": "by me"})
    lora = adapter()
    bake(base, [Part(lora, blocks=BlockWeights({0: 0.0}))], tmp_path / "out.safetensors")
    before, after = dict(read_tensors(base)), dict(read_tensors(tmp_path / "out.safetensors"))
    assert list(before) == list(after) and read_header(base) == read_header(tmp_path / "out.safetensors")
    metadata = read_metadata(tmp_path / "out.safetensors")
    assert metadata["made"] == "by me" and json.loads(metadata[RECORD])[0]["of"] == ["lora.safetensors"]
    for key, tensor in after.items():
        layer = key.removeprefix(prefix).removesuffix(".weight")
        if layer.startswith("blocks.1.") and layer in lora.layers:
            wanted = (before[key].float() + delta(lora.layers[layer])).to(dtype)
            assert relative_error(tensor.float(), wanted.float()) < 1e-3 and not torch.equal(tensor, before[key])
        else:
            assert torch.equal(tensor, before[key])


def test_what_cannot_be_baked_is_refused_before_anything_is_written(tmp_path):
    base, out = write_base(tmp_path / "base.safetensors"), tmp_path / "out.safetensors"
    part = Part(adapter())
    with pytest.raises(SettingError, match="is the model itself"):
        bake(base, [part], base, force=True)
    with pytest.raises(FileError, match="is there already"):
        bake(base, [part], base)
    with pytest.raises(FileError, match="no such file"):
        bake(tmp_path / "nothing.safetensors", [part], base, force=True)
    float8 = {k: t.to(torch.float8_e4m3fn) for k, t in load_file(base).items()}
    save_file(float8, tmp_path / "fp8.safetensors")
    with pytest.raises(FileError, match=r"weights are quantised, first net.*; bake into the model in bf16"):
        bake(tmp_path / "fp8.safetensors", [part], out)
    other = of_state({"diffusion_model.blocks.7.mlp.layer1.lora_down.weight": numbers(2, 5),
                      "diffusion_model.blocks.7.mlp.layer1.lora_up.weight": numbers(7, 2)})  # fmt: skip
    with pytest.raises(FileError, match="holds no weight of blocks.7.mlp.layer1"):
        bake(base, [Part(other)], out)
    shaped = of_state({k.replace("blocks.7", "blocks.0"): t for k, t in other.state().items()})
    with pytest.raises(SettingError, match=r"blocks.0.mlp.layer1: the adapter adds \[7, 5\], and net.blocks.0"):
        bake(base, [Part(shaped)], out)
    oft = of_state({"diffusion_model.blocks.0.mlp.layer1.oft_blocks": numbers(2, 5)})
    with pytest.raises(SettingError, match="a oft, which cannot be baked"):
        bake(base, [Part(oft)], out)
    assert not out.exists() and not list(tmp_path.glob("*.tmp"))


def test_text_encoder_layers_are_left_out_of_a_bake_and_said(tmp_path):
    text = {"lora_te_layers_0_x.lora_down.weight": numbers(2, 6), "lora_te_layers_0_x.lora_up.weight": numbers(6, 2)}
    part = Part(of_state(adapter().state() | text))
    (said,) = bake(write_base(tmp_path / "base.safetensors"), [part], tmp_path / "out.safetensors")
    assert said.startswith("1 layers of the text encoder are left out")


def tuned(tmp_path, kind="lora"):
    """A base, the model that an adapter makes of it under other names, and the adapter."""
    base, lora = write_base(tmp_path / "base.safetensors"), of_state(adapter_state(trained(KINDS[kind])))
    bake(base, [Part(lora)], tmp_path / "baked.safetensors")
    renamed = {k.replace("net.", "model.diffusion_model."): t for k, t in load_file(tmp_path / "baked.safetensors").items()}
    save_file(renamed, tmp_path / "tuned.safetensors")
    return base, tmp_path / "tuned.safetensors", lora


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_extracted_is_what_was_added(kind, tmp_path):
    base, after, lora = tuned(tmp_path, kind)
    found = extract(after, base, Keep())
    weights = {k.removeprefix("net.").removesuffix(".weight"): t for k, t in load_file(base).items()}
    kept = {name: tensors for name, tensors in lora.layers.items() if name != "llm_adapter.embed"}
    assert found.layers.keys() == kept.keys()
    for name, tensors in found.layers.items():
        if "w_norm" in tensors:
            assert relative_error(tensors["w_norm"], lora.layers[name]["w_norm"]) < 1e-4
        else:
            wanted = type_of(lora.layers[name]).delta(lora.layers[name], weights[name])
            assert relative_error(delta(tensors), wanted) < 1e-4
    assert found.metadata["ss_num_blocks"] == "2" and any("are the same in both models" in line for line in found.said)


def test_an_extracted_lora_has_its_rank_by_rank_or_by_energy(tmp_path):
    base, after, _ = tuned(tmp_path)
    for keep, ranks in ((Keep(rank=2), {2}), (Keep(energy=0.99999), {4})):
        found = extract(after, base, keep, torch.bfloat16)
        downs = [tensors["lora_down.weight"] for tensors in found.layers.values()]
        assert {down.shape[0] for down in downs} == ranks and {down.dtype for down in downs} == {torch.bfloat16}


def test_models_that_have_no_difference_are_refused(tmp_path):
    base, after, _ = tuned(tmp_path)
    with pytest.raises(SettingError, match="no weight differs from"):
        extract(base, base, Keep(rank=2))
    cut = {k: t for k, t in load_file(after).items() if ".blocks.1." not in k}
    save_file(cut, tmp_path / "cut.safetensors")
    with pytest.raises(SettingError, match=r"layers are in one of both models only, first blocks.1."):
        extract(tmp_path / "cut.safetensors", base, Keep(rank=2))
    other = load_file(after)
    key = next(k for k in other if k.endswith("blocks.0.mlp.layer1.weight"))
    save_file(other | {key: numbers(3, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(SettingError, match=r"blocks.0.mlp.layer1 has shapes \[3, 4\] and"):
        extract(tmp_path / "other.safetensors", base, Keep(rank=2))
    with pytest.raises(FileError, match="not an adapter|no layer of Anima"):
        save_file({"x.weight": numbers(2, 2)}, tmp_path / "x.safetensors")
        extract(tmp_path / "x.safetensors", base, Keep(rank=2))


class InMemory(Meter):
    """Counts what has bytes: a header's tensors have none."""

    def _see(self, tensor):
        if not tensor.is_meta:
            super()._see(tensor)


def test_of_models_one_tensor_is_in_memory_at_a_time(tmp_path):
    """Of a model of 40 alike layers, a few layers' bytes are held at most, however many there are."""
    keys = [f"net.blocks.{block}.mlp.layer1" for block in range(40)]
    save_file({f"{key}.weight": numbers(64, 256, seed=n) for n, key in enumerate(keys)}, tmp_path / "base.safetensors")
    state = {}
    for key in keys:
        layer = key.replace("net.", "diffusion_model.")
        state |= {f"{layer}.lora_down.weight": numbers(2, 256), f"{layer}.lora_up.weight": numbers(64, 2)}
    part, one = Part(of_state(state)), 64 * 256 * 4
    with InMemory() as meter:
        bake(tmp_path / "base.safetensors", [part], tmp_path / "tuned.safetensors")
    assert one < meter.peak < 8 * one
    with InMemory() as meter:
        found = extract(tmp_path / "tuned.safetensors", tmp_path / "base.safetensors", Keep(rank=2))
    assert len(found.layers) == 40 and one < meter.peak < 16 * one


# ---- the commands


def run(capsys, *command) -> tuple[int, str, str]:
    status = main(list(map(str, command)))
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_commands(tmp_path, capsys):
    base, files = write_base(tmp_path / "base.safetensors"), [tmp_path / f"{n}.safetensors" for n in "abc"]
    for seed, path in enumerate(files[:2]):
        save_adapter(path, adapter(seed=seed).state(), {"ss_num_blocks": "2"})
    a, b, c = files
    status, out, _ = run(capsys, "merge", a, b, "--weights", 0.5, 1, "--block_weights", "0=0", "", "--output", c)
    assert status == 0 and re.match(r"2 adapters merged: 20 layers, 0\.\d MB: .*c\.safetensors", out)
    whole = load_adapter(c)
    first, second = load_adapter(a), load_adapter(b)
    name = "blocks.1.mlp.layer1"
    assert relative_error(delta(whole.layers[name]), 0.5 * delta(first.layers[name]) + delta(second.layers[name])) < 1e-5
    assert relative_error(delta(whole.layers["blocks.0.mlp.layer1"]), delta(second.layers["blocks.0.mlp.layer1"])) < 1e-6
    status, _, err = run(capsys, "merge", a, b, "--output", c)
    assert status == 2 and err.startswith(f"anima: {c}: is there already; choose another name") and err.count("\n") == 1
    assert run(capsys, "resize", c, "--rank", 3, "--output", c, "--force")[0] == 0
    assert load_adapter(c).metadata["ss_network_dim"] == "3"
    status, out, err = run(
        capsys, "scale", a, "--strength", 0.5, "--block_weights", "1=0", "--output", tmp_path / "s.safetensors"
    )
    assert status == 0 and err == "note: 10 layers are left out: their weight is 0\n"
    status, out, err = run(capsys, "bake", base, a, b, "--weights", 1, 0.5, "--output", tmp_path / "baked.safetensors")
    assert status == 0 and out == f"baked: {tmp_path / 'baked.safetensors'}\n"
    status, out, err = run(
        capsys, "extract", tmp_path / "baked.safetensors", base, "--rank", 8, "--output", tmp_path / "e.safetensors"
    )
    assert status == 0 and out.startswith("extracted: 20 layers")
    status, _, err = run(capsys, "blocks", a, "--to", 40, "--output", tmp_path / "f.safetensors")
    assert status == 2 and "a.safetensors is for 2 blocks; to 40 are converted those of 28" in err


@pytest.mark.parametrize(
    "command, why",
    [
        (["merge", "A"], "1 adapter; give two or more"),
        (["merge", "A", "A", "--weights", "1"], "--weights: 1 for 2 adapters; give one for each"),
        (["merge", "A", "A", "--rank", "-1"], "rank=-1: a rank is a positive number"),
        (["resize", "A"], "neither a rank nor a share of the energy is given"),
        (["resize", "A", "--energy", "2"], "energy=2: a share is above 0"),
        (["scale", "A", "--block_weights", "5=0"], "--block_weights=5: the model's blocks are 0 to 1"),
        (["extract", "A", "A"], "extract: neither a rank nor a share of the energy is given"),
        (["extract", "A", "A", "--rank", "4"], "holds no layer of Anima's transformer"),
        (["blocks", "A", "--to", "30"], "--to"),
        (["bake", "nothing.safetensors", "A"], "no such file"),
    ],
)
def test_commands_that_are_refused_say_why_in_one_line(command, why, tmp_path, capsys):
    save_adapter(tmp_path / "A", adapter().state(), {"ss_num_blocks": "2"})
    words = [str(tmp_path / word) if word == "A" else word for word in command]
    status, _, err = run(capsys, *words, "--output", tmp_path / "out.safetensors")
    assert status == 2 and why in err and err.startswith("anima: ") and err.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()

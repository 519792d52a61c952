"""Models in the layouts that people have: all-in-one checkpoints, diffusers folders, an LLM adapter of its own. To the bit."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core import files
from anima_core.adapters.layouts import layer_of
from anima_core.demo.pictures import write_pictures
from anima_core.errors import FileError
from anima_core.models.candidates import Candidates, qwen_rank, transformer_rank, vae_rank
from anima_core.models.diffusers_names import transformer_name, vae_name
from anima_core.models.qwen import check_qwen, load_qwen
from anima_core.models.transformer import check_transformer, load_transformer, meta_transformer
from anima_core.models.vae import check_vae, load_vae
from anima_core.training.loop import train
from anima_core.training.model_files import in_their_folders
from anima_core.training.preflight import preflight

from . import layouts
from .conftest import relative_error
from .tiny import same_tensors, train_config

CHECKS = {"transformer": check_transformer, "vae": check_vae, "qwen": check_qwen}


@pytest.fixture(scope="module")
def reference(model):
    tokenizer = Path(model.qwen).parent
    return {
        "transformer": load_transformer(model.transformer).state_dict(),
        "vae": load_vae(model.vae).state_dict(),
        "qwen": load_qwen(model.qwen, tokenizer_dir=tokenizer).model.state_dict(),
    }


def loaded(model, path, llm_adapter=""):
    return {
        "transformer": load_transformer(path, llm_adapter=llm_adapter).state_dict(),
        "vae": load_vae(path).state_dict(),
        "qwen": load_qwen(path, tokenizer_dir=Path(model.qwen).parent).model.state_dict(),
    }


def states(model):
    return load_file(model.transformer), load_file(model.vae), load_file(model.qwen)


@pytest.mark.parametrize("kind", layouts.ALL_IN_ONE)
def test_each_loader_takes_its_part_of_an_all_in_one_checkpoint(model, reference, tmp_path, kind):
    path = tmp_path / "all.safetensors"
    save_file(layouts.all_in_one(*states(model), kind), path)
    found = loaded(model, path)
    assert all(same_tensors(found[part], reference[part]) for part in reference)
    assert check_qwen(path) == check_qwen(model.qwen) and check_transformer(path) == check_transformer(model.transformer)


def test_what_is_no_part_of_an_all_in_one_checkpoint_is_not_passed_over(model, tmp_path):
    path = tmp_path / "all.safetensors"
    save_file(layouts.all_in_one(*states(model)) | {"v_pred": torch.zeros(1)}, path)
    assert check_vae(path) is None and check_qwen(path)
    with pytest.raises(FileError, match="1 tensors do not belong to the Anima transformer, first v_pred"):
        check_transformer(path)


@pytest.mark.parametrize("count", [1, 2])
def test_diffusers_folders_are_the_same_models(model, reference, tmp_path, count):
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen, count)
    found = loaded(model, folder)
    assert all(same_tensors(found[part], reference[part]) for part in reference)
    assert same_tensors(load_transformer(folder / "transformer").state_dict(), reference["transformer"])
    assert same_tensors(load_vae(folder / "vae").state_dict(), reference["vae"])
    assert check_qwen(folder / "text_encoder") == check_qwen(model.qwen)
    meta, real = meta_transformer(folder, torch.bfloat16), load_transformer(folder, torch.bfloat16)
    assert {k: v.shape for k, v in meta.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}


def test_other_precisions_beside_the_shards_are_left_alone(model, reference, tmp_path):
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen)
    save_file({"other": torch.zeros(1)}, folder / "transformer" / "diffusion_pytorch_model.fp16.safetensors")
    assert same_tensors(load_transformer(folder).state_dict(), reference["transformer"])


def test_files_are_found_from_the_folder_that_they_are_in(model, reference, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(model.transformer).parent)
    assert check_transformer(Path(model.transformer).name) == check_transformer(model.transformer)
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen)
    for place, name in ((folder, "."), (folder / "transformer", "."), (folder / "vae", "../transformer")):
        monkeypatch.chdir(place)
        assert same_tensors(load_transformer(name).state_dict(), reference["transformer"])


def test_one_file_with_diffusers_names_is_read_and_finds_the_adapter_beside(model, reference, tmp_path):
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen, count=1)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    assert same_tensors(load_transformer(path).state_dict(), reference["transformer"])
    assert same_tensors(load_vae(folder / "vae" / path.name).state_dict(), reference["vae"])


def without_adapter(model, path, kind=""):
    own = {f"net.{k}": v for k, v in layouts.bare(load_file(model.transformer)).items() if not k.startswith("llm_adapter.")}
    save_file(layouts.diffusers_transformer(layouts.bare(own))[0] if kind == "diffusers" else own, path)
    return path


@pytest.mark.parametrize("kind", ["released", "diffusers"])
def test_a_transformer_without_its_llm_adapter_names_the_setting(model, tmp_path, kind):
    path = without_adapter(model, tmp_path / "bare.safetensors", kind)
    with pytest.raises(FileError, match="bare.safetensors: a transformer without its LLM adapter; set model.llm_adapter"):
        check_transformer(path)


def test_the_llm_adapter_may_come_from_any_file_that_holds_one(model, reference, tmp_path):
    path = without_adapter(model, tmp_path / "bare.safetensors")
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen)
    checkpoint = tmp_path / "all.safetensors"
    save_file(layouts.all_in_one(*states(model)), checkpoint)
    for adapter in (
        model.transformer,
        checkpoint,
        folder,
        folder / "text_conditioner",
        next((folder / "text_conditioner").iterdir()),
    ):
        assert same_tensors(load_transformer(path, llm_adapter=adapter).state_dict(), reference["transformer"]), adapter
    with pytest.raises(FileError, match="no LLM adapter for model.llm_adapter; it is a Qwen-Image VAE"):
        check_transformer(path, model.vae)


def test_an_adapter_that_is_given_stands_in_for_the_transformers_own_and_that_is_said(model, tmp_path):
    state = layouts.bare(load_file(model.transformer))
    other = tmp_path / "other.safetensors"
    save_file({k.removeprefix("llm_adapter."): v + 1 for k, v in state.items() if k.startswith("llm_adapter.")}, other)
    found = load_transformer(model.transformer, llm_adapter=other).state_dict()
    assert all(torch.equal(found[k], v + k.startswith("llm_adapter.")) for k, v in state.items())
    write_pictures(tmp_path / "p", 2)
    config = train_config(dataclasses.replace(model, llm_adapter=str(other)), tmp_path / "p", tmp_path, max_train_steps=1)
    said = []
    train(config, lambda event: said.append(event.get("text", "")))
    count = sum(k.startswith("llm_adapter.") for k in state)
    text = f"`model.llm_adapter`=other.safetensors: {count} tensors of the transformer's own LLM adapter are not used"
    assert text in said


def test_a_run_on_one_checkpoint_or_one_folder_is_the_run_on_three_files(model, tmp_path):
    write_pictures(tmp_path / "p", 2)
    checkpoint = tmp_path / "all.safetensors"
    save_file(layouts.all_in_one(*states(model)), checkpoint)
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen)
    tokenizer = {"qwen_tokenizer_dir": str(Path(model.qwen).parent)}
    losses = []
    for name, path in (("three", None), ("one", checkpoint), ("folder", folder)):
        paths = {} if path is None else dict.fromkeys(("transformer", "vae", "qwen"), str(path))
        config = dataclasses.replace(model, **tokenizer, **paths)
        losses.append(train(train_config(config, tmp_path / "p", tmp_path / name, max_train_steps=3)).losses)
    assert losses[0] == losses[1] == losses[2]


def test_what_a_cache_is_made_with_is_the_file_or_the_models_own_folder(model, tmp_path):
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen)
    one = dict.fromkeys(("transformer", "vae", "qwen"), str(folder))
    config = in_their_folders(train_config(dataclasses.replace(model, **one), tmp_path, tmp_path)).model
    places = [Path(p).relative_to(folder).as_posix() for p in (config.transformer, config.vae, config.qwen, config.llm_adapter)]
    assert places == ["transformer", "vae", "text_encoder", "text_conditioner"]
    before = files.identity(config.vae)
    save_file({"x": torch.ones(1)}, folder / "transformer" / "more.safetensors")
    assert files.identity(config.vae) == before
    checkpoint = str(tmp_path / "all.safetensors")
    one = dict.fromkeys(("transformer", "vae", "qwen"), checkpoint)
    config = in_their_folders(train_config(dataclasses.replace(model, **one), tmp_path, tmp_path)).model
    assert (config.vae, config.llm_adapter) == (checkpoint, "")


def test_a_plan_says_the_folders_and_a_finished_file_the_pipelines_name(model, tmp_path):
    write_pictures(tmp_path / "p", 2)
    folder = layouts.write_diffusers(tmp_path / "Anima-Diffusers", model.transformer, model.vae, model.qwen)
    paths = dict.fromkeys(("transformer", "vae", "qwen"), str(folder))
    tokenizer = {"qwen_tokenizer_dir": str(Path(model.qwen).parent)}
    config = train_config(dataclasses.replace(model, **tokenizer, **paths), tmp_path / "p", tmp_path / "o", max_train_steps=1)
    assert preflight(config).config.model.llm_adapter == str(folder / "text_conditioner")
    from anima_core.models.checkpoint import read_metadata

    said = read_metadata(train(config).adapter_path)
    assert (said["ss_sd_model_name"], said["ss_vae_name"]) == ("Anima-Diffusers", "Anima-Diffusers")


def test_a_quantised_part_is_read_and_leaves_the_others_as_they_are(model, tmp_path):
    """fp8 with scales in the transformer's part; the VAE, which is never read quantised, is not."""
    state = layouts.all_in_one(*states(model))
    key = "model.diffusion_model.blocks.1.mlp.layer1"
    weight = state.pop(f"{key}.weight")
    scale = weight.abs().amax() / 448
    state |= {f"{key}.weight": (weight / scale).to(torch.float8_e4m3fn), f"{key}.weight_scale": scale.float()}
    mark = json.dumps({"format": "float8_e4m3fn"}).encode()
    state[f"{key}.comfy_quant"] = torch.tensor(list(mark), dtype=torch.uint8)
    path = tmp_path / "all.safetensors"
    save_file(state, path)
    from anima_core.models.frozen import frozen_linears

    assert [name for name, _ in frozen_linears(load_transformer(path))] == ["blocks.1.mlp.layer1"]
    assert check_vae(path) is None
    latents = [load_vae(p).encode(torch.ones(1, 3, 16, 16)) for p in (path, model.vae)]
    assert torch.equal(*latents)


def test_only_the_part_is_read_once_the_digest_is_known(model, tmp_path, monkeypatch):
    path = tmp_path / "all.safetensors"
    save_file(layouts.all_in_one(*states(model)), path)
    load_vae(path)
    assert files.known(path) == files.digest(path), "the first of three reads it whole"
    counts = []
    fill = files.Reading.fill
    monkeypatch.setattr(files.Reading, "fill", lambda self, buffer: (counts.append(len(buffer)), fill(self, buffer))[1])
    load_vae(path)
    whole, part = path.stat().st_size, sum(t.nbytes for k, t in load_file(model.vae).items() if ".time_conv." not in k)
    assert part <= sum(counts) < part + 0.2 * whole


def test_the_tables_of_model_files_and_of_adapters_agree(model):
    own = layouts.bare(load_file(model.transformer))
    theirs, _ = layouts.diffusers_transformer(own)
    for name in theirs:
        assert transformer_name(name) == f"{layer_of(name.removesuffix('.weight'))}.weight"
    assert {transformer_name(name) for name in own} == own.keys()


def test_names_of_a_vae_go_there_and_back(model):
    names = load_file(model.vae).keys()
    theirs = {name: layouts.vae_name(name) for name in names}
    assert len({*theirs.values()}) == len(names)
    assert {name for name in names if theirs[name] == name} <= {n for n in names if "time_conv" in n}
    assert all(vae_name(new) == name == vae_name(name) for name, new in theirs.items() if ".time_conv." not in name)


def test_single_files_are_meant_before_checkpoints_and_folders(model, tmp_path):
    checkpoint = tmp_path / "all.safetensors"
    save_file(layouts.all_in_one(*states(model)), checkpoint)
    folder = layouts.write_diffusers(tmp_path / "pipe", model.transformer, model.vae, model.qwen)
    for rank, own in ((transformer_rank, model.transformer), (vae_rank, model.vae), (qwen_rank, model.qwen)):
        found = Candidates(rank)
        first, *others = (found.rank(str(path)) for path in (own, checkpoint, folder))
        assert first is not None and others == [first + 2, first + 2]
        assert found.rank(str(without_adapter(model, tmp_path / "bare.safetensors"))) is None


def test_they_are_what_diffusers_classes_compute(tmp_path, monkeypatch):
    """Models that diffusers made and saved itself, in shards: velocity, text, latents and picture as its own classes give."""
    diffusers = pytest.importorskip("diffusers")
    from types import SimpleNamespace

    from diffusers.models.transformers import transformer_cosmos

    nearest = SimpleNamespace(NEAREST=0)
    resized = SimpleNamespace(resize=lambda x, size, **others: torch.zeros(*x.shape[:-2], *size), InterpolationMode=nearest)
    transforms = SimpleNamespace(functional=resized, InterpolationMode=nearest)  # torchvision's, for the padding mask of zeros
    monkeypatch.setattr(transformer_cosmos, "transforms", transforms, raising=False)
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=2, attention_head_dim=32, num_layers=2, text_embed_dim=64, adaln_lora_dim=16)
    other = dict(in_channels=16, out_channels=16, mlp_ratio=4.0, patch_size=(1, 2, 2), rope_scale=(1.0, 4.0, 4.0))
    transformer = diffusers.CosmosTransformer3DModel(**sizes, **other, concat_padding_mask=True, extra_pos_embed_type=None)
    conditioner = diffusers.AnimaTextConditioner(
        source_dim=48, target_dim=64, model_dim=64, num_layers=2, num_attention_heads=4, target_vocab_size=300
    )
    vae = diffusers.AutoencoderKLQwenImage(base_dim=16)
    with torch.no_grad():
        for parameter in (*transformer.parameters(), *conditioner.parameters()):
            parameter.normal_(0, 0.1)
    transformer.save_pretrained(tmp_path / "transformer", max_shard_size="100KB")
    conditioner.save_pretrained(tmp_path / "text_conditioner")
    vae.save_pretrained(tmp_path / "vae")
    ours, our_vae = load_transformer(tmp_path), load_vae(tmp_path)
    x, t, text = torch.randn(2, 16, 8, 12), torch.tensor([0.3, 0.9]), torch.randn(2, 512, 64)
    hidden, ids, image = torch.randn(1, 9, 48), torch.randint(0, 300, (1, 12)), torch.rand(1, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        velocity = transformer(x[:, :, None], t, text, padding_mask=torch.zeros(1, 1, 8, 12), return_dict=False)[0][:, :, 0]
        assert relative_error(ours(x, t, text), velocity) < 1e-5
        assert relative_error(ours.preprocess_text_embeds(hidden, ids), conditioner(hidden, ids)) < 1e-5
        mean, std = our_vae._statistics()
        latents = vae.encode(image[:, :, None]).latent_dist.mean[:, :, 0]
        assert relative_error(our_vae.encode(image), (latents - mean) / std) < 1e-5
        picture = vae.decode(latents[:, :, None]).sample[:, :, 0].clamp(-1, 1)
        assert relative_error(our_vae.decode((latents - mean) / std), picture) < 1e-4


def test_a_file_of_comfyuis_checkpointsave_is_read(model, reference, tmp_path, comfyui_oracle):
    """ComfyUI's own code names the tensors."""
    parts = zip(("transformer", "vae", "qwen"), (layouts.bare(load_file(model.transformer)), *states(model)[1:]))
    named = {f"{part}/{name}": tensor for part, state in parts for name, tensor in state.items()}
    path = tmp_path / "all.safetensors"
    save_file(comfyui_oracle("oracle_checkpoint.py", named), path)
    found = loaded(model, path)
    assert all(same_tensors(found[part], reference[part]) for part in reference)

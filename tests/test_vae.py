"""The VAE: against ComfyUI's, tiled against whole, and its files."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file

from anima_core.demo.random_vae import linear_vae_state, random_vae_state
from anima_core.errors import FileError, RunError, SettingError
from anima_core.models.tiling import spans, tiled
from anima_core.models.vae import load_vae

from .conftest import relative_error

DIM = 16


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "vae.safetensors"
    save_file(random_vae_state(DIM, torch.Generator().manual_seed(0)), path)
    return path


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    path = tmp_path_factory.mktemp("vae") / "linear.safetensors"
    save_file(linear_vae_state(DIM), path)
    return load_vae(path)


def pictures(*sizes):
    g = torch.Generator().manual_seed(1)
    return [torch.rand(b, 3, h, w, generator=g) * 2 - 1 for b, h, w in sizes]


def test_matches_comfyui(file, comfyui_oracle):
    """The oracle loads the same tensors strictly and normalises with ComfyUI's own constants."""
    vae = load_vae(file)
    images = pictures((1, 64, 64), (2, 48, 80), (1, 16, 128))
    latents = [torch.randn(i.shape[0], 16, i.shape[2] // 8, i.shape[3] // 8) for i in images]
    tensors = {f"w.{k}": v for k, v in random_vae_state(DIM, torch.Generator().manual_seed(0)).items()}
    for i, (image, latent) in enumerate(zip(images, latents)):
        tensors |= {f"image.{i}": image, f"latent.{i}": latent}
    theirs = comfyui_oracle("oracle_vae.py", tensors, dim=DIM, count=len(images))
    for i, (image, latent) in enumerate(zip(images, latents)):
        assert relative_error(vae.encode(image), theirs[f"latent.{i}"]) < 1e-5
        assert relative_error(vae.decode(latent), theirs[f"image.{i}"].clamp(-1, 1)) < 1e-5


def test_a_batch_is_its_pictures(file):
    vae = load_vae(file)
    (images,) = pictures((3, 32, 48))
    latents = vae.encode(images)
    assert latents.shape == (3, 16, 4, 6) and latents.dtype == torch.float32
    for i in range(3):
        assert relative_error(latents[i], vae.encode(images[i : i + 1])[0]) < 1e-5


def test_the_linear_vae_shows_the_picture(linear):
    """Smooth pictures come back; latents have about unit size, as the real ones have."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 96), indexing="ij")
    picture = torch.stack([x, y, -x])[None] * 0.9
    latents = linear.encode(picture)
    assert 0.4 < latents.std().item() < 1.5
    inner = (..., slice(12, -12), slice(12, -12))
    assert (linear.decode(latents)[inner] - picture[inner]).abs().mean() < 0.05


@pytest.mark.slow
def test_tiles_meet_without_a_seam(linear):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 768), torch.linspace(-1, 1, 640), indexing="ij")
    picture = torch.stack([x, y, x * y])[None] * 0.9
    whole, parts = linear.encode(picture, tile=0), linear.encode(picture, tile=384)
    assert (whole - parts).abs().max() < 0.02
    assert (linear.decode(whole, tile=0) - linear.decode(whole, tile=384)).abs().max() < 0.05
    assert torch.equal(linear.encode(picture, tile=768), whole)


@pytest.mark.parametrize("length, tile, overlap", [(104, 104, 24), (112, 104, 24), (1000, 128, 32), (1600, 1536, 256)])
def test_tiles_cover_everything_with_no_more_than_needed(length, tile, overlap):
    size, begins = spans(length, tile, overlap, unit=8)
    assert size <= tile and begins[0] == 0 and begins[-1] + size == length
    assert all(value % 8 == 0 for value in (size, *begins))
    assert all(a + size - b >= overlap for a, b in pairwise(begins))
    x = torch.randn(1, 1, length, 64)
    assert torch.allclose(tiled(lambda t: t * 2, x, tile, overlap, scale=1), x * 2, atol=1e-6)
    assert torch.allclose(tiled(lambda t: t[..., ::8, ::8], x, tile, overlap, scale=1 / 8), x[..., ::8, ::8], atol=1e-6)


def test_any_tile_size_is_usable(linear):
    """Tiles that are not multiples of 8 are made so."""
    (picture,) = pictures((1, 304, 520))
    latents = linear.encode(picture, tile=301)
    assert latents.shape == (1, 16, 38, 65) and relative_error(latents, linear.encode(picture, tile=0)) < 0.02
    with pytest.raises(SettingError, match="vae_tile=7: must be at least 256"):
        linear.encode(picture, tile=7)


def limit_memory(monkeypatch, vae, name, pixels):
    """Out of memory above so many picture pixels at once; the sizes tried come back."""
    function, tried, unit = getattr(vae, name), [], 1 if name == "_encode" else 8

    def limited(x):
        tried.append((len(x), max(x.shape[-2:]) * unit))
        if len(x) * x.shape[-2] * x.shape[-1] * unit**2 > pixels:
            raise torch.OutOfMemoryError("simulated")
        return function(x)

    monkeypatch.setattr(vae, name, limited)
    return tried


@pytest.mark.parametrize("name", ["encode", "decode"])
def test_out_of_memory_halves_the_batch_then_the_tile(linear, monkeypatch, name):
    (x,) = pictures((2, 512, 320)) if name == "encode" else [torch.randn(2, 16, 64, 40)]
    function = getattr(linear, name)
    whole = function(x, tile=0)
    tried = limit_memory(monkeypatch, linear, f"_{name}", 512 * 320)
    assert torch.allclose(function(x, tile=0), whole, atol=1e-5)
    assert tried == [(2, 512), (1, 512), (1, 512)]
    tried = limit_memory(monkeypatch, linear, f"_{name}", 300 * 300)
    assert function(x, tile=0).shape == whole.shape
    assert tried[:2] == [(2, 512), (1, 512)]
    assert tried[2:] == [(1, 216)] * 12  # of each picture 3 x 2 tiles: 3 x 216 px cover 512 with 64 shared


def test_too_little_memory_for_any_tile_is_said(linear, monkeypatch):
    limit_memory(monkeypatch, linear, "_encode", 100 * 100)
    with pytest.raises(RunError, match="out of memory on cpu even at 256 px"):
        linear.encode(*pictures((2, 512, 320)))


def test_works_inside_inference_mode(file):
    vae = load_vae(file)
    (image,) = pictures((1, 32, 48))
    with torch.inference_mode():
        latents = vae.encode(image)
        assert vae.decode(latents).shape == image.shape
    assert torch.equal(latents, vae.encode(image)) and not vae.encode(image).requires_grad


def test_random_weights_are_well_scaled(file):
    """Latents have about unit size; what is decoded is not clamped flat."""
    vae = load_vae(file)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 96), indexing="ij")
    latents = vae.encode(torch.stack([x, y, -x])[None] * 0.9)
    assert 0.5 < latents.std().item() < 1.5
    assert 0.1 < vae.decode(latents).std().item() < 0.9


def test_bf16_runs_and_answers_in_fp32(file):
    vae = load_vae(file, dtype=torch.bfloat16)
    (image,) = pictures((1, 32, 32))
    latents = vae.encode(image)
    assert latents.dtype == torch.float32
    assert relative_error(latents, load_vae(file).encode(image)) < 0.1


def test_odd_sizes_are_refused(linear):
    with pytest.raises(SettingError, match="multiples of 8"):
        linear.encode(torch.zeros(1, 3, 30, 32))


def test_files_that_are_not_this_vae(file, tmp_path):
    state = random_vae_state(DIM, torch.Generator().manual_seed(0))
    del state["decoder.middle.1.proj.weight"]
    save_file(state, tmp_path / "cut.safetensors")
    with pytest.raises(FileError, match=r"missing, first decoder\.middle\.1\.proj\.weight"):
        load_vae(tmp_path / "cut.safetensors")
    save_file({"encoder.conv_in.weight": torch.zeros(1), "decoder.mid_block.x": torch.zeros(1)}, tmp_path / "d.safetensors")
    with pytest.raises(FileError, match="another model's VAE: use qwen_image_vae.safetensors"):
        load_vae(tmp_path / "d.safetensors")


def test_damaged_and_foreign_files(file, tmp_path):
    (tmp_path / "short.safetensors").write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(FileError, match=r"short\.safetensors: truncated, 1,000 bytes are missing"):
        load_vae(tmp_path / "short.safetensors")
    state = random_vae_state(DIM, torch.Generator().manual_seed(0))
    state["conv2.weight"] = torch.zeros(48, 48, 1, 1, 1)
    save_file(state, tmp_path / "wan22.safetensors")
    with pytest.raises(FileError, match="48 latent channels; Anima needs 16"):
        load_vae(tmp_path / "wan22.safetensors")


def test_prefixed_files_load(file, tmp_path):
    state = random_vae_state(DIM, torch.Generator().manual_seed(0))
    save_file({f"first_stage_model.{k}": v for k, v in state.items()}, tmp_path / "p.safetensors")
    (image,) = pictures((1, 16, 16))
    assert torch.equal(load_vae(tmp_path / "p.safetensors").encode(image), load_vae(file).encode(image))

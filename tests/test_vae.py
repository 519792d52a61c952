"""The VAE: against ComfyUI's, tiled against whole, and its files."""

import pytest
import torch
from safetensors.torch import save_file

from anima_core.errors import FileError, SettingError
from anima_core.models.random_vae import linear_vae_state, random_vae_state
from anima_core.models.tiling import starts, tiled
from anima_core.models.vae import LATENT_MEAN, LATENT_STD, load_vae

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
    vae = load_vae(file)
    images = pictures((1, 64, 64), (2, 48, 80), (1, 16, 128))
    latents = [torch.randn(i.shape[0], 16, i.shape[2] // 8, i.shape[3] // 8) for i in images]
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (LATENT_MEAN, LATENT_STD))
    tensors = {f"w.{k}": v for k, v in random_vae_state(DIM, torch.Generator().manual_seed(0)).items()}
    for i, (image, latent) in enumerate(zip(images, latents)):
        tensors |= {f"image.{i}": image, f"latent.{i}": latent * std + mean}
    theirs = comfyui_oracle("oracle_vae.py", tensors, dim=DIM, count=len(images))
    for i, (image, latent) in enumerate(zip(images, latents)):
        assert relative_error(vae.encode(image), (theirs[f"z.{i}"] - mean) / std) < 1e-5
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


def test_tiles_meet_without_a_seam(linear):
    y, x = torch.meshgrid(torch.linspace(-1, 1, 768), torch.linspace(-1, 1, 640), indexing="ij")
    picture = torch.stack([x, y, x * y])[None] * 0.9
    whole, parts = linear.encode(picture, tile=0), linear.encode(picture, tile=384)
    assert (whole - parts).abs().max() < 0.02
    assert (linear.decode(whole, tile=0) - linear.decode(whole, tile=384)).abs().max() < 0.05
    assert torch.equal(linear.encode(picture, tile=768), whole)


@pytest.mark.parametrize("length, tile, overlap", [(100, 100, 20), (101, 100, 20), (1000, 128, 32), (192, 128, 64)])
def test_tiles_cover_everything(length, tile, overlap):
    begins = starts(length, tile, overlap)
    covered = torch.zeros(length)
    for begin in begins:
        covered[begin : begin + tile] += 1
    assert covered.min() >= 1 and begins[-1] + tile >= length
    x = torch.randn(1, 1, length, 64)
    assert torch.allclose(tiled(lambda t: t * 2, x, tile, overlap, scale=1), x * 2, atol=1e-6)


def test_out_of_memory_falls_back_to_smaller_tiles(linear, monkeypatch):
    encode, sizes = linear._encode, []

    def small_only(x):
        sizes.append(max(x.shape[-2:]))
        if sizes[-1] > 300:
            raise torch.OutOfMemoryError("simulated")
        return encode(x)

    (picture,) = pictures((1, 512, 512))
    whole = linear.encode(picture, tile=0)
    monkeypatch.setattr(linear, "_encode", small_only)
    assert linear.encode(picture, tile=0).shape == whole.shape
    assert sizes[0] == 512 and max(sizes[1:]) == 256


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
    with pytest.raises(FileError, match="diffusers VAE: use the ComfyUI file"):
        load_vae(tmp_path / "d.safetensors")


def test_prefixed_files_load(file, tmp_path):
    state = random_vae_state(DIM, torch.Generator().manual_seed(0))
    save_file({f"first_stage_model.{k}": v for k, v in state.items()}, tmp_path / "p.safetensors")
    (image,) = pictures((1, 16, 16))
    assert torch.equal(load_vae(tmp_path / "p.safetensors").encode(image), load_vae(file).encode(image))

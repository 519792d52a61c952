"""The grid of adapters, prompts and strengths: what is drawn, and how it is laid out."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image

from anima_core import cli
from anima_core.adapters.formats import adapter_state, save_adapter
from anima_core.adapters.network import AdapterNetwork, merge
from anima_core.errors import FileError, SettingError
from anima_core.grid.drawing import Grid, Named, draw
from anima_core.grid.saved import saved_adapters
from anima_core.grid.sheet import LABELS, sheet
from anima_core.models.transformer import load_transformer
from anima_core.settings import NetworkConfig, SampleConfig
from anima_core.settings.serial import to_dict
from anima_core.settings.toml_file import dump_toml
from anima_core.training.saves import STEP, Saves

from .tiny import train_config

SAMPLES = SampleConfig(prompts=("red circle, white background, drawing", "blue square"), width=64, height=80, steps=2, cfg=2.0)


def written_adapter(model, path, seed: int, **settings):
    """An adapter of random numbers, large enough to be seen."""
    network = AdapterNetwork.inject(load_transformer(model.transformer), NetworkConfig(rank=2, alpha=2.0, **settings), seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.5)
    save_adapter(path, adapter_state(network), {})
    return network


@pytest.fixture(scope="module")
def adapters(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    written_adapter(model, folder / "one.safetensors", 1)
    written_adapter(model, folder / "two.safetensors", 2, type="lokr", factor=4)
    return [Named(name, folder / f"{name}.safetensors") for name in ("one", "two")]


@pytest.fixture(scope="module")
def drawn(model, adapters):
    grid, steps = Grid(model, adapters, SAMPLES, (0.0, 0.5, 1.0), "cpu"), []
    grid.check()
    return grid, draw(grid, lambda done, total: steps.append((done, total))), steps


def pixels(picture) -> np.ndarray:
    return np.asarray(picture).astype(int)


def test_every_adapter_has_every_prompt_at_every_strength(drawn):
    grid, cells, steps = drawn
    assert cells.keys() == {(a, p, s) for a in (0, 1) for p in (0, 1) for s in (0.0, 0.5, 1.0)}
    assert all(picture.size == (64, 80) for picture in cells.values())
    assert len(grid.cells()) == 10, "the base model is drawn once"
    assert steps == [(done, 20) for done in range(1, 21)]
    assert (pixels(cells[0, 0, 0.0]) == pixels(cells[1, 0, 0.0])).all()
    ways = [pixels(cells[a, 0, s]).tobytes() for a, s in ((0, 0.0), (0, 0.5), (0, 1.0), (1, 0.5), (1, 1.0))]
    assert len(set(ways)) == 5


def test_a_cell_is_what_a_model_with_the_adapter_in_its_weights_draws(drawn, model, tmp_path):
    """The slow way: the correction times the strength is added to the weights of a model, and this one's base is drawn."""
    grid, cells, _ = drawn
    from safetensors.torch import load_file, save_file

    network = written_adapter(model, tmp_path / "again.safetensors", 1)
    merged = merge(network, 0.5).state_dict()
    file = load_file(model.transformer)
    prefix = next(key for key in file if key.endswith("x_embedder.proj.1.weight")).removesuffix("x_embedder.proj.1.weight")
    save_file(
        {key: merged.get(key.removeprefix(prefix), old).contiguous() for key, old in file.items()}, tmp_path / "m.safetensors"
    )
    models = dataclasses.replace(model, transformer=str(tmp_path / "m.safetensors"))
    base = draw(Grid(models, grid.adapters[:1], SAMPLES, (0.0,), "cpu"))
    for prompt in (0, 1):
        assert abs(pixels(base[0, prompt, 0.0]) - pixels(cells[0, prompt, 0.5])).max() <= 1
    assert abs(pixels(base[0, 0, 0.0]) - pixels(cells[0, 0, 0.0])).max() > 1


def test_a_sheet_has_a_row_for_each_adapter_and_a_column_for_each_prompt_and_strength(adapters):
    grid = Grid(None, adapters, SAMPLES, (0.0, 1.0))
    colours = {cell: (40 * cell[0] + 10, 100 * cell[1] + 20, int(200 * cell[2]) + 30) for cell in every(grid)}
    cells = {cell: Image.new("RGB", (200, 100), colour) for cell, colour in colours.items()}
    page = sheet(grid, cells, side=100)
    assert page.width == LABELS + 4 * 108 and page.height > 2 * 58
    found = {page.getpixel((LABELS + 50 + 108 * column, page.height - 33 - 58 * row)) for row in (0, 1) for column in range(4)}
    assert found == set(colours.values()), "each is there, at half its size"
    with_other = sheet(Grid(None, [Named("other", adapters[0].path), adapters[1]], SAMPLES, (0.0, 1.0)), cells, side=100)
    assert with_other.tobytes() != page.tobytes(), "the labels are written"


def every(grid):
    return [(a, p, s) for a in range(len(grid.adapters)) for p in range(len(SAMPLES.prompts)) for s in grid.strengths]


def test_what_a_run_has_saved_is_found_also_where_it_was_moved(adapters, model, tmp_path):
    run = tmp_path / "style-run"
    run.mkdir()
    config = train_config(model, tmp_path, tmp_path / "elsewhere")
    (run / "config.toml").write_text(dump_toml(to_dict(config)), encoding="utf-8")
    for step in (200, 100, 300):
        path = tmp_path / f"style-step{step:08d}.safetensors"
        path.write_bytes(adapters[0].path.read_bytes())
        Saves(run, "adapters").add(path, step, STEP)
    path.unlink()
    assert [adapter.label for adapter in saved_adapters(run)] == ["step 100", "step 200"]
    (tmp_path / "style.safetensors").write_bytes(b"")
    assert [adapter.label for adapter in saved_adapters(run)] == ["step 100", "step 200", "style"]


def test_the_command_draws_a_runs_adapters_with_its_own_models(adapters, model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "style-run"
    run.mkdir()
    config = dataclasses.replace(train_config(model, tmp_path, tmp_path), samples=SAMPLES)
    (run / "config.toml").write_text(dump_toml(to_dict(config)), encoding="utf-8")
    (run / "log.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "style.safetensors").write_bytes(adapters[0].path.read_bytes())
    flags = ["--sample_prompts", "red circle", "--sample_steps", "1", "--sample_sampler", "er_sde", "--device", "cpu"]
    assert cli.main(["grid", "style-run", str(adapters[1].path), "--strengths", "0", "1", *flags]) == 0
    assert "2 adapters, 1 prompts, 2 strengths: 3 pictures" in capsys.readouterr().out
    with Image.open("grid.png") as page:
        assert page.width == LABELS + 2 * 104
    assert cli.main(["grid", "style-run", *flags]) == 2 and "grid.png: is there already" in capsys.readouterr().err
    assert cli.main(["grid", "style-run", "--output", "a.png", "--sample_sampler", "ddim"]) == 2
    assert "--sample_sampler=ddim: must be one of euler" in capsys.readouterr().err
    assert cli.main(["grid", str(adapters[1].path), "--output", "a.png", *flags]) == 2
    assert "--anima_transformer, --vae, --qwen, --t5_tokenizer_dir: not named" in capsys.readouterr().err


def test_what_cannot_be_drawn_is_refused_before_anything_loads(adapters, model, tmp_path):
    grid = Grid(model, adapters, SAMPLES)
    for change, message in (
        ({"adapters": []}, "no adapter"),
        ({"samples": SampleConfig()}, "there is none to draw"),
        ({"strengths": ()}, "strengths: there is none"),
        ({"strengths": (1.0, float("nan"))}, "strengths: 1.0, nan; give numbers"),
        ({"strengths": tuple(n / 1000 for n in range(1000))}, "pictures; at most 500 are drawn"),
    ):
        with pytest.raises(SettingError, match=message):
            dataclasses.replace(grid, **change).check()
    with pytest.raises(FileError):
        dataclasses.replace(grid, adapters=[Named("gone", tmp_path / "gone.safetensors")]).check()

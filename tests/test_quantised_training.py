"""Runs on quantised files: planned and resumed as others, and their adapters worth the same on the float model."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anima_core.demo.pictures import write_pictures
from anima_core.errors import Interrupted
from anima_core.settings import ModelConfig, NetworkConfig, OptimizerConfig, OutputConfig, SampleConfig
from anima_core.training import loop
from anima_core.training.forecast import forecast_on
from anima_core.training.loop import train

from .quantised import linears, quantised, write
from .tiny import same_tensors, train_config

pytestmark = pytest.mark.slow
MARGIN = 0.02  # of a loss that falls by a tenth or more


def on(model: ModelConfig, path: Path) -> ModelConfig:
    return replace(model, transformer=str(path))


@pytest.mark.parametrize("kind", ["int8 ConvRot (groups of 64)", "nvfp4"])
def test_a_run_is_planned_draws_previews_and_goes_on_exactly(model, tmp_path, kind):
    path = write(tmp_path / "base.safetensors", quantised(load_file(model.transformer), kind)[0])
    write_pictures(tmp_path / "pics", 2)
    samples = SampleConfig(prompts=("red",), width=64, height=64, steps=1, every_n_steps=2)

    def config(name: str, resume: str = ""):
        output = OutputConfig(str(tmp_path / name), "test", save_dtype="fp32", resume=resume)
        changes = {"samples": samples, "memory": "auto", "memory_gb": 8.0, "max_train_steps": 4}
        return train_config(on(model, path), tmp_path / "pics", tmp_path / name, output=output, **changes)

    whole = train(config("whole"))
    with pytest.raises(Interrupted):
        train(config("parts"), lambda event: "cancel" if event["event"] == "step" and event["step"] == 2 else None)
    resumed = train(config("parts", "latest"))
    assert resumed.losses == whole.losses
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))
    assert len(list((whole.run_dir / "samples").glob("*.png"))) == 2


@pytest.mark.parametrize("kind", ["fp8 scaled (float8_e4m3fn)", "int8 ConvRot (groups of 64)", "nvfp4"])
def test_it_is_planned_for_as_what_it_is(model, tmp_path, kind):
    """What stays in memory is counted alike from the file and from the loaded model, and is less than of floats."""
    state = load_file(model.transformer)
    write_pictures(tmp_path / "pics", 2)

    def resident(path: Path) -> tuple[float, float]:
        config = train_config(on(model, path), tmp_path / "pics", tmp_path / path.stem, memory="auto", memory_gb=8.0)
        with loop.opened(config) as run:
            return run.fit.budget.resident, forecast_on(run.fit.counter, 12e9, on_card=False)[0].resident

    live, away = resident(write(tmp_path / "quantised.safetensors", quantised(state, kind)[0]))
    floats, _ = resident(write(tmp_path / "floats.safetensors", state))
    assert away == pytest.approx(live, rel=0.01)
    saved = sum(state[f"{name}.weight"].numel() for name in linears(state)) * 4
    assert 0.65 * saved < floats - live < 0.95 * saved


def fp8_of(weight: torch.Tensor) -> dict[str, torch.Tensor]:
    scale = weight.abs().amax() / 448
    return {"weight": (weight / scale).to(torch.float8_e4m3fn), "weight_scale": scale}


def test_an_adapter_of_a_quantised_base_is_worth_the_same_on_the_float_model(model, tmp_path):
    """Measured there: the loss of the two adapters, trained on fp8 and on the floats, and of none."""
    floats = load_file(model.transformer)
    fp8 = {name: tensor for name, tensor in floats.items() if name.removesuffix(".weight") not in linears(floats)}
    for name in linears(floats):
        fp8 |= {f"{name}.{part}": tensor for part, tensor in fp8_of(floats[f"{name}.weight"]).items()}
    path = write(tmp_path / "fp8.safetensors", fp8)
    write_pictures(tmp_path / "pics", 12)
    network = NetworkConfig(rank=16, alpha=16, targets="+adaln+embedders")

    def run(name: str, models: ModelConfig, steps: int, rate: float, weights: str = ""):
        changes = {"network": replace(network, weights=weights), "optimizer": OptimizerConfig(learning_rate=rate)}
        output = OutputConfig(str(tmp_path / name), "test", save_dtype="fp32")
        cache = str(tmp_path / "cache")
        return train(
            train_config(models, tmp_path / "pics", tmp_path, output=output, cache_dir=cache, max_train_steps=steps, **changes)
        )

    def worth(name: str, weights: str = "") -> float:
        return sum(run(f"measured-{name}", model, 20, 1e-12, weights).losses) / 20

    ours = run("fp8", on(model, path), 90, 4e-3).adapter_path
    theirs = run("floats", model, 90, 4e-3).adapter_path
    none, on_fp8, on_floats = worth("none"), worth("fp8", str(ours)), worth("floats", str(theirs))
    assert on_floats < 0.9 * none, "there is something to learn"
    assert on_fp8 == pytest.approx(on_floats, rel=MARGIN)

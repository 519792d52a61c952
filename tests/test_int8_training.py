"""A run on a base of 8 bits: it learns as on the floats, goes on exactly, and its gradients point the same way."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.pictures import write_pictures
from anima_core.demo.random_transformer import TINY, write_random_transformer
from anima_core.errors import Interrupted
from anima_core.models.checkpoint import read_metadata
from anima_core.models.frozen import frozen_linears
from anima_core.models.kept import left_plain, store_for
from anima_core.models.transformer import load_transformer, meta_transformer
from anima_core.settings import ModelConfig, NetworkConfig, OptimizerConfig, OutputConfig, SampleConfig
from anima_core.speed import probe
from anima_core.speed.costs import empty_twin
from anima_core.speed.probe import weights_proven
from anima_core.training.loop import train
from anima_core.training.storage import in_8_bits

from .tiny import model_config, same_tensors, train_config

pytestmark = pytest.mark.slow

BLOCKS = 4  # the outer two stay floats
MARGIN = 0.02  # of a loss that falls by a quarter


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> ModelConfig:
    models = model_config(tmp_path_factory.mktemp("models"))
    write_random_transformer(models.transformer, dataclasses.replace(TINY, blocks=BLOCKS), dtype=torch.bfloat16)
    return dataclasses.replace(models, dtype="int8")


def in_int8(base: ModelConfig):
    return load_transformer(base.transformer, store=store_for("int8", BLOCKS, "cpu"))


def test_which_weights_are_in_8_bits_and_what_is_planned_for(base):
    model = in_int8(base)
    kept = dict(frozen_linears(model))
    assert len(kept) == 2 * 10 and {name.split(".")[1] for name in kept} == {"1", "2"}
    assert {layer.stored.kind for layer in kept.values()} == {"int8"}
    planned = meta_transformer(base.transformer, torch.float32, store_for("int8", BLOCKS, "meta"))
    sizes = {name: layer.stored.bytes for name, layer in kept.items()}
    for twin in (planned, empty_twin(model)):
        assert {name: layer.stored.bytes for name, layer in frozen_linears(twin)} == sizes
        assert all(tensor.is_meta for tensor in (*twin.parameters(), *twin.buffers()))
    plain = sum(p.nbytes for p in load_transformer(base.transformer).parameters())
    assert sum(sizes.values()) + sum(p.nbytes for p in model.parameters()) < plain - 2.9 * sum(map(numbers, kept.values()))


def test_a_weight_that_8_bits_would_spoil_is_counted_and_left(base, tmp_path):
    state = load_file(base.transformer)
    for number in (0, 1):
        state[f"net.blocks.{number}.mlp.layer1.weight"][::3, ::7] *= 40
    save_file(state, tmp_path / "spoilt.safetensors")
    model = in_int8(dataclasses.replace(base, transformer=str(tmp_path / "spoilt.safetensors")))
    assert len(dict(frozen_linears(model))) == 19 and left_plain(model, BLOCKS) == 1, (
        "that of an outer block would have stayed anyway"
    )
    assert "int8: 19 layers; 1 are left as they are" in in_8_bits(model)


def test_weights_that_a_device_writes_otherwise_are_made_plain_and_that_is_said(base, tmp_path, monkeypatch):
    assert weights_proven(in_int8(base)) == "" == weights_proven(load_transformer(base.transformer))
    write_pictures(tmp_path / "pics", 2)
    monkeypatch.setattr(probe, "weight_difference", lambda stored, like: 0.5)
    told: list[tuple[str, str]] = []
    config = train_config(base, tmp_path / "pics", tmp_path, max_train_steps=1)
    result = train(config, lambda event: told.append((event["event"], event.get("text", ""))) if "text" in event else None)
    said = [text for kind, text in told if kind == "warning" and "made plain numbers" in text]
    assert said == ["cpu: weights are made plain numbers, which takes more memory: int8 differs by 5.0e-01 from its plain form"]
    assert read_metadata(result.adapter_path)["ss_base_quantization"] == "none"


def numbers(layer) -> int:
    return layer.stored.shape.numel()


@pytest.mark.parametrize("network", [NetworkConfig(rank=4, alpha=4), NetworkConfig(type="lokr", rank=4, alpha=4, factor=8)])
def test_a_run_that_goes_on_is_exact_and_draws_previews(base, tmp_path, network):
    write_pictures(tmp_path / "pics", 2)
    samples = SampleConfig(prompts=("red",), width=64, height=64, steps=1, every_n_steps=2)

    def config(name: str, resume: str = ""):
        output = OutputConfig(str(tmp_path / name), "test", save_dtype="fp32", resume=resume)
        changes = {"network": network, "samples": samples, "memory": "auto"}
        return train_config(base, tmp_path / "pics", tmp_path / name, output=output, max_train_steps=4, **changes)

    notes: list[str] = []
    whole = train(config("whole"), lambda event: notes.append(event["text"]) if event["event"] == "note" else None)
    assert "`model.dtype`=int8: int8: 20 layers" in notes
    assert whole.adapter_path and read_metadata(whole.adapter_path)["ss_base_quantization"] == "int8"
    with pytest.raises(Interrupted):
        train(config("parts"), lambda event: "cancel" if event["event"] == "step" and event["step"] == 2 else None)
    resumed = train(config("parts", "latest"))
    assert resumed.losses == whole.losses
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))
    assert len(list((whole.run_dir / "samples").glob("*.png"))) == 2


def test_its_gradients_are_those_of_the_floats_but_for_the_rounding(base):
    """Of every adapter together: cosine 0.999, as is asked for."""

    def gradient(model) -> torch.Tensor:
        network = AdapterNetwork.inject(model, NetworkConfig(rank=4, alpha=4), 0)
        torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.data.normal_(std=0.05)
        inputs = torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.7]), torch.randn(2, 512, 64)
        model(*inputs).square().mean().backward()
        return torch.cat([parameter.grad.flatten() for parameter in network.parameters()])

    ours, theirs = gradient(in_int8(base)), gradient(load_transformer(base.transformer))
    cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=0).item()
    assert 0.999 < cosine < 1


def test_it_learns_as_on_the_floats_over_three_seeds(base, tmp_path):
    """The mean loss of the last third of 90 steps, beside that of fp32: within 2 %."""
    write_pictures(tmp_path / "pics", 12)
    optimizer = OptimizerConfig(learning_rate=4e-3)
    network = NetworkConfig(rank=16, alpha=16, targets="+adaln+embedders")

    def losses(dtype: str, seed: int) -> list[float]:
        models = dataclasses.replace(base, dtype=dtype)
        output = OutputConfig(str(tmp_path / f"{dtype}-{seed}"), "test")
        changes = {"network": network, "optimizer": optimizer, "seed": seed, "cache_dir": str(tmp_path / "cache")}
        return train(train_config(models, tmp_path / "pics", tmp_path, output=output, max_train_steps=90, **changes)).losses

    for seed in (1, 2, 3):
        floats, ints = losses("fp32", seed), losses("int8", seed)
        first, last = (sum(floats[part]) / 30 for part in (slice(30), slice(60, 90)))
        ours = sum(ints[60:]) / 30
        assert last < 0.9 * first, "there is something to learn"
        assert ours == pytest.approx(last, rel=MARGIN)

"""Tiny models and settings that tests share: real files, random weights, seconds to train."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

from anima_core.adapters.adapter_type import Layer
from anima_core.adapters.dropouts import Dropouts
from anima_core.adapters.formats import load_into
from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.models import write_models
from anima_core.demo.pictures import COLOURS, GROUNDS, SHAPES, caption_of
from anima_core.models.transformer import AnimaTransformer, load_transformer
from anima_core.settings import (
    DatasetConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    SubsetConfig,
    TrainConfig,
)
from anima_core.training.events import Events, Listener
from anima_core.training.loop import Run, TrainResult, opened
from anima_core.training.preflight import preflight
from anima_core.training.prepare import TrainingData, cache_data, with_embeddings
from anima_core.training.ranks import Ranks

CORPUS = [caption_of(c, s, g) for c in COLOURS for s in SHAPES for g in GROUNDS]


def model_config(folder: Path) -> ModelConfig:
    paths = write_models(folder, CORPUS)
    return ModelConfig(
        transformer=str(paths["anima_transformer"]),
        vae=str(paths["vae"]),
        qwen=str(paths["qwen"]),
        t5_tokenizer_dir=str(paths["t5_tokenizer_dir"]),
    )


def train_config(model: ModelConfig, pictures: Path, folder: Path, **changes) -> TrainConfig:
    """A short CPU run; `changes` replace fields of TrainConfig, `subset` and `dataset` those of the data's."""
    subset = SubsetConfig(image_dir=str(pictures), **changes.pop("subset", {}))
    dataset = dict(resolutions=((64, 64),), batch_size=2, min_bucket_reso=32, bucket_reso_steps=16) | changes.pop("dataset", {})
    base = TrainConfig(
        model=model,
        datasets=(DatasetConfig((subset,), **dataset),),
        network=NetworkConfig(rank=4, alpha=4),
        optimizer=OptimizerConfig(learning_rate=2e-3),
        output=OutputConfig(dir=str(folder), name="test", save_dtype="fp32"),
        max_train_steps=6,
        memory="keep",
        device="cpu",
        cache_dir=str(folder / "cache"),
    )
    return dataclasses.replace(base, **changes)


def write(folder: Path, name: str, size=(64, 48), colour="red", caption: str | None = "a tag", **save) -> Path:
    """A picture of one colour, and its caption unless that is None."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(folder / name, **save)
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")
    return folder / name


def dataset(folder: Path, **changes) -> DatasetConfig:
    """One folder; `changes` are fields of the subset or the dataset."""
    subset = {k: changes.pop(k) for k in list(changes) if k in SubsetConfig.__dataclass_fields__}
    return DatasetConfig((SubsetConfig(image_dir=str(folder), **subset),), **changes)


def prepared(config: TrainConfig, adapter: Path | None = None) -> tuple[TrainingData, AnimaTransformer, AdapterNetwork]:
    """What a run trains on, its model, and its network, which starts from an adapter file when there is one."""
    plan, events, ranks = preflight(config), Events(None), Ranks()
    cached = cache_data(plan, events, ranks)
    model = load_transformer(config.model.transformer)
    network = AdapterNetwork.inject(model, config.network, 0)
    if adapter is not None:
        load_into(network, adapter)
    data = with_embeddings(plan, cached, model, events, ranks)
    events.close()
    return data, model, network


def train_changed(config: TrainConfig, change: Callable[[Run], object], on_event: Listener | None = None) -> TrainResult:
    """Train after `change` has replaced something of the run that is ready for its first step."""
    with opened(config, on_event) as run:
        change(run)
        return run.go()


def layer(inputs: int, outputs: int, rank: int, dropouts: Dropouts | None = None) -> Layer:
    """A linear layer as an adapter's type sees it; without dropouts, its initial values seeded by 0."""
    return Layer(inputs, outputs, rank, 0, dropouts or Dropouts(0, 0, 0, 0), torch.Generator().manual_seed(0))


def same_tensors(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

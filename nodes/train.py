"""The training node: settings from the sockets, a run, its results back into the graph."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
from comfy_api.latest import io

from ..anima_core.adapters.from_file import network_to_continue
from ..anima_core.files import safe_name
from ..anima_core.models.transformer import check_transformer
from ..anima_core.settings import (
    DatasetConfig,
    FlowConfig,
    HeldOutConfig,
    MetadataConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    PriorConfig,
    SampleConfig,
    TrainConfig,
)
from . import returned, types
from .node import AnimaNode
from .running import UNFINISHED, model_input, outputs, run_in_graph, unfinished_input
from .store import loras_folder, store_folder
from .widgets import Widget, inputs, settings_from, widget

MEMORY = {
    "auto": "auto",
    "recompute (least memory)": "recompute",  # graphs hold the words: they stay, although offload takes less
    "keep activations (fastest)": "keep",
    "offload (least of all)": "offload",
}

SOCKETS = (
    types.Transformer.Input("transformer", tooltip="The Anima model to train on."),
    types.VAE.Input("vae", tooltip="The Qwen-Image VAE."),
    types.Qwen.Input("qwen", tooltip="The Qwen3-0.6B text encoder."),
    types.T5Tokenizer.Input("t5_tokenizer", tooltip="The T5 tokenizer."),
    types.Dataset.Input("dataset", tooltip="Captioned pictures."),
    types.Network.Input("network", tooltip="The type and size of the adapter."),
    types.Optimizer.Input("optimizer", tooltip="How the adapter learns."),
)
OPTIONAL = (
    types.Samples.Input("samples", optional=True, tooltip="Preview pictures while training."),
    types.Metadata.Input("metadata", optional=True, tooltip="What the adapter file says about itself."),
    types.Speed.Input("speed", optional=True, tooltip="Ways to be faster, or smaller."),
    types.HeldOut.Input("held_out", optional=True, tooltip="Pictures that are only measured, never trained."),
    types.Prior.Input("prior", optional=True, tooltip="What the base model draws and the adapter leaves as it is."),
    types.Flow.Input("flow", optional=True, tooltip="How noise is drawn, and how the loss is weighed."),
)
LENGTH = (
    widget("steps", TrainConfig, "max_train_steps", min=1, max=1_000_000),
    widget("batch_size", DatasetConfig, max=256),
    widget("accumulation", TrainConfig, "gradient_accumulation_steps", max=256, advanced=True),
    widget("seed", TrainConfig, control_after_generate=False, max=0x7FFFFFFFFFFFFFFF),
    widget(
        "output_name",
        OutputConfig,
        "name",
        default="my_anima_lora",
        why="one file among all others of models/loras",
        tooltip="File name in models/loras; -2, -3 … is added if it is taken.",
    ),
    widget("memory", TrainConfig, words=MEMORY),
)
LEARNING = (
    widget("timestep_sampling", FlowConfig, advanced=True),
    widget("flow_shift", FlowConfig, "shift", min=0.1, max=10.0, step=0.1, advanced=True),
    widget("loss", FlowConfig, advanced=True),
    widget("ema_decay", TrainConfig, max=0.9999, step=0.001, advanced=True),
    widget(
        "checkpoint_every",
        OutputConfig,
        "checkpoint_every_n_steps",
        default=250,
        why="a server may be killed at any time; a command line asks for what it wants",
        max=100000,
        advanced=True,
    ),
)
FILE = (
    widget("save_precision", OutputConfig, "save_dtype", options=["bf16", "fp16", "fp32"], advanced=True),
    widget("strict", TrainConfig, "strict_data", advanced=True),
    widget("memory_gb", TrainConfig, max=1000.0, step=0.5, advanced=True),
)


class AnimaTrain(AnimaNode):
    widgets = (*LENGTH, *LEARNING, *FILE)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTrain",
            display_name="Train Anima Adapter",
            category=types.TRAINING,
            description="Trains the adapter, saves it into models/loras and hands it on. The same inputs are never trained "
            "twice; Cancel saves the state first.",
            search_aliases=[
                *("train lora", "train lokr", "anima lora", "anima train", "training", "fine tune", "finetune", "fine-tuning"),
                *("lora 训练", "训练 lora", "微调"),
            ],
            is_output_node=True,
            inputs=[
                *SOCKETS,
                *inputs([*LENGTH, *LEARNING]),
                unfinished_input(),
                *inputs(FILE),
                model_input(),
                *OPTIONAL,
            ],
            outputs=outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, **others: Any) -> int:
        return returned.changes()

    @classmethod
    def run(cls, unfinished: str = UNFINISHED[0], model: Any = None, **given: Any) -> io.NodeOutput:
        return run_in_graph(train_config(cls.widgets, **given), model, unfinished, cls.workflow())


def train_config(
    widgets: Sequence[Widget],
    dataset: tuple[DatasetConfig, ...],
    network: NetworkConfig,
    optimizer: OptimizerConfig,
    samples: SampleConfig | None = None,
    metadata: MetadataConfig | None = None,
    speed: dict[str, Any] | None = None,
    held_out: HeldOutConfig | None = None,
    prior: PriorConfig | None = None,
    flow: dict[str, Any] | None = None,
    **given: Any,
) -> TrainConfig:
    """Return the run that a node's links and widgets ask for, in the folders of this server. Raises SettingError, FileError."""
    output = settings_from(widgets, given, OutputConfig)
    folders = {"dir": str(store_folder()), "adapter_dir": str(loras_folder())}
    batch = settings_from(widgets, given, DatasetConfig)
    if network.weights:  # its node did not know how many blocks the model has
        network, _ = network_to_continue(network, network.weights, check_transformer(given["transformer"].path).blocks)
    return TrainConfig(
        model=models(**given),
        datasets=tuple(dataclasses.replace(d, **batch) for d in dataset),
        network=network,
        optimizer=optimizer,
        flow=FlowConfig(**(settings_from(widgets, given, FlowConfig) | (flow or {}))),
        samples=samples or SampleConfig(),
        metadata=metadata or MetadataConfig(),
        held_out=held_out or HeldOutConfig(),
        prior=prior or PriorConfig(),
        output=OutputConfig(**(output | folders | {"name": safe_name(output["name"])})),
        device=str(mm.get_torch_device()),
        cache_dir=str(store_folder() / "cache"),
        **settings_from(widgets, given, TrainConfig),
        **(speed or {}),
    )


def models(
    transformer: types.ModelFile, vae: types.ModelFile, qwen: types.ModelFile, t5_tokenizer: types.ModelFile, **others: Any
) -> ModelConfig:
    own = {"dtype": transformer.dtype, "llm_adapter": transformer.llm_adapter}
    return ModelConfig(transformer.path, vae.path, qwen.path, t5_tokenizer.path, **own)


NODES: list[type[io.ComfyNode]] = [AnimaTrain]

"""The training node: settings from the sockets, a run, its results back into the graph."""

import dataclasses

import comfy.model_management as mm
from comfy_api.latest import io

from ..anima_core.config import (
    LOSSES,
    TIMESTEP_SAMPLINGS,
    FlowConfig,
    ModelConfig,
    OutputConfig,
    SampleConfig,
    TrainConfig,
)
from . import runs, types
from .names import loras_folder, safe_name
from .running import outputs, run_in_graph, unfinished_input

MEMORY = ["auto", "recompute (least memory)", "keep activations (fastest)"]


class AnimaTrain(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTrain",
            display_name="Train Anima Adapter",
            category=types.CATEGORY,
            description="Trains the adapter, saves it into models/loras and hands it on. The same inputs are never trained "
            "twice; Cancel saves the state first.",
            search_aliases=["train lora", "train lokr", "anima lora"],
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.Transformer.Input("transformer", tooltip="The Anima model to train on."),
                types.VAE.Input("vae", tooltip="The Qwen-Image VAE."),
                types.Qwen.Input("qwen", tooltip="The Qwen3-0.6B text encoder."),
                types.T5Tokenizer.Input("t5_tokenizer", tooltip="The T5 tokenizer."),
                types.Dataset.Input("dataset", tooltip="Captioned pictures."),
                types.Network.Input("network", tooltip="LoRA or LoKr."),
                types.Optimizer.Input("optimizer", tooltip="How it learns."),
                io.Int.Input("steps", default=1000, min=1, max=1000000, tooltip="Optimizer steps. 1000 to 2000 for most sets."),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=256, tooltip="Pictures at once. More is steadier and takes more memory."
                ),
                io.Int.Input(
                    "accumulation",
                    default=1,
                    min=1,
                    max=256,
                    advanced=True,
                    tooltip="Batches per step: a larger batch without memory.",
                ),
                io.Int.Input(
                    "seed",
                    default=42,
                    control_after_generate=False,
                    min=0,
                    max=0x7FFFFFFFFFFFFFFF,
                    tooltip="Every random draw follows from it.",
                ),
                io.String.Input(
                    "output_name", default="my_anima_lora", tooltip="File name in models/loras; -2, -3 … is added if taken."
                ),
                io.Combo.Input(
                    "memory",
                    options=MEMORY,
                    default=MEMORY[0],
                    tooltip="auto recomputes activations unless the card has plenty of room.",
                ),
                io.Combo.Input(
                    "timestep_sampling",
                    options=list(TIMESTEP_SAMPLINGS),
                    default="logit_normal",
                    advanced=True,
                    tooltip="logit_normal is the model author's recipe. shift favours noisy steps: composition over detail.",
                ),
                io.Float.Input(
                    "flow_shift",
                    default=1.0,
                    min=0.1,
                    max=10.0,
                    step=0.1,
                    advanced=True,
                    tooltip="For timestep_sampling = shift.",
                ),
                io.Combo.Input(
                    "loss", options=list(LOSSES), default="mse", advanced=True, tooltip="mse unless pictures are faulty."
                ),
                io.Float.Input(
                    "ema_decay",
                    default=0.0,
                    min=0.0,
                    max=0.9999,
                    step=0.001,
                    advanced=True,
                    tooltip="Average of the adapter over steps; 0 is off.",
                ),
                io.Int.Input(
                    "checkpoint_every",
                    default=250,
                    min=0,
                    max=100000,
                    advanced=True,
                    tooltip="Steps between checkpoints; one is also written every ten minutes and on every way out.",
                ),
                unfinished_input(),
                io.Combo.Input(
                    "save_precision",
                    options=["bf16", "fp16", "fp32"],
                    default="bf16",
                    advanced=True,
                    tooltip="Of the saved file.",
                ),
                io.Boolean.Input(
                    "strict",
                    default=False,
                    optional=True,  # prompts that were saved before it was there still run
                    advanced=True,
                    tooltip="Problems in the data end the run before it begins, instead of being counted.",
                ),
                io.Model.Input("model", optional=True, tooltip="A loaded Anima model: comes out with the adapter applied."),
                types.Samples.Input("samples", optional=True, tooltip="Preview pictures while training."),
            ],
            outputs=outputs(),
        )

    @classmethod
    def execute(
        cls,
        transformer: types.ModelFile,
        vae: types.ModelFile,
        qwen: types.ModelFile,
        t5_tokenizer: types.ModelFile,
        dataset: tuple,
        network,
        optimizer,
        steps: int,
        batch_size: int,
        accumulation: int,
        seed: int,
        output_name: str,
        memory: str,
        timestep_sampling: str,
        flow_shift: float,
        loss: str,
        ema_decay: float,
        checkpoint_every: int,
        unfinished: str,
        save_precision: str,
        strict: bool = False,
        model=None,
        samples: SampleConfig | None = None,
    ) -> io.NodeOutput:
        config = TrainConfig(
            model=ModelConfig(transformer.path, vae.path, qwen.path, t5_tokenizer.path, dtype=transformer.dtype),
            datasets=tuple(dataclasses.replace(d, batch_size=batch_size) for d in dataset),
            network=network,
            optimizer=optimizer,
            flow=FlowConfig(timestep_sampling=timestep_sampling, shift=flow_shift, loss=loss),
            samples=samples or SampleConfig(),
            output=OutputConfig(
                dir=str(runs.store_folder()),
                name=safe_name(output_name),
                adapter_dir=str(loras_folder()),
                save_dtype=save_precision,
                checkpoint_every_n_steps=checkpoint_every,
            ),
            max_train_steps=steps,
            gradient_accumulation_steps=accumulation,
            gradient_checkpointing=recompute(memory),
            ema_decay=ema_decay,
            seed=seed,
            device=str(mm.get_torch_device()),
            cache_dir=str(runs.store_folder() / "cache"),
            strict_data=strict,
        )
        return run_in_graph(config, model, cls.hidden.unique_id, unfinished)


def recompute(memory: str) -> bool:
    """Whether blocks are recomputed in backward: a 1024 px step needs about 15 GB without (reference: performance §5.5)."""
    if memory == MEMORY[0]:
        return mm.get_total_memory(mm.get_torch_device()) < 20e9
    return memory == MEMORY[1]

"""The training nodes: settings from the sockets, a run, its results back into the graph."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from PIL import Image
from safetensors.torch import load_file

from ..anima_core.compat.arguments import config_from_file
from ..anima_core.config import (
    LOSSES,
    TIMESTEP_SAMPLINGS,
    FlowConfig,
    ModelConfig,
    OutputConfig,
    SampleConfig,
    TrainConfig,
)
from ..anima_core.errors import AnimaError, Interrupted, SettingError
from ..anima_core.training.loop import train
from ..anima_core.training.preflight import preflight
from . import bridge, runs, types
from .adapters import apply_adapter
from .datasets import folder_state
from .names import loras_folder, safe_name
from .roots import allowed, check_config, user_path

UNFINISHED = ("continue", "start over")
NO_RUN = "(none)"
MEMORY = ["auto", "recompute (least memory)", "keep activations (fastest)"]


def outputs() -> list[io.Output]:
    return [
        types.LoraModel.Output(display_name="lora", tooltip="The adapter, for Load LoRA Model or Save LoRA."),
        io.Model.Output(display_name="model", tooltip="The model input with the adapter applied, for KSampler."),
        types.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
        io.Image.Output(display_name="samples", tooltip="The last preview pictures."),
        io.String.Output(display_name="path", tooltip="The adapter file in models/loras."),
    ]


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
                io.Combo.Input(
                    "unfinished",
                    options=list(UNFINISHED),
                    default=UNFINISHED[0],
                    advanced=True,
                    tooltip="A run of these inputs that was cancelled, stopped or cut off: go on from its last checkpoint?",
                ),
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


class AnimaTrainFromTOML(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTrainFromTOML",
            display_name="Train Anima Adapter (TOML)",
            category=types.CATEGORY,
            description="Trains as a TOML file says: an earlier run's config.toml, or one of sd-scripts' dialects.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A file inside ComfyUI's input folder, or a full path that the server allows (see help).",
                ),
                io.String.Input("output_name", default="", tooltip="Empty: the file's own."),
                io.Model.Input("model", optional=True, tooltip="A loaded Anima model: comes out with the adapter applied."),
            ],
            outputs=outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, path: str = "", output_name: str = "", **others) -> str:
        try:
            config, _notes = read_config(path)
        except AnimaError as error:
            return str(error)
        return repr(config) + "".join(folder_state(s.image_dir) for d in config.datasets for s in d.subsets)

    @classmethod
    def execute(cls, path: str, output_name: str, model=None) -> io.NodeOutput:
        config, notes = read_config(path)
        for note in notes:
            print(f"[Anima Trainer] {note}")
        return run_in_graph(in_this_server(config, output_name or config.output.name), model, cls.hidden.unique_id)


def read_config(path: str) -> tuple[TrainConfig, tuple[str, ...]]:
    """A training file and its notes. What it names is confined like what is typed into a node, before it is read."""
    config, notes = config_from_file(user_path(path, "path"), guard=allowed)
    return check_config(config), notes


def in_this_server(config: TrainConfig, name: str, **output) -> TrainConfig:
    """The same run, with the folders and the device of this ComfyUI."""
    places = dict(dir=str(runs.store_folder()), name=safe_name(name), adapter_dir=str(loras_folder()), resume="")
    cache_dir, device = str(runs.store_folder() / "cache"), str(mm.get_torch_device())
    placed = dataclasses.replace(config.output, **(places | output))
    return dataclasses.replace(config, output=placed, cache_dir=cache_dir, device=device)


class AnimaContinueRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [run.name for run in runs.unfinished()]
        return io.Schema(
            node_id="AnimaContinueRun",
            display_name="Continue Anima Run",
            category=types.CATEGORY,
            description="Goes on with a run that was cancelled, stopped early or cut off, with its own settings.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "run",
                    options=names or [NO_RUN],
                    tooltip="Unfinished runs, the newest first. Press R to look again.",
                ),
                io.Boolean.Input(
                    "with_changes",
                    default=False,
                    advanced=True,
                    tooltip="Go on although pictures or captions are not what they were.",
                ),
                io.Model.Input("model", optional=True, tooltip="A loaded Anima model: comes out with the adapter applied."),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, run: str) -> bool | str:
        """A run that was finished since is not in the list any more, and still has an adapter to hand on."""
        known = run == NO_RUN or run in {r.name for r in runs.unfinished()} or runs.finished_under(run) is not None
        return known or f"run={run!r}: no such unfinished run; press R to look again"

    @classmethod
    def fingerprint_inputs(cls, run: str = "", **others) -> str:
        return repr([r for r in runs.unfinished() if r.name == run])

    @classmethod
    def execute(cls, run: str, with_changes: bool, model=None) -> io.NodeOutput:
        node = cls.hidden.unique_id
        found = next((r for r in runs.unfinished() if r.name == run), None)
        done = runs.finished_under(run) if found is None else None
        if found is None and done is None:
            raise SettingError(f"run={run!r}: no unfinished run of this name; press R and choose one of the list")
        if done is None:
            output = dict(resume="latest", resume_with_changes=with_changes)
            config = check_config(in_this_server(runs.frozen_config(run), run, **output))
            with bridge.NodeListener(node) as listener:
                done = train_now(config, found.key, listener)
        return results(done, model)


def recompute(memory: str) -> bool:
    """Whether blocks are recomputed in backward: a 1024 px step needs about 15 GB without (reference: performance §5.5)."""
    if memory == MEMORY[0]:
        return mm.get_total_memory(mm.get_torch_device()) < 20e9
    return memory == MEMORY[1]


def run_in_graph(config: TrainConfig, model, node: str, unfinished: str = UNFINISHED[0]) -> io.NodeOutput:
    """Return the finished run of these inputs, or train; then build the node's outputs."""
    with bridge.NodeListener(node) as listener:
        with interruptible():
            key = runs.run_key(preflight(config, on_event=listener))
        done = runs.find(key)
        if done is None:
            done = train_now(runs.claim(config, key, go_on=unfinished == UNFINISHED[0]), key, listener)
        else:
            bridge.say(node, f"already trained: {Path(done.adapter).name}")
    return results(done, model)


def results(done: runs.FinishedRun, model) -> io.NodeOutput:
    lora = load_file(done.adapter)
    return io.NodeOutput(
        lora,
        ExecutionBlocker(None) if model is None else apply_adapter(model, lora, 1.0),
        {"loss": done.losses},
        load_samples(done.samples),
        done.adapter,
        ui={"text": [f"{Path(done.adapter).name}: {done.steps} steps"]},
    )


def train_now(config: TrainConfig, key: str, listener: bridge.NodeListener) -> runs.FinishedRun:
    with interruptible(), bridge.gpu_for_training():
        result = train(config, listener)
    finished = runs.describe(result)
    if result.stop_reason == "finished":  # one that was stopped early is not yet what its settings ask for
        runs.remember(key, finished)
    return finished


@contextmanager
def interruptible() -> Iterator[None]:
    """A run that Cancel ended is ComfyUI's own interruption, not an error."""
    try:
        yield
    except Interrupted:
        mm.throw_exception_if_processing_interrupted()
        raise


def load_samples(paths: list[str]):
    """Preview files as an IMAGE batch, on white where their sizes differ; nothing downstream runs when there are none."""
    pictures = [Image.open(path).convert("RGB") for path in paths if Path(path).is_file()]
    if not pictures:
        return ExecutionBlocker(None)
    size = max(p.width for p in pictures), max(p.height for p in pictures)
    canvases = [Image.new("RGB", size, "white") for _ in pictures]
    for canvas, picture in zip(canvases, pictures):
        canvas.paste(picture)
    return torch.from_numpy(np.stack([np.array(c, dtype=np.float32) / 255 for c in canvases]))

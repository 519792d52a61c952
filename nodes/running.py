"""A run inside a node: found again, or trained now; its results as the node's outputs."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from PIL import Image

from ..anima_core.errors import Interrupted
from ..anima_core.files import safe_name
from ..anima_core.models.checkpoint import load_tensors
from ..anima_core.run_store import FinishedRun, describe, run_key
from ..anima_core.settings import TrainConfig
from ..anima_core.training.loop import train
from ..anima_core.training.preflight import preflight
from . import bridge, types
from .adapters import apply_adapter
from .store import loras_folder, run_store, store_folder

UNFINISHED = ("continue", "start over")


def outputs() -> list[io.Output]:
    return [
        types.LoraModel.Output(display_name="lora", tooltip="The adapter, for Load LoRA Model or Save LoRA."),
        io.Model.Output(display_name="model", tooltip="The model input with the adapter applied, for KSampler."),
        types.LossMap.Output(display_name="loss_map", tooltip="For Plot Loss Graph."),
        io.Image.Output(display_name="samples", tooltip="The last preview pictures."),
        io.String.Output(display_name="path", tooltip="The adapter file in models/loras."),
    ]


def model_input() -> io.Model.Input:
    return io.Model.Input("model", optional=True, tooltip="A loaded Anima model: comes out with the adapter applied.")


def unfinished_input(optional: bool = False) -> io.Combo.Input:
    return io.Combo.Input(
        "unfinished",
        options=list(UNFINISHED),
        default=UNFINISHED[0],
        optional=optional,
        advanced=True,
        tooltip="Whether a run of these inputs that was cancelled, stopped or cut off continues from its last checkpoint.",
    )


def in_this_server(config: TrainConfig, name: str, **output: Any) -> TrainConfig:
    """Return the same run with the folders and the device of this ComfyUI. Raises SettingError for the name."""
    places = {"dir": str(store_folder()), "name": safe_name(name), "adapter_dir": str(loras_folder()), "resume": ""}
    cache_dir, device = str(store_folder() / "cache"), str(mm.get_torch_device())
    placed = dataclasses.replace(config.output, **(places | output))
    return dataclasses.replace(config, output=placed, cache_dir=cache_dir, device=device)


def run_in_graph(config: TrainConfig, model: Any, node: str, unfinished: str = UNFINISHED[0]) -> io.NodeOutput:
    """Return the finished run of these inputs, or train; then build the node's outputs."""
    store = run_store()
    with bridge.NodeListener(node) as listener:
        with interruptible():
            key = run_key(preflight(config, on_event=listener))
        done = store.find(key)
        if done is None:
            if store.is_outdated(key):
                print("[Anima Trainer] trains again: this version's numbers are not those of the finished run")
            done = train_now(store.assign_name(config, key, resume=unfinished == UNFINISHED[0]), key, listener)
        else:
            bridge.say(node, f"already trained: {Path(done.adapter).name}")
    return results(done, model)


def results(done: FinishedRun, model: Any) -> io.NodeOutput:
    lora = load_tensors(done.adapter)
    return io.NodeOutput(
        lora,
        ExecutionBlocker(None) if model is None else apply_adapter(model, lora, 1.0),
        {"loss": done.losses},
        load_samples(done.samples),
        done.adapter,
        ui={"text": [f"{Path(done.adapter).name}: {done.steps} steps"]},
    )


def train_now(config: TrainConfig, key: str, listener: bridge.NodeListener) -> FinishedRun:
    with interruptible(), bridge.gpu_for_training():
        result = train(config, listener)
    finished = describe(result)
    if result.stop_reason == "finished":  # one that was stopped early is not yet what its settings ask for
        run_store().remember(key, finished)
    return finished


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ComfyUI's own interruption, which is no error, for a run that Cancel ended."""
    try:
        yield
    except Interrupted:
        mm.throw_exception_if_processing_interrupted()
        if bridge.is_ending():
            raise mm.InterruptProcessingException() from None
        raise


def load_samples(paths: list[str]) -> Any:
    """Read preview files as an IMAGE batch, on white where their sizes differ; nothing downstream runs without any."""
    pictures = [Image.open(path).convert("RGB") for path in paths if Path(path).is_file()]
    if not pictures:
        return ExecutionBlocker(None)
    size = max(p.width for p in pictures), max(p.height for p in pictures)
    canvases = [Image.new("RGB", size, "white") for _ in pictures]
    for canvas, picture in zip(canvases, pictures):
        canvas.paste(picture)
    return torch.from_numpy(np.stack([np.array(c, dtype=np.float32) / 255 for c in canvases]))

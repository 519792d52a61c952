"""A run inside a node: found again, or trained now; its results as the node's outputs."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from PIL import Image

from ..anima_core.errors import CheckpointError, FileError, Interrupted, RunError, in_words
from ..anima_core.files import identity, safe_name, unused
from ..anima_core.models.checkpoint import load_tensors
from ..anima_core.run_folders import delete_run
from ..anima_core.run_history import name_of
from ..anima_core.run_record import read_record
from ..anima_core.run_store import FinishedRun, describe, run_key
from ..anima_core.settings import TrainConfig
from ..anima_core.training.export import write_again
from ..anima_core.training.loop import train
from ..anima_core.training.model_files import hash_models
from ..anima_core.training.preflight import Plan, preflight
from ..anima_core.training.state import checkpoints_in
from . import bridge, returned, sentences, tell, types
from .adapters import apply_adapter
from .node import graph_words
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


def unfinished_input() -> io.Combo.Input:
    return io.Combo.Input(
        "unfinished",
        options=list(UNFINISHED),
        default=UNFINISHED[0],
        optional=True,
        advanced=True,
        tooltip="Whether a run of these inputs that was cancelled or cut off continues from its last checkpoint. One that was "
        "stopped and kept is handed on as it is.",
    )


def in_this_server(config: TrainConfig, name: str, **output: Any) -> TrainConfig:
    """Return the same run with the folders and the device of this ComfyUI. Raises SettingError for the name."""
    places = {"dir": str(store_folder()), "name": safe_name(name), "adapter_dir": str(loras_folder()), "resume": ""}
    cache_dir, device = str(store_folder() / "cache"), str(mm.get_torch_device())
    placed = dataclasses.replace(config.output, **(places | output))
    return dataclasses.replace(config, output=placed, cache_dir=cache_dir, device=device)


def run_in_graph(
    config: TrainConfig, model: Any, unfinished: str = UNFINISHED[0], workflow: dict[str, Any] | None = None
) -> io.NodeOutput:
    """Return the finished run of these inputs, or train; then build the node's outputs. workflow: kept with the run."""
    return results(*trained(config, unfinished, workflow), model)


def trained(
    config: TrainConfig, unfinished: str = UNFINISHED[0], workflow: dict[str, Any] | None = None, beside: str = ""
) -> tuple[FinishedRun, str]:
    """Return the finished run of these inputs, or train; and the sentence to end with. beside: stands below every text."""
    returned.forget()
    store = run_store()
    with bridge.NodeListener(tell.this_node(), unfinished == UNFINISHED[0], workflow) as listener:
        listener.training.name = config.output.name
        with interruptible(listener):
            plan = preflight(config, on_event=listener)
            hash_models(plan.config, plan.cache_dir, listener)  # the key is made of what is in them
        key = run_key(plan)
        done = store.find(key)
        if done is not None:
            return done, found_again(listener, done, sentences.already(done))
        done = written_again(config, key, listener)
        if done is not None:
            return done, found_again(listener, done, sentences.written_again(done))
        again = in_words(store.why_again(key, plan), graph_words())
        listener.why = "; ".join(filter(None, [beside, again, sentences.left_behind(store.left_behind(key, plan))]))
        placed = store.assign_name(config, key, resume=listener.goes_on_by_itself)
        return train_now(placed, key, plan, listener)


def found_again(listener: bridge.NodeListener, done: FinishedRun, sentence: str) -> str:
    """Let pages know which run a graph's is that was trained before. Return the sentence."""
    folder = run_store().run_folder(done.name)
    listener.training.run, listener.training.name = read_record(folder).id, done.name
    listener.ends("already", sentence)
    return sentence


def results(done: FinishedRun, sentence: str, model: Any) -> io.NodeOutput:
    lora = load_tensors(done.adapter)
    returned.remember(sentence, done.adapter)
    return io.NodeOutput(
        lora,
        ExecutionBlocker(None) if model is None else apply_adapter(model, lora, 1.0),
        {"loss": done.losses},
        load_samples(done.samples),
        done.adapter,
        ui={"text": [sentence]},
    )


def train_now(config: TrainConfig, key: str, plan: Plan, listener: bridge.NodeListener) -> tuple[FinishedRun, str]:
    """Train, and record the run. plan: of what the graph asked for. Return the run and the sentence to end with."""
    if listener.why:
        tell.note(listener.why)
        tell.say(listener.why)
    try:
        with interruptible(listener), bridge.gpu_for_training():
            result = train(config, listener)
    except RunError as error:
        raise RunError(sentences.failed(error.text, listener.checkpoint, listener.goes_on_by_itself)) from None
    except (Interrupted, mm.InterruptProcessingException):
        leave_nothing(listener)
        raise
    done = run_store().remember(key, describe(result, plan))
    sentence = sentences.done(done, listener.warnings, listener.why, listener.held_out)
    listener.ends("kept" if done.is_kept else "done", sentence)
    return done, listener.sentence


def leave_nothing(listener: bridge.NodeListener) -> None:
    """Delete a run that was ended before its first step: nothing goes on from it, and it would keep its name from the next."""
    folder = listener.training.folder
    if folder is not None and not listener.step and not checkpoints_in(folder):
        with suppress(FileError, RunError):  # it is listed then, and can be deleted there
            delete_run(run_store(), name_of(folder))


def written_again(config: TrainConfig, key: str, listener: bridge.NodeListener) -> FinishedRun | None:
    """Write the adapter of a finished run again, whose file is gone; None when its last checkpoint is, too, or unusable.

    What else goes wrong, a full disk say, is raised: no reason to train for hours.
    """
    store = run_store()
    found = store.last_checkpoint(key)
    if found is None:
        return None
    run, checkpoint = found
    folder = Path(config.output.adapter_dir or loras_folder())  # of a sweep its own
    path = unused(folder / f"{run.name}.safetensors")
    try:
        with interruptible(listener), bridge.gpu_for_training():
            write_again(in_this_server(config, run.name, adapter_dir=str(folder)), checkpoint, path, listener)
    except CheckpointError as error:
        tell.warning(error.said(graph_words()))
        return None
    return store.remember(key, dataclasses.replace(run, adapter=str(path), adapter_sha256=identity(path)))


@contextmanager
def interruptible(listener: bridge.NodeListener) -> Iterator[None]:
    """Raise ComfyUI's own interruption, which is no error, for a run that Cancel ended, after telling what is left of it."""
    try:
        yield
    except Interrupted as error:
        if not listener.is_cancelled:  # it was asked to stop, and had nothing yet to keep
            raise
        told = sentences.cancelled(error.text, listener.step, listener.checkpoint, listener.goes_on_by_itself)
        listener.ends("cancelled", told)
        tell.say(told)
        mm.throw_exception_if_processing_interrupted()
        raise mm.InterruptProcessingException() from None


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

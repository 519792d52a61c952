"""Between a run's events and ComfyUI: progress, text on the node, previews, what is asked of a run, the GPU."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
from comfy.utils import ProgressBar
from PIL import Image

from ..anima_core.errors import AnimaError, Interrupted, in_words
from ..anima_core.progress_bar import clock, progress_text
from ..anima_core.run_history import HeldOut, held_out_of
from . import live, tell
from .node import graph_words
from .store import run_store, store_folder

TEXT_EVERY = 0.5  # seconds between texts on the node
PREVIEW_SIDE = 768  # px

# What ComfyUI's hooks and the node's thread share; the server is one process.
_ending = threading.Event()  # set when the server shuts down
_threads: set[threading.Thread] = set()  # ComfyUI worker threads that ran a training


def end_all() -> bool:
    """Cancel every training, also one that is yet to begin; tell whether there is any."""
    _ending.set()
    return bool(live.nodes())


def is_ending() -> bool:
    return _ending.is_set()


def threads_are_idle() -> bool:
    """Tell whether those threads are back in ComfyUI's queue wait; exiting earlier makes Python abort."""
    frames = sys._current_frames()
    wait = threading.Condition.wait.__code__
    return all(frames[t.ident].f_code is wait for t in _threads if t.ident is not None and t.ident in frames)


@contextmanager
def gpu_for_training() -> Iterator[None]:
    """Move ComfyUI's models off the GPU for a training; they come back by themselves when a node needs them."""
    mm.unload_all_models()
    mm.soft_empty_cache()
    try:
        yield
    finally:
        mm.soft_empty_cache()


class NodeListener:
    """The `on_event` of a training inside a node. Call only from the node's own thread: the interrupt flag belongs to it.

    why: why it trains although the graph, or one of its name, was trained before; a second line below every text.
    warnings: all so far, in the graph's words. step, checkpoint: the last that was taken, and was written, by this node.
    held_out: what was told last of the pictures that are not trained on.
    goes_on_by_itself: whether the next Run continues from that checkpoint; False where a graph always starts over.
    workflow: the graph, to be kept with the run. outcome, sentence: of its end, see `ends`.
    """

    def __init__(self, node: str, goes_on_by_itself: bool = True, workflow: dict[str, Any] | None = None) -> None:
        self.node = node
        self.training = live.Training(node, workflow)
        self.outcome = self.sentence = ""
        self.goes_on_by_itself = goes_on_by_itself
        self.why = ""
        self.warnings: list[str] = []
        self.step = self.checkpoint = 0
        self.held_out: HeldOut | None = None
        self.is_cancelled = False
        self.bar = ProgressBar(1, node_id=node)
        self.stage = ""
        self.text_at = 0.0

    def __enter__(self) -> "NodeListener":
        _threads.add(threading.current_thread())
        live.begin(self.training)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        live.leave(self.training)
        if isinstance(error, AnimaError):
            self.ends("cancelled" if isinstance(error, Interrupted) else "failed", error.said(graph_words()))
        elif isinstance(error, mm.InterruptProcessingException):
            self.ends("cancelled", self.sentence or "cancelled")
        elif error is not None:
            self.ends("failed", str(error) or type(error).__name__)
        self.training.end(self.outcome, self.sentence)

    def ends(self, outcome: str, sentence: str) -> None:
        """Say how it ends: "done", "kept", "cancelled", "failed", or "already": the run was found. sentence: on the node."""
        self.outcome, self.sentence = outcome, sentence

    def __call__(self, event: dict[str, Any]) -> str | None:
        self.training.hear(event)
        handler = getattr(self, f"on_{event['event']}", None)
        try:
            if handler is not None:
                handler(event)
        except mm.InterruptProcessingException:  # the bar asked for the flag first, and cleared it
            self.is_cancelled = True
        wish = self.training.wish(between_steps=event["event"] == "step")
        if wish == "cancel" or mm.processing_interrupted() or _ending.is_set():
            self.is_cancelled = True
        return "cancel" if self.is_cancelled else wish

    def on_start(self, event: dict[str, Any]) -> None:
        self.training.has_prompts = event["prompts"] > 0
        self.training.settle(run_store().run_folder(event["name"]))

    def on_progress(self, event: dict[str, Any]) -> None:
        done, total = event["done"], event["total"]
        self.say(progress_text(event), last=done == total)
        if "picture" not in event:  # while previews are drawn the bar stays at the step
            self.advance(event["stage"], done, total)

    def on_step(self, event: dict[str, Any]) -> None:
        self.step, total = event["step"], event["total"]
        self.say(step_text(event), last=self.step == total)
        self.advance("step", self.step, total)

    def advance(self, stage: str, done: int, total: int) -> None:
        """Move the bar; a new one for each stage, since ComfyUI's never goes back."""
        if stage != self.stage:
            self.stage, self.bar = stage, ProgressBar(total, node_id=self.node)
        self.bar.update_absolute(done, total)

    def on_sample(self, event: dict[str, Any]) -> None:
        picture = Image.open(event["path"]).convert("RGB")
        self.bar.update_absolute(self.bar.current, self.bar.total, ("JPEG", picture, PREVIEW_SIDE))

    def on_held_out(self, event: dict[str, Any]) -> None:
        self.held_out = held_out_of(event)

    def on_checkpoint(self, event: dict[str, Any]) -> None:
        if Path(event["path"]).is_relative_to(store_folder()):  # one that was rescued to another disk is not looked for
            self.checkpoint = event["step"]

    def on_warning(self, event: dict[str, Any]) -> None:
        self.warnings.append(in_words(event["text"], graph_words()))
        tell.warning(self.warnings[-1])

    def on_note(self, event: dict[str, Any]) -> None:
        tell.note(in_words(event["text"], graph_words()))

    def say(self, text: str, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self.text_at >= TEXT_EVERY:
            self.text_at = now
            tell.say(f"{text}\n{self.why}" if self.why else text, self.node)


def step_text(event: dict[str, Any]) -> str:
    mean = event["mean_loss"]
    parts = [
        f"step {event['step']} / {event['total']}",
        f"loss {mean:.4f}" if mean is not None else "loss nan",
        f"{event['seconds']:.2f} s/step",
        f"ETA {clock(event['eta'])}",
    ]
    if event["peak_gb"]:
        parts.append(f"{event['peak_gb']:.1f} GB")
    return " · ".join(parts)

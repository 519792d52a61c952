"""Between a run's events and ComfyUI: progress, text on the node, previews, cancel, stop-and-keep, the GPU."""

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

from ..anima_core.errors import in_words
from ..anima_core.progress_bar import progress_text
from . import tell
from .node import graph_words
from .store import store_folder

TEXT_EVERY = 0.5  # seconds between texts on the node
PREVIEW_SIDE = 768  # px

# What ComfyUI's hooks and the node's thread share; the server is one process.
_lock = threading.Lock()
_running: dict[str, threading.Event] = {}  # node id -> its stop-and-keep request
_ending = threading.Event()  # set when the server shuts down
_threads: set[threading.Thread] = set()  # ComfyUI worker threads that ran a training


def running_nodes() -> list[str]:
    with _lock:
        return list(_running)


def request_stop(node: str | None) -> list[str]:
    """Ask one training, or all, to end early and keep the adapter. Return the ids of the nodes that were asked."""
    with _lock:
        asked = [n for n in _running if node is None or n == node]
        for name in asked:
            _running[name].set()
    return asked


def end_all() -> bool:
    """Cancel every training, also one that is yet to begin; tell whether there is any."""
    _ending.set()
    return bool(running_nodes())


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
    goes_on_by_itself: whether the next Run continues from that checkpoint; False where a graph always starts over.
    """

    def __init__(self, node: str, goes_on_by_itself: bool = True) -> None:
        self.node = node
        self.goes_on_by_itself = goes_on_by_itself
        self.why = ""
        self.warnings: list[str] = []
        self.step = self.checkpoint = 0
        self.is_cancelled = False
        self.bar = ProgressBar(1, node_id=node)
        self.stage = ""
        self.text_at = 0.0

    def __enter__(self) -> "NodeListener":
        with _lock:
            _running[self.node] = threading.Event()
            _threads.add(threading.current_thread())
        return self

    def __exit__(self, *exc: object) -> None:
        with _lock:
            _running.pop(self.node, None)

    def __call__(self, event: dict[str, Any]) -> str | None:
        handler = getattr(self, f"on_{event['event']}", None)
        try:
            if handler is not None:
                handler(event)
        except mm.InterruptProcessingException:  # the bar asked for the flag first, and cleared it
            self.is_cancelled = True
        if self.is_cancelled or mm.processing_interrupted() or _ending.is_set():
            self.is_cancelled = True
            return "cancel"
        return "stop" if _running[self.node].is_set() else None

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
        f"ETA {tell.clock(event['eta'])}",
    ]
    if event["peak_gb"]:
        parts.append(f"{event['peak_gb']:.1f} GB")
    return " · ".join(parts)

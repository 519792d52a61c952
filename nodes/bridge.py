"""Between a run's events and ComfyUI: progress, text on the node, previews, cancel, stop-and-keep, the GPU."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as mm
from comfy.utils import ProgressBar
from PIL import Image
from server import PromptServer

from ..anima_core.errors import in_words
from .node import graph_words

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
    """Ask one training, or all, to end early and keep the adapter. Return the node ids that were asked."""
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
    """The `on_event` of a training inside a node. Call only from the node's own thread: the interrupt flag belongs to it."""

    def __init__(self, node: str) -> None:
        self.node = str(node)
        self.bar: ProgressBar | None = None
        self.mean: float | None = None
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
        if handler is not None:
            handler(event)
        if mm.processing_interrupted() or _ending.is_set():
            return "cancel"
        return "stop" if _running[self.node].is_set() else None

    def on_progress(self, event: dict[str, Any]) -> None:
        self.say(f"{event['stage']}: {event['done']} / {event['total']}", last=event["done"] == event["total"])

    def on_step(self, event: dict[str, Any]) -> None:
        step, total = event["step"], event["total"]
        if self.bar is None:
            self.bar = ProgressBar(total, node_id=self.node)
        self.bar.current = step
        self.bar.update_absolute(step, total)
        if event["loss"] is not None:
            self.mean = event["loss"] if self.mean is None else 0.95 * self.mean + 0.05 * event["loss"]
        self.say(self.step_text(event), last=step == total)

    def step_text(self, event: dict[str, Any]) -> str:
        left = (event["total"] - event["step"]) * event["seconds"]
        loss = f"{self.mean:.4f}" if self.mean is not None else "nan"
        parts = [
            f"step {event['step']} / {event['total']}",
            f"loss {loss}",
            f"{event['seconds']:.2f} s/step",
            f"ETA {clock(left)}",
        ]
        if event["peak_gb"]:
            parts.append(f"{event['peak_gb']:.1f} GB")
        return " · ".join(parts)

    def on_sample(self, event: dict[str, Any]) -> None:
        picture = Image.open(event["path"])
        bar = self.bar or ProgressBar(1, node_id=self.node)
        bar.update_absolute(bar.current, bar.total, ("JPEG", picture.convert("RGB"), PREVIEW_SIDE))

    def on_warning(self, event: dict[str, Any]) -> None:
        print(f"[Anima Trainer] warning: {in_words(event['text'], graph_words())}")

    def on_note(self, event: dict[str, Any]) -> None:
        print(f"[Anima Trainer] {in_words(event['text'], graph_words())}")

    def say(self, text: str, last: bool = False) -> None:
        now = time.monotonic()
        if last or now - self.text_at >= TEXT_EVERY:
            self.text_at = now
            say(self.node, text)


def say(node: str, text: str) -> None:
    """Put text on the node, in both of ComfyUI's renderers, without JavaScript."""
    PromptServer.instance.send_progress_text(text, node)


def clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"

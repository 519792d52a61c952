"""The trainings of this server as they go: what pages see of them, by messages, and what pages ask of them."""

import dataclasses
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server import PromptServer

from ..anima_core.errors import in_words
from ..anima_core.run_history import COLUMNS, held_out_of, latest_of, name_of, sample_of
from ..anima_core.run_record import new_id, read_record, write_record
from . import tell
from .node import graph_words

EVERY = 0.25  # seconds between messages about the progress of a training
PROGRESS = ("stage", "done", "total", "picture", "pictures")
ENDING = ("cancel", "stop")  # what is asked for once and for all, the stronger first; the rest is done once

# Routes and the nodes' threads share these; the server is one process.
_lock = threading.Lock()
_trainings: dict[str, "Training"] = {}  # by node id


@dataclass
class Training:
    """One execution of a training node. Only its thread calls `hear`, `settle` and `end`.

    run: id of its run, a new one until a run that goes on is found. name: of the run. workflow: the graph, as the page has it.
    folder: of the run, once it is there. progress: of what is no step, while that is done. latest: the last step.
    points: steps since the last message.
    """

    node: str
    workflow: dict[str, Any] | None = None
    run: str = field(default_factory=new_id)
    name: str = ""
    folder: Path | None = None
    has_prompts: bool = True
    progress: dict[str, Any] | None = None
    latest: dict[str, Any] | None = None
    saved: int = -1
    asked: set[str] = field(default_factory=set)
    points: dict[str, list[Any]] = field(default_factory=lambda: {name: [] for name in COLUMNS})
    told_at: float = 0.0

    def hear(self, event: dict[str, Any]) -> None:
        """Take in an event, and tell pages."""
        kind = event["event"]
        if kind == "progress":
            self.progress = {key: event[key] for key in PROGRESS if key in event}
            self.tell()
        elif kind == "step":
            self.step(event)
        elif kind == "sample" and (sample := sample_of(event)) is not None:
            self.send("sample", sample=dataclasses.asdict(sample))
        elif kind == "held_out" and (found := held_out_of(event)) is not None:
            self.send("held_out", held_out=dataclasses.asdict(found))
        elif kind in ("saved", "checkpoint") and event["step"] != self.saved:
            self.saved = event["step"]
            self.send("saved", step=self.saved)
        elif kind == "warning":
            self.send("warning", text=in_words(event["text"], graph_words()))

    def step(self, event: dict[str, Any]) -> None:
        self.progress, self.latest = None, latest_of(event)
        for name, column in self.points.items():
            column.append(self.latest[name])
        self.tell()

    def settle(self, folder: Path) -> None:
        """Hear which run it is, once its folder is there: one that goes on keeps its id, its graph and its beginning."""
        former = read_record(folder)
        known = former.started is not None
        self.folder, self.name, self.run = folder, name_of(folder), former.id if known else self.run
        workflow, started = former.workflow or self.workflow, former.started or time.time()
        self.record(id=self.run, node=self.node, workflow=workflow, started=started, outcome="", sentence="")
        self.send("begin", name=self.name)

    def record(self, **changes: Any) -> None:
        """Write into the run's folder. A full disk is no reason to end a training."""
        if self.folder is not None and self.folder.is_dir():
            try:
                write_record(self.folder, dataclasses.replace(read_record(self.folder), **changes))
            except OSError as error:
                tell.warning(f"{self.folder / 'run.json'}: cannot be written ({error.strerror})")

    def end(self, outcome: str, sentence: str) -> None:
        """Tell the end: what is left of the steps, and the sentence that stands on the node."""
        if self.points["step"]:
            self.tell(at_once=True)
        self.record(outcome=outcome, sentence=sentence)
        self.send("end", name=self.name, outcome=outcome, sentence=sentence)

    def tell(self, at_once: bool = False) -> None:
        """Tell how far it is, not more often than `EVERY` so many seconds."""
        now = time.monotonic()
        if not at_once and now - self.told_at < EVERY:
            return
        self.told_at, points, self.points = now, self.points, {name: [] for name in COLUMNS}
        told = {"name": self.name, "state": "running", "progress": self.progress, "latest": self.latest}
        self.send("progress", points=points, **told)

    def send(self, kind: str, **payload: Any) -> None:
        """Send a message to every page that is open."""
        if PromptServer.instance is not None:
            told = {"run": self.run, "node": self.node, "graph": self.graph, **payload}
            PromptServer.instance.send_sync(f"anima_trainer.{kind}", told)

    @property
    def graph(self) -> str | None:
        """The id of the workflow that it was queued from: node ids alone are the same in many workflows."""
        return (self.workflow or {}).get("id")

    def wish(self, between_steps: bool) -> str | None:
        """Return what a page has asked for: the end at any time, the rest between steps, where it is done once."""
        for word in ENDING:
            if word in self.asked:
                return word
        return self.asked.pop() if self.asked and between_steps else None


def begin(training: Training) -> None:
    with _lock:
        _trainings[training.node] = training


def leave(training: Training) -> None:
    with _lock:
        if _trainings.get(training.node) is training:
            del _trainings[training.node]


def trainings() -> list[Training]:
    with _lock:
        return list(_trainings.values())


def nodes() -> list[str]:
    return [training.node for training in trainings()]


def chosen(node: str | None, run: str | None) -> list[Training]:
    """Return the trainings that are meant by a node's id, by a run's, by both, or all."""
    return [t for t in trainings() if node in (None, t.node) and run in (None, t.run)]

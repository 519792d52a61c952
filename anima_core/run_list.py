"""The runs of a store as a list: where each stands, what can be done with it. What was read is kept until its file changes."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .run_history import LOG, config_of, latest_of, name_of, samples_in
from .run_record import FILE, RunRecord, id_of_name, read_record
from .run_store import FinishedRun, RunStore, UnfinishedRun
from .settings import NetworkConfig, TrainConfig
from .training.state import checkpoints_in, step_of

T = TypeVar("T")
ENDS = (1 << 14, 1 << 20)  # bytes of a log's end in which its last step is looked for: previews may stand behind it
SHOWN = {"lora": "LoRA", "lokr": "LoKr", "loha": "LoHa"}


@dataclass(frozen=True)
class ListedRun:
    """A run on disk.

    state: "unfinished", "finished", or "kept": stopped before its end, with an adapter. step: of its adapter, or of the last
    checkpoint. total: 0 where it is not known. loss: smoothed, at its end. picture: file name of the newest sample, else empty.
    adapter: its file, where that is still there. network: its type and size in words. sentence: that it ended with; error:
    the same after a failure, else empty.
    """

    id: str
    name: str
    folder: Path
    state: str
    step: int
    total: int
    loss: float | None
    saved_at: float
    started: float | None
    samples: int
    picture: str
    adapter: str
    has_graph: bool
    can_continue: bool
    network: str
    sentence: str
    error: str


class RunList:
    """Lists a store. Several threads may ask: what one has read another finds, and at worst both read it."""

    def __init__(self) -> None:
        self._read: dict[Path, tuple[Any, Any]] = {}  # by file: its stamp, what was read

    def folders(self, store: RunStore) -> dict[str, Path]:
        """Return every run's folder by its id. A folder that is the copy of another has an id of its own."""
        found: dict[str, Path] = {}
        for folder in sorted(store.folder.glob("*-run")):
            if folder.is_dir():
                id_ = self.record(folder).id
                found[id_ if id_ not in found else id_of_name(folder)] = folder
        return found

    def runs(self, store: RunStore) -> list[ListedRun]:
        """Return every run, the one that was saved last first."""
        finished, unfinished = store.finished_by_name(), {run.name: run for run in store.unfinished()}
        listed = [
            self.describe(id_, folder, finished.get(name_of(folder)), unfinished.get(name_of(folder)))
            for id_, folder in self.folders(store).items()
        ]
        return sorted(listed, key=lambda run: run.saved_at, reverse=True)

    def run(self, store: RunStore, id_: str) -> ListedRun | None:
        """Return one run."""
        folder = self.folders(store).get(id_)
        if folder is None:
            return None
        left = next((run for run in store.unfinished() if run.name == name_of(folder)), None)
        return self.describe(id_, folder, store.finished_by_name().get(name_of(folder)), left)

    def describe(self, id_: str, folder: Path, done: FinishedRun | None, left: UnfinishedRun | None) -> ListedRun:
        """Describe one run. done, left: its records, where it has such."""
        newest = next(iter(checkpoints_in(folder)), None)
        step = step_of(newest) if newest else 0
        if done is not None and (left is None or step <= done.steps):
            state, step, total = "kept" if done.is_kept else "finished", done.steps, done.total or done.steps
        else:
            state, total = "unfinished", left.total if left else 0
        record, last, config = self.record(folder), self.last_step(folder) or {}, self.config(folder)
        samples = samples_in(folder)
        return ListedRun(
            id_,
            name_of(folder),
            folder,
            state,
            step,
            total or int(last.get("total") or 0) or (config.max_train_steps if config else 0),
            last.get("mean_loss"),
            saved_at(newest or folder),
            record.started,
            len(samples),
            max(samples, default=""),
            done.adapter if done is not None and Path(done.adapter).is_file() else "",
            record.workflow is not None,
            newest is not None and config is not None and (left is not None or done is not None),
            words(config.network) if config else "",
            record.sentence,
            record.sentence if record.outcome == "failed" else "",
        )

    def record(self, folder: Path) -> RunRecord:
        """Return a run's record; of its graph only whether there is one, since graphs are large."""
        return self.read_once(folder / FILE, lambda path: without_graph(read_record(folder)))

    def config(self, folder: Path) -> TrainConfig | None:
        return self.read_once(folder / "config.toml", lambda path: config_of(folder))

    def last_step(self, folder: Path) -> dict[str, float | None] | None:
        return self.read_once(folder / LOG, last_step)

    def read_once(self, path: Path, read: Callable[[Path], T]) -> T:
        """Return what was read from a file, which is read again when it has changed."""
        try:
            stat = path.stat()
            stamp = stat.st_size, stat.st_mtime_ns, stat.st_ino
        except OSError:
            stamp = None
        known = self._read.get(path)
        if known is None or known[0] != stamp:
            known = self._read[path] = stamp, read(path)
        return known[1]


def without_graph(record: RunRecord) -> RunRecord:
    return replace(record, workflow=None if record.workflow is None else {})


def saved_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # deleted just now
        return 0.0


def last_step(log: Path) -> dict[str, float | None] | None:
    """Return the last step that a log tells, read from its end; None where there is none."""
    for length in ENDS:
        try:
            with open(log, "rb") as file:
                file.seek(max(file.seek(0, os.SEEK_END) - length, 0))
                lines = file.read().splitlines()
        except OSError:
            return None
        for line in reversed(lines):
            if line.startswith(b'{"event": "step"') and (found := step_event(line)) is not None:
                return latest_of(found)
    return None


def step_event(line: bytes) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):  # cut off
        return None


def words(network: NetworkConfig) -> str:
    """Say what a run trains: "LoRA rank 32"."""
    size = "full matrices" if network.type == "lokr" and network.full_matrix else f"rank {network.rank}"
    kind = f"{'DoRA of ' if network.dora else ''}{SHOWN.get(network.type, network.type)}"
    return f"{'T-' if network.tlora_min_rank else ''}{kind} {size}"

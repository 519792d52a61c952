"""What routes answer about runs: those on disk, and what is known of them while they train. It reads the disk, in a thread."""

import dataclasses
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..anima_core.data.picture_files import small_jpeg
from ..anima_core.errors import FileError, in_words
from ..anima_core.run_folders import delete_run
from ..anima_core.run_history import COLUMNS, Histories, plan_of, samples_in, settings_of
from ..anima_core.run_list import ListedRun, RunList
from ..anima_core.run_record import read_record
from . import live
from .node import graph_words
from .store import loras_folders, run_store
from .tell import shown

THUMBNAILS = 256  # in memory, about 10 kB each


class NoSuchRun(LookupError):
    """One line for the answer's body."""


class RunPages:
    """Answers with plain data for JSON. Raises NoSuchRun for what is not in the store."""

    def __init__(self) -> None:
        self.list = RunList()
        self.histories = Histories()
        self.thumbnail = lru_cache(THUMBNAILS)(thumbnail)

    def running(self) -> list[dict[str, Any]]:
        return [self.going(training) for training in live.trainings()]

    def runs(self) -> list[dict[str, Any]]:
        """Summarise every run: what trains, and then the one that was saved last first."""
        folders = {training.folder for training in live.trainings()}
        return self.running() + [summary(run) for run in self.list.runs(run_store()) if run.folder not in folders]

    def run(self, id_: str) -> dict[str, Any]:
        """Return all about one run but its curve."""
        training = next(iter(live.chosen(None, id_)), None)
        if training is None:
            return summary(listed := self.listed(id_)) | self.details(listed.folder) | {"sentence": listed.sentence or None}
        told = {"latest": training.latest, "progress": training.progress}
        return self.going(training) | (self.details(training.folder) if training.folder else NOTHING) | told

    def going(self, training: live.Training) -> dict[str, Any]:
        """Summarise a run that trains, also before it has a folder."""
        listed = self.list.describe(training.run, training.folder, None, None) if training.folder else None
        latest = training.latest or {}
        known = summary(listed) if listed else BLANK
        now = {"id": training.run, "name": training.name, "state": "running", "node": training.node, "graph": training.graph}
        numbers = {key: latest[of] for key, of in NOW.items() if latest.get(of) is not None}
        return known | now | {"error": None, "can_continue": False} | numbers

    def listed(self, id_: str) -> ListedRun:
        found = self.list.run(run_store(), id_)
        if found is None:
            raise NoSuchRun(f"no run {id_[:80]!r}")
        return found

    def folder(self, id_: str) -> Path:
        """Return a run's folder: one of those that are there, whatever an id says.

        That of a run that trains is known, also before its record is written, and where the disk is too full for one.
        """
        going = [training.folder for training in live.chosen(None, id_) if training.folder]
        folder = going[0] if going else self.list.folders(run_store()).get(id_)
        if folder is None:
            raise NoSuchRun(f"no run {id_[:80]!r}")
        return folder

    def details(self, folder: Path) -> dict[str, Any]:
        with self.histories.log(folder) as log:
            latest, warnings, samples = log.latest, list(log.warnings), log.samples_there()
        words = graph_words()
        return {
            "settings": settings_of(folder, shown),
            "latest": latest,
            "progress": None,
            "warnings": [in_words(text, words) for text in warnings],
            "sentence": None,
            "plan": plan_of(folder),
            "pictures": [dataclasses.asdict(sample) for sample in samples],
        }

    def curve(self, id_: str, points: int) -> dict[str, Any]:
        training = next(iter(live.chosen(None, id_)), None)
        if training is not None and training.folder is None:
            return {"columns": {name: [] for name in COLUMNS}, "steps": 0, "held_out": []}
        return self.histories.curve(self.folder(id_), points)

    def sample(self, id_: str, file: str) -> Path:
        """Return a sample's file: one of those that are there, whatever a name says."""
        path = samples_in(self.folder(id_)).get(file)
        if path is None:
            raise NoSuchRun(f"no sample {file[:80]!r} of this run")
        return path

    def small_sample(self, id_: str, file: str, side: int) -> bytes:
        """Return a sample as a JPEG that is no larger than `side` px."""
        path = self.sample(id_, file)
        try:
            return self.thumbnail(path, path.stat().st_mtime_ns, side)
        except (OSError, FileError):
            raise NoSuchRun(f"{file}: cannot be read as a picture") from None

    def graph(self, id_: str) -> dict[str, Any]:
        workflow = read_record(self.folder(id_)).workflow
        if workflow is None:
            raise NoSuchRun("no graph was kept with this run: it was queued without a page, or by an earlier version")
        return workflow

    def delete(self, id_: str, name: str) -> str | None:
        """Delete a run whose name is given; None where that is not its name. Raises RunError while it trains, FileError."""
        run = self.listed(id_)
        if run.name != name:
            return None
        delete_run(run_store(), name)
        return name


OWN = ("folder", "adapter", "sentence")  # what a page is not told of a run in a list
NOW = {"step": "step", "total": "total", "loss": "mean_loss"}  # of a summary, and what the last step calls it
BLANK: dict[str, Any] = {
    "step": 0,
    "total": 0,
    "loss": None,
    "saved_at": 0.0,
    "started": None,
    "samples": 0,
    "picture": "",
    "lora": None,
    "has_graph": False,
    "network": "",
}
NOTHING: dict[str, Any] = {"settings": {}, "warnings": [], "sentence": None, "plan": None, "pictures": []}


def summary(run: ListedRun) -> dict[str, Any]:
    same = {key: value for key, value in vars(run).items() if key not in OWN}
    return same | {"node": None, "lora": lora_name(run.adapter), "error": run.error or None}


def lora_name(adapter: str) -> str | None:
    """Return what dropdowns of adapters call a file; None for one that they do not list."""
    folders = [folder for folder in loras_folders() if adapter and Path(adapter).is_relative_to(folder)]
    return str(Path(adapter).relative_to(folders[0])) if folders else None


def thumbnail(path: Path, changed: int, side: int) -> bytes:
    """Return a picture as a small JPEG. changed: when, which tells it from one that was there before. Raises FileError."""
    return small_jpeg(path, side)

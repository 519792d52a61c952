"""Finished and unfinished runs on disk, keyed by everything that shapes the result: the same inputs never train twice."""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, asdict, dataclass, field
from pathlib import Path
from typing import Any

from . import files
from .errors import AnimaError, SettingError
from .models.checkpoint import read_metadata
from .settings import TrainConfig, from_dict, walk
from .settings.toml_file import read_toml
from .training.loop import TrainResult
from .training.preflight import Plan
from .training.resume import CONTENTS, difference
from .training.state import checkpoints_in, damaged_file, step_of

RESULT_VERSION = 5  # of the numbers that settings lead to; raised when they, or a default, change: all then trains again
WHAT_CHANGED = {  # with each version
    2: "steps end with their epoch where batches are accumulated",
    3: "fast forms of a step round the last digits otherwise",
    4: "the fast form of a LoKr whose large factor has a rank rounds the last digits otherwise",
    5: "a run is found by the settings that are not at their default, so that new ones change nothing",
}
DIFFERENCES_SHOWN = 3
OF_PICTURES = ("subset.", "held_out.")  # settings whose paths are the pictures', which are compared one by one
CHANGED_SUFFIX = "-changed"  # ends the key of a run that continued with other data, or whose graph has started over


@dataclass(frozen=True)
class FinishedRun:
    """A run whose graph gets its adapter: trained to its end, or stopped before it and kept.

    total: the steps that were asked for. made_from: what its key is the hash of, by place.
    """

    adapter: str
    adapter_sha256: str
    run_dir: str
    losses: list[float]
    steps: int
    samples: list[str]
    result_version: int = RESULT_VERSION
    total: int = 0
    made_from: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return Path(self.run_dir).name.removesuffix("-run")

    @property
    def is_kept(self) -> bool:
        return self.steps < self.total


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that was cancelled, stopped early or cut off. total: steps it was to take, 0 when epochs were asked for."""

    name: str
    key: str
    step: int
    total: int
    saved_at: float  # seconds since 1970
    result_version: int = RESULT_VERSION

    @property
    def changed_since(self) -> str:
        """Say what is not as it was when the run was begun; empty for one of this version."""
        return "; ".join(what for version, what in WHAT_CHANGED.items() if version > self.result_version)


def run_key(plan: Plan) -> str:
    """Hash the content of the data, what shapes the result and is not at its default, and the files that it is made from.

    So a setting that a later version brings changes no key.
    """
    return digest_of(shaping(plan))


def shaping(plan: Plan) -> dict[str, Any]:
    """Return what shapes a run's result: `settings` and contents of `files` by place, and `pictures`, held out or not."""
    shapes = [found for found in walk(plan.config) if found.facts.shapes and found.value != found.default]
    values = {found.place: found.value for found in shapes if not found.facts.path}
    made_from = {f.place: content(f.value) for f in shapes if f.facts.path and not f.name.startswith(OF_PICTURES)}
    pictures = [
        [[p.digest, *p.captions, p.repeats, content(str(p.mask_path or "")), list(p.size)] for p in group]
        for group in (*plan.pictures, *(plan.held_out.pictures if plan.held_out else ()))
    ]
    return {"settings": values, "files": made_from, "pictures": pictures}


def made_from(plan: Plan) -> dict[str, Any]:
    """Return the same by place, the pictures as one digest, as a record keeps it."""
    shapes = shaping(plan)
    plain: dict[str, Any] = json.loads(json.dumps(shapes["settings"] | shapes["files"]))
    plain.pop("output.name", None)  # not a reason for other numbers
    return plain | {"data": digest_of(shapes["pictures"])}


def digest_of(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def content(path: str) -> str:
    """Return a file's or folder's content hash; for a path where nothing is, the path itself."""
    return files.identity(path) if path and Path(path).exists() else path


def describe(result: TrainResult, plan: Plan) -> FinishedRun:
    """Return the record of a run that has ended. plan: of what was asked for."""
    samples = sorted(str(p) for p in (result.run_dir / "samples").glob(f"step-{result.steps:08d}-*.png"))
    adapter, run_dir = str(result.adapter_path), str(result.run_dir)
    return FinishedRun(
        adapter,
        files.identity(adapter),
        run_dir,
        result.losses,
        result.steps,
        samples,
        total=result.total,
        made_from=made_from(plan),
    )


def of_name(name: str) -> re.Pattern[str]:
    """Match the names of runs that were made from one, as name-2."""
    return re.compile(rf"{re.escape(name)}(-\d+)?")


def is_intact(run: FinishedRun) -> bool:
    return Path(run.adapter).is_file() and files.identity(run.adapter) == run.adapter_sha256


def moved_adapter(run: FinishedRun, folders: Sequence[Path]) -> Path | None:
    """Find a run's adapter under another name or in another folder, by what its header says, and then by its digest."""
    said = {"ss_output_name": run.name, "ss_steps": str(run.steps)}
    for path in adapters_below(folders):
        try:
            if said.items() <= read_metadata(path).items() and files.identity(path) == run.adapter_sha256:
                return path
        except AnimaError:  # no safetensors, whatever its name is
            continue
    return None


def adapters_below(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield the files that ComfyUI lists: those behind links, too."""
    for folder in folders:
        for root, _, names in os.walk(folder, followlinks=True):
            yield from (Path(root, name) for name in sorted(names) if name.endswith(".safetensors"))


class RunStore:
    """The runs below one folder: `<name>-run/` each, with records of finished and unfinished ones beside.

    loras: the folders below which an adapter may have been moved.
    """

    def __init__(self, folder: Path, loras: Sequence[Path] = ()) -> None:
        self.folder = folder
        self.loras = loras

    def run_folder(self, name: str) -> Path:
        return self.folder / f"{name}-run"

    def frozen_config(self, name: str) -> TrainConfig:
        """Return the settings that a run was started with. Raises FileError, SettingError."""
        path = self.run_folder(name) / "config.toml"
        return from_dict(TrainConfig, read_toml(path), str(path))

    # Finished runs

    def find(self, key: str) -> FinishedRun | None:
        """Return the finished run of this key, if its adapter is unchanged: in its place, or renamed or moved since."""
        run = self._current(key)
        if run is None or is_intact(run):
            return run
        moved = moved_adapter(run, self.loras)
        return self.remember(key, dataclasses.replace(run, adapter=str(moved))) if moved else None

    def last_checkpoint(self, key: str) -> tuple[FinishedRun, Path] | None:
        """Return the finished run of this key and its checkpoint, from which its adapter can be written again."""
        run = self._current(key)
        if run is None:
            return None
        newest = next(iter(checkpoints_in(self.run_folder(run.name))), None)
        usable = newest is not None and step_of(newest) == run.steps and damaged_file(newest) is None
        return (run, newest) if newest is not None and usable else None

    def why_again(self, key: str, plan: Plan) -> str:
        """Say why a graph trains although it, or another under the same name, was trained before; empty if none was."""
        own = self._read_finished(self._finished(key))
        former = own or self._former(plan.config.output.name)
        if former is None:
            return ""
        if former.result_version != RESULT_VERSION or not (own or former.made_from):
            return f"trains again: {Path(former.adapter).name} was made by an earlier version of this program"
        if own is not None:
            gone = f"{Path(own.adapter).name} was changed or deleted"
            return f"trains again: {gone}, and the last checkpoint of its run is gone, damaged or of another version"
        defaults = {found.place: found.default for found in walk(plan.config) if found.default is not MISSING}
        usual = json.loads(json.dumps(defaults))
        before, now = usual | former.made_from, usual | made_from(plan)
        names = {found.place: found.name for found in walk(plan.config) if not found.facts.path}
        called = CONTENTS | {"data": "the set of pictures and captions"}
        changed = [
            difference(called.get(place, place), names.get(place), before.get(place), now.get(place))
            for place in sorted(before.keys() | now.keys(), key=lambda place: (place != "data", place))
            if before.get(place) != now.get(place)
        ]
        return f"trains anew, not as {Path(former.adapter).name}: {', '.join(changed[:DIFFERENCES_SHOWN])}" if changed else ""

    def _former(self, name: str) -> FinishedRun | None:
        """Return the run that was finished last under this name or one that was made from it, as name-2."""
        own = of_name(name)
        return next((run for run in self._all_finished() if own.fullmatch(run.name)), None)

    def _all_finished(self) -> Iterator[FinishedRun]:
        """Yield every finished run, the latest first."""
        records = sorted((self.folder / "finished").glob("*.json"), key=lambda path: path.stat().st_mtime, reverse=True)
        yield from (run for record in records if (run := self._read_finished(record)) is not None)

    def left_behind(self, key: str, plan: Plan) -> UnfinishedRun | None:
        """Return the newest unfinished run of a graph's name where the graph continues none.

        Its inputs were others, or it was begun by another version. What the user kept, or lets start over, is left on purpose.
        """
        own, found = of_name(plan.config.output.name), self.unfinished()
        if any(run.key.startswith(key) and run.result_version == RESULT_VERSION for run in found):
            return None
        kept = {run.name for run in self._all_finished()}
        return next((run for run in found if own.fullmatch(run.name) and run.name not in kept), None)

    def finished_under(self, name: str) -> FinishedRun | None:
        """Return a finished run by its name."""
        records = (self.folder / "finished").glob("*.json")
        keys = [path.stem for path in records if (run := self._read_finished(path)) is not None and run.name == name]
        return next((found for key in keys if (found := self.find(key)) is not None), None)

    def finished_by_name(self) -> dict[str, FinishedRun]:
        """Return every finished run, also of an earlier version or without its file; of two of a name the later one."""
        return {run.name: run for run in reversed(list(self._all_finished()))}

    def finished_with(self, key: str) -> FinishedRun | None:
        """Return the finished run of a key, also of an earlier version or without its file."""
        return self._read_finished(self._finished(key))

    def extended(self, name: str, steps: int) -> UnfinishedRun | None:
        """Return a finished run as one that goes on, where that many steps are more than it has.

        Raises SettingError when the checkpoint of its end is gone.
        """
        for record in (self.folder / "finished").glob("*.json"):
            run = self._read_finished(record)
            if run is None or run.name != name or run.steps >= steps:
                continue
            newest = next(iter(checkpoints_in(self.run_folder(name))), None)
            if newest is None or step_of(newest) != run.steps:
                way_out = "use the adapter as `network.weights` of a new run"
                raise SettingError(f"`train.max_train_steps`={steps}: the last checkpoint of {name} is gone; {way_out}")
            return UnfinishedRun(name, record.stem, run.steps, run.total, newest.stat().st_mtime, run.result_version)
        return None

    def _current(self, key: str) -> FinishedRun | None:
        """Return the finished run of this key, if today's program would have the same numbers."""
        run = self._read_finished(self._finished(key))
        return run if run is not None and run.result_version == RESULT_VERSION else None

    def remember(self, key: str, run: FinishedRun) -> FinishedRun:
        """Record a finished run. One that was stopped and kept can still be continued, by whoever asks for that."""
        self.write(self._finished(key), asdict(run))
        if not run.is_kept:
            self.forget(run.name)
        return run

    def forget_finished(self, name: str) -> None:
        for record in (self.folder / "finished").glob("*.json"):
            if (run := self._read_finished(record)) is not None and run.name == name:
                files.delete(record)

    def _finished(self, key: str) -> Path:
        return self.folder / "finished" / f"{key}.json"

    def _read_finished(self, record: Path) -> FinishedRun | None:
        try:
            return FinishedRun(**json.loads(record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    # Unfinished runs

    def assign_name(self, config: TrainConfig, key: str, resume: bool) -> TrainConfig:
        """Give a run its file name, and its checkpoint when an unfinished run of the same key has one.

        A name that another run's file or folder has gets -2, -3, …; an unfinished run keeps its own. resume: False starts
        over, and leaves the unfinished run to the picker.
        """
        record = self.unfinished_record(key)
        if record.exists() and not (resume and self._version_of(record) == RESULT_VERSION):
            self._set_apart(key)
        name = self._name_of(record)
        if name is None or not checkpoints_in(self.run_folder(name)):
            name = self.unused_name(config)
            self.forget(name)
            self.write(record, {"name": name, "result_version": RESULT_VERSION})
        has_checkpoint = bool(checkpoints_in(self.run_folder(name)))
        output = dataclasses.replace(config.output, name=name, resume="latest" if has_checkpoint else "")
        return dataclasses.replace(config, output=output)

    def unfinished_record(self, key: str) -> Path:
        return self.folder / "unfinished" / f"{key}.json"

    def unfinished(self) -> list[UnfinishedRun]:
        """Return every run that can be continued, the newest first."""
        found = [run for record in self._records() if (run := self._read_unfinished(record)) is not None]
        by_name = {run.name: run for run in found}  # of two records the later one is the folder's
        return sorted(by_name.values(), key=lambda run: run.saved_at, reverse=True)

    def set_apart(self, run: UnfinishedRun) -> str:
        """File a run that continues with other data under a new key, so that the graph of the data before does not claim it."""
        return run.key if CHANGED_SUFFIX in run.key else self._set_apart(run.key)

    def _set_apart(self, key: str) -> str:
        """File the unfinished run of a key under one that no other has, finished or not. Return it."""
        folder = self.folder / "unfinished"

        def taken(path: Path) -> bool:
            return any(path.with_name(f"{path.name}.json").exists() for path in (path, self.folder / "finished" / path.name))

        apart = files.unused(folder / f"{key}{CHANGED_SUFFIX}", taken).name
        files.replace(folder / f"{key}.json", folder / f"{apart}.json")
        return apart

    def unused_name(self, config: TrainConfig) -> str:
        output = config.output

        def taken(path: Path) -> bool:
            adapter = Path(output.adapter_dir or output.dir) / f"{path.name}.safetensors"
            return adapter.exists() or path.with_name(f"{path.name}-run").exists()

        return files.unused(Path(output.dir) / output.name, taken).name

    def _records(self) -> list[Path]:
        """Return the records of unfinished runs, the oldest first."""

        def written_at(record: Path) -> float:
            try:
                return record.stat().st_mtime
            except OSError:  # its run has just finished
                return 0.0

        return sorted((self.folder / "unfinished").glob("*.json"), key=written_at)

    def _read_unfinished(self, record: Path) -> UnfinishedRun | None:
        name = self._name_of(record)
        try:
            newest = next(iter(checkpoints_in(self.run_folder(name))), None) if name else None
            if name is None or newest is None:
                return None
            total = self.frozen_config(name).max_train_steps
            saved_at, version = newest.stat().st_mtime, self._version_of(record)
            return UnfinishedRun(name, record.stem, step_of(newest), total, saved_at, version)
        except (OSError, ValueError, AnimaError):
            return None

    def forget(self, name: str) -> None:
        """Drop the records of an unfinished run: its name is given again, or it is finished or deleted."""
        for record in self._records():
            if self._name_of(record) == name:
                files.delete(record)

    def _name_of(self, record: Path) -> str | None:
        """Return the run's name in a record; None where there is no plain one."""
        name = self._read(record).get("name")
        try:
            return name if isinstance(name, str) and files.safe_name(name) == name else None
        except SettingError:
            return None

    def _version_of(self, record: Path) -> Any:
        return self._read(record).get("result_version", RESULT_VERSION)

    def _read(self, record: Path) -> dict[str, Any]:
        try:
            found = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write(self, path: Path, data: dict[str, Any]) -> None:
        """Write a record that survives a power cut: a run without its record is not offered again."""
        files.write_whole(path, json.dumps(data))

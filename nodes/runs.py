"""Finished runs on disk, keyed by everything that shapes the result: the same inputs never train twice."""

import dataclasses
import hashlib
import itertools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import folder_paths

from .. import anima_core
from ..anima_core.config import OutputConfig, TrainConfig, from_dict, to_dict
from ..anima_core.errors import AnimaError, SettingError
from ..anima_core.models.checkpoint import file_identity
from ..anima_core.toml_file import read_toml
from ..anima_core.training.loop import TrainResult
from ..anima_core.training.preflight import Plan
from ..anima_core.training.state import checkpoints_in, flush_to_disk, step_of
from .names import safe_name

# Settings that shape no number, so that a run which went out of memory goes on when these are changed.
WITHOUT_EFFECT = ("device", "cache_dir", "cache_latents", "cache_text", "gradient_checkpointing", "strict_data")
CHANGED = "-changed"  # ends the key of a run that went on with other data, or whose graph has started over


@dataclass(frozen=True)
class FinishedRun:
    adapter: str
    adapter_sha256: str
    run_dir: str
    losses: list[float]
    steps: int
    samples: list[str]


def store_folder() -> Path:
    return Path(folder_paths.get_output_directory()) / "anima_trainer"


def run_key(plan: Plan) -> str:
    """SHA-256 over dataset content, captions, every setting, the model files' content and the code version."""
    config = to_dict(plan.config)
    config["model"] = {name: content(path) for name, path in config["model"].items()}
    config["network"]["weights"] = content(config["network"]["weights"])
    for without_effect in WITHOUT_EFFECT:
        del config[without_effect]
    config["output"] = {name: config["output"][name] for name in ("name", "save_dtype", "key_format")}
    for dataset in config["datasets"]:
        for subset in dataset["subsets"]:
            del subset["image_dir"], subset["mask_dir"]
    pictures = [
        [p.digest, p.caption, p.repeats, content(str(p.mask_path or "")), list(p.size)]
        for group in plan.pictures
        for p in group
    ]
    text = json.dumps({"version": anima_core.__version__, "config": config, "pictures": pictures}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def content(path: str) -> str:
    """A file's or folder's content hash; a word such as a dtype stays itself."""
    return file_identity(path) if path and Path(path).exists() else path


def find(key: str) -> FinishedRun | None:
    """The finished run of this key, if its adapter is still there and unchanged."""
    run = read_finished(_path(key))
    return run if run is not None and is_intact(run) else None


def read_finished(record: Path) -> FinishedRun | None:
    try:
        return FinishedRun(**json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def is_intact(run: FinishedRun) -> bool:
    return Path(run.adapter).is_file() and file_identity(run.adapter) == run.adapter_sha256


def claim(config: TrainConfig, key: str, go_on: bool) -> TrainConfig:
    """Give a run its file name, and its checkpoint when an unfinished run of the same key has one.

    A name that another run's file or folder has gets -2, -3, …; an unfinished run keeps its own.
    """
    record = store_folder() / "unfinished" / f"{key}.json"
    if not go_on and record.exists():  # what is started over is still offered by the picker
        numbered = (record.with_name(f"{key}-{number}{CHANGED}.json") for number in itertools.count(1))
        os.replace(record, next(path for path in numbered if not path.exists()))
    name = read_name(record)
    has_checkpoint = name is not None and bool(checkpoints_in(run_folder(name)))
    if not has_checkpoint:
        name = unused_name(config.output)
        forget(name)
        write_record(record, {"name": name})
    output = dataclasses.replace(config.output, name=name, resume="latest" if has_checkpoint else "")
    return dataclasses.replace(config, output=output)


@dataclass(frozen=True)
class UnfinishedRun:
    """A run that was cancelled, stopped early or cut off. total: steps it was to take, 0 when epochs were asked for."""

    name: str
    key: str
    step: int
    total: int
    saved_at: float  # seconds since 1970


def unfinished() -> list[UnfinishedRun]:
    """Every run that can be continued, the newest first."""
    found = [run for record in records() if (run := read_unfinished(record)) is not None]
    by_name = {run.name: run for run in found}  # of two records the later one is the folder's
    return sorted(by_name.values(), key=lambda run: run.saved_at, reverse=True)


def records() -> list[Path]:
    """What is known of unfinished runs, the oldest first."""

    def written_at(record: Path) -> float:
        try:
            return record.stat().st_mtime
        except OSError:  # its run has just finished
            return 0.0

    return sorted((store_folder() / "unfinished").glob("*.json"), key=written_at)


def read_unfinished(record: Path) -> UnfinishedRun | None:
    name = read_name(record)
    try:
        newest = next(iter(checkpoints_in(run_folder(name))), None) if name else None
        if newest is None:
            return None
        total = frozen_config(name).max_train_steps
        return UnfinishedRun(name, record.stem, step_of(newest), total, newest.stat().st_mtime)
    except (OSError, ValueError, AnimaError):
        return None


def set_apart(run: UnfinishedRun) -> str:
    """The key of a run that goes on with other data: only the picker finds it, not the graph of the data before."""
    record = store_folder() / "unfinished" / f"{run.key}.json"
    apart = record.with_name(f"{run.key.removesuffix(CHANGED)}{CHANGED}.json")
    os.replace(record, apart)
    return apart.stem


def forget(name: str) -> None:
    """A name that is given anew, or whose run is finished, is no unfinished run's any more."""
    for record in records():
        if read_name(record) == name:
            record.unlink(missing_ok=True)


def run_folder(name: str) -> Path:
    return store_folder() / f"{name}-run"


def frozen_config(name: str) -> TrainConfig:
    """The settings that a run was started with. Raises FileError, SettingError."""
    path = run_folder(name) / "config.toml"
    return from_dict(TrainConfig, read_toml(path), str(path))


def finished_under(name: str) -> FinishedRun | None:
    """A finished run by its name."""
    found = map(read_finished, (store_folder() / "finished").glob("*.json"))
    return next((run for run in found if run and Path(run.run_dir) == run_folder(name) and is_intact(run)), None)


def read_name(record: Path) -> str | None:
    """The run's name in a record; None for a record that is none, or whose name is no plain one."""
    try:
        name = json.loads(record.read_text(encoding="utf-8"))["name"]
        return name if safe_name(name) == name else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SettingError):
        return None


def unused_name(output: OutputConfig) -> str:
    name, number = output.name, 1
    while (Path(output.adapter_dir) / f"{name}.safetensors").exists() or (Path(output.dir) / f"{name}-run").exists():
        number += 1
        name = f"{output.name}-{number}"
    return name


def describe(result: TrainResult) -> FinishedRun:
    samples = sorted(str(p) for p in (result.run_dir / "samples").glob(f"step-{result.steps:08d}-*.png"))
    adapter, run_dir = str(result.adapter_path), str(result.run_dir)
    return FinishedRun(adapter, file_identity(adapter), run_dir, result.losses, result.steps, samples)


def remember(key: str, run: FinishedRun) -> None:
    write_record(_path(key), asdict(run))
    forget(Path(run.run_dir).name.removesuffix("-run"))


def write_record(path: Path, data: dict) -> None:
    """Whole or not at all, also when the power is cut: a run without its record is not offered again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(data), encoding="utf-8")
    flush_to_disk(temporary)
    os.replace(temporary, path)


def _path(key: str) -> Path:
    return store_folder() / "finished" / f"{key}.json"

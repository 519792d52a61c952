"""The run folder `<output_dir>/<name>-run/`: frozen config, log, samples, checkpoints."""

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout  # torch itself brings it along

from ..config import to_dict
from ..errors import FileError, SettingError
from ..toml_file import dump_toml
from .preflight import Plan
from .state import flush_to_disk, step_of


def open_run_dir(plan: Plan) -> list[str]:
    """Make the run folder, out of whose way everything goes that is not this run's. Returns what was done, in words."""
    try:
        notes = keep_later_steps(plan) if resumes_own(plan) else keep_earlier_run(plan)
        plan.run_dir.mkdir(parents=True, exist_ok=True)
        for left in half_written(plan):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        return notes
    except OSError as error:
        raise FileError(
            f"{plan.run_dir}: cannot be made ready ({error.strerror}); close what has it open, or choose another output_name"
        ) from None


def resumes_own(plan: Plan) -> bool:
    """Whether the checkpoint is one of this run folder's."""
    return plan.resume_from is not None and plan.run_dir.resolve() in plan.resume_from.resolve().parents


def keep_earlier_run(plan: Plan) -> list[str]:
    """An earlier run of this name, with the adapter that the new one will replace."""
    folder, adapter = plan.run_dir, plan.adapter_path
    earlier, notes = (folder / "log.jsonl").exists(), []
    if adapter.exists():
        if earlier:  # before it is moved: a disk that is full now must not lose it
            shutil.copy2(adapter, folder / adapter.name)
        notes.append(f"{adapter} is replaced at the end" + (", a copy is kept with its run" if earlier else ""))
    if earlier:
        aside = unused(folder)
        os.replace(folder, aside)
        notes.append(f"an earlier run of this name is kept in {aside}; --resume {aside} goes on with it")
    return notes


def keep_later_steps(plan: Plan) -> list[str]:
    """Checkpoints beyond the resumed one: "latest" would return to them, whatever has changed. Damaged ones too."""
    resumed = step_of(plan.resume_from)
    later = [path for path in (plan.run_dir / "checkpoints").glob("step-*") if step_of(path) > resumed]
    for path in later:
        aside = unused(plan.run_dir / "set_aside" / path.name)
        aside.parent.mkdir(exist_ok=True)
        os.replace(path, aside)
    return [f"{len(later)} later checkpoints are set aside in {plan.run_dir / 'set_aside'}"] if later else []


def unused(path: Path) -> Path:
    """The path itself, or with -1, -2, … the first that is free."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in itertools.count(1))
    return next(p for p in itertools.chain([path], numbered) if not p.exists())


def half_written(plan: Plan) -> list[Path]:
    """What a run of this name that was killed while saving has left: nobody else writes these while the name is held."""
    temporary = re.compile(rf"\.{re.escape(plan.adapter_path.stem[:200])}(-step\d{{8}})?\.\w{{8}}\.tmp")  # see `save_adapter`
    beside = {plan.adapter_path.parent, plan.run_dir}
    files = [path for folder in beside if folder.is_dir() for path in folder.iterdir() if temporary.fullmatch(path.name)]
    hidden = (plan.run_dir / "checkpoints").glob(".step-*")  # a replaced one is resumed only where its successor is lost
    return [*files, *(path for path in hidden if path.name != (plan.resume_from or path.parent).name)]


@contextmanager
def locked(plan: Plan) -> Iterator[None]:
    """Hold the run's name. The system frees the lock when the process dies, however it dies."""
    path, name = plan.run_dir.parent / f".{plan.run_dir.name}.lock", plan.config.output.name
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SettingError(f"output_name={name}: another run of this name is training now; choose another name") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be locked ({error.strerror}); choose another output_name or output_dir") from None
    try:
        yield
    finally:
        lock.release()


def freeze_config(plan: Plan) -> str:
    """Write `config.toml`, every setting of the run spelt out; returns its text."""
    text = dump_toml(to_dict(plan.config))
    path = plan.run_dir / "config.toml"
    temporary = path.with_suffix(".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        flush_to_disk(temporary)  # without it the run is not offered again
        os.replace(temporary, path)
    except OSError as error:
        raise FileError(
            f"{path}: cannot be written ({error.strerror}); free some space, or choose another output_dir"
        ) from None
    return text


def saved_on_the_way(folder: Path, name: str) -> list[Path]:
    """The files `name-step00000100.safetensors` of a run, by step: no other run's, however it is named."""
    pattern = re.compile(re.escape(name) + r"-step\d{8}\.safetensors")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def prune(paths: list[Path], keep: int) -> None:
    """Delete all but the last `keep` of files or folders sorted by age; 0 keeps all. A kill leaves none that looks whole."""
    for path in paths[: -keep if keep else 0]:
        if path.is_dir():
            path = path.replace(path.with_name(f".{path.name}.pruned"))  # see `half_written`
            shutil.rmtree(path)
        else:
            path.unlink()

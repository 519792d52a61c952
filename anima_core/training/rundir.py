"""The run folder `<output_dir>/<name>-run/`: frozen config, log, samples, checkpoints."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout  # torch itself brings it along

from ..config import to_dict
from ..errors import SettingError
from ..toml_file import dump_toml
from .preflight import Plan


def open_run_dir(plan: Plan) -> None:
    """Make the run folder. An earlier run's folder of this name is moved aside, unless this run resumes it."""
    folder = plan.run_dir
    if plan.resume_from is None and (folder / "log.jsonl").exists():
        number = 1
        while folder.with_name(f"{folder.name}-{number}").exists():
            number += 1
        os.replace(folder, folder.with_name(f"{folder.name}-{number}"))
    folder.mkdir(parents=True, exist_ok=True)
    for left in half_written(plan):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def half_written(plan: Plan) -> list[Path]:
    """What a run of this name that was killed while saving has left: nobody else writes these while the name is held."""
    temporary = re.compile(rf"\.{re.escape(plan.adapter_path.stem[:200])}(-step\d{{8}})?\.\w{{8}}\.tmp")  # see `save_adapter`
    beside = {plan.adapter_path.parent, plan.run_dir}
    files = [path for folder in beside if folder.is_dir() for path in folder.iterdir() if temporary.fullmatch(path.name)]
    return [*files, *(plan.run_dir / "checkpoints").glob(".step-*.tmp")]


@contextmanager
def locked(plan: Plan) -> Iterator[None]:
    """Hold the run's name. The system frees the lock when the process dies, however it dies."""
    lock = FileLock(plan.run_dir.parent / f".{plan.run_dir.name}.lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        name = plan.config.output.name
        raise SettingError(f"output_name={name}: another run of this name is training now; choose another name") from None
    try:
        yield
    finally:
        lock.release()


def freeze_config(plan: Plan) -> str:
    """Write `config.toml`, every setting of the run spelt out; returns its text."""
    text = dump_toml(to_dict(plan.config))
    path = plan.run_dir / "config.toml"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return text


def saved_on_the_way(folder: Path, name: str) -> list[Path]:
    """The files `name-step00000100.safetensors` of a run, by step: no other run's, however it is named."""
    pattern = re.compile(re.escape(name) + r"-step\d{8}\.safetensors")
    return sorted(path for path in folder.iterdir() if pattern.fullmatch(path.name))


def prune(paths: list[Path], keep: int) -> None:
    """Delete all but the last `keep` of files or folders sorted by age; 0 keeps all."""
    for path in paths[: -keep if keep else 0]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()

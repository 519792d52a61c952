"""The run folder `<output_dir>/<name>-run/`: frozen config, log, samples, checkpoints."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout  # torch itself brings it along

from ..errors import FileError, SettingError
from ..files import TEMPORARY, delete, replace, unused, write_whole
from ..settings import to_dict
from ..settings.optimizer import OPTIMIZERS
from ..settings.toml_file import dump_toml
from .packages import recorded
from .preflight import Plan
from .saves import Saves, moved_into
from .state import step_of


def open_run_dir(plan: Plan) -> list[str]:
    """Create the run folder, moving an earlier run of this name aside. Return notes for the log. Raises FileError."""
    try:
        notes = set_later_steps_aside(plan) if resumes_own(plan) else set_earlier_run_aside(plan)
        plan.run_dir.mkdir(parents=True, exist_ok=True)
        for left in half_written(plan):
            delete(left)  # or at the next start
        return notes
    except OSError as error:
        way_out = "close what has it open, or choose another `output.name`"
        raise FileError(f"{plan.run_dir}: cannot be prepared ({error.strerror}); {way_out}") from None


def resumes_own(plan: Plan) -> bool:
    """Tell whether the checkpoint is one of this run folder's."""
    return plan.resume_from is not None and plan.run_dir.resolve() in plan.resume_from.resolve().parents


def set_earlier_run_aside(plan: Plan) -> list[str]:
    """Move an earlier run of this name aside, with a copy of the adapter that the new one will replace."""
    folder, adapter = plan.run_dir, plan.adapter_path
    earlier = (folder / "log.jsonl").exists()
    notes: list[str] = []
    if adapter.exists():
        if earlier:  # before it is moved: a disk that is full now must not lose it
            shutil.copy2(adapter, folder / adapter.name)
        notes.append(f"{adapter} is replaced at the end" + (", a copy is kept with its run" if earlier else ""))
    if earlier:
        aside = unused(folder)
        replace(folder, aside)
        moved = Saves(aside, "adapters").set_aside(aside)
        kept = f"{aside}, with {len(moved)} adapters that it saved on its way" if moved else str(aside)
        notes.append(f"an earlier run of this name is kept in {kept}; `output.resume`={aside} continues it")
    return notes


def set_later_steps_aside(plan: Plan) -> list[str]:
    """Move what was saved after the resumed step to `set_aside/`: it is of a branch that was given up.

    Else "latest" would pick its checkpoints again, and its adapters would push out those that are to come. Damaged ones too.
    """
    assert plan.resume_from is not None
    resumed, aside = step_of(plan.resume_from), plan.run_dir / "set_aside"
    later = [path for path in (plan.run_dir / "checkpoints").glob("step-*") if step_of(path) > resumed]
    for path in later:
        moved_into(aside, path)
    Saves(plan.run_dir, "checkpoints").set_aside(aside, after=resumed)  # they are moved: this drops them from the list
    adapters = Saves(plan.run_dir, "adapters").set_aside(aside, after=resumed)
    found = [f"{len(found)} later {sort}" for sort, found in (("checkpoints", later), ("adapters", adapters)) if found]
    return [f"{' and '.join(found)} are set aside in {aside}"] if found else []


def half_written(plan: Plan) -> list[Path]:
    """List what a run of this name left when it was killed while saving. Nobody else writes these while the name is held."""
    own = re.compile(rf"\.{re.escape(plan.adapter_path.stem)}(-step\d{{8}}|-best)?{TEMPORARY}")  # see `write_whole`
    found = [path for path in plan.adapter_path.parent.glob(".*.tmp") if own.fullmatch(path.name)]
    found += [path for folder in (plan.run_dir, plan.run_dir / "samples") for path in folder.glob(".*.tmp")]
    hidden = (plan.run_dir / "checkpoints").glob(".step-*")  # a replaced one is resumed only where its successor is lost
    return [*found, *(path for path in hidden if path.name != (plan.resume_from or path.parent).name)]


@contextmanager
def locked(plan: Plan) -> Iterator[None]:
    """Hold the run's name. Raises SettingError, FileError."""
    with held(plan.run_dir, plan.config.output.name):
        yield


def lock_of(run_dir: Path) -> Path:
    return run_dir.parent / f".{run_dir.name}.lock"


@contextmanager
def held(run_dir: Path, name: str) -> Iterator[None]:
    """Hold the name of a run's folder. The system frees the lock when the process dies, however it dies.

    Raises SettingError when another run has it, FileError.
    """
    lock = FileLock(lock_of(run_dir), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise SettingError(f"`output.name`={name}: another run of this name is training now; choose another name") from None
    except OSError as error:
        way_out = "choose another `output.name` or `output.dir`"
        raise FileError(f"{lock_of(run_dir)}: cannot be locked ({error.strerror}); {way_out}") from None
    try:
        yield
    finally:
        lock.release()


def freeze_config(plan: Plan) -> str:
    """Write `config.toml`, every setting of the run spelt out; return its text. Raises FileError.

    Above them stands the package of an optimizer that goes on with the same version only.
    """
    kind = OPTIMIZERS[plan.config.optimizer.type]
    package = f"# {kind.name}: {recorded(kind)}\n" if recorded(kind) else ""
    text = package + dump_toml(to_dict(plan.config))
    path = plan.run_dir / "config.toml"
    try:
        write_whole(path, text)
    except OSError as error:
        way_out = "free some space, or choose another `output.dir`"
        raise FileError(f"{path}: cannot be written ({error.strerror}); {way_out}") from None
    return text

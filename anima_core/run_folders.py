"""A run's folder found by its adapter; copied, to go on otherwise than its graph asked for; or deleted."""

import dataclasses
import shutil
from pathlib import Path

from . import files
from .errors import FileError, RunError, SettingError
from .run_history import LOG
from .run_record import new_id, read_record, write_record
from .run_store import CHANGED_SUFFIX, RunStore, UnfinishedRun, digest_of, run_key
from .settings import TrainConfig
from .training.preflight import Plan
from .training.rundir import held, lock_of
from .training.saves import AUTO, Saves
from .training.state import checkpoints_in, step_of

COPIED = ("config.toml", "plan.json", LOG)


def folder_of(store: RunStore, adapter: Path) -> Path | None:
    """Find the run that an adapter file is of, by its place, or by its content where it was renamed or moved.

    None for a file that is of no finished run, or whose run's folder is gone.
    """
    if not adapter.is_file():
        return None
    runs = store.finished_by_name().values()
    own = [run for run in runs if Path(run.adapter) == adapter]
    own = own or [run for run in runs if run.adapter_sha256 == files.identity(adapter)]
    folders = [store.run_folder(run.name) for run in own]
    return next((folder for folder in folders if folder.is_dir()), None)


def branch_key(key: str, plan: Plan) -> str:
    """Return the key of a run that goes on from the one of a key, as a plan says: asked for again, it is found again."""
    return digest_of([key, run_key(plan)]) + CHANGED_SUFFIX


def branch(store: RunStore, run: UnfinishedRun, key: str, config: TrainConfig) -> UnfinishedRun:
    """Copy a run whose adapter its graph gets, under the next free name; return the copy, which is unfinished.

    The original keeps its adapter, its record and its checkpoints. key: of the copy. config: how it goes on. Raises FileError.
    """
    name = store.unused_name(config)
    source, target = store.run_folder(run.name), store.run_folder(name)
    checkpoint = checkpoints_in(source)[0]
    half = target.with_name(f".{target.name}.tmp")
    files.delete(half)
    try:
        shutil.copytree(checkpoint, half / "checkpoints" / checkpoint.name)
        if (source / "samples").is_dir():
            shutil.copytree(source / "samples", half / "samples")
        for file in COPIED:
            if (source / file).is_file():
                shutil.copy2(source / file, half / file)
        write_record(half, dataclasses.replace(read_record(source), id=new_id(), outcome="", sentence=""))
        files.replace(half, target)
        Saves(target, "checkpoints").add(target / "checkpoints" / checkpoint.name, step_of(checkpoint), AUTO)
    except OSError as error:
        files.delete(half)
        raise FileError(f"{target}: {run.name} cannot be copied there ({error.strerror}); free some space") from None
    store.write(store.unfinished_record(key), {"name": name, "result_version": run.result_version})
    return dataclasses.replace(run, name=name, key=key)


def delete_run(store: RunStore, name: str) -> None:
    """Delete a run's folder and its records; never its adapter. Raises RunError while it trains, FileError."""
    folder = store.run_folder(name)
    try:
        with held(folder, name):
            gone = folder.with_name(f".{folder.name}.deleted")
            files.delete(gone)
            files.replace(folder, gone)  # at once, so that nothing half deleted is listed
            store.forget(name)
            store.forget_finished(name)
    except SettingError:
        raise RunError(f"{name}: is training now; stop it first") from None
    except OSError as error:
        raise FileError(f"{folder}: cannot be deleted ({error.strerror}); close what has it open") from None
    files.delete(gone)
    files.delete(lock_of(folder))

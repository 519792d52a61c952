"""Running a sweep: every point looked at first, then one after the other; results and page are written after each."""

import dataclasses
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import AnimaError, FileError, Interrupted, RunError, SettingError
from ..files import write_whole
from ..run_folders import delete_run
from ..run_store import FinishedRun, RunStore, describe, run_key
from ..settings import TrainConfig
from ..training.events import Listener
from ..training.held_out import STOPPED_EARLY
from ..training.loop import train
from ..training.model_files import hash_models
from ..training.preflight import cache_folder, preflight
from ..training.rundir import held
from ..training.state import checkpoints_in
from .outcome import AUTO, Choice, Outcome, choose, read_point_story
from .page import page
from .plan import Point, Sweep, folder_of

PLAN, RESULTS, PAGE = "sweep.toml", "results.json", "index.html"
FAILURES = (AnimaError, RuntimeError, OSError)  # end a point, not the sweep

Trainer = Callable[[TrainConfig, str], FinishedRun]  # (settings, "point 2 of 6: rank 16") -> its run, found again or trained


def placed(config: TrainConfig) -> TrainConfig:
    """Return a run's settings with the folders of a sweep's points: in the sweep's own, with one cache for all.

    Raises SettingError.
    """
    if config.output.resume:
        raise SettingError(f"`output.resume`={config.output.resume}: a sweep continues its points by itself; leave it out")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise SettingError("sweep: its points run in one process; start it without a launcher")
    output = dataclasses.replace(config.output, dir=str(folder_of(config)))
    return dataclasses.replace(config, output=output, cache_dir=str(cache_folder(config)))


def checked(sweep: Sweep, on_event: Listener | None = None) -> Sweep:
    """Return the sweep with every point looked at as a training looks at its settings; a refused one carries the reason."""
    return dataclasses.replace(sweep, points=tuple(checked_point(point, on_event) for point in sweep.points))


def checked_point(point: Point, on_event: Listener | None) -> Point:
    if point.config is None:
        return point
    try:
        preflight(point.config, on_event=on_event)
    except Interrupted:
        raise
    except AnimaError as error:
        return dataclasses.replace(point, config=None, error=error.text)
    return point


def finished_run(config: TrainConfig, on_event: Listener | None = None) -> FinishedRun:
    """Return the finished run of a point, or train it, from its last checkpoint where it has one. Raises as `train` does."""
    store = RunStore(Path(config.output.dir))
    plan = preflight(config, on_event=on_event)
    hash_models(plan.config, plan.cache_dir, on_event)  # the key is made of what is in them
    key = run_key(plan)
    done = store.find(key)
    if done is None:
        result = train(store.assign_name(config, key, resume=True), on_event)
        done = store.remember(key, describe(result, plan))
    return done


def run_sweep(sweep: Sweep, trainer: Trainer, tell: Callable[[str], None], pick: str = AUTO) -> tuple[list[Outcome], Choice]:
    """Run every point that can be trained; one that fails is named, and the others run. Return all, and the winner.

    sweep: checked. trainer: of one point. tell: hears how far it is. Raises Interrupted, or what else the trainer ends with
    on purpose, after results and page are written; SettingError while the same sweep runs elsewhere, FileError.
    """
    outcomes = [Outcome(point, "refused" if point.error else "waiting", point.error) for point in sweep.points]
    with held(sweep.folder, sweep.name):
        write(sweep.folder / PLAN, sweep.frozen())
        for number in (number for number, point in enumerate(sweep.points) if point.error):
            tell(f"{place(sweep, number)}: left out: {sweep.points[number].error}")
        for number, point in enumerate(sweep.points):
            if point.config is None:
                continue
            try:
                outcomes[number] = outcome_of(point, trainer, place(sweep, number))
                if outcomes[number].error:
                    tell(f"{place(sweep, number)}: failed: {outcomes[number].error}")
            finally:
                outcomes[number] = with_story(outcomes[number])
                write_results(sweep, outcomes, choose(outcomes, pick))
        choice = choose(outcomes, pick)
        write_results(sweep, outcomes, choice)
    return outcomes, choice


def place(sweep: Sweep, number: int) -> str:
    return f"point {number + 1} of {len(sweep.points)}: {sweep.points[number].label}"


def outcome_of(point: Point, trainer: Trainer, where: str) -> Outcome:
    """Train a point. What it fails with is its outcome; what ends the whole sweep is raised."""
    assert point.config is not None
    try:
        forget_vain_try(RunStore(Path(point.config.output.dir)), point.name)
        done = trainer(point.config, where)
    except Interrupted:
        raise
    except FAILURES as error:
        text = error.text if isinstance(error, AnimaError) else f"{type(error).__name__}: {error}".partition("\n")[0]
        return Outcome(point, "failed", text)
    return Outcome(point, "kept" if done.is_kept else "finished", "", done.adapter, Path(done.run_dir))


def forget_vain_try(store: RunStore, name: str) -> None:
    """Delete the folder of an earlier try that left no checkpoint and no adapter: else the next would be called name-2."""
    folder = store.run_folder(name)
    if folder.is_dir() and not checkpoints_in(folder) and name not in store.finished_by_name():
        delete_run(store, name)


def with_story(outcome: Outcome) -> Outcome:
    """Return an outcome with what its run's log tells; a point that was ended on its way has begun and is unfinished."""
    assert outcome.point.config is not None
    folder = outcome.run_dir or outcome.point.config.output.run_dir
    story = read_point_story(folder)
    if story is None:
        return outcome
    state = "unfinished" if outcome.state == "waiting" else outcome.state
    state = STOPPED_EARLY if outcome.state == "kept" and story.end == STOPPED_EARLY else state
    return dataclasses.replace(outcome, state=state, run_dir=folder, story=story)


def write_results(sweep: Sweep, outcomes: list[Outcome], choice: Choice) -> None:
    """Write what the points came to, for programs and for people. Raises FileError."""
    winner = choice.winner
    told = {
        "sweep": sweep.name,
        "varied": list(sweep.varied),
        "winner": winner.point.name if winner else None,
        "adapter": winner.best_adapter if winner else None,
        "chosen_by": choice.why,
        "warning": choice.warning,
        "points": [outcome.facts() for outcome in outcomes],
    }
    write(sweep.folder / RESULTS, json.dumps(without_infinities(told), indent=1, ensure_ascii=False) + "\n")
    write(sweep.folder / PAGE, page(sweep, outcomes, choice))


def without_infinities(value: Any) -> Any:
    """Return what JSON can say: a number that a setting may not be, as infinity, becomes a text."""
    if isinstance(value, dict):
        return {key: without_infinities(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_infinities(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror}); free some space") from None


def failures(outcomes: list[Outcome]) -> str:
    """Name every point that was refused or has failed, with its error; empty where there is none."""
    return "; ".join(f"{outcome.point.label}: {outcome.error}" for outcome in outcomes if outcome.error)


def winner_of(outcomes: list[Outcome], choice: Choice) -> Outcome:
    """Return the winner. Raises RunError that says why there is none."""
    if choice.winner is None:
        raise RunError(f"the sweep has no winner: {failures(outcomes) or choice.why}")
    return choice.winner

"""`python -m anima_core sweep`: the flags of `train`, what varies, and how the winner is found."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from ..compat.arguments import request_from, typed_flags
from ..compat.flags import setting_words
from ..compat.logging_flags import NOTHING
from ..errors import Interrupted, RunError, SettingError, in_words
from ..loggers.listening import listening
from ..loggers.wanted import Logging
from ..progress_bar import ProgressBar
from ..run_store import FinishedRun
from ..settings import TrainConfig
from .outcome import check_pick, text_table
from .plan import Sweep, asked_for, folder_of, make_sweep, read_plan
from .run import PAGE, PLAN, checked, failures, finished_run, placed, run_sweep, winner_of


def run(args: argparse.Namespace) -> None:
    """Run a sweep, and print its table and its winner. Raises RunError where a point has failed, at the end."""
    sweep, logging = sweep_of(args)
    check_pick(args.pick, sweep)
    with ProgressBar(setting_words()) as bar:

        def tell(text: str) -> None:
            bar.on_event({"event": "note", "text": text})

        def trainer(config: TrainConfig, where: str) -> FinishedRun:
            tell(where)
            with listening(of_point(logging, config), config, bar.on_event) as log:

                def listen(event: dict[str, Any]) -> None:
                    bar.on_event(event)
                    log(event)

                return finished_run(config, listen)

        try:
            outcomes, choice = run_sweep(checked(sweep, bar.on_event), trainer, tell, args.pick)
        except Interrupted:
            tell(f"the same command goes on from here, and so does: python -m anima_core sweep {sweep.folder / PLAN}")
            raise
    print(text_table(sweep, outcomes))
    print(f"page: {sweep.folder / PAGE}")
    winner = winner_of(outcomes, choice)
    if choice.warning:
        print(f"warning: {in_words(choice.warning, setting_words())}", file=sys.stderr)
    print(f"winner: {winner.point.label}, {choice.why}: {winner.best_adapter}")
    if told := failures(outcomes):
        raise RunError(f"{sum(bool(outcome.error) for outcome in outcomes)} of {len(outcomes)} points failed: {told}")


def of_point(logging: Logging, config: TrainConfig) -> Logging:
    """Return what a point logs: as a run of its own name, in a folder of its own."""
    folder = str(Path(logging.tensorboard) / config.output.name) if logging.tensorboard else ""
    return dataclasses.replace(logging, tensorboard=folder, run_name="")


def sweep_of(args: argparse.Namespace) -> tuple[Sweep, Logging]:
    """Read the sweep file, the flags of `train`, and what varies; return the sweep, and what it logs. Raises AnimaError."""
    table, base = read_plan(args.plan) if args.plan else ({}, None)
    asked, logging = asked_for(args.vary, table), NOTHING
    if base is not None:
        if typed := typed_flags(args):
            raise SettingError(f"--{min(typed)}: {args.plan} has all settings of its sweep; change them there")
        sweep = make_sweep(base, asked, Path(args.plan).parent)
    else:
        request = request_from(args)
        if request.output_config:
            raise SettingError("--output_config: is of train; leave it out")
        sweep = make_sweep(placed(request.config), asked, folder_of(request.config))
        sweep = dataclasses.replace(sweep, notes=(*request.notes, *sweep.notes))
        logging = request.logging
    for note in sweep.notes:
        print(f"note: {note}", file=sys.stderr)
    return sweep, logging

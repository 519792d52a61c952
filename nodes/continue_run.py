"""The node that continues a run: one that did not come to its end, or with more steps one that did."""

from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..anima_core.errors import SettingError
from ..anima_core.run_folders import branch, branch_key
from ..anima_core.run_store import RESULT_VERSION, FinishedRun, UnfinishedRun
from ..anima_core.settings import OptimizerConfig, OutputConfig, TrainConfig
from ..anima_core.training.preflight import preflight
from ..anima_core.training.resume import contents
from ..anima_core.training.state import read_content
from . import bridge, on_disk, returned, sentences, tell, types
from .node import AnimaNode
from .roots import check_config
from .running import found_again, in_this_server, interruptible, model_input, outputs, results, train_now
from .store import run_store
from .widgets import inputs, widget

NO_RUN = "(none)"
RARE: dict[str, Any] = {"optional": True, "advanced": True}


class AnimaContinueRun(AnimaNode):
    widgets = (
        widget("with_changes", OutputConfig, "resume_with_changes", **RARE),
        widget(
            "steps",
            TrainConfig,
            "max_train_steps",
            default=0,
            why="the run has its own",
            tooltip="Steps in all, those done included: more than a finished run has train it on. 0: as the run was started.",
            min=0,
            max=1_000_000,
            **RARE,
        ),
        widget(
            "learning_rate",
            OptimizerConfig,
            default=0.0,
            why="the run has its own",
            tooltip="Learning rate from here on; needs with_changes. 0: as the run was started.",
            min=0.0,
            max=10.0,
            step=1e-6,
            round=1e-9,
            **RARE,
        ),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [run.name for run in run_store().unfinished()]
        return io.Schema(
            node_id="AnimaContinueRun",
            display_name="Continue Anima Run",
            category=types.TRAINING,
            description="Continues a run that was cancelled, stopped early or cut off, with its own settings; "
            "with more steps also one that is finished.",
            search_aliases=["resume", "resume training", "continue training", "继续训练"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "run",
                    options=names or [NO_RUN],
                    tooltip="Unfinished runs, the newest first. Press R to look again.",
                ),
                *inputs(cls.widgets),
                model_input(),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, run: str) -> bool | str:
        """Accept what is not in the list: a run that was finished since has an adapter to hand on, and `run` says the rest."""
        return True

    @classmethod
    def fingerprint_inputs(cls, run: str | None = "", **others: Any) -> str | float:
        if run is None:
            return on_disk.unknown()
        return repr([r for r in run_store().unfinished() if r.name == run]) + str(returned.changes())

    @classmethod
    def run(
        cls, run: str, with_changes: bool = False, steps: int = 0, learning_rate: float = 0.0, model: Any = None
    ) -> io.NodeOutput:
        returned.forget()
        store = run_store()
        found = next((r for r in store.unfinished() if r.name == run), None) or store.extended(run, steps)
        if found is not None:
            config = with_other(store.frozen_config(found.name), steps, learning_rate)
            return results(*continue_run(found, config, with_changes), model)
        done = store.finished_under(run)
        if done is None:
            raise SettingError(f"run={run!r}: no unfinished run of this name; press R and choose one of the list")
        return results(done, sentences.already(done), model)


def with_other(config: TrainConfig, steps: int, learning_rate: float) -> TrainConfig:
    """Return the settings of a run with those replaced that are not 0."""
    if steps:
        config = replace(config, max_train_steps=steps, max_train_epochs=0)
    if learning_rate:
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=learning_rate))
    return config


def continue_run(run: UnfinishedRun, asked: TrainConfig, with_changes: bool) -> tuple[FinishedRun, str]:
    """Train a run to its end. Return it, and the sentence to end with.

    If data, settings or the program's numbers changed, the original graph does not claim its result: the run is filed under a
    new key; and where that graph has an adapter of it, finished or kept, a copy of the run goes on, under the next free name.
    """
    store = run_store()
    config = placed(run, asked, with_changes)
    with bridge.NodeListener(tell.this_node()) as listener:
        listener.training.name = run.name
        with interruptible(listener):
            plan = preflight(config, on_event=listener)
        assert plan.resume_from is not None
        same_data = contents(config, plan.pictures, plan.held_out.pictures) == read_content(plan.resume_from)
        same_numbers = run.result_version == RESULT_VERSION
        if not same_numbers:
            listener({"event": "warning", "text": sentences.of_two_versions(run)})
        if same_data and same_numbers and asked == store.frozen_config(run.name):
            return train_now(config, run.key, plan, listener)
        if store.finished_with(run.key) is None:
            return train_now(config, store.set_apart(run), plan, listener)
        key = branch_key(run.key, plan)
        if (done := store.find(key)) is not None:
            return done, found_again(listener, done, sentences.already(done))
        copy = next((r for r in store.unfinished() if r.key == key), None) or branch(store, run, key, config)
        listener.why = sentences.copied(run, copy)
        return train_now(placed(copy, asked, with_changes), key, plan, listener)


def placed(run: UnfinishedRun, asked: TrainConfig, with_changes: bool) -> TrainConfig:
    return check_config(in_this_server(asked, run.name, resume="latest", resume_with_changes=with_changes))


NODES: list[type[io.ComfyNode]] = [AnimaContinueRun]

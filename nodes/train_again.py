"""Training nodes that take their settings from a file: a TOML, or the run that is to be continued."""

from dataclasses import replace

from comfy_api.latest import io

from ..anima_core.compat.arguments import config_from_file
from ..anima_core.config import TrainConfig
from ..anima_core.errors import AnimaError, SettingError
from ..anima_core.training.preflight import preflight
from ..anima_core.training.resume import contents
from ..anima_core.training.state import read_content
from . import bridge, runs, types
from .datasets import datasets_state
from .roots import allowed, check_config, user_path
from .running import (
    UNFINISHED,
    in_this_server,
    interruptible,
    outputs,
    results,
    run_in_graph,
    train_now,
    unfinished_input,
)

NO_RUN = "(none)"


class AnimaTrainFromTOML(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTrainFromTOML",
            display_name="Train Anima Adapter (TOML)",
            category=types.CATEGORY,
            description="Trains as a TOML file says: an earlier run's config.toml, or one of sd-scripts' dialects.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.String.Input(
                    "path",
                    default="",
                    tooltip="A file inside ComfyUI's input folder, or a full path that the server allows (see help).",
                ),
                io.String.Input("output_name", default="", tooltip="Empty: the file's own."),
                unfinished_input(optional=True),
                io.Model.Input("model", optional=True, tooltip="A loaded Anima model: comes out with the adapter applied."),
            ],
            outputs=outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, path: str = "", output_name: str = "", **others) -> str:
        try:
            config, _notes = read_config(path)
        except AnimaError as error:
            return str(error)
        return repr(config) + datasets_state(config.datasets)

    @classmethod
    def execute(cls, path: str, output_name: str, unfinished: str = UNFINISHED[0], model=None) -> io.NodeOutput:
        config, notes = read_config(path)
        for note in notes:
            print(f"[Anima Trainer] {note}")
        placed = in_this_server(config, output_name or config.output.name)
        return run_in_graph(placed, model, cls.hidden.unique_id, unfinished)


def read_config(path: str) -> tuple[TrainConfig, tuple[str, ...]]:
    """A training file and its notes. What it names is confined like what is typed into a node, before it is read."""
    config, notes = config_from_file(user_path(path, "path"), guard=allowed)
    return check_config(config), notes


class AnimaContinueRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [run.name for run in runs.unfinished()]
        return io.Schema(
            node_id="AnimaContinueRun",
            display_name="Continue Anima Run",
            category=types.CATEGORY,
            description="Goes on with a run that was cancelled, stopped early or cut off, with its own settings.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                io.Combo.Input(
                    "run",
                    options=names or [NO_RUN],
                    tooltip="Unfinished runs, the newest first. Press R to look again.",
                ),
                io.Boolean.Input(
                    "with_changes",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="Go on although pictures, captions or the learning rate are not what they were.",
                ),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=1_000_000,
                    optional=True,
                    advanced=True,
                    tooltip="Steps in all, those done included. 0: as it was started.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=0.0,
                    min=0.0,
                    max=10.0,
                    step=1e-6,
                    round=1e-9,
                    optional=True,
                    advanced=True,
                    tooltip="From here on, with with_changes. 0: as it was started.",
                ),
                io.Model.Input("model", optional=True, tooltip="A loaded Anima model: comes out with the adapter applied."),
            ],
            outputs=outputs(),
        )

    @classmethod
    def validate_inputs(cls, run: str) -> bool | str:
        """A run that was finished since is not in the list any more, and still has an adapter to hand on."""
        if run in [NO_RUN, *(r.name for r in runs.unfinished())] or runs.finished_under(run) is not None:
            return True
        return f"run={run!r}: no such unfinished run; press R to look again"

    @classmethod
    def fingerprint_inputs(cls, run: str = "", **others) -> str:
        return repr([r for r in runs.unfinished() if r.name == run])

    @classmethod
    def execute(
        cls, run: str, with_changes: bool = False, steps: int = 0, learning_rate: float = 0.0, model=None
    ) -> io.NodeOutput:
        found = next((r for r in runs.unfinished() if r.name == run), None)
        if found is None:
            done = runs.finished_under(run)
        else:
            config = with_other(runs.frozen_config(found.name), steps, learning_rate)
            done = go_on(found, config, with_changes, cls.hidden.unique_id)
        if done is None:
            raise SettingError(f"run={run!r}: no unfinished run of this name; press R and choose one of the list")
        return results(done, model)


def with_other(config: TrainConfig, steps: int, learning_rate: float) -> TrainConfig:
    """The settings of a run, with those that are not 0."""
    if steps:
        config = replace(config, max_train_steps=steps, max_train_epochs=0)
    if learning_rate:
        config = replace(config, optimizer=replace(config.optimizer, learning_rate=learning_rate))
    return config


def go_on(run: runs.UnfinishedRun, asked: TrainConfig, with_changes: bool, node: str) -> runs.FinishedRun:
    """Train a run to its end. What goes on with other data or settings is no more what the graph that began it asks for."""
    config = check_config(in_this_server(asked, run.name, resume="latest", resume_with_changes=with_changes))
    with bridge.NodeListener(node) as listener:
        with interruptible():
            plan = preflight(config, on_event=listener)
        same = asked == runs.frozen_config(run.name) and contents(config, plan.pictures) == read_content(plan.resume_from)
        return train_now(config, run.key if same else runs.set_apart(run), listener)

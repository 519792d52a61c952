"""The node that trains a grid of settings, compares them on one page, and hands on the winner."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import comfy.model_management as mm
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker

from ..anima_core.errors import Interrupted, in_words
from ..anima_core.models.checkpoint import load_tensors
from ..anima_core.run_store import FinishedRun
from ..anima_core.settings import TrainConfig, with_paths
from ..anima_core.sweep.names import Named
from ..anima_core.sweep.outcome import AUTO, Choice, Outcome, check_pick, text_table
from ..anima_core.sweep.page import sample_sheet
from ..anima_core.sweep.plan import Point, Sweep, asked_for, make_sweep
from ..anima_core.sweep.run import PAGE, checked, failures, run_sweep, winner_of
from . import bridge, returned, tell, types
from .node import AnimaNode, graph_words, subclasses
from .report import as_tensor
from .roots import user_path
from .running import trained
from .store import loras_folder, store_folder
from .tell import shown
from .train import LENGTH, OPTIONAL, SOCKETS, AnimaTrain, train_config
from .widgets import inputs

SHARED = ("steps", "batch_size", "seed", "output_name")  # widgets of the training node
START = "rank = 8, 32\nlearning_rate = 1e-4, 3e-4"


class AnimaSweep(AnimaNode):
    widgets = tuple(found for found in LENGTH if found.name in SHARED)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaSweep",
            display_name="Anima Sweep",
            category=types.TRAINING,
            description="Trains every combination of some settings one after the other, compares them on one page, and hands "
            "on the winner. What is finished is never trained twice.",
            search_aliases=["sweep", "grid search", "hyperparameters", "compare settings", "参数搜索", "网格搜索"],
            is_output_node=True,
            inputs=[
                *SOCKETS,
                io.String.Input(
                    "vary",
                    default=START,
                    multiline=True,
                    optional=True,
                    tooltip="One setting a line, with its values: rank = 8, 32. Every combination is trained. Names are those "
                    "of widgets, or section.field such as network.rank.",
                ),
                *inputs(cls.widgets),
                io.String.Input(
                    "pick",
                    default=AUTO,
                    optional=True,
                    tooltip="Which adapter is handed on. auto: of the lowest held-out loss where all have one, else of the "
                    "lowest training loss, with a warning. Or held_out, smoothed_loss, or a point as the page calls it.",
                ),
                *OPTIONAL,
            ],
            outputs=[
                types.LoraModel.Output(display_name="lora", tooltip="The winner's adapter."),
                io.String.Output(display_name="page", tooltip="The page that compares, index.html in the sweep's folder."),
                io.String.Output(display_name="table", tooltip="What each point sets, and what came of it."),
                io.Image.Output(display_name="samples", tooltip="The last previews: a row for each point, a column a prompt."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **others: Any) -> int:
        return returned.changes()

    @classmethod
    def run(cls, vary: str = START, pick: str = AUTO, **given: Any) -> io.NodeOutput:
        base = train_config(cls.widgets, **given)
        sweep = looked_at(sweep_of(base, vary), pick.strip() or AUTO)
        workflow = cls.workflow()

        def trainer(config: TrainConfig, where: str) -> FinishedRun:
            note(where)
            return trained(config, workflow=workflow, beside=where)[0]

        outcomes, choice = run_sweep(sweep, trainer, note, pick.strip() or AUTO)
        winner = winner_of(outcomes, choice)
        sentence = in_words(ending(outcomes, choice, winner), graph_words())
        returned.remember(sentence, winner.best_adapter)
        sheet = sample_sheet(outcomes)
        picture = as_tensor(sheet) if sheet else ExecutionBlocker(None)
        lora, page = load_tensors(winner.best_adapter), str(sweep.folder / PAGE)
        return io.NodeOutput(lora, page, text_table(sweep, outcomes), picture, ui={"text": [sentence]})


def note(text: str) -> None:
    tell.note(in_words(text, graph_words()))


def sweep_of(base: TrainConfig, vary: str) -> Sweep:
    """Return the sweep that a node asks for: its adapters in a folder of their own in `loras`. Raises SettingError."""
    name = f"{base.output.name}-sweep"
    output = dataclasses.replace(base.output, adapter_dir=str(loras_folder() / name))
    base = dataclasses.replace(base, output=output)
    sweep = make_sweep(base, asked_for(vary.splitlines()), store_folder() / name, widget_names())
    for text in sweep.notes:
        note(text)
    return dataclasses.replace(sweep, points=tuple(confined(point) for point in sweep.points))


def confined(point: Point) -> Point:
    """Return a point whose own paths are found as if they stood in a widget. Raises SettingError for one elsewhere."""
    if point.config is None:
        return point
    config = with_paths(point.config, lambda path, name: user_path(path, f"`{name}`") if name in point.values else path)
    return dataclasses.replace(point, config=config)


def widget_names() -> dict[str, Named]:
    """Return what the graph calls its settings; of two the training node's."""
    found: dict[str, Named] = {}
    nodes: list[type[AnimaNode]] = [AnimaTrain, *subclasses(AnimaNode)]
    for cls in nodes:
        for widget in cls.widgets:
            found.setdefault(widget.name, Named(widget.setting, widget.words))
    return found


def looked_at(sweep: Sweep, pick: str) -> Sweep:
    """Return the sweep with its points checked. Raises SettingError, and ComfyUI's interruption."""
    check_pick(pick, sweep)

    def listen(event: dict[str, Any]) -> str | None:
        return "cancel" if mm.processing_interrupted() or bridge.is_ending() else None

    tell.say(f"{len(sweep.points)} points are looked at")
    try:
        return checked(sweep, listen)
    except Interrupted:
        mm.throw_exception_if_processing_interrupted()
        raise mm.InterruptProcessingException() from None


def ending(outcomes: Sequence[Outcome], choice: Choice, winner: Outcome) -> str:
    """Tell how many points came how far, which one is handed on and why, and what to look at."""
    states = ", ".join(f"{count} {state}" for state, count in Counter(outcome.state for outcome in outcomes).items())
    parts = [f"{states}; winner {winner.point.label}, {choice.why}: {shown(winner.best_adapter)}"]
    parts += [f"careful: {choice.warning}"] if choice.warning else []
    return "\n".join([*parts, *filter(None, [failures(list(outcomes))])])


NODES: list[type[io.ComfyNode]] = [AnimaSweep]

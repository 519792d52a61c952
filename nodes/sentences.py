"""The sentence that a training node ends with, whichever way out it takes."""

from collections.abc import Sequence

from ..anima_core.run_history import HeldOut
from ..anima_core.run_store import RESULT_VERSION, FinishedRun, UnfinishedRun
from ..anima_core.training.reporting import smoothed
from .tell import shown

WARNINGS_SHOWN = 3
PICKER = "Continue Anima Run"


def done(run: FinishedRun, warnings: Sequence[str] = (), why: str = "", held_out: HeldOut | None = None) -> str:
    """Tell what was trained now: the file, the steps, the loss at the end, the best of the held-out losses, what to look at."""
    parts = [outcome(run), best(held_out)]
    if warnings:
        listed = "; ".join(warnings[:WARNINGS_SHOWN]) + ("; …, see the console" if len(warnings) > WARNINGS_SHOWN else "")
        count = f"{len(warnings)} warnings" if len(warnings) > 1 else "1 warning"
        parts.append(f"{count}: {listed}")
    sentence = ("; " if run.is_kept else ", ").join(filter(None, parts))
    return f"{sentence}\n{why}" if why else sentence


def outcome(run: FinishedRun) -> str:
    if run.is_kept:
        return f"kept at step {run.steps} of {run.total}: {shown(run.adapter)}; {PICKER} goes on"
    loss = smoothed(run.losses)
    return f"done: {shown(run.adapter)}, {run.steps} steps" + ("" if loss is None else f", loss {loss:.3f}")


def best(held_out: HeldOut | None) -> str:
    """Tell at which step the loss of pictures that are not trained on was least; nothing where none were held out."""
    if held_out is None or held_out.best_step is None:
        return ""
    loss = "" if held_out.best_loss is None else f" ({held_out.best_loss:.4f})"
    return f"held-out loss best at step {held_out.best_step}{loss}"


def already(run: FinishedRun) -> str:
    """Tell that a run was found again."""
    return outcome(run) if run.is_kept else f"already trained: {shown(run.adapter)}, {run.steps} steps"


def written_again(run: FinishedRun) -> str:
    why = "its file was gone or changed"
    return f"{outcome(run)}; {why}, and is written again from the run's last checkpoint, without a step"


def cancelled(text: str, step: int, checkpoint: int, goes_on_by_itself: bool = True) -> str:
    """Tell what a cancelled run leaves. text: where it was, as the core says it. checkpoint: the last step that was saved.

    goes_on_by_itself: as the listener has it.
    """
    way_on = "Run continues" if goes_on_by_itself else f"{PICKER} goes on"
    if not checkpoint:
        return f"{text}; Run {'goes on' if goes_on_by_itself else 'starts over'}"
    return f"{text}, saved; {way_on}" if checkpoint >= step else f"{text}; {way_on} from step {checkpoint}"


def failed(text: str, checkpoint: int, goes_on_by_itself: bool = True) -> str:
    """Tell from where a run goes on that has failed. text: what was wrong, as the core says it."""
    if not checkpoint:
        return text
    return f"{text}; saved at step {checkpoint}, {'Run' if goes_on_by_itself else PICKER} continues from there"


def left_behind(run: UnfinishedRun | None) -> str:
    """Tell of a run that was begun under the same name, and that a graph does not continue."""
    if run is None:
        return ""
    other = "with other inputs" if run.result_version == RESULT_VERSION else "by an earlier version of this program"
    return f"{run.name} was begun {other} and is left at step {run.step}: {PICKER} goes on with it"


def copied(run: UnfinishedRun, copy: UnfinishedRun) -> str:
    """Tell of a run whose graph has its adapter, and of its copy that goes on otherwise."""
    return f"{run.name} stays as it is, for the graph that trained it; {copy.name}, a copy of it, goes on"


def of_two_versions(run: UnfinishedRun) -> str:
    """Tell what a run is that an earlier version of this program began."""
    begun = f"{run.name} was begun by an earlier version of this program"
    return f"{begun}; from step {run.step} on its numbers are others: {run.changed_since}"

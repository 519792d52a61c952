"""The sentence that a training node ends with, whichever way out it takes."""

from collections.abc import Sequence

from ..anima_core.run_store import FinishedRun
from ..anima_core.training.reporting import smoothed
from .tell import shown

WARNINGS_SHOWN = 3


def done(run: FinishedRun, warnings: Sequence[str] = (), why: str = "") -> str:
    """Tell what was trained now: the file, the steps, the loss at the end, what to look at."""
    sentence = outcome(run)
    if warnings:
        listed = "; ".join(warnings[:WARNINGS_SHOWN]) + ("; …, see the console" if len(warnings) > WARNINGS_SHOWN else "")
        count = f"{len(warnings)} warnings" if len(warnings) > 1 else "1 warning"
        sentence += f"{'; ' if run.is_kept else ', '}{count}: {listed}"
    return f"{sentence}\n{why}" if why else sentence


def outcome(run: FinishedRun) -> str:
    if run.is_kept:
        return f"kept at step {run.steps} of {run.total}: {shown(run.adapter)}; Continue Anima Run goes on"
    loss = smoothed(run.losses)
    return f"done: {shown(run.adapter)}, {run.steps} steps" + ("" if loss is None else f", loss {loss:.3f}")


def already(run: FinishedRun) -> str:
    """Tell that a run was found again."""
    return outcome(run) if run.is_kept else f"already trained: {shown(run.adapter)}, {run.steps} steps"


def written_again(run: FinishedRun) -> str:
    why = "its file was gone or changed"
    return f"{outcome(run)}; {why}, and is written again from the run's last checkpoint, without a step"


def cancelled(text: str, step: int, checkpoint: int) -> str:
    """Tell what a cancelled run leaves. text: where it was, as the core says it. checkpoint: the last step that was saved."""
    if not checkpoint:
        return f"{text}; Run goes on"
    return f"{text}, saved; Run continues" if checkpoint >= step else f"{text}; Run continues from step {checkpoint}"

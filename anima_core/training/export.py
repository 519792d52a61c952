"""Writing the adapter of a checkpoint as a file again, when the file was deleted."""

import dataclasses
from pathlib import Path

from ..settings import TrainConfig
from .events import Listener
from .loop import opened


def write_again(config: TrainConfig, checkpoint: Path, path: Path, on_event: Listener | None = None) -> None:
    """Write what a run had saved at a checkpoint; no step is taken. config: the run's own, its name included.

    Raises as `train` does. The run is made ready as for its next step, so EMA and averaging optimizers give the weights that
    they gave then.
    """
    output = dataclasses.replace(config.output, resume=str(checkpoint))
    with opened(dataclasses.replace(config, output=output), on_event) as run:
        if run.saver is not None:
            run.saver.save_adapter(path)

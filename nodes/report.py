"""The node that tells a run in one page, and lays its samples out as one picture."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from comfy_api.latest import io
from comfy_execution.graph import ExecutionBlocker
from PIL import Image

from ..anima_core.errors import SettingError
from ..anima_core.files import safe_name
from ..anima_core.report import contact_sheet, read_story, table_of, write_report
from ..anima_core.run_folders import folder_of
from ..anima_core.run_history import LOG
from . import on_disk, types
from .node import AnimaNode
from .roots import user_file
from .store import run_store
from .tell import say, shown


class AnimaRunReport(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaRunReport",
            display_name="Anima Run Report",
            category=types.TRAINING,
            description="Writes one page about a run into its folder: curves, samples, settings, data, how to continue.",
            is_output_node=True,
            inputs=[
                io.String.Input(
                    "path",
                    default="",
                    optional=True,
                    tooltip="The path output of a training, or the name of a run in output/anima_trainer.",
                )
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="The page, report.html in the run's folder."),
                io.Image.Output(display_name="samples", tooltip="The previews: a row for each step, a column for each prompt."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **others: Any) -> float:
        return on_disk.unknown()  # a run goes on, a page is deleted: it is written in a moment

    @classmethod
    def run(cls, path: str = "") -> io.NodeOutput:
        story = read_story(run_folder(path))
        written = write_report(story)
        sentence = f"report: {shown(written)}"
        say(sentence)
        sheet = contact_sheet(table_of(story))
        return io.NodeOutput(str(written), as_tensor(sheet) if sheet else ExecutionBlocker(None), ui={"text": [sentence]})


def run_folder(path: str) -> Path:
    """Find a run of this server by its adapter file or by its name. Raises SettingError."""
    store, typed = run_store(), path.strip().strip('"')
    found: Path | None = None
    if typed and Path(typed).name == typed:
        found = store.run_folder(safe_name(typed, "path").removesuffix("-run"))
    elif typed:
        found = folder_of(store, Path(user_file(typed, "path")))
    if found is None or not (found / LOG).is_file():
        way_out = "link the path of a training, or write the name of a run in output/anima_trainer"
        raise SettingError(f"path={typed!r}: no run of this server; {way_out}")
    return found


def as_tensor(picture: Image.Image) -> torch.Tensor:
    """Return a picture as an IMAGE: [1, H, W, 3] in [0, 1]."""
    return torch.from_numpy(np.array(picture, dtype=np.float32) / 255)[None]


NODES: list[type[io.ComfyNode]] = [AnimaRunReport]

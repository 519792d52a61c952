"""The node that draws adapters, prompts and strengths side by side."""

from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
from comfy_api.latest import io

from ..anima_core.errors import SettingError
from ..anima_core.files import safe_name, unused
from ..anima_core.grid.drawing import Grid, Named, draw
from ..anima_core.grid.saved import saved_adapters
from ..anima_core.grid.sheet import sheet
from ..anima_core.settings import SampleConfig
from ..anima_core.training.previews import save_png
from . import on_disk, types
from .bridge import gpu_for_training
from .inspection import as_image, stage
from .node import AnimaNode
from .report import run_folder
from .store import store_folder
from .tell import say, shown
from .train import models
from .widgets import lines, name_input

NAME = "grid"
INPUTS: tuple[io.Input, ...] = (
    types.Transformer.Input("transformer", tooltip="The Anima model to draw with."),
    types.VAE.Input("vae", tooltip="The Qwen-Image VAE."),
    types.Qwen.Input("qwen", tooltip="The Qwen3-0.6B text encoder."),
    types.T5Tokenizer.Input("t5_tokenizer", tooltip="The T5 tokenizer."),
    types.Samples.Input("samples", tooltip="The prompts, and how they are drawn."),
    io.String.Input(
        "path",
        default="",
        optional=True,
        tooltip="The path output of a training, or the name of a run: every adapter that it has saved is drawn.",
    ),
    io.String.Input(
        "adapters",
        default="",
        multiline=True,
        optional=True,
        placeholder="adapters of models/loras: one a line",
        tooltip="Further adapters, files of models/loras, one a line.",
    ),
    io.String.Input(
        "strengths",
        default="1",
        optional=True,
        tooltip="What each adapter is multiplied by, as 0, 0.5, 1; 0 is the base model, which is drawn once.",
    ),
    io.Int.Input(
        "cell_size",
        default=512,
        min=64,
        max=2048,
        step=16,
        optional=True,
        tooltip="Longest side of a picture in the grid, in pixels.",
    ),
    name_input(NAME),
)


class AnimaGrid(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaGrid",
            display_name="Anima Preview Grid",
            category=types.TRAINING,
            description="Draws every adapter with every prompt at every strength, and lays the pictures out with labels: which "
            "step is best, and how strong.",
            search_aliases=["xy plot", "grid", "compare lora", "lora strength", "checkpoint grid"],
            is_output_node=True,
            inputs=[*INPUTS],
            outputs=[
                io.Image.Output(display_name="grid", tooltip="A row for each adapter, a column for each prompt and strength."),
                io.String.Output(display_name="path", tooltip="The picture, in output/anima_trainer/grids."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, path: str | None = None, adapters: str | None = None, **others: Any) -> str | float:
        if path is None or adapters is None or path.strip():
            return on_disk.unknown()  # a run goes on
        return "".join(str(on_disk.chosen("loras", spelling)) for name in lines(adapters) for spelling in spellings(name))

    @classmethod
    def run(
        cls,
        samples: SampleConfig,
        path: str = "",
        adapters: str = "",
        strengths: str = "1",
        cell_size: int = 512,
        name: str = NAME,
        **files: types.ModelFile,
    ) -> io.NodeOutput:
        target = unused(store_folder() / "grids" / f"{safe_name(name, 'name')}.png")
        grid = Grid(models(**files), named(path, adapters), samples, numbers(strengths), str(mm.get_torch_device()))
        grid.check()
        with gpu_for_training():
            cells = draw(grid, stage("grid"))
        page = sheet(grid, cells, cell_size)
        target.parent.mkdir(parents=True, exist_ok=True)
        save_png(page, target)
        sentence = f"{len(grid.cells())} pictures: {shown(target)}"
        say(sentence)
        return io.NodeOutput(as_image(page), str(target), ui={"text": [sentence]})


def spellings(name: str) -> tuple[str, str]:
    """Return how a file of models/loras may be meant, with its ending or without."""
    return name, f"{name}.safetensors"


def named(path: str, adapters: str) -> list[Named]:
    """List the adapters of a run, and files of models/loras. Raises SettingError for what is not there."""
    found = saved_adapters(run_folder(path)) if path.strip() else []
    if path.strip() and not found:
        raise SettingError(f"path={path!r}: this run has no adapter file; write the names of files in adapters")
    for name in lines(adapters):
        file = next((found for spelling in spellings(name) if (found := folder_paths.get_full_path("loras", spelling))), None)
        if file is None:
            raise SettingError(f"adapters: {name}: no such file in models/loras; write its name as the list of a loader has it")
        found.append(Named(Path(name).stem, Path(file)))
    return found


def numbers(text: str) -> list[float]:
    """Read strengths, between commas, spaces or lines. Raises SettingError."""
    try:
        return [float(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise SettingError(f"strengths={text!r}: strengths are numbers; write them as 0, 0.5, 1") from None


NODES: list[type[io.ComfyNode]] = [AnimaGrid]

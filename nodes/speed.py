"""Ways to be faster, or to need less memory, for whoever wants to try them."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.settings import TrainConfig
from . import types
from .node import AnimaNode
from .widgets import inputs, settings_from, widget


class AnimaSpeed(AnimaNode):
    widgets = (
        widget("blocks_to_swap", TrainConfig, max=200),
        widget("attention", TrainConfig),
        widget("trim_text", TrainConfig),
        widget("compile", TrainConfig),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaSpeed",
            display_name="Anima Speed",
            category=types.TRAINING,
            description="Ways to be faster, or to need less memory. Each is tried beside the plain way on your card first. "
            "None is needed: what memory asks for is done without.",
            search_aliases=["block swap", "offload", "torch.compile", "flash attention", "xformers", "sage attention", "vram"],
            inputs=inputs(cls.widgets),
            outputs=[types.Speed.Output(display_name="speed")],
        )

    @classmethod
    def run(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(settings_from(cls.widgets, given, TrainConfig))


NODES: list[type[io.ComfyNode]] = [AnimaSpeed]

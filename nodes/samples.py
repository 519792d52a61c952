"""Preview pictures during training."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.settings import SampleConfig
from . import types
from .node import AnimaNode
from .widgets import inputs, settings_from, widget


class AnimaSamplePrompts(AnimaNode):
    widgets = (
        widget("prompts", SampleConfig, default="1girl, solo", why="a first run shows a picture", multiline=True),
        widget("negative", SampleConfig, multiline=True, placeholder="negative prompt"),
        widget("width", SampleConfig, max=4096, step=16),
        widget("height", SampleConfig, max=4096, step=16),
        widget("steps", SampleConfig, max=200),
        widget("cfg", SampleConfig, max=30.0, step=0.1),
        widget("seed", SampleConfig, control_after_generate=False, min=0, max=0xFFFFFFFFFFFFFFFF),
        widget(
            "every_n_steps", SampleConfig, default=200, why="whoever adds this node wants to watch; sd-scripts: off", max=100000
        ),
        widget("at_first", SampleConfig, default=True, why="later previews are compared with the base model's"),
        widget("at_end", SampleConfig, default=True, why="the `samples` output holds the last previews", advanced=True),
        widget("sampler", SampleConfig),
        widget("scheduler", SampleConfig),
        widget("held_out", SampleConfig, max=64, advanced=True),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaSamplePrompts",
            display_name="Anima Sample Prompts",
            category=types.TRAINING,
            description="Pictures drawn while training, as KSampler would draw them with the adapter so far.",
            inputs=inputs(cls.widgets),
            outputs=[types.Samples.Output(display_name="samples")],
        )

    @classmethod
    def run(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(SampleConfig(**settings_from(cls.widgets, given, SampleConfig)))


NODES: list[type[io.ComfyNode]] = [AnimaSamplePrompts]

"""Preview pictures during training."""

from comfy_api.latest import io

from ..anima_core.config import SampleConfig
from . import types


class AnimaSamplePrompts(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaSamplePrompts",
            display_name="Anima Sample Prompts",
            category=types.CATEGORY,
            description="Pictures drawn while training, as KSampler (euler, simple) would draw them with the adapter so far.",
            inputs=[
                io.String.Input("prompts", multiline=True, default="1girl, solo", tooltip="One prompt a line."),
                io.String.Input("negative", multiline=True, default="", tooltip="Negative prompt of all of them."),
                io.Int.Input("width", default=1024, min=64, max=4096, step=16, tooltip="Pixels, a multiple of 16."),
                io.Int.Input("height", default=1024, min=64, max=4096, step=16, tooltip="Pixels, a multiple of 16."),
                io.Int.Input("steps", default=30, min=1, max=200, tooltip="Sampling steps: more are finer and slower."),
                io.Float.Input(
                    "cfg", default=4.0, min=0.0, max=30.0, step=0.1, tooltip="Guidance. 1 is off and twice as fast."
                ),
                io.Int.Input(
                    "seed",
                    default=42,
                    control_after_generate=False,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    tooltip="The same noise every time: compare pictures.",
                ),
                io.Int.Input(
                    "every_n_steps", default=200, min=0, max=100000, tooltip="Training steps between previews; 0: none."
                ),
                io.Boolean.Input("at_first", default=True, tooltip="Also before the first step: what the base model draws."),
                io.Boolean.Input("at_end", default=True, tooltip="Also when training ends.", advanced=True),
            ],
            outputs=[types.Samples.Output(display_name="samples")],
        )

    @classmethod
    def execute(cls, prompts: str, **settings) -> io.NodeOutput:
        texts = tuple(line.strip() for line in prompts.splitlines() if line.strip())
        return io.NodeOutput(SampleConfig(prompts=texts, **settings))

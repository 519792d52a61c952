"""How noise is drawn and what a miss costs, for whoever wants more than the training node shows."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.settings import FlowConfig
from . import types
from .node import AnimaNode
from .widgets import inputs, settings_from, widget


class AnimaFlow(AnimaNode):
    widgets = (
        widget("weighting", FlowConfig),
        widget("snr_gamma", FlowConfig, min=0.1, max=100.0, step=0.5),
        widget("huber_delta", FlowConfig, min=0.001, max=10.0, step=0.01),
        widget("multiscale_loss_weight", FlowConfig, max=10.0, step=0.1),
        widget("sigmoid_scale", FlowConfig, min=0.01, max=10.0, step=0.05),
        widget("logit_mean", FlowConfig, step=0.1),
        widget("mode_scale", FlowConfig, step=0.01),
        widget("noise_offset", FlowConfig, max=1.0, step=0.01),
        widget("ip_noise_gamma", FlowConfig, max=1.0, step=0.01),
        widget("multires_noise_iterations", FlowConfig, max=20),
        widget("multires_noise_discount", FlowConfig, step=0.05),
        widget("lowres_scale", FlowConfig, step=0.125),
        widget("lowres_above", FlowConfig, step=0.05),
        widget("lowres_below", FlowConfig, step=0.05),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaFlow",
            display_name="Anima Noise and Loss",
            category=types.TRAINING,
            description="How noise and t are drawn, how the loss is weighed, and a faster training of the noisy draws. None is "
            "needed: what it starts with is the model author's recipe.",
            search_aliases=[
                "min snr",
                "loss weighting",
                "noise offset",
                "pyramid noise",
                "multires noise",
                "timestep",
                "multiscale",
            ],
            inputs=inputs(cls.widgets),
            outputs=[types.Flow.Output(display_name="flow")],
        )

    @classmethod
    def run(cls, **given: Any) -> io.NodeOutput:
        found = settings_from(cls.widgets, given, FlowConfig)
        FlowConfig(**found)  # what is wrong is said on this node
        return io.NodeOutput(found)


NODES: list[type[io.ComfyNode]] = [AnimaFlow]

"""What the base model draws and an adapter shall leave as it is."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.settings import PriorConfig
from . import types
from .node import AnimaNode
from .widgets import inputs, settings_from, widget


class AnimaPrior(AnimaNode):
    widgets = (
        widget(
            "class_weight",
            PriorConfig,
            "weight",
            default=1.0,
            why="whoever adds this node wants something kept; without words that is what is drawn without a prompt",
            max=100.0,
            step=0.05,
        ),
        widget("trigger", PriorConfig),
        widget("class_words", PriorConfig),
        widget("masked_weight", PriorConfig, "masked", max=100.0, step=0.05),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaPrior",
            display_name="Anima Prior Preservation",
            category=types.TRAINING,
            description="Lets an adapter leave alone what it is not about: what the base model draws for the class stays, and "
            "what is outside of masks. No regularisation pictures are needed.",
            search_aliases=["prior preservation", "differential output preservation", "DOP", "blank prompt", "regularisation"],
            inputs=inputs(cls.widgets),
            outputs=[types.Prior.Output(display_name="prior")],
        )

    @classmethod
    def run(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(PriorConfig(**settings_from(cls.widgets, given, PriorConfig)))


NODES: list[type[io.ComfyNode]] = [AnimaPrior]

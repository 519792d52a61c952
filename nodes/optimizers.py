"""Optimizer and schedule, refused on the node when they do not fit."""

from typing import Any, ClassVar

from comfy_api.latest import io

from ..anima_core.settings import OptimizerConfig
from ..anima_core.settings.optimizer import OPTIMIZERS, PLAIN_SCHEDULES
from ..anima_core.settings.setting import settings_of
from ..anima_core.training.optimizers import preflight
from . import types
from .node import AnimaNode
from .widgets import inputs, settings_from, widget

WEIGHT_DECAY = widget("weight_decay", OptimizerConfig, max=1.0, step=0.001, advanced=True)
ARGUMENTS = widget(
    "arguments",
    OptimizerConfig,
    "args",
    multiline=True,
    placeholder="arguments: name=value, one a line",
    advanced=True,
    tooltip="Further arguments of the optimizer, one name=value a line.",
)
GRADIENT, SQUARE = "How long the gradient is remembered.", "How long the squared gradient is remembered."
SCHEDULE = (
    widget("learning_rate", OptimizerConfig, min=0.0, max=10.0, step=1e-6, round=1e-9),
    widget("lr_scheduler", OptimizerConfig, "scheduler", options=list(PLAIN_SCHEDULES)),
    widget("lr_warmup_steps", OptimizerConfig, "warmup_steps", max=100000),
    widget("lr_warmup_ratio", OptimizerConfig, "warmup_ratio", max=0.99, step=0.01, advanced=True),
    widget("num_cycles", OptimizerConfig, min=0.1, max=100.0, step=0.1, advanced=True),
    widget(
        "min_lr_ratio",
        OptimizerConfig,
        default=0.1,
        why="whoever chooses cosine_with_min_lr wants a floor; sd-scripts asks for a number",
        step=0.01,
        advanced=True,
    ),
    widget("max_grad_norm", OptimizerConfig, max=100.0, step=0.1, advanced=True),
)


BETAS = OptimizerConfig().betas
OTHER = "other (module.Class)"
CLASS = io.String.Input(
    "class_name",
    default="torch.optim.NAdam",
    optional=True,
    tooltip="Any optimizer of an installed package, as module.Class. Its betas and eps stand among the arguments. It is tried "
    "on small tensors first.",
)


def optimizer_inputs() -> list[io.Input]:
    """Make what each optimizer shows. A pair of betas is two widgets."""
    rest: dict[str, Any] = {"min": 0.0, "optional": True, "advanced": True}
    first = io.Float.Input("beta1", default=BETAS[0], max=0.9999, step=0.01, tooltip=GRADIENT, **rest)
    second = io.Float.Input("beta2", default=BETAS[1], max=0.99999, step=0.001, tooltip=SQUARE, **rest)
    return [*inputs([WEIGHT_DECAY]), first, second, *inputs([ARGUMENTS])]


def options() -> list[io.DynamicCombo.Option]:
    """Return all optimizers with what each shows, and last any other class."""
    named = [io.DynamicCombo.Option(name, optimizer_inputs()) for name in OPTIMIZERS.names]
    return [*named, io.DynamicCombo.Option(OTHER, [CLASS, *inputs([WEIGHT_DECAY, ARGUMENTS])])]


class AnimaOptimizer(AnimaNode):
    widgets = (WEIGHT_DECAY, ARGUMENTS, *SCHEDULE)
    own_words: ClassVar = {"optimizer.type": "optimizer", "optimizer.betas": "beta1 and beta2"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaOptimizer",
            display_name="Anima Optimizer",
            category=types.TRAINING,
            description="How the adapter learns. Combinations that cannot work are refused here, before anything is loaded.",
            inputs=[
                io.DynamicCombo.Input(
                    "optimizer",
                    options=options(),
                    optional=True,
                    tooltip=settings_of(OptimizerConfig)["type"].help,
                ),
                *inputs(SCHEDULE),
            ],
            outputs=[types.Optimizer.Output(display_name="optimizer")],
        )

    @classmethod
    def run(cls, optimizer: dict[str, Any] | None = None, **given: Any) -> io.NodeOutput:
        chosen = {name: value for name, value in (optimizer or {}).items() if value is not None}
        settings = settings_from(cls.widgets, given | chosen, OptimizerConfig)
        betas = (chosen.get("beta1", BETAS[0]), chosen.get("beta2", BETAS[1]))
        kind = chosen.get("optimizer", OPTIMIZERS.names[0])
        kind = chosen.get("class_name", CLASS.default).strip() if kind == OTHER else kind
        config = OptimizerConfig(type=kind, betas=betas, **settings)
        preflight(config)
        return io.NodeOutput(config)


NODES: list[type[io.ComfyNode]] = [AnimaOptimizer]

"""Optimizer and schedule, refused on the node when they do not fit."""

from comfy_api.latest import io

from ..anima_core.config import SCHEDULES, OptimizerConfig
from ..anima_core.training.optimizers import preflight
from . import types

# DynamicCombo: each optimizer shows what it has. ScheduleFree keeps its schedule inside.
PLAIN = ("AdamW", "AdamW8bit", "Lion", "Adafactor", "Prodigy")
SCHEDULE_FREE = ("RAdamScheduleFree", "AdamWScheduleFree", "SGDScheduleFree")


def optimizer_inputs() -> list[io.Input]:
    return [
        io.Float.Input(
            "weight_decay",
            default=0.01,
            min=0.0,
            max=1.0,
            step=0.001,
            advanced=True,
            tooltip="Pull of the adapter towards zero.",
        ),
        io.Float.Input("beta1", default=0.9, min=0.0, max=0.9999, step=0.01, advanced=True, tooltip="Memory of the gradient."),
        io.Float.Input("beta2", default=0.99, min=0.0, max=0.99999, step=0.001, advanced=True, tooltip="Memory of its square."),
        io.String.Input(
            "arguments",
            default="",
            multiline=True,
            advanced=True,
            tooltip="Further arguments of the optimizer, name=value a line.",
        ),
    ]


class AnimaOptimizer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaOptimizer",
            display_name="Anima Optimizer",
            category=types.CATEGORY,
            description="How the adapter learns. Combinations that cannot work are refused here, before anything is loaded.",
            inputs=[
                io.DynamicCombo.Input(
                    "optimizer",
                    options=[io.DynamicCombo.Option(name, optimizer_inputs()) for name in PLAIN + SCHEDULE_FREE],
                    tooltip="AdamW is the safe choice. ScheduleFree ones need no schedule (constant, no warm-up). AdamW8bit, "
                    "Lion and Prodigy need their package installed.",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=1e-4,
                    min=0.0,
                    max=10.0,
                    step=1e-6,
                    round=1e-9,
                    tooltip="1e-4 for LoRA with AdamW; 2e-5 to 5e-5 for large sets; 1.0 for Prodigy.",
                ),
                io.Combo.Input(
                    "lr_scheduler",
                    options=list(SCHEDULES),
                    default="constant",
                    tooltip="How the learning rate changes over the run.",
                ),
                io.Int.Input("lr_warmup_steps", default=0, min=0, max=100000, tooltip="Steps over which it rises from 0."),
                io.Float.Input(
                    "lr_warmup_ratio",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    advanced=True,
                    tooltip="The same as a part of all steps; used when lr_warmup_steps is 0.",
                ),
                io.Float.Input(
                    "num_cycles",
                    default=1.0,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Cycles of the cosine schedules.",
                ),
                io.Float.Input(
                    "min_lr_ratio",
                    default=0.1,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Floor of cosine_with_min_lr, relative to the learning rate.",
                ),
                io.Float.Input(
                    "max_grad_norm",
                    default=1.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    advanced=True,
                    tooltip="Gradient clipping; 0 is off.",
                ),
            ],
            outputs=[types.Optimizer.Output(display_name="optimizer")],
        )

    @classmethod
    def execute(
        cls,
        optimizer: dict,
        learning_rate,
        lr_scheduler,
        lr_warmup_steps,
        lr_warmup_ratio,
        num_cycles,
        min_lr_ratio,
        max_grad_norm,
    ) -> io.NodeOutput:
        config = OptimizerConfig(
            type=optimizer["optimizer"],
            learning_rate=learning_rate,
            weight_decay=optimizer["weight_decay"],
            betas=(optimizer["beta1"], optimizer["beta2"]),
            args=tuple(line.strip() for line in optimizer["arguments"].splitlines() if line.strip()),
            max_grad_norm=max_grad_norm,
            scheduler=lr_scheduler,
            warmup_steps=lr_warmup_steps,
            warmup_ratio=lr_warmup_ratio,
            num_cycles=num_cycles,
            min_lr_ratio=min_lr_ratio,
        )
        preflight(config)
        return io.NodeOutput(config)

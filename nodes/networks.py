"""LoRA and LoKr settings."""

from comfy_api.latest import io

from ..anima_core.config import NetworkConfig
from . import types

PRESETS = ["attn+mlp", "attn", "+adaln", "+llm_adapter", "+adaln+llm_adapter", "all"]


def target_inputs() -> list[io.Input]:
    """What both networks share, rare settings last."""
    lines = "One pattern a line: re:<regex>, a glob with * or ?, or the end of a module name such as mlp.layer1."
    return [
        io.Combo.Input(
            "targets",
            options=PRESETS,
            default="attn+mlp",
            tooltip="Which layers the adapter changes. attn+mlp is right for most; + adds to it. The LLM adapter holds the "
            "model's knowledge of names and degrades easily: leave it out unless you know why.",
        ),
        io.Float.Input(
            "dropout",
            default=0.0,
            min=0.0,
            max=0.95,
            step=0.05,
            advanced=True,
            tooltip="Chance that an adapter input is zeroed.",
        ),
        io.Float.Input(
            "rank_dropout", default=0.0, min=0.0, max=0.95, step=0.05, advanced=True, tooltip="Chance that a rank is left out."
        ),
        io.Float.Input(
            "module_dropout",
            default=0.0,
            min=0.0,
            max=0.95,
            step=0.05,
            advanced=True,
            tooltip="Chance that a layer's adapter is left out of a step.",
        ),
        io.Float.Input(
            "loraplus_lr_ratio",
            default=1.0,
            min=0.1,
            max=64.0,
            step=0.5,
            advanced=True,
            tooltip="LoRA+: learning rate of the zero-initialised factor, relative to the other. 1 is off, 16 is usual.",
        ),
        io.Boolean.Input("train_norm", default=False, advanced=True, tooltip="Also train the norms' weights."),
        io.String.Input("include", default="", multiline=True, advanced=True, tooltip=f"Further layers. {lines}"),
        io.String.Input("exclude", default="", multiline=True, advanced=True, tooltip=f"Layers left out. {lines}"),
        io.String.Input(
            "ranks",
            default="",
            multiline=True,
            advanced=True,
            tooltip="Ranks of certain layers, pattern=rank a line; 0 leaves out.",
        ),
        io.String.Input(
            "learning_rates",
            default="",
            multiline=True,
            advanced=True,
            tooltip="Learning rates of certain layers, pattern=lr a line.",
        ),
        types.LoraModel.Input(
            "start_from", optional=True, tooltip="Start from this adapter instead of from nothing. Rank and type must fit."
        ),
    ]


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def network_config(kind: str, rank: int, alpha: float, settings: dict) -> NetworkConfig:
    from .adapters import stored_adapter

    texts = {name: lines(settings.pop(name)) for name in ("include", "exclude", "ranks", "learning_rates")}
    start = settings.pop("start_from", None)
    weights = str(stored_adapter(start)) if start is not None else ""
    return NetworkConfig(type=kind, rank=rank, alpha=alpha, weights=weights, **texts, **settings)


class AnimaLoRANetwork(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaLoRANetwork",
            display_name="Anima LoRA Network",
            category=types.CATEGORY,
            description="A LoRA: each layer gets a low-rank correction.",
            search_aliases=["lora training network"],
            inputs=[
                io.Int.Input(
                    "rank",
                    default=32,
                    min=1,
                    max=1024,
                    tooltip="Capacity. 8 to 16 for a character, 32 for most styles; the file grows with it (32: about 92 MB).",
                ),
                io.Float.Input(
                    "alpha",
                    default=32.0,
                    min=0.0,
                    max=4096.0,
                    step=1.0,
                    tooltip="Strength: the correction is scaled by alpha / rank. Equal to rank is a good rule; 0 means that.",
                ),
                *target_inputs(),
            ],
            outputs=[types.Network.Output(display_name="network")],
        )

    @classmethod
    def execute(cls, rank: int, alpha: float, **settings) -> io.NodeOutput:
        return io.NodeOutput(network_config("lora", rank, alpha, settings))


class AnimaLoKrNetwork(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaLoKrNetwork",
            display_name="Anima LoKr Network",
            category=types.CATEGORY,
            description="A LoKr: each layer's correction is a Kronecker product of a small and a large factor.",
            search_aliases=["lokr training network", "lycoris"],
            inputs=[
                io.Int.Input(
                    "factor",
                    default=8,
                    min=-1,
                    max=256,
                    tooltip="Size of the small factor. 4 to 16; smaller means a larger file. -1 balances the two.",
                ),
                io.Boolean.Input(
                    "full_matrix",
                    default=True,
                    tooltip="Both factors whole: the usual choice for styles. Off: the large factor has a rank.",
                ),
                io.Int.Input("rank", default=32, min=1, max=1024, tooltip="Rank of the large factor when full_matrix is off."),
                io.Float.Input(
                    "alpha",
                    default=32.0,
                    min=0.0,
                    max=4096.0,
                    step=1.0,
                    tooltip="Strength, alpha / rank, when a factor has a rank.",
                ),
                io.Boolean.Input(
                    "decompose_both", default=False, advanced=True, tooltip="The small factor has a rank as well."
                ),
                *target_inputs(),
            ],
            outputs=[types.Network.Output(display_name="network")],
        )

    @classmethod
    def execute(cls, rank: int, alpha: float, **settings) -> io.NodeOutput:
        return io.NodeOutput(network_config("lokr", rank, alpha, settings))

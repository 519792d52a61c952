"""Adapter networks: one node a type."""

from typing import Any, ClassVar

from comfy_api.latest import io

from ..anima_core.adapters.from_file import network_to_continue
from ..anima_core.errors import SettingError
from ..anima_core.settings import NetworkConfig
from . import tell, types
from .adapters import stored_adapter
from .node import AnimaNode
from .widgets import inputs, settings_from, widget

PRESETS = ["attn+mlp", "attn", "+adaln", "+llm_adapter", "+adaln+llm_adapter", "all"]
CHANCE: dict[str, Any] = {"max": 0.95, "step": 0.05, "advanced": True}
TEXT: dict[str, Any] = {"multiline": True, "advanced": True}
A_LINE = "one a line"  # a placeholder is all that the classic renderer shows of a text's name

SHARED = (  # by all types, rare settings last
    widget("targets", NetworkConfig, options=PRESETS),
    widget("dropout", NetworkConfig, **CHANCE),
    widget("rank_dropout", NetworkConfig, **CHANCE),
    widget("module_dropout", NetworkConfig, **CHANCE),
    widget("loraplus_lr_ratio", NetworkConfig, min=0.1, max=64.0, step=0.5, advanced=True),
    widget("train_norm", NetworkConfig, advanced=True),
    widget("include", NetworkConfig, placeholder=f"include: regex, {A_LINE}", **TEXT),
    widget("exclude", NetworkConfig, placeholder=f"exclude: regex, {A_LINE}", **TEXT),
    widget("ranks", NetworkConfig, placeholder=f"ranks: regex=rank, {A_LINE}", **TEXT),
    widget("learning_rates", NetworkConfig, placeholder=f"learning rates: regex=rate, {A_LINE}", **TEXT),
    widget("dora", NetworkConfig, advanced=True),
)
START = types.LoraModel.Input(
    "start_from",
    optional=True,
    tooltip="Start from this adapter instead of from nothing, whichever trainer made it. Its type, ranks and layers are taken.",
)


class AnimaNetworkNode(AnimaNode):
    """A node of one type of adapter. type: its name in `network.type`."""

    type = ""
    own_words: ClassVar = {"network.weights": "start_from"}

    @classmethod
    def schema(cls, **texts: Any) -> io.Schema:
        return io.Schema(
            category=types.NETWORK,
            inputs=[*inputs(cls.widgets), START],
            outputs=[types.Network.Output(display_name="network")],
            **texts,
        )

    @classmethod
    def run(cls, start_from: types.LoraState | None = None, **given: Any) -> io.NodeOutput:
        config = NetworkConfig(type=cls.type, **settings_from(cls.widgets, given, NetworkConfig))
        if start_from is None:
            return io.NodeOutput(config)
        config, taken = network_to_continue(config, stored_adapter(start_from))
        if config.type != cls.type:
            raise SettingError(f"start_from: is a {config.type}, and this node is for {cls.type}; use the node of its type")
        if taken:
            tell.warning(f"start_from: taken from the adapter, whatever this node says: {taken}")
            tell.say(f"from the adapter: {taken}")
        return io.NodeOutput(config)


class AnimaLoRANetwork(AnimaNetworkNode):
    type = "lora"
    widgets = (
        widget("rank", NetworkConfig, max=1024),
        widget("alpha", NetworkConfig, max=4096.0, step=1.0),
        *SHARED,
        widget("tlora_min_rank", NetworkConfig, max=1024, advanced=True),
        widget("tlora_alpha", NetworkConfig, max=10.0, step=0.1, advanced=True),
        widget("tlora_schedule", NetworkConfig, advanced=True),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            node_id="AnimaLoRANetwork",
            display_name="Anima LoRA Network",
            description="A LoRA: each layer gets a low-rank correction.",
            search_aliases=["train lora", "lora training network", "finetune", "fine tune"],
        )


class AnimaLoKrNetwork(AnimaNetworkNode):
    type = "lokr"
    widgets = (
        widget("factor", NetworkConfig, min=-1, max=256),
        widget("full_matrix", NetworkConfig, default=True, why="the usual choice for a LoKr; a command line asks by its rank"),
        widget("rank", NetworkConfig, max=1024, tooltip="Rank of the large factor when full_matrix is off."),
        widget(
            "alpha",
            NetworkConfig,
            max=4096.0,
            step=1.0,
            tooltip="Strength: where a factor has a rank, the correction is scaled by alpha / rank.",
        ),
        widget("decompose_both", NetworkConfig, advanced=True),
        *SHARED,
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            node_id="AnimaLoKrNetwork",
            display_name="Anima LoKr Network",
            description="A LoKr: each layer's correction is a Kronecker product of a small and a large factor.",
            search_aliases=["train lokr", "lokr training network", "lycoris"],
        )


class AnimaLoHaNetwork(AnimaNetworkNode):
    type = "loha"
    widgets = (
        widget(
            "rank",
            NetworkConfig,
            default=8,
            why="the correction's rank is up to its square",
            max=1024,
            tooltip="Rank of each of the two products; the correction's is up to its square, and so is what it costs: 4 to 16.",
        ),
        widget("alpha", NetworkConfig, default=8.0, why="equal to the rank", max=4096.0, step=1.0),
        *SHARED,
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return cls.schema(
            node_id="AnimaLoHaNetwork",
            display_name="Anima LoHa Network",
            description="A LoHa: each layer's correction is the product, number by number, of two low-rank ones.",
            search_aliases=["train loha", "loha training network", "lycoris", "hadamard"],
        )


NODES: list[type[io.ComfyNode]] = [AnimaLoRANetwork, AnimaLoKrNetwork, AnimaLoHaNetwork]

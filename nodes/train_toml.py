"""The training node that takes its settings from a TOML."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.compat.arguments import config_from_file
from ..anima_core.errors import AnimaError
from ..anima_core.settings import TrainConfig
from . import types
from .datasets import datasets_state
from .node import AnimaNode
from .roots import allowed, check_config, user_path
from .running import UNFINISHED, in_this_server, model_input, outputs, run_in_graph, unfinished_input


class AnimaTrainFromTOML(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTrainFromTOML",
            display_name="Train Anima Adapter (TOML)",
            category=types.CATEGORY,
            description="Trains as a TOML file says: an earlier run's config.toml, or one of sd-scripts' dialects.",
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                types.toml_path(),
                io.String.Input("output_name", default="", tooltip="Name of the adapter file. Empty: the TOML file's own."),
                unfinished_input(optional=True),
                model_input(),
            ],
            outputs=outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, path: str = "", output_name: str = "", **others: Any) -> str:
        try:
            config, _notes = read_config(path)
        except AnimaError as error:
            return str(error)
        return repr(config) + datasets_state(config.datasets)

    @classmethod
    def run(cls, path: str, output_name: str, unfinished: str = UNFINISHED[0], model: Any = None) -> io.NodeOutput:
        config, notes = read_config(path)
        for note in notes:
            print(f"[Anima Trainer] {note}")
        placed = in_this_server(config, output_name or config.output.name)
        return run_in_graph(placed, model, cls.hidden.unique_id, unfinished)


def read_config(path: str) -> tuple[TrainConfig, tuple[str, ...]]:
    """Read a training file and its notes. What it names is confined like what is typed into a node, before it is read."""
    config, notes = config_from_file(user_path(path, "path"), guard=allowed)
    return check_config(config), notes


NODES: list[type[io.ComfyNode]] = [AnimaTrainFromTOML]

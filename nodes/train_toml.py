"""The training node that takes its settings from a TOML."""

import os
from typing import Any

from comfy_api.latest import io

from ..anima_core.compat.arguments import config_from_file
from ..anima_core.errors import AnimaError
from ..anima_core.settings import TrainConfig
from . import on_disk, returned, tell, types
from .node import AnimaNode
from .roots import find_paths, user_file, user_path
from .running import UNFINISHED, in_this_server, model_input, outputs, run_in_graph, unfinished_input


class AnimaTrainFromTOML(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTrainFromTOML",
            display_name="Train Anima Adapter (TOML)",
            category=types.TRAINING,
            description="Trains as a TOML file says: an earlier run's config.toml, or one of sd-scripts' dialects.",
            search_aliases=["anima train", "training", "sd-scripts", "kohya", "config.toml"],
            is_output_node=True,
            inputs=[
                types.toml_path(),
                io.String.Input(
                    "output_name",
                    default="",
                    optional=True,
                    tooltip="Name of the adapter file. Empty: the TOML file's own.",
                ),
                unfinished_input(),
                model_input(),
            ],
            outputs=outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, path: str | None = "", **others: Any) -> str | float:
        if path is None:
            return on_disk.unknown()
        try:
            config, _notes = read_config(path)
        except AnimaError as error:
            return str(error)
        return on_disk.state_of(config) + str(returned.changes())

    @classmethod
    def run(cls, path: str = "", output_name: str = "", unfinished: str = UNFINISHED[0], model: Any = None) -> io.NodeOutput:
        config, notes = read_config(path)
        for note in notes:
            tell.note(note)
        placed = in_this_server(config, output_name or config.output.name)
        return run_in_graph(placed, model, unfinished, cls.workflow())


def read_config(path: str) -> tuple[TrainConfig, tuple[str, ...]]:
    """Read a training file and its notes. What it names is found, and confined, like what is typed into a node."""
    file = user_file(path, "path")
    folders = [os.path.dirname(file)]

    def found(named: str, setting: str) -> str:
        if setting == "resume":  # the node's own input says whether a run goes on
            return ""
        place = user_path(named, setting, *folders)
        if setting == "dataset_config":
            folders.append(os.path.dirname(place))
        return place

    config, notes = config_from_file(file, guard=found)
    return find_paths(config, *folders), notes


NODES: list[type[io.ComfyNode]] = [AnimaTrainFromTOML]

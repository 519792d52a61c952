"""The nodes. Each only translates: schema, inputs to settings, a call into anima_core, outputs back."""

from comfy_api.latest import ComfyExtension, io

from . import (
    adapters,
    caption_rules,
    captioning,
    continue_run,
    datasets,
    demo,
    flow,
    grid,
    held_out,
    loaders,
    metadata,
    networks,
    optimizers,
    prior,
    report,
    samples,
    speed,
    sweep,
    train,
    train_toml,
    workshop,
)
from .describe_route import add_describe_route
from .folder_routes import add_folder_routes
from .preselect import begin_with_the_server
from .routes import add_routes
from .shutdown import save_before_the_end

NODES: list[type[io.ComfyNode]] = [
    *loaders.NODES,
    *datasets.NODES,
    *caption_rules.NODES,
    *captioning.NODES,
    *networks.NODES,
    *optimizers.NODES,
    *samples.NODES,
    *metadata.NODES,
    *prior.NODES,
    *speed.NODES,
    *flow.NODES,
    *held_out.NODES,
    *train.NODES,
    *train_toml.NODES,
    *continue_run.NODES,
    *sweep.NODES,
    *report.NODES,
    *grid.NODES,
    *adapters.NODES,
    *workshop.NODES,
    *demo.NODES,
]


class AnimaTrainerExtension(ComfyExtension):
    async def on_load(self) -> None:
        add_routes()
        add_folder_routes()
        add_describe_route()
        begin_with_the_server()
        save_before_the_end()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES

"""The nodes. Each only translates: schema, inputs to settings, a call into anima_core, outputs back."""

from comfy_api.latest import ComfyExtension, io

from .adapters import AnimaApplyAdapter, AnimaLoadAdapter, AnimaSaveAdapter
from .datasets import (
    AnimaDatasetCombine,
    AnimaDatasetFolder,
    AnimaDatasetImages,
    AnimaDatasetInspect,
    AnimaDatasetTOML,
)
from .loaders import AnimaQwenLoader, AnimaT5TokenizerLoader, AnimaTransformerLoader, AnimaVAELoader
from .networks import AnimaLoKrNetwork, AnimaLoRANetwork
from .optimizers import AnimaOptimizer
from .routes import add_routes
from .samples import AnimaSamplePrompts
from .shutdown import save_before_the_end
from .train import AnimaTrain
from .train_again import AnimaContinueRun, AnimaTrainFromTOML

NODES: list[type[io.ComfyNode]] = [
    AnimaTransformerLoader,
    AnimaVAELoader,
    AnimaQwenLoader,
    AnimaT5TokenizerLoader,
    AnimaDatasetFolder,
    AnimaDatasetImages,
    AnimaDatasetTOML,
    AnimaDatasetCombine,
    AnimaDatasetInspect,
    AnimaLoRANetwork,
    AnimaLoKrNetwork,
    AnimaOptimizer,
    AnimaSamplePrompts,
    AnimaTrain,
    AnimaTrainFromTOML,
    AnimaContinueRun,
    AnimaApplyAdapter,
    AnimaSaveAdapter,
    AnimaLoadAdapter,
]


class AnimaTrainerExtension(ComfyExtension):
    async def on_load(self) -> None:
        add_routes()
        save_before_the_end()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES

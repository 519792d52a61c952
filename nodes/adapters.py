"""Adapters as ComfyUI sees them: a LORA_MODEL state dict, a file of `loras`, a patched MODEL."""

from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
from comfy_api.latest import io

from ..anima_core.adapters.formats import check_adapter, save_adapter
from ..anima_core.adapters.keys import convert_keys
from ..anima_core.adapters.metadata import tensor_hash
from ..anima_core.adapters.workshop.block_weights import BlockWeights, by_weight, read_block_weights
from ..anima_core.errors import SettingError
from ..anima_core.files import safe_name, unused
from ..anima_core.models.checkpoint import load_tensors
from ..anima_core.settings import OutputConfig
from . import on_disk, types
from .node import AnimaNode
from .store import loras_folder, store_folder
from .tell import say, shown
from .widgets import block_weights_input, inputs, name_input, settings_from, strength_input, widget

NAME = "my_adapter"


def stored_adapter(lora: types.LoraState) -> Path:
    """Write a LORA_MODEL as a file, named by its content, so that settings can point at it."""
    path = store_folder() / "adapters" / f"{tensor_hash(lora)[:32]}.safetensors"
    if not path.is_file():
        save_adapter(path, lora, {})
    return path


def apply_adapter(model: Any, lora: types.LoraState, strength: float, block_weights: str = "") -> Any:
    """Patch a MODEL as stock Load LoRA does, but refuse an adapter of which nothing fits.

    block_weights: what the strength is multiplied by in each block, as `read_block_weights` reads it.
    """
    weights = read_block_weights(block_weights, blocks_of(model)) if block_weights.strip() else BlockWeights()
    groups = [(strength * weight, part) for weight, part in by_weight(lora, weights).items() if strength * weight != 0]
    patched = model
    for factor, part in groups:
        patched, _ = comfy.sd.load_lora_for_models(patched, None, part, factor, 0)
    if groups and all(len(found) == len(model.patches.get(key, ())) for key, found in patched.patches.items()):
        raise SettingError("lora: none of its keys fits this model; is it an Anima adapter, and the model Anima?")
    return patched


def blocks_of(model: Any) -> int:
    """Return how many blocks the transformer of a MODEL has; 0 for a model that is not Anima."""
    return len(getattr(model.get_model_object("diffusion_model"), "blocks", ()))


class AnimaApplyAdapter(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaApplyAdapter",
            display_name="Apply Anima Adapter",
            category=types.ADAPTER,
            description="Applies an adapter to a model for sampling. An adapter of which nothing fits is an error.",
            inputs=[
                io.Model.Input("model", tooltip="The model to patch."),
                types.LoraModel.Input("lora", tooltip="The trained or loaded adapter."),
                strength_input("0 is the base model, 1 as trained."),
                block_weights_input("Multiplies the strength in single blocks"),
            ],
            outputs=[io.Model.Output(display_name="model")],
        )

    @classmethod
    def run(cls, model: Any, lora: types.LoraState, strength: float = 1.0, block_weights: str = "") -> io.NodeOutput:
        return io.NodeOutput(apply_adapter(model, lora, strength, block_weights))


class AnimaSaveAdapter(AnimaNode):
    widgets = (widget("format", OutputConfig, "key_format"),)

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaSaveAdapter",
            display_name="Save Anima Adapter",
            category=types.ADAPTER,
            description="Writes an adapter into models/loras under a name of your choice. Never overwrites another file.",
            is_output_node=True,
            inputs=[
                types.LoraModel.Input("lora", tooltip="The adapter to save."),
                name_input(NAME),
                *inputs(cls.widgets),
            ],
            outputs=[io.String.Output(display_name="path")],
        )

    @classmethod
    def run(cls, lora: types.LoraState, name: str = NAME, **given: Any) -> io.NodeOutput:
        path = unused(loras_folder() / f"{safe_name(name, 'name')}.safetensors")
        key_format = settings_from(cls.widgets, given, OutputConfig)["key_format"]
        save_adapter(path, convert_keys(lora, key_format), {})
        say(f"saved: {shown(path)}")
        return io.NodeOutput(str(path), ui={"text": [str(path)]})


class AnimaLoadAdapter(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaLoadAdapter",
            display_name="Load Anima Adapter",
            category=types.ADAPTER,
            description="Reads an adapter file of models/loras, to apply it or to train on from it.",
            inputs=[
                io.Combo.Input("adapter", options=folder_paths.get_filename_list("loras"), tooltip="A file of models/loras.")
            ],
            outputs=[types.LoraModel.Output(display_name="lora")],
        )

    @classmethod
    def fingerprint_inputs(cls, adapter: str | None = None) -> str | float:
        return on_disk.chosen("loras", adapter)

    @classmethod
    def run(cls, adapter: str) -> io.NodeOutput:
        path = folder_paths.get_full_path_or_raise("loras", adapter)
        check_adapter(path)
        return io.NodeOutput(load_tensors(path))


NODES: list[type[io.ComfyNode]] = [AnimaApplyAdapter, AnimaSaveAdapter, AnimaLoadAdapter]

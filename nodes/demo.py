"""The demo's tiny models and pictures, for a first training without any download."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.demo.files import demo_files
from . import on_disk, types
from .node import AnimaNode
from .store import store_folder


class AnimaDemo(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaDemo",
            display_name="Anima Demo (tiny models)",
            category=types.LOADERS,
            description=(
                "Tiny random models and 36 drawn pictures, written below output/anima_trainer/demo: to see a training from "
                "beginning to end in about a minute, without a download or a GPU. Its adapter fits only these models."
            ),
            search_aliases=["try anima training", "demo"],
            outputs=[
                types.Transformer.Output(display_name="transformer"),
                types.VAE.Output(display_name="vae"),
                types.Qwen.Output(display_name="qwen"),
                types.T5Tokenizer.Output(display_name="t5_tokenizer"),
                types.Dataset.Output(display_name="dataset", tooltip="36 coloured shapes with captions, 128 px."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **others: Any) -> str:
        return on_disk.folder_state(str(store_folder() / "demo"))

    @classmethod
    def run(cls) -> io.NodeOutput:
        found = demo_files(store_folder() / "demo")
        models = (types.ModelFile(str(path)) for path in found.models.values())
        return io.NodeOutput(*models, (found.dataset(),))


NODES: list[type[io.ComfyNode]] = [AnimaDemo]

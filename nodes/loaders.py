"""The four model loaders: they check that a file is whole and what it should be, by its header, and hand on its path."""

from pathlib import Path
from typing import Any, ClassVar

import folder_paths
from comfy_api.latest import io

from ..anima_core.errors import FileError
from ..anima_core.models.qwen import check_qwen
from ..anima_core.models.tokenizers import comfyui_tokenizers, load_t5_tokenizer, qwen_tokenizer_dir
from ..anima_core.models.transformer import check_transformer
from ..anima_core.models.vae import check_vae
from ..anima_core.settings import ModelConfig
from . import on_disk, types
from .node import AnimaNode
from .widgets import inputs, settings_from, widget

BUILT_IN = "ComfyUI built-in"


def full_path(folder: str, name: str) -> str:
    return folder_paths.get_full_path_or_raise(folder, name)


def model_folders(kind: str, marker: str) -> list[str]:
    """List the sub-folders of a model folder that hold `marker`: Hugging Face folders beside single files."""
    found: list[str] = []
    for root in map(Path, folder_paths.get_folder_paths(kind)):
        if root.is_dir():
            found += [f"{p.name}/" for p in sorted(root.iterdir()) if (p / marker).is_file()]
    return found


def resolve(kind: str, name: str) -> str:
    """Return the path of a dropdown entry, a file or a folder."""
    if not name.endswith("/"):
        return full_path(kind, name)
    roots = map(Path, folder_paths.get_folder_paths(kind))
    return str(next(root / name for root in roots if (root / name).is_dir()))


def built_in_t5() -> str:
    """Return the tokenizer that ComfyUI brings along for Anima. Raises FileError."""
    found = comfyui_tokenizers()
    if found is None:
        raise FileError("t5_tokenizer: this ComfyUI brings none along; update ComfyUI, or choose a folder of text_encoders")
    return str(found[1])


class AnimaTransformerLoader(AnimaNode):
    widgets = (widget("dtype", ModelConfig, advanced=True),)
    own_words: ClassVar = {"model.transformer": "transformer"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTransformerLoader",
            display_name="Load Anima Transformer (training)",
            category=types.CATEGORY,
            description="Picks the Anima model to train on. Only its path travels on; it is loaded when training starts.",
            inputs=[
                io.Combo.Input(
                    "transformer",
                    options=folder_paths.get_filename_list("diffusion_models"),
                    tooltip="An Anima checkpoint in models/diffusion_models, bf16, fp16 or fp32; quantised files cannot train.",
                ),
                *inputs(cls.widgets),
            ],
            outputs=[types.Transformer.Output(display_name="transformer")],
        )

    @classmethod
    def fingerprint_inputs(cls, transformer: str | None = None, **others: Any) -> str | float:
        return on_disk.chosen("diffusion_models", transformer)

    @classmethod
    def run(cls, transformer: str, **given: Any) -> io.NodeOutput:
        path = full_path("diffusion_models", transformer)
        check_transformer(path)
        return io.NodeOutput(types.ModelFile(path, **settings_from(cls.widgets, given, ModelConfig)))


class AnimaVAELoader(AnimaNode):
    own_words: ClassVar = {"model.vae": "vae"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaVAELoader",
            display_name="Load Anima VAE (training)",
            category=types.CATEGORY,
            description="Picks the Qwen-Image VAE that turns pictures into latents.",
            inputs=[
                io.Combo.Input(
                    "vae", options=folder_paths.get_filename_list("vae"), tooltip="qwen_image_vae.safetensors in models/vae."
                )
            ],
            outputs=[types.VAE.Output(display_name="vae")],
        )

    @classmethod
    def fingerprint_inputs(cls, vae: str | None = None) -> str | float:
        return on_disk.chosen("vae", vae)

    @classmethod
    def run(cls, vae: str) -> io.NodeOutput:
        path = full_path("vae", vae)
        check_vae(path)
        return io.NodeOutput(types.ModelFile(path))


class AnimaQwenLoader(AnimaNode):
    own_words: ClassVar = {"model.qwen": "qwen"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [*folder_paths.get_filename_list("text_encoders"), *model_folders("text_encoders", "config.json")]
        return io.Schema(
            node_id="AnimaQwenLoader",
            display_name="Load Anima Qwen (training)",
            category=types.CATEGORY,
            description="Picks the Qwen3-0.6B text encoder that reads the captions.",
            inputs=[
                io.Combo.Input(
                    "qwen",
                    options=names,
                    tooltip="qwen_3_06b_base.safetensors in models/text_encoders, or a Hugging Face folder there.",
                )
            ],
            outputs=[types.Qwen.Output(display_name="qwen")],
        )

    @classmethod
    def fingerprint_inputs(cls, qwen: str | None = None) -> str | float:
        return on_disk.chosen("text_encoders", qwen)

    @classmethod
    def run(cls, qwen: str) -> io.NodeOutput:
        path = resolve("text_encoders", qwen)
        check_qwen(path)
        qwen_tokenizer_dir(path)
        return io.NodeOutput(types.ModelFile(path))


class AnimaT5TokenizerLoader(AnimaNode):
    own_words: ClassVar = {"model.t5_tokenizer_dir": "tokenizer"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [BUILT_IN, *model_folders("text_encoders", "spiece.model")]
        return io.Schema(
            node_id="AnimaT5TokenizerLoader",
            display_name="Load Anima T5 Tokenizer (training)",
            category=types.CATEGORY,
            description="Picks the T5 tokenizer. ComfyUI brings the right one along; no T5 weights are needed.",
            inputs=[
                io.Combo.Input(
                    "tokenizer",
                    options=names,
                    default=BUILT_IN,
                    optional=True,
                    tooltip="Leave it at the built-in one unless your model was made with another.",
                )
            ],
            outputs=[types.T5Tokenizer.Output(display_name="t5_tokenizer")],
        )

    @classmethod
    def fingerprint_inputs(cls, tokenizer: str | None = BUILT_IN) -> str | float:
        return on_disk.chosen("text_encoders", tokenizer)

    @classmethod
    def run(cls, tokenizer: str = BUILT_IN) -> io.NodeOutput:
        path = built_in_t5() if tokenizer == BUILT_IN else resolve("text_encoders", tokenizer)
        load_t5_tokenizer(path)
        return io.NodeOutput(types.ModelFile(path))


NODES: list[type[io.ComfyNode]] = [AnimaTransformerLoader, AnimaVAELoader, AnimaQwenLoader, AnimaT5TokenizerLoader]

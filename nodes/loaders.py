"""The model loaders: they check that files are whole and what they should be, by their headers, and hand on their paths."""

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
from .preselect import wanted, wanted_first
from .widgets import inputs, settings_from, widget

BUILT_IN = "ComfyUI built-in"
DTYPE = widget("dtype", ModelConfig, advanced=True)


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


def transformer_input(**look: Any) -> io.Input:
    return io.Combo.Input(
        "transformer",
        options=wanted_first("diffusion_models", names_of("diffusion_models")),
        tooltip="An Anima checkpoint in models/diffusion_models: bf16, fp16, fp32, or quantised, as fp8, int8 and GGUF.",
        **look,
    )


def vae_input(**look: Any) -> io.Input:
    options = wanted_first("vae", names_of("vae"))
    return io.Combo.Input("vae", options=options, tooltip="qwen_image_vae.safetensors in models/vae.", **look)


def qwen_input(**look: Any) -> io.Input:
    return io.Combo.Input(
        "qwen",
        options=wanted_first("text_encoders", names_of("text_encoders")),
        tooltip="qwen_3_06b_base.safetensors in models/text_encoders, a quantised one, or a Hugging Face folder there.",
        **look,
    )


def names_of(kind: str) -> list[str]:
    """List the entries of a dropdown: files, and of text encoders Hugging Face folders, too."""
    names: list[str] = folder_paths.get_filename_list(kind)
    return [*names, *model_folders(kind, "config.json")] if kind == "text_encoders" else names


def fitting(kind: str) -> dict[str, Any]:
    """Tell pages which entry of a dropdown is such a model: a template's own file gives way to it where that is not there."""
    return {"extra_dict": {"fitting": wanted(kind, names_of(kind))}}


def tokenizer_input(**look: Any) -> io.Input:
    return io.Combo.Input(
        "tokenizer",
        options=[BUILT_IN, *model_folders("text_encoders", "spiece.model")],
        default=BUILT_IN,
        optional=True,
        tooltip="Leave it at the built-in one unless your model was made with another.",
        **look,
    )


def checked_transformer(name: str, given: dict[str, Any]) -> types.ModelFile:
    path = full_path("diffusion_models", name)
    check_transformer(path)
    return types.ModelFile(path, **settings_from([DTYPE], given, ModelConfig))


def checked_vae(name: str) -> types.ModelFile:
    path = full_path("vae", name)
    check_vae(path)
    return types.ModelFile(path)


def checked_qwen(name: str) -> types.ModelFile:
    path = resolve("text_encoders", name)
    check_qwen(path)
    qwen_tokenizer_dir(path)
    return types.ModelFile(path)


def checked_tokenizer(name: str) -> types.ModelFile:
    path = built_in_t5() if name == BUILT_IN else resolve("text_encoders", name)
    load_t5_tokenizer(path)
    return types.ModelFile(path)


class AnimaLoader(AnimaNode):
    widgets = (DTYPE,)
    own_words: ClassVar = {
        "model.transformer": "transformer",
        "model.vae": "vae",
        "model.qwen": "qwen",
        "model.t5_tokenizer_dir": "tokenizer",
    }

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaLoader",
            display_name="Load Anima (training)",
            category=types.LOADERS,
            description="Picks the three files of Anima to train with; those that it finds stand first in the lists. Only "
            "their paths travel on; they are loaded when training starts.",
            search_aliases=["anima train", "anima loader", "load anima", "training"],
            inputs=[
                transformer_input(**fitting("diffusion_models")),
                vae_input(**fitting("vae")),
                qwen_input(**fitting("text_encoders")),
                *inputs(cls.widgets),
                tokenizer_input(advanced=True),
            ],
            outputs=[
                types.Transformer.Output(display_name="transformer"),
                types.VAE.Output(display_name="vae"),
                types.Qwen.Output(display_name="qwen"),
                types.T5Tokenizer.Output(display_name="t5_tokenizer"),
            ],
        )

    @classmethod
    def fingerprint_inputs(
        cls,
        transformer: str | None = None,
        vae: str | None = None,
        qwen: str | None = None,
        tokenizer: str | None = BUILT_IN,
        **others: Any,
    ) -> str | float:
        found = [on_disk.chosen("diffusion_models", transformer), on_disk.chosen("vae", vae)]
        found += [on_disk.chosen("text_encoders", name) for name in (qwen, tokenizer)]
        return next((state for state in found if isinstance(state, float)), repr(found))

    @classmethod
    def run(cls, transformer: str, vae: str, qwen: str, tokenizer: str = BUILT_IN, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(
            checked_transformer(transformer, given), checked_vae(vae), checked_qwen(qwen), checked_tokenizer(tokenizer)
        )


class AnimaTransformerLoader(AnimaNode):
    widgets = (DTYPE,)
    own_words: ClassVar = {"model.transformer": "transformer"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTransformerLoader",
            display_name="Load Anima Transformer (training)",
            category=types.LOADERS,
            description="Picks the Anima model to train on, where Load Anima (training) is not enough. Only its path travels "
            "on; it is loaded when training starts.",
            inputs=[transformer_input(), *inputs(cls.widgets)],
            outputs=[types.Transformer.Output(display_name="transformer")],
        )

    @classmethod
    def fingerprint_inputs(cls, transformer: str | None = None, **others: Any) -> str | float:
        return on_disk.chosen("diffusion_models", transformer)

    @classmethod
    def run(cls, transformer: str, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(checked_transformer(transformer, given))


class AnimaVAELoader(AnimaNode):
    own_words: ClassVar = {"model.vae": "vae"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaVAELoader",
            display_name="Load Anima VAE (training)",
            category=types.LOADERS,
            description="Picks the Qwen-Image VAE that turns pictures into latents, where Load Anima (training) is not enough.",
            inputs=[vae_input()],
            outputs=[types.VAE.Output(display_name="vae")],
        )

    @classmethod
    def fingerprint_inputs(cls, vae: str | None = None) -> str | float:
        return on_disk.chosen("vae", vae)

    @classmethod
    def run(cls, vae: str) -> io.NodeOutput:
        return io.NodeOutput(checked_vae(vae))


class AnimaQwenLoader(AnimaNode):
    own_words: ClassVar = {"model.qwen": "qwen"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaQwenLoader",
            display_name="Load Anima Qwen (training)",
            category=types.LOADERS,
            description="Picks the Qwen3-0.6B text encoder that reads the captions, where Load Anima (training) is not enough.",
            inputs=[qwen_input()],
            outputs=[types.Qwen.Output(display_name="qwen")],
        )

    @classmethod
    def fingerprint_inputs(cls, qwen: str | None = None) -> str | float:
        return on_disk.chosen("text_encoders", qwen)

    @classmethod
    def run(cls, qwen: str) -> io.NodeOutput:
        return io.NodeOutput(checked_qwen(qwen))


class AnimaT5TokenizerLoader(AnimaNode):
    own_words: ClassVar = {"model.t5_tokenizer_dir": "tokenizer"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaT5TokenizerLoader",
            display_name="Load Anima T5 Tokenizer (training)",
            category=types.LOADERS,
            description="Picks the T5 tokenizer, where Load Anima (training) is not enough. ComfyUI brings the right one "
            "along; no T5 weights are needed.",
            inputs=[tokenizer_input()],
            outputs=[types.T5Tokenizer.Output(display_name="t5_tokenizer")],
        )

    @classmethod
    def fingerprint_inputs(cls, tokenizer: str | None = BUILT_IN) -> str | float:
        return on_disk.chosen("text_encoders", tokenizer)

    @classmethod
    def run(cls, tokenizer: str = BUILT_IN) -> io.NodeOutput:
        return io.NodeOutput(checked_tokenizer(tokenizer))


NODES: list[type[io.ComfyNode]] = [
    AnimaLoader,
    AnimaTransformerLoader,
    AnimaVAELoader,
    AnimaQwenLoader,
    AnimaT5TokenizerLoader,
]

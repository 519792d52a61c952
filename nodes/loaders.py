"""The model loaders: they check that files are whole and what they should be, by their headers, and hand on their paths."""

from typing import Any, ClassVar

from comfy_api.latest import io

from ..anima_core.errors import FileError
from ..anima_core.models.qwen import check_qwen
from ..anima_core.models.tokenizers import comfyui_tokenizers, load_t5_tokenizer, qwen_tokenizer_dir
from ..anima_core.models.transformer import check_transformer
from ..anima_core.models.vae import check_vae
from ..anima_core.settings import ModelConfig
from . import on_disk, types
from .model_names import folders_with, full_path, names_of
from .node import AnimaNode
from .preselect import wanted, wanted_first
from .widgets import inputs, settings_from, widget

BUILT_IN, OWN = "ComfyUI built-in", "the transformer's own"
DTYPE = widget("dtype", ModelConfig, advanced=True)


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
        tooltip="An Anima model in models/diffusion_models: a file, quantised or not, or a diffusers folder. All-in-one "
        "files of models/checkpoints and folders of models/diffusers stand below.",
        **look,
    )


def vae_input(**look: Any) -> io.Input:
    return io.Combo.Input(
        "vae",
        options=wanted_first("vae", names_of("vae")),
        tooltip="qwen_image_vae.safetensors in models/vae, or the VAE of an all-in-one file or a diffusers folder.",
        **look,
    )


def qwen_input(**look: Any) -> io.Input:
    return io.Combo.Input(
        "qwen",
        options=wanted_first("text_encoders", names_of("text_encoders")),
        tooltip="qwen_3_06b_base.safetensors in models/text_encoders, a Hugging Face folder there, or the text encoder of an "
        "all-in-one file or a diffusers folder.",
        **look,
    )


def fitting(kind: str) -> dict[str, Any]:
    """Tell pages which entry of a dropdown is such a model: a template's own file gives way to it where that is not there."""
    return {"extra_dict": {"fitting": wanted(kind, names_of(kind))}}


def llm_adapter_input() -> io.Input:
    return io.Combo.Input(
        "llm_adapter",
        options=[OWN, *wanted_first("diffusion_models", names_of("diffusion_models"))],
        default=OWN,
        optional=True,
        advanced=True,
        tooltip="Where the transformer's file lacks its LLM adapter: an Anima file that holds one.",
    )


def tokenizer_input(**look: Any) -> io.Input:
    return io.Combo.Input(
        "tokenizer",
        options=[BUILT_IN, *folders_with("text_encoders", "spiece.model")],
        default=BUILT_IN,
        optional=True,
        tooltip="Leave it at the built-in one unless your model was made with another.",
        **look,
    )


def checked_transformer(name: str, llm_adapter: str, given: dict[str, Any]) -> types.ModelFile:
    path = full_path("diffusion_models", name)
    other = "" if llm_adapter == OWN else full_path("diffusion_models", llm_adapter)
    check_transformer(path, other)
    return types.ModelFile(path, llm_adapter=other, **settings_from([DTYPE], given, ModelConfig))


def checked_vae(name: str) -> types.ModelFile:
    path = full_path("vae", name)
    check_vae(path)
    return types.ModelFile(path)


def checked_qwen(name: str) -> types.ModelFile:
    path = full_path("text_encoders", name)
    check_qwen(path)
    qwen_tokenizer_dir(path)
    return types.ModelFile(path)


def checked_tokenizer(name: str) -> types.ModelFile:
    path = built_in_t5() if name == BUILT_IN else full_path("text_encoders", name)
    load_t5_tokenizer(path)
    return types.ModelFile(path)


def transformer_state(transformer: str | None, llm_adapter: str | None) -> list[str | float]:
    return [on_disk.chosen("diffusion_models", name) for name in (transformer, llm_adapter)]


def together(found: list[str | float]) -> str | float:
    """Return one fingerprint of several: not a number where one is."""
    return next((state for state in found if isinstance(state, float)), repr(found))


class AnimaLoader(AnimaNode):
    widgets = (DTYPE,)
    own_words: ClassVar = {
        "model.transformer": "transformer",
        "model.vae": "vae",
        "model.qwen": "qwen",
        "model.llm_adapter": "llm_adapter",
        "model.t5_tokenizer_dir": "tokenizer",
    }

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaLoader",
            display_name="Load Anima (training)",
            category=types.LOADERS,
            description="Picks the files of Anima to train with; those that it finds stand first in the lists. Only "
            "their paths travel on; they are loaded when training starts.",
            search_aliases=["anima train", "anima loader", "load anima", "training"],
            inputs=[
                transformer_input(**fitting("diffusion_models")),
                vae_input(**fitting("vae")),
                qwen_input(**fitting("text_encoders")),
                *inputs(cls.widgets),
                tokenizer_input(advanced=True),
                llm_adapter_input(),
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
        llm_adapter: str | None = OWN,
        **others: Any,
    ) -> str | float:
        found = [*transformer_state(transformer, llm_adapter), on_disk.chosen("vae", vae)]
        return together([*found, *(on_disk.chosen("text_encoders", name) for name in (qwen, tokenizer))])

    @classmethod
    def run(
        cls, transformer: str, vae: str, qwen: str, tokenizer: str = BUILT_IN, llm_adapter: str = OWN, **given: Any
    ) -> io.NodeOutput:
        model = checked_transformer(transformer, llm_adapter, given)
        return io.NodeOutput(model, checked_vae(vae), checked_qwen(qwen), checked_tokenizer(tokenizer))


class AnimaTransformerLoader(AnimaNode):
    widgets = (DTYPE,)
    own_words: ClassVar = {"model.transformer": "transformer", "model.llm_adapter": "llm_adapter"}

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaTransformerLoader",
            display_name="Load Anima Transformer (training)",
            category=types.LOADERS,
            description="Picks the Anima model to train on, where Load Anima (training) is not enough. Only its path travels "
            "on; it is loaded when training starts.",
            inputs=[transformer_input(), *inputs(cls.widgets), llm_adapter_input()],
            outputs=[types.Transformer.Output(display_name="transformer")],
        )

    @classmethod
    def fingerprint_inputs(cls, transformer: str | None = None, llm_adapter: str | None = OWN, **others: Any) -> str | float:
        return together(transformer_state(transformer, llm_adapter))

    @classmethod
    def run(cls, transformer: str, llm_adapter: str = OWN, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(checked_transformer(transformer, llm_adapter, given))


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

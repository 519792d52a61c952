"""What is made of adapters without training: nodes that take and give a LORA_MODEL, and two that read models' files."""

import dataclasses
from typing import Any

from comfy_api.latest import io

from ..anima_core.adapters.analysis import analyse
from ..anima_core.adapters.findings import sentence, table
from ..anima_core.adapters.workshop.baking import bake
from ..anima_core.adapters.workshop.block_weights import read_block_weights
from ..anima_core.adapters.workshop.conversion import DROPPED_BLOCKS, NEW_BLOCKS, convert_blocks
from ..anima_core.adapters.workshop.extracting import extract
from ..anima_core.adapters.workshop.loaded import LoadedAdapter, of_state
from ..anima_core.adapters.workshop.merging import Part, merge
from ..anima_core.adapters.workshop.resizing import Keep, resize
from ..anima_core.adapters.workshop.scaling import scale
from ..anima_core.errors import SettingError
from ..anima_core.files import safe_name, unused
from ..anima_core.models.checkpoint import DTYPES
from ..anima_core.report.heat_map import heat_map
from . import on_disk, types
from .adapters import stored_adapter
from .inspection import as_image, stage
from .loaders import together
from .model_names import full_path, names_of
from .node import AnimaNode
from .store import diffusion_models_folder
from .tell import note, say, shown
from .widgets import block_weights_input, lines, name_input, strength_input

MOST_MERGED = 8
MODEL_NAME = "my_model"
LORA = types.LoraModel.Output(display_name="lora")


def told(adapter: LoadedAdapter) -> io.NodeOutput:
    """Return an adapter, and say on the node what came of it and what was left out."""
    if not adapter.layers:
        raise SettingError(f"lora: nothing is left of it ({'; '.join(adapter.said)}); choose other weights")
    for line in adapter.said:
        note(line)
    say("; ".join([f"{len(adapter.layers)} layers", *adapter.said]))
    return io.NodeOutput(adapter.state())


def rank_input(default: int, tooltip: str) -> io.Int.Input:
    return io.Int.Input("rank", default=default, min=0, max=2048, optional=True, tooltip=tooltip)


def energy_input() -> io.Float.Input:
    return io.Float.Input(
        "energy",
        default=1.0,
        min=0.01,
        max=1.0,
        step=0.001,
        optional=True,
        tooltip="Share of each layer's effect, as the sum of squares, that its ranks hold; 1 asks for all of the rank.",
    )


def model_input(name: str, tooltip: str) -> io.Combo.Input:
    files = [entry for entry in names_of("diffusion_models") if not entry.endswith("/")]  # folders are not read here
    return io.Combo.Input(name, options=files, tooltip=tooltip)


class AnimaMergeAdapters(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        slots = io.Autogrow.TemplatePrefix(types.LoraModel.Input("lora"), prefix="lora", min=2, max=MOST_MERGED)
        return io.Schema(
            node_id="AnimaMergeAdapters",
            display_name="Merge Anima Adapters",
            category=types.WORKSHOP,
            description="Makes one adapter of several that does what all of them do together.",
            search_aliases=["merge lora", "combine lora", "lora merge"],
            inputs=[
                io.Autogrow.Input("loras", template=slots, tooltip="Adapters to add up, two or more."),
                io.String.Input(
                    "weights",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="weights: one a line",
                    tooltip="The weight of each adapter, one a line, in their order; empty: all are 1.",
                ),
                rank_input(
                    0,
                    "0 puts LoRAs side by side, which is exact and adds up their ranks; any other brings the sum to that rank, "
                    "also of other types.",
                ),
                io.String.Input(
                    "block_weights",
                    default="",
                    multiline=True,
                    optional=True,
                    placeholder="block weights: a line for each adapter",
                    tooltip="A line for each adapter: its weight in single blocks, as 0-9=0, 10-27=0.5; an empty line: all are "
                    "1.",
                ),
                types.Transformer.Input(
                    "transformer", optional=True, tooltip="The model they are for: only the sum of a DoRA needs its weights."
                ),
            ],
            outputs=[LORA],
        )

    @classmethod
    def run(
        cls,
        loras: dict[str, types.LoraState | None],
        weights: str = "",
        rank: int = 0,
        block_weights: str = "",
        transformer: types.ModelFile | None = None,
    ) -> io.NodeOutput:
        adapters = [of_state(lora, name=name) for name, lora in loras.items() if lora is not None]
        factors = numbers(weights, len(adapters))
        texts = line_of_each(block_weights, len(adapters))
        blocks = [read_block_weights(text, adapter.blocks) for text, adapter in zip(texts, adapters)]
        parts = [Part(*part) for part in zip(adapters, factors, blocks)]
        base = transformer.path if transformer else ""
        return told(merge(parts, Keep(rank) if rank else None, base, stage("merging")))


def numbers(text: str, count: int) -> list[float]:
    """Return the weight of each adapter: one a line, or all in one line; 1 where the text is empty. Raises SettingError."""
    words = lines(text.replace(",", "\n")) or ("1",) * count
    if len(words) != count:
        raise SettingError(f"weights: {len(words)} for {count} adapters; write one a line for each, or none")
    try:
        return [float(word) for word in words]
    except ValueError:
        raise SettingError(f"weights={text!r}: weights are numbers, such as 0.7; write one a line") from None


def line_of_each(text: str, count: int) -> list[str]:
    """Return the line of each adapter; empty ones where lines are lacking at the end. Raises SettingError."""
    found = text.rstrip().split("\n")
    if len(found) > count:
        raise SettingError(f"block_weights: {len(found)} lines for {count} adapters; write one line for each")
    return found + [""] * (count - len(found))


class AnimaResizeAdapter(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaResizeAdapter",
            display_name="Resize Anima Adapter",
            category=types.WORKSHOP,
            description="Brings an adapter to another rank: a LoRA that is as near to it as one of that rank can be.",
            search_aliases=["resize lora", "lora rank", "shrink lora"],
            inputs=[
                types.LoraModel.Input("lora", tooltip="The adapter to resize, of any type."),
                rank_input(16, "Rank at most; 0 for any, where the energy decides."),
                energy_input(),
            ],
            outputs=[LORA],
        )

    @classmethod
    def run(cls, lora: types.LoraState, rank: int = 16, energy: float = 1.0) -> io.NodeOutput:
        return told(resize(of_state(lora), Keep(rank, energy), stage("resizing")))


class AnimaScaleBlocks(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaScaleBlocks",
            display_name="Scale Anima Adapter by Block",
            category=types.WORKSHOP,
            description="Makes an adapter stronger or weaker, in all or in single blocks, for good; its type and rank stay.",
            search_aliases=["lora block weight", "block weights", "lbw"],
            inputs=[
                types.LoraModel.Input("lora", tooltip="The adapter to scale."),
                strength_input("What the whole adapter is multiplied by."),
                block_weights_input("Multiplies single blocks"),
            ],
            outputs=[LORA],
        )

    @classmethod
    def run(cls, lora: types.LoraState, strength: float = 1.0, block_weights: str = "") -> io.NodeOutput:
        adapter = of_state(lora)
        return told(scale(adapter, strength, read_block_weights(block_weights, adapter.blocks)))


class AnimaConvertBlocks(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaConvertBlocks",
            display_name="Convert Anima Adapter to 28 or 40 Blocks",
            category=types.WORKSHOP,
            description="Makes an adapter for Anima's 28 blocks fit Anima-2.9B, which has 40, or the other way round.",
            search_aliases=["anima 2.9b lora", "28 to 40 blocks", "convert lora"],
            inputs=[
                types.LoraModel.Input("lora", tooltip="The adapter to convert."),
                io.Combo.Input("blocks", options=["40", "28"], optional=True, tooltip="Blocks of the model that it is to fit."),
                io.Combo.Input(
                    "new_blocks",
                    options=list(NEW_BLOCKS),
                    optional=True,
                    tooltip="What new blocks get: nothing, a copy of the block before, or half of that, which then keeps half.",
                ),
                io.Combo.Input(
                    "dropped_blocks",
                    options=list(DROPPED_BLOCKS),
                    optional=True,
                    tooltip="What becomes of blocks that the smaller model lacks: dropped, or added to the block before.",
                ),
            ],
            outputs=[LORA],
        )

    @classmethod
    def run(
        cls,
        lora: types.LoraState,
        blocks: str = "40",
        new_blocks: str = NEW_BLOCKS[0],
        dropped_blocks: str = DROPPED_BLOCKS[0],
    ) -> io.NodeOutput:
        return told(convert_blocks(of_state(lora), int(blocks), new_blocks, dropped_blocks))


class AnimaAnalyseAdapter(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaAnalyseAdapter",
            display_name="Analyse Anima Adapter",
            category=types.WORKSHOP,
            description="Tells how strongly an adapter changes which block and kind of layer, with how much of its rank, and "
            "how like another it is.",
            search_aliases=["lora analysis", "lora strength", "heat map", "compare lora"],
            is_output_node=True,
            inputs=[
                types.LoraModel.Input("lora", tooltip="The adapter to measure."),
                types.LoraModel.Input("other", optional=True, tooltip="Another adapter to compare it with."),
                types.Transformer.Input(
                    "transformer", optional=True, tooltip="The model it is for: strength is then told relative to its weights."
                ),
            ],
            outputs=[
                io.String.Output(display_name="report"),
                io.Image.Output(display_name="heat_map", tooltip="A row for each kind of layer, a column for each block."),
            ],
        )

    @classmethod
    def run(
        cls, lora: types.LoraState, other: types.LoraState | None = None, transformer: types.ModelFile | None = None
    ) -> io.NodeOutput:
        second = stored_adapter(other) if other is not None else ""
        measured = analyse(stored_adapter(lora), second, transformer.path if transformer else "")
        found = dataclasses.replace(measured, name="adapter", other="other" if second else "")
        text = "\n".join([*table(found), *found.left_out, sentence(found)])
        say(sentence(found))
        return io.NodeOutput(text, as_image(heat_map(found)), ui={"text": [text]})


class AnimaExtractAdapter(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaExtractAdapter",
            display_name="Extract Anima Adapter",
            category=types.WORKSHOP,
            description="Makes a LoRA of what a trained model changes in its base. Both files are read a tensor at a time.",
            search_aliases=["extract lora", "lora from checkpoint", "model difference"],
            inputs=[
                model_input("tuned", "The trained model, in models/diffusion_models."),
                model_input("base", "The model that it began as."),
                rank_input(32, "Rank at most; 0 for any, where the energy decides."),
                energy_input(),
                io.Combo.Input(
                    "dtype", options=list(DTYPES), default="bf16", optional=True, tooltip="Precision of the adapter's numbers."
                ),
            ],
            outputs=[LORA],
        )

    @classmethod
    def fingerprint_inputs(cls, tuned: str | None = None, base: str | None = None, **others: Any) -> str | float:
        return together([on_disk.chosen("diffusion_models", name) for name in (tuned, base)])

    @classmethod
    def run(cls, tuned: str, base: str, rank: int = 32, energy: float = 1.0, dtype: str = "bf16") -> io.NodeOutput:
        keep, after, before = Keep(rank, energy), full_path("diffusion_models", tuned), full_path("diffusion_models", base)
        keep.check("extract")
        return told(extract(after, before, keep, DTYPES[dtype], stage("extracting")))


class AnimaBakeAdapter(AnimaNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaBakeAdapter",
            display_name="Bake Anima Adapter into Model",
            category=types.WORKSHOP,
            description="Writes a model with an adapter in its weights into models/diffusion_models. Layout and precision "
            "stay; never overwrites another file.",
            search_aliases=["merge lora into checkpoint", "bake lora", "save merged model"],
            is_output_node=True,
            inputs=[
                model_input("model", "The model to bake into, in models/diffusion_models, in bf16, fp16 or fp32."),
                types.LoraModel.Input("lora", tooltip="The adapter to bake."),
                strength_input("What the adapter is multiplied by; 1 as trained."),
                name_input(MODEL_NAME),
                block_weights_input("Multiplies the strength in single blocks"),
            ],
            outputs=[io.String.Output(display_name="path")],
        )

    @classmethod
    def fingerprint_inputs(cls, model: str | None = None, **others: Any) -> str | float:
        return on_disk.chosen("diffusion_models", model)

    @classmethod
    def run(
        cls, model: str, lora: types.LoraState, strength: float = 1.0, name: str = MODEL_NAME, block_weights: str = ""
    ) -> io.NodeOutput:
        adapter = of_state(lora)
        part = Part(adapter, strength, read_block_weights(block_weights, adapter.blocks))
        path = unused(diffusion_models_folder() / f"{safe_name(name, 'name')}.safetensors")
        said = bake(full_path("diffusion_models", model), [part], path, on_tensor=stage("baking"))
        sentence = "; ".join([f"saved: {shown(path)}", *said])
        say(sentence)
        return io.NodeOutput(str(path), ui={"text": [sentence]})


NODES: list[type[io.ComfyNode]] = [
    AnimaMergeAdapters,
    AnimaResizeAdapter,
    AnimaScaleBlocks,
    AnimaConvertBlocks,
    AnimaAnalyseAdapter,
    AnimaExtractAdapter,
    AnimaBakeAdapter,
]

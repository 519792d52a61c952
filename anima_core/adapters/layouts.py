"""What trainers call Anima's layers: an entry for each library's names, and the prefixes that stand before them.

Sources: diffusers' scripts/convert_anima_to_diffusers.py, in OneTrainer's AnimaModel.py and in ai-toolkit's anima.py; the
prefix `core.` and LyCORIS' keys of it in SimpleTuner; fused names in anima_lora's lora_save.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from ..models import diffusers_names
from ..models.diffusers_names import ATTENTIONS, BRANCHES

DOTTED, KOHYA = "diffusion_model.", "lora_unet_"

# Prefixes of dotted names, ComfyUI's first -> who writes them; several may stand in a row, or none
DOTTED_PREFIXES = {
    DOTTED: "ComfyUI, diffusion-pipe, ai-toolkit",
    "base_model.model.": "PEFT",
    "model.diffusion_model.": "ComfyUI's checkpoints",
    "transformer.": "diffusers, OneTrainer, SimpleTuner",
    "core.": "SimpleTuner",
    "net.": "OneTrainer, Anima's checkpoints",
}
# Prefixes of names whose dots are underscores
KOHYA_PREFIXES = {
    KOHYA: "sd-scripts",
    "lora_unet_net_": "sd-scripts on a prefixed model",
    "lycoris_": "LyCORIS",
    "lycoris_core_": "LyCORIS in SimpleTuner",
    "lora_transformer_": "OneTrainer",
}

# One layer in a trainer's model, several in ours: the rows of its outputs follow one another
FUSED = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "cross_attn.kv_proj": ("cross_attn.k_proj", "cross_attn.v_proj"),
}


@dataclass(frozen=True)
class Layout:
    """The names that one library has for layers.

    name: whose they are. blocks: what stands before the number of a block -> ours. leaves: a layer within a block -> ours.
    singles: a layer of no block -> ours.
    """

    name: str
    blocks: tuple[str, str]
    leaves: Mapping[str, str]
    singles: Mapping[str, str]


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


LEAVES = same(
    *(f"{a}.{p}" for a in ATTENTIONS for p in ("q_proj", "k_proj", "v_proj", "output_proj", "o_proj", "q_norm", "k_norm")),
    *(f"mlp.{layer}" for layer in ("layer1", "layer2", "0", "2")),
    *(f"adaln_modulation_{branch}.{layer}" for branch in BRANCHES for layer in (1, 2)),
    *(f"norm_{branch}" for branch in BRANCHES),
    *FUSED,
)
LLM_ADAPTER = ("embed", "in_proj", "out_proj", "norm")

LAYOUTS = (
    Layout(
        "Anima's own",
        ("blocks", "blocks"),
        LEAVES,
        same(
            "x_embedder.proj.1",
            "t_embedder.1.linear_1",
            "t_embedder.1.linear_2",
            "t_embedding_norm",
            "final_layer.linear",
            "final_layer.adaln_modulation.1",
            "final_layer.adaln_modulation.2",
        ),
    ),
    Layout(
        "Anima's own",
        ("llm_adapter.blocks", "llm_adapter.blocks"),
        LEAVES,
        same(*(f"llm_adapter.{layer}" for layer in LLM_ADAPTER)),
    ),
    Layout(
        "diffusers'",
        ("transformer_blocks", "blocks"),
        diffusers_names.LEAVES | {"attn1.to_qkv": "self_attn.qkv_proj", "attn2.to_kv": "cross_attn.kv_proj"},
        diffusers_names.SINGLES,
    ),
    Layout(
        "diffusers'",
        ("text_conditioner.blocks", "llm_adapter.blocks"),
        LEAVES,
        {f"text_conditioner.{layer}": f"llm_adapter.{layer}" for layer in LLM_ADAPTER},
    ),
)


class Place(NamedTuple):
    """Where a key's layer was found. layer: its name in our model; names: whose name it had; prefix: what stood before it."""

    layer: str
    names: str
    prefix: str


def locate(stem: str) -> Place | None:
    """Find the layer of Anima that a key without its tensor's name means; None for another model's."""
    for prefix in KOHYA_PREFIXES:
        if stem.startswith(prefix) and (found := named(stem[len(prefix) :], "_")):
            return Place(*found, prefix)
    rest = stem
    while prefix := next((prefix for prefix in DOTTED_PREFIXES if rest.startswith(prefix)), ""):
        rest = rest[len(prefix) :]
    found = named(rest, ".")
    return Place(*found, stem[: len(stem) - len(rest)]) if found else None


def layer_of(stem: str) -> str | None:
    """Return the name in our model of the layer that a key without its tensor's name means; None for another model's."""
    found = locate(stem)
    return found.layer if found else None


def named(name: str, separator: str) -> tuple[str, str] | None:
    """Return a layer's name in our model, and whose name this was. separator: what stands for the dots of names.

    Names hold underscores of their own; what is known of all of them makes a name without dots unambiguous.
    """
    for blocks, leaves, singles, layout in tables(separator):
        if name in singles:
            return singles[name], layout.name
        found = blocks.match(name)
        if found and found[2] in leaves:
            return f"{layout.blocks[1]}.{found[1]}.{leaves[found[2]]}", layout.name
    return None


@cache
def tables(separator: str) -> list[tuple[re.Pattern[str], dict[str, str], dict[str, str], Layout]]:
    """Return, of each layout, the pattern of a block's layer, and leaves and singles, with another separator than the dot."""

    def joined(text: str) -> str:
        return text.replace(".", separator)

    mark = re.escape(separator)
    return [
        (
            re.compile(rf"^{re.escape(joined(layout.blocks[0]))}{mark}(\d+){mark}(.+)$"),
            {joined(theirs): ours for theirs, ours in layout.leaves.items()},
            {joined(theirs): ours for theirs, ours in layout.singles.items()},
            layout,
        )
        for layout in LAYOUTS
    ]


def parts_of_fused(layer: str) -> tuple[str, ...]:
    """Return the layers of our model that one fused layer is; none for a layer that is our own."""
    for leaf, parts in FUSED.items():
        if layer.endswith(f".{leaf}"):
            return tuple(layer.removesuffix(leaf) + part for part in parts)
    return ()

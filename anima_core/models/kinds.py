"""What a file or folder is that was given as a model: told by its first bytes or the names of its tensors.

For the error of a file in the wrong slot. Every text completes "it is …" and ends in the way out.
"""

# ruff: noqa: E501 (one line for each kind)

import re
from collections.abc import Iterable
from pathlib import Path

REAL_WEIGHTS = "use the bf16, fp16 or fp32 .safetensors file"
READABLE = "use the model in bf16, or scaled fp8, int8 or GGUF (Q8_0)"
PICKLE_SUFFIXES = {".pt", ".pth", ".ckpt", ".bin", ".pkl"}
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")  # PK: torch's zip around one

# First bytes -> what such a file is
STARTS = (
    (b"GGUF", f"a GGUF file, which only transformers and text encoders are read from; {REAL_WEIGHTS}"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; download the file (git lfs pull)"),
    (b"<!", "a web page that was saved under this name; download the file itself"),
    (b"<html", "a web page that was saved under this name; download the file itself"),
    (b"{", "a JSON text, not safetensors; name the .safetensors file"),
)
LONGEST_START = max(len(start) for start, _ in STARTS)

ADAPTER = "an adapter: give it as `network.weights`"

# What stands in tensor names, the first match counts -> what the file is
NAMES = (
    (r"^lllite_", "a ControlNet-LLLite, which changes layers by a picture and is not trained here: give a LoRA or LoKr, or none"),
    (r"(^|\.|_)(lora_(down|up|A|B|mid)|lokr_[wt]|hada_[wt]|oft_(blocks|diag|R)|vera_|ia3_l|q_layer|dora_scale)|\.(diff|diff_b|set_weight|w_norm|on_input)$", ADAPTER),
    (r"(^|\.)transformer_blocks\.0\.norm1\.linear_1", "an Anima transformer with diffusers' names: give it as the transformer"),
    (r"(^|\.)transformer_blocks\.0\.", "another model's transformer, with diffusers' names: use an Anima file"),
    (r"(^|\.)llm_adapter\.", "an Anima transformer: give it as the transformer"),
    (r"decoder\.middle\.0\.residual", "a Qwen-Image VAE: give it as the VAE"),
    (r"decoder\.mid_block\.resnets\.0\.norm1\.gamma", "a Qwen-Image VAE with diffusers' names: give it as the VAE"),
    (r"decoder\.mid_block", "another model's VAE: use qwen_image_vae.safetensors"),
    (r"layers\.0\.self_attn\.q_norm", "a Qwen3 text encoder: give Qwen3-0.6B as the qwen file"),
    (r"layers\.0\.self_attn\.|text_model\.encoder\.|block\.0\.layer\.0\.SelfAttention", "another text encoder: use qwen_3_06b_base.safetensors"),
    (r"blocks\.0\.adaln_modulation_self_attn", "a Cosmos-Predict2 model without Anima's LLM adapter: use an Anima file that holds it"),
    (r"(^|\.)blocks\.0\.norm_cross_attn", "an LLM adapter alone: give it as `model.llm_adapter`"),
    (r"double_blocks\.", "a Flux model: use an Anima file"),
    (r"input_blocks\.|down_blocks\.", "a Stable Diffusion model: use an Anima file"),
)  # fmt: skip
UNKNOWN = "check that this is the right file"

# The parts of an all-in-one checkpoint, by what stands before their names: ComfyUI's CheckpointSave, and diffusers' folders
PARTS = {
    "transformer": re.compile(r"^(model\.diffusion_model|diffusion_model|net|transformer)\."),
    "VAE": re.compile(r"^(first_stage_model|vae)\."),
    "text encoder": re.compile(r"^(cond_stage_model|text_encoders?|qwen3_06b)\."),
}


def kind_of(names: Iterable[str]) -> str:
    """Say what a safetensors file seems to be, with the way out: "it is a Flux model: use an Anima file"."""
    text = "\n".join(names)
    return next((f"it is {what}" for mark, what in NAMES if re.search(mark, text, re.MULTILINE)), UNKNOWN)


def not_an_adapter(names: Iterable[str]) -> str:
    """Say what a file is that is no adapter; empty for an adapter, and for what is not known."""
    kind = kind_of(names)
    return "" if kind in (UNKNOWN, f"it is {ADAPTER}") else kind


def parts_in(names: Iterable[str]) -> list[str]:
    """Return which parts an all-in-one checkpoint holds; none for a file of one model."""
    names = list(names)
    found = [part for part, prefix in PARTS.items() if any(map(prefix.match, names))]
    return found if len(found) > 1 else []


def part_of(names: Iterable[str], part: str) -> dict[str, str]:
    """Return the names of one part, with what each is without the prefix that makes it one.

    Of an all-in-one checkpoint the other parts' are left out; what belongs to none is the transformer's to answer for.
    """
    names = list(names)
    others = [PARTS[other] for other in parts_in(names) if other != part]
    if others and part != "transformer":
        names = [name for name in names if PARTS[part].match(name)]
    return {name: PARTS[part].sub("", name, count=1) for name in names if not any(other.match(name) for other in others)}


def start_of(start: bytes, suffix: str) -> str:
    """Say what a file is by its first bytes and its name's end, with the way out; empty for what may be safetensors."""
    if suffix.lower() in PICKLE_SUFFIXES or start.startswith(PICKLE_STARTS):
        return "a pickle, which can run code when opened; convert it to safetensors first"
    return next((what for mark, what in STARTS if start.lower().startswith(mark.lower())), "")


def folder_of(path: Path) -> str:
    """Say what a folder is that was given where a file is wanted, with the way out."""
    return "a folder; name the .safetensors file in it"

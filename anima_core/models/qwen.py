"""Qwen3-0.6B as text encoder, through transformers: the last hidden state after the final norm, without padding.

transformers takes seconds to load, so only what encodes a caption does that: a run whose captions are cached needs none of it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import FileError
from .checkpoint import strip_prefix
from .loading import Layout, all_by_name, check_fits, load_strict, sources, wrong_kind
from .tokenizers import QwenTokenizer, load_qwen_tokenizer, qwen_tokenizer_dir

if TYPE_CHECKING:
    from transformers import Qwen3Model

PREFIXES = ("cond_stage_model.", "text_encoders.", "qwen3_06b.", "transformer.", "model.")
ROPE_THETA = 1_000_000.0  # of Qwen3
NORM_EPS = 1e-6


@dataclass(frozen=True)
class QwenConfig:
    """Sizes of a Qwen3. `key_heads` are its key-value heads."""

    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    key_heads: int
    head_dim: int

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of each tensor, by transformers' name."""
        queries, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        layer = {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "self_attn.q_norm": (self.head_dim,),
            "self_attn.k_norm": (self.head_dim,),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
            "input_layernorm": (self.hidden,),
            "post_attention_layernorm": (self.hidden,),
        }
        found = {f"layers.{n}.{name}.weight": shape for n in range(self.layers) for name, shape in layer.items()}
        return found | {"embed_tokens.weight": (self.vocabulary, self.hidden), "norm.weight": (self.hidden,)}


class AnimaQwen:
    """Captions -> hidden states. Frozen."""

    def __init__(self, model: "Qwen3Model", tokenizer: QwenTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer

    @property
    def hidden_size(self) -> int:
        return self.model.config.hidden_size

    def encode(self, captions: list[str], batch_size: int = 8) -> list[Tensor]:
        """Encode [caption, …] -> [S_i, hidden] each, in the model's dtype, equal to what each gives alone."""
        ids = self.tokenizer.encode(captions)
        found = [self._encode_ids(ids[i : i + batch_size]) for i in range(0, len(ids), batch_size)]
        return [hidden for batch in found for hidden in batch]

    @torch.no_grad()
    def _encode_ids(self, ids: list[list[int]]) -> list[Tensor]:
        device = self.model.embed_tokens.weight.device
        longest = max(map(len, ids))
        padded = torch.tensor([row + [self.tokenizer.pad_id] * (longest - len(row)) for row in ids], device=device)
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids], device=device)
        same = all(len(row) == longest for row in ids)
        hidden = self.model(input_ids=padded, attention_mask=None if same else mask, use_cache=False).last_hidden_state
        return [h[: len(row)].clone() for h, row in zip(hidden, ids)]


def load_qwen(
    path: str | Path,
    *,
    tokenizer_dir: str | Path = "",
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> AnimaQwen:
    """Load ComfyUI's single file, an all-in-one checkpoint, or a folder in Hugging Face's or diffusers' layout.

    Raises FileError that names the file and what is wrong.

    Sizes come from the file, the tokenizer from `tokenizer_dir`, the model's own folder, or ComfyUI.
    """
    tokenizer = load_qwen_tokenizer(qwen_tokenizer_dir(path, str(tokenizer_dir)))
    config = qwen_config(path)
    if tokenizer.pad_id >= config.vocabulary:
        raise FileError(
            f"{path}: {config.vocabulary} embeddings, its tokenizer needs {tokenizer.pad_id + 1}; use its own tokenizer"
        )
    model = meta_qwen(config)
    load_strict(model, sources(path, LAYOUT), LAYOUT, dtype=dtype, device=device)
    model.rotary_emb = type(model.rotary_emb)(model.config).to(device)  # its fp32 table was on the meta device too
    return AnimaQwen(model.eval(), tokenizer)


def meta_qwen(config: QwenConfig) -> "Qwen3Model":
    """Build transformers' model on the meta device."""
    from transformers import Qwen3Config, Qwen3Model

    sizes = Qwen3Config(
        vocab_size=config.vocabulary,
        hidden_size=config.hidden,
        intermediate_size=config.intermediate,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.key_heads,
        head_dim=config.head_dim,
        rms_norm_eps=NORM_EPS,
        rope_theta=ROPE_THETA,
        attn_implementation="sdpa",
    )
    with torch.device("meta"):
        return Qwen3Model(sizes)


def check_qwen(path: str | Path) -> QwenConfig:
    """Check by the headers that a file or folder is a whole Qwen3, and return its sizes. Raises FileError."""
    config = qwen_config(path)
    check_fits(config.shapes(), sources(path, LAYOUT), LAYOUT)
    return config


def qwen_config(path: str | Path) -> QwenConfig:
    """Read the sizes from the header. Raises FileError when it is not a Qwen3."""
    files = sources(path, LAYOUT)
    shapes = {name: stored.shape for name, stored in all_by_name(files, LAYOUT).items()}
    try:
        vocabulary, hidden = shapes["embed_tokens.weight"]
        head_dim = shapes["layers.0.self_attn.q_norm.weight"][0]
        return QwenConfig(
            vocabulary=vocabulary,
            hidden=hidden,
            intermediate=shapes["layers.0.mlp.gate_proj.weight"][0],
            layers=len({n.split(".")[1] for n in shapes if n.startswith("layers.")}),
            heads=shapes["layers.0.self_attn.q_proj.weight"][0] // head_dim,
            key_heads=shapes["layers.0.self_attn.k_proj.weight"][0] // head_dim,
            head_dim=head_dim,
        )
    except (KeyError, IndexError, ValueError) as error:
        missing = str(error.args[0]) if isinstance(error, KeyError) else "layers"
        raise wrong_kind(path, "a Qwen3 text encoder", missing, files) from None


def _rename(name: str) -> str | None:
    if name.startswith("lm_head.") or name.endswith("rotary_emb.inv_freq") or name.endswith("logit_scale"):
        return None  # the head is never asked; the rest are constants
    return strip_prefix(name, PREFIXES)


LAYOUT = Layout("Qwen3 text encoder", _rename, quantised=True, part="text encoder", folder="text_encoder")

"""Qwen3-0.6B as text encoder, through transformers: the last hidden state after the final norm, without padding."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from ..errors import FileError
from .checkpoint import (
    Layout,
    TensorInfo,
    check_fits,
    check_one_model,
    load_strict,
    read_header,
    shards,
    strip_prefix,
    wrong_kind,
)
from .tokenizers import QwenTokenizer, load_qwen_tokenizer, qwen_tokenizer_dir

PREFIXES = ("cond_stage_model.", "text_encoders.", "qwen3_06b.", "transformer.", "model.")
ROPE_THETA = 1_000_000.0  # of Qwen3
NORM_EPS = 1e-6


class AnimaQwen:
    """Captions -> hidden states. Frozen."""

    def __init__(self, model: Qwen3Model, tokenizer: QwenTokenizer) -> None:
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
    """Load ComfyUI's single file or a Hugging Face folder. Raises FileError that names the file and what is wrong.

    Sizes come from the file, the tokenizer from `tokenizer_dir`, the model's own folder, or ComfyUI.
    """
    tokenizer = load_qwen_tokenizer(qwen_tokenizer_dir(path, str(tokenizer_dir)))
    config = qwen_config(path)
    if tokenizer.pad_id >= config.vocab_size:
        raise FileError(
            f"{path}: {config.vocab_size} embeddings, its tokenizer needs {tokenizer.pad_id + 1}; use its own tokenizer"
        )
    with torch.device("meta"):
        model = Qwen3Model(config)
    load_strict(model, shards(path), LAYOUT, dtype=dtype, device=device)
    model.rotary_emb = type(model.rotary_emb)(config).to(device)  # its fp32 table was on the meta device too
    return AnimaQwen(model.eval(), tokenizer)


def check_qwen(path: str | Path) -> Qwen3Config:
    """Check by the headers that a file or folder is a whole Qwen3, and return its sizes. Raises FileError."""
    config = qwen_config(path)
    with torch.device("meta"):
        check_fits(Qwen3Model(config), shards(path), LAYOUT)
    return config


def qwen_config(path: str | Path) -> Qwen3Config:
    """Read the sizes from the header. Raises FileError when it is quantised or not a Qwen3."""
    header: dict[str, TensorInfo] = {}
    for shard in shards(path):
        part = read_header(shard)
        check_one_model(shard, part)
        header |= part
    shapes = {_rename(name): info.shape for name, info in header.items()}
    try:
        vocabulary, hidden = shapes["embed_tokens.weight"]
        head_dim = shapes["layers.0.self_attn.q_norm.weight"][0]
        return Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=shapes["layers.0.mlp.gate_proj.weight"][0],
            num_hidden_layers=len({n.split(".")[1] for n in shapes if n and n.startswith("layers.")}),
            num_attention_heads=shapes["layers.0.self_attn.q_proj.weight"][0] // head_dim,
            num_key_value_heads=shapes["layers.0.self_attn.k_proj.weight"][0] // head_dim,
            head_dim=head_dim,
            rms_norm_eps=NORM_EPS,
            rope_theta=ROPE_THETA,
            attn_implementation="sdpa",
        )
    except (KeyError, IndexError, ValueError) as error:
        missing = str(error.args[0]) if isinstance(error, KeyError) else "layers"
        raise wrong_kind(path, "a Qwen3 text encoder", missing, header) from None


def _rename(name: str) -> str | None:
    if name.startswith("lm_head.") or name.endswith("rotary_emb.inv_freq") or name.endswith("logit_scale"):
        return None  # the head is never asked; the rest are constants
    return strip_prefix(name, PREFIXES)


LAYOUT = Layout("Qwen3 text encoder", _rename)

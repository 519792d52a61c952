"""Tiny random Qwen3 models and tokenizers, written as real files: for the demo and tests."""

import json
import math
import struct
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

T5_SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as in the released tokenizer
QWEN_SPLIT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def qwen_state(
    vocabulary: int, hidden: int, generator: torch.Generator, layers: int = 2, head_dim: int = 16
) -> dict[str, Tensor]:
    """Draw a Qwen3's tensors in ComfyUI's single-file names, fp32: heads of `head_dim`, half as many key heads."""
    inner, keys, middle = hidden, hidden // 2, 2 * hidden
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for i in range(layers):
        layer = {
            "self_attn.q_proj.weight": (inner, hidden),
            "self_attn.k_proj.weight": (keys, hidden),
            "self_attn.v_proj.weight": (keys, hidden),
            "self_attn.o_proj.weight": (hidden, inner),
            "self_attn.q_norm.weight": (head_dim,),
            "self_attn.k_norm.weight": (head_dim,),
            "mlp.gate_proj.weight": (middle, hidden),
            "mlp.up_proj.weight": (middle, hidden),
            "mlp.down_proj.weight": (hidden, middle),
            "input_layernorm.weight": (hidden,),
            "post_attention_layernorm.weight": (hidden,),
        }
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return {name: _random(shape, generator) for name, shape in shapes.items()}


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    return 1 + 0.05 * noise if len(shape) == 1 else noise / math.sqrt(shape[1])


def write_tiny_qwen(folder: Path, corpus: list[str], hidden: int = 64, seed: int = 0) -> Path:
    """Write `qwen.safetensors` with its tokenizer files beside it; return the model file."""
    vocabulary = write_qwen_tokenizer(folder, corpus)
    path = folder / "qwen.safetensors"
    save_file(qwen_state(vocabulary, hidden, torch.Generator().manual_seed(seed)), path)
    return path


def write_qwen_tokenizer(folder: Path, corpus: list[str], size: int = 600) -> int:
    """Write a byte-level BPE with Qwen's file names; return the number of embeddings that it needs."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(QWEN_SPLIT), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False))
    tokenizer.model.save(str(folder))
    end = tokenizer.get_vocab_size()
    special = {"content": "<|endoftext|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(end): special | {"special": True}},
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 131072,
        "errors": "replace",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return end + 1


def write_t5_tokenizer(folder: Path, corpus: list[str], size: int = 400) -> Path:
    """Write a folder as sd-scripts wants it: tokenizer.json (the one that is read), config.json, spiece.model."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder.mkdir(parents=True, exist_ok=True)
    pieces = [(token, 0.0) for token in T5_SPECIAL] + t5_pieces(corpus, size - len(T5_SPECIAL))
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.add_special_tokens(list(T5_SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "vocab_size": len(pieces)}), encoding="utf-8")
    write_sentencepiece(folder / "spiece.model", pieces)
    return folder


def t5_pieces(corpus: list[str], most: int) -> list[tuple[str, float]]:
    """List every letter, then the commonest words, with log-frequencies: a trained unigram would differ from run to run."""
    words = Counter("▁" + word for text in corpus for word in text.replace(",", " , ").split())
    letters = Counter(letter for word, count in words.items() for letter in word * count)
    common = [item for item in sorted(words.items(), key=lambda item: (-item[1], item[0])) if item[0] not in letters]
    counts = sorted(letters.items()) + common[: max(0, most - len(letters))]
    total = sum(count for _, count in counts)
    return [(piece, math.log(count / total)) for piece, count in counts]


def write_sentencepiece(path: Path, pieces: list[tuple[str, float]]) -> None:
    """Write the same pieces as a sentencepiece ModelProto (sentencepiece_model.proto), which needs no library to write."""
    proto = b""
    for piece, score in pieces:
        text = piece.encode("utf-8")
        kind = {"<pad>": 3, "</s>": 3, "<unk>": 2}.get(piece, 1)  # CONTROL, UNKNOWN, NORMAL
        body = b"\x0a" + _varint(len(text)) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(kind)
        proto += b"\x0a" + _varint(len(body)) + body
    ids = {40: 2, 41: -1, 42: 1, 43: 0}  # trainer_spec: unk_id, bos_id (none), eos_id, pad_id
    spec = b"".join(_varint(field << 3) + _varint(value) for field, value in ids.items())
    path.write_bytes(proto + b"\x12" + _varint(len(spec)) + spec)


def _varint(value: int) -> bytes:
    """Encode one of protobuf's integers: seven bits a byte, lowest first, negative ones as 64-bit two's complement."""
    value, out = value % 2**64, b""
    while value > 127:
        value, out = value >> 7, out + bytes([value & 127 | 128])
    return out + bytes([value])

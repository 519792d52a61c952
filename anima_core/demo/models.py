"""Tiny random models as real files, in the layouts of the released ones."""

from pathlib import Path

from safetensors.torch import save_file

from .random_text import write_t5_tokenizer, write_tiny_qwen
from .random_transformer import TINY, write_random_transformer
from .random_vae import linear_vae_state


def write_models(folder: Path, corpus: list[str], seed: int = 0) -> dict[str, Path]:
    """Write the four model files; return their paths by command-line flag. corpus: captions that tokenizers learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"anima_transformer": folder / "anima_tiny.safetensors", "vae": folder / "vae_tiny.safetensors"}
    write_random_transformer(paths["anima_transformer"], TINY, seed=seed)
    save_file(linear_vae_state(), paths["vae"])
    paths["qwen"] = write_tiny_qwen(folder / "qwen", corpus, hidden=TINY.llm_adapter.source_dim, seed=seed)
    paths["t5_tokenizer_dir"] = write_t5_tokenizer(folder / "t5_tokenizer", corpus)
    return paths

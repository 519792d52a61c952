"""Tiny random models as real files, in the layouts of the released ones."""

from pathlib import Path

from safetensors.torch import save_file

from .random_text import write_t5_tokenizer, write_tiny_qwen
from .random_transformer import TINY, write_random_transformer
from .random_vae import linear_vae_state


def model_paths(folder: Path) -> dict[str, Path]:
    """Return where the four models of a folder are, by command-line flag."""
    return {
        "anima_transformer": folder / "anima_tiny.safetensors",
        "vae": folder / "vae_tiny.safetensors",
        "qwen": folder / "qwen" / "qwen.safetensors",
        "t5_tokenizer_dir": folder / "t5_tokenizer",
    }


def write_models(folder: Path, corpus: list[str], seed: int = 0) -> dict[str, Path]:
    """Write the four model files; return their paths by command-line flag. corpus: captions that tokenizers learn from."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = model_paths(folder)
    write_random_transformer(paths["anima_transformer"], TINY, seed=seed)
    save_file(linear_vae_state(), paths["vae"])
    write_tiny_qwen(paths["qwen"].parent, corpus, hidden=TINY.llm_adapter.source_dim, seed=seed)
    write_t5_tokenizer(paths["t5_tokenizer_dir"], corpus)
    return paths

"""Anima transformers with random weights, written as real checkpoint files: for the demo, tests and benchmarks."""

import math
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..models.llm_adapter import LLMAdapterConfig
from ..models.transformer import AnimaTransformer, TransformerConfig

TINY = TransformerConfig(
    blocks=2,
    width=64,
    head_dim=16,
    mlp_dim=256,
    context_dim=64,
    adaln_dim=16,
    in_channels=16,
    out_channels=16,
    llm_adapter=LLMAdapterConfig(blocks=2, width=64, source_dim=64, target_dim=64, head_dim=16, mlp_dim=256, vocabulary=32128),
)

REAL_LLM_ADAPTER = LLMAdapterConfig(
    blocks=6, width=1024, source_dim=1024, target_dim=1024, head_dim=64, mlp_dim=4096, vocabulary=32128
)

REAL = TransformerConfig(
    blocks=28,
    width=2048,
    head_dim=128,
    mlp_dim=8192,
    context_dim=1024,
    adaln_dim=256,
    in_channels=16,
    out_channels=16,
    llm_adapter=REAL_LLM_ADAPTER,
)

# ComfyUI reads only the width from a file and takes 10 blocks of 16 heads for widths it does not know.
COMFYUI_TINY = TransformerConfig(
    blocks=10,
    width=256,
    head_dim=16,
    mlp_dim=1024,
    context_dim=1024,
    adaln_dim=256,
    in_channels=16,
    out_channels=16,
    llm_adapter=REAL_LLM_ADAPTER,
)


def random_state(config: TransformerConfig, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw a full state dict, fp32, scaled so that activations keep their size: weights N(0, 1 / fan_in), norms near 1."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in AnimaTransformer(config).state_dict().items()}
    return {name: _random_tensor(name, shape, generator) for name, shape in shapes.items()}


def _random_tensor(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if len(shape) == 1:
        return 0.05 * noise + (0 if name.endswith("bias") else 1)
    return noise if name.endswith("embed.weight") else noise / math.sqrt(shape[1])


def write_random_transformer(
    path: str | Path,
    config: TransformerConfig = TINY,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    prefix: str = "net.",
) -> None:
    state = random_state(config, torch.Generator().manual_seed(seed))
    save_file({prefix + name: tensor.to(dtype) for name, tensor in state.items()}, path)

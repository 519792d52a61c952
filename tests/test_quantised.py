"""Quantised files: read as they are, kept so in memory, and their numbers those of the formats' formulas."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anima_core.models.frozen import frozen_linears
from anima_core.models.transformer import AnimaTransformer, load_transformer, meta_transformer


def mark(**settings) -> Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def linears(state: dict[str, Tensor]) -> list[str]:
    """Names of the layers that stay quantised, without `.weight`."""
    parts = ("self_attn", "cross_attn", "mlp")
    names = [key.removesuffix(".weight") for key, tensor in state.items() if tensor.ndim == 2]
    return [name for name in names if name.startswith("net.blocks.") and name.split(".")[3] in parts]


def fp8(weight: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> tuple[Tensor, Tensor]:
    scale = weight.abs().amax() / torch.finfo(dtype).max
    return (weight / scale).to(dtype), scale


@pytest.fixture
def state(model) -> dict[str, Tensor]:
    return load_file(model.transformer)


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata)
    return path


def same_model(ours: AnimaTransformer, state: dict[str, Tensor], dtype: torch.dtype) -> bool:
    """Whether every number is what it is in a state of plain tensors."""
    names = {name.removeprefix("net."): tensor.to(dtype) for name, tensor in state.items()}
    found = {name: tensor for name, tensor in ours.state_dict().items() if ".stored." not in name}
    for name, layer in frozen_linears(ours):
        found[f"{name}.weight"] = layer.weight.clone()
    return found.keys() == names.keys() and all(torch.equal(found[name], names[name]) for name in names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scaled_fp8_stays_so_in_the_blocks_and_is_made_plain_elsewhere(state, tmp_path, dtype):
    plain = dict(state)
    for name in [*linears(state), "net.llm_adapter.out_proj"]:
        data, scale = fp8(state[f"{name}.weight"])
        state |= {f"{name}.weight": data, f"{name}.weight_scale": scale, f"{name}.comfy_quant": mark(format="float8_e4m3fn")}
        plain[f"{name}.weight"] = data.to(dtype) * scale.to(dtype)
    path = write(tmp_path / "fp8.safetensors", state)
    model = load_transformer(path, dtype)
    kept = dict(frozen_linears(model))
    assert len(kept) == len(linears(plain)) and same_model(model, plain, dtype)
    assert all(layer.stored.bytes == layer.stored.data.numel() + 4 for layer in kept.values())
    empty = meta_transformer(path, dtype)
    assert {n: layer.stored.bytes for n, layer in frozen_linears(empty)} == {n: layer.stored.bytes for n, layer in kept.items()}
    assert empty.dtype == dtype and all(p.is_meta for p in empty.parameters())

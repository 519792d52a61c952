"""Quantised weights made by hand, and the numbers that they stand for by the slow formula of each format."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from anima_core.adapters.network import AdapterNetwork
from anima_core.models.frozen import frozen_linears
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import NetworkConfig
from anima_core.speed.forms import make_lean

FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass
class Sample:
    """A layer in a file. tensors: by what follows the layer's name and a dot. numbers: [out, in], fp32."""

    tensors: dict[str, Tensor]
    numbers: Tensor


def mark(**settings) -> Tensor:
    return torch.tensor(list(json.dumps(settings).encode()), dtype=torch.uint8)


def spread(inputs: int) -> float:
    """What a weight's numbers are to be about, for activations to keep their size."""
    return 1 / math.sqrt(inputs)


def fp8(out: int, inputs: int, g: torch.Generator, dtype=torch.float8_e4m3fn, scales=()) -> Sample:
    data = torch.randn(out, inputs, generator=g).mul(8).to(dtype)
    scale = (torch.rand(scales, generator=g) + 0.5) * spread(inputs) / 8
    numbers = data.float() * (scale.reshape(-1, 1) if scale.ndim else scale)
    form = str(dtype).removeprefix("torch.")
    return Sample({"weight": data, "weight_scale": scale, "comfy_quant": mark(format=form)}, numbers)


def cast(out: int, inputs: int, g: torch.Generator) -> Sample:
    data = torch.randn(out, inputs, generator=g).mul(spread(inputs)).to(torch.float8_e4m3fn)
    return Sample({"weight": data}, data.float())


def int8(out: int, inputs: int, g: torch.Generator, scales=(), **settings) -> Sample:
    data = torch.randint(-127, 128, (out, inputs), generator=g, dtype=torch.int8)
    scale = (torch.rand(scales, generator=g) + 0.5) * spread(inputs) / 74
    numbers = data.float() * (scale.reshape(-1, 1) if scale.ndim else scale)
    tensors = {"weight": data, "weight_scale": scale, "comfy_quant": mark(format="int8_tensorwise", **settings)}
    return Sample(tensors, numbers)


def hadamard(size: int) -> Tensor:
    """The regular Hadamard matrix, entry by entry: a digit in base 4 of row and column each turns the sign."""
    matrix = torch.empty(size, size, dtype=torch.float64)
    for row in range(size):
        for column in range(size):
            sign, r, c = 1, row, column
            for _ in range(round(math.log(size, 4))):
                sign *= -1 if r % 4 + c % 4 == 3 else 1
                r, c = r // 4, c // 4
            matrix[row, column] = sign / math.sqrt(size)
    return matrix


def turned(weight: Tensor, group: int) -> Tensor:
    matrix = hadamard(group)
    return torch.cat([part.double() @ matrix.T for part in weight.split(group, 1)], 1).float()


def convrot(out: int, inputs: int, g: torch.Generator, group: int = 64) -> Sample:
    sample = int8(out, inputs, g, (out, 1), convrot=True, convrot_groupsize=group)
    return Sample(sample.tensors, turned(sample.numbers, group))


def int4(out: int, inputs: int, g: torch.Generator, group: int = 64) -> Sample:
    integers = torch.randint(-8, 8, (out, inputs), generator=g)
    low, high = integers[:, ::2] & 15, integers[:, 1::2] & 15
    scale = (torch.rand(out, generator=g) + 0.5) * spread(inputs) / 4.6
    settings = mark(format="convrot_w4a4", convrot_groupsize=group)
    packed = (low | high << 4).to(torch.uint8).view(torch.int8)
    numbers = turned(integers * scale[:, None], group)
    return Sample({"weight": packed, "weight_scale": scale, "comfy_quant": settings}, numbers)


def in_tiles(scales: Tensor) -> Tensor:
    """Lay scales [rows, columns] out in tiles of 128 x 4, entry by entry."""
    rows, columns = scales.shape
    across = -(-columns // 4)
    tiles = scales.new_zeros(-(-rows // 128) * 128 * across * 4)
    for row in range(rows):
        for column in range(columns):
            tile = row // 128 * across + column // 4
            tiles[tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4] = scales[row, column]
    return tiles.view(-(-rows // 128) * 128, across * 4)


def nvfp4(out: int, inputs: int, g: torch.Generator) -> Sample:
    codes = torch.randint(0, 16, (out, inputs), generator=g)
    scales = (torch.rand(out, inputs // 16, generator=g) + 0.5).to(torch.float8_e4m3fn)
    scale = torch.tensor(spread(inputs) / 2.6)
    numbers = torch.tensor([*FP4, *(-x for x in FP4)])[codes]
    numbers = numbers * (scale * scales.float()).repeat_interleave(16, 1)
    tiles = in_tiles(scales.view(torch.uint8)).view(torch.float8_e4m3fn)
    packed = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    tensors = {"weight": packed, "weight_scale": tiles, "weight_scale_2": scale, "comfy_quant": mark(format="nvfp4")}
    return Sample(tensors, numbers)


def mxfp8(out: int, inputs: int, g: torch.Generator) -> Sample:
    data = torch.randn(out, inputs, generator=g).to(torch.float8_e4m3fn)
    exponents = torch.randint(0, 2, (out, inputs // 32), generator=g) + 126 + round(math.log2(spread(inputs)))
    numbers = data.float() * (2.0 ** (exponents - 127)).repeat_interleave(32, 1)
    tensors = {"weight": data, "weight_scale": in_tiles(exponents.to(torch.uint8)), "comfy_quant": mark(format="mxfp8")}
    return Sample(tensors, numbers)


# word in notes -> how one is made: (out, in, generator) -> Sample
SAMPLES: dict[str, Callable[[int, int, torch.Generator], Sample]] = {
    "fp8 scaled (float8_e4m3fn)": fp8,
    "fp8 scaled (float8_e5m2)": lambda out, inputs, g: fp8(out, inputs, g, torch.float8_e5m2, (out, 1)),
    "fp8 without scales (float8_e4m3fn)": cast,
    "int8, a scale per tensor": int8,
    "int8, a scale per output": lambda out, inputs, g: int8(out, inputs, g, (out,)),
    "int8 ConvRot (groups of 64)": convrot,
    "int4 ConvRot (groups of 64)": int4,
    "nvfp4": nvfp4,
    "mxfp8": mxfp8,
}


def linears(state: dict[str, Tensor]) -> list[str]:
    """Names of the layers of a transformer that stay quantised, without `.weight`."""
    parts = ("self_attn", "cross_attn", "mlp")
    names = [key.removesuffix(".weight") for key, tensor in state.items() if tensor.ndim == 2]
    return [name for name in names if name.startswith("net.blocks.") and name.split(".")[3] in parts]


def quantised(state: dict[str, Tensor], kind: str, names: list[str] | None = None) -> tuple[dict, dict]:
    """Return a file whose layers are quantised, all that may stay so unless named, and the plain file of its numbers."""
    file, plain, g = dict(state), dict(state), torch.Generator().manual_seed(3)
    for name in linears(state) if names is None else names:
        sample = SAMPLES[kind](*state[f"{name}.weight"].shape, g)
        del file[f"{name}.weight"]
        file |= {f"{name}.{part}": tensor for part, tensor in sample.tensors.items()}
        plain[f"{name}.weight"] = sample.numbers
    return file, plain


def write(path: Path, state: dict[str, Tensor], metadata: dict[str, str] | None = None) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path, metadata)
    return path


def same_numbers(ours: AnimaTransformer, state: dict[str, Tensor], dtype: torch.dtype) -> bool:
    """Whether every number is about what it is in a state of plain tensors."""
    names = {name.removeprefix("net."): tensor.to(dtype) for name, tensor in state.items()}
    found = {name: tensor for name, tensor in ours.state_dict().items() if ".stored." not in name}
    for name, layer in frozen_linears(ours):
        found[f"{name}.weight"] = layer.weight.clone()
    assert found.keys() == names.keys()
    return all(torch.allclose(found[name], names[name], rtol=0.02, atol=1e-5) for name in names)


def gradients(model: AnimaTransformer, fused: bool) -> list[Tensor]:
    """Return a velocity and the gradients of its adapters and of the text."""
    network = AdapterNetwork.inject(model, NetworkConfig(rank=4, alpha=4), 0)
    g = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=g) / 8)
    network.fused = fused
    if fused:
        make_lean(model)
    latents, text = torch.randn(2, 16, 8, 8, generator=g), torch.randn(2, 512, 64, generator=g).requires_grad_()
    velocity = model(latents, torch.tensor([0.3, 0.9]), text)
    return [velocity.detach(), *torch.autograd.grad(velocity.square().sum(), [text, *network.parameters()])]

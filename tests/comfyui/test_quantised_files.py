"""Files that ComfyUI's own quantisers wrote, in every layout that it has: our numbers are its numbers."""

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from anima_core.demo.random_transformer import TINY, random_state
from anima_core.models.frozen import frozen_linears
from anima_core.models.quantised import read_weights
from anima_core.models.quantised.pieces import pieces
from anima_core.models.transformer import load_transformer

# Wide enough for groups of 256, in both of a block's inputs
WIDE = replace(
    TINY, width=256, mlp_dim=512, context_dim=256, llm_adapter=replace(TINY.llm_adapter, target_dim=256, vocabulary=32)
)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Layout:
    """A way of ComfyUI to write a weight. bytes: of one of its numbers in our memory, with a little for scales."""

    format: str
    kind: str
    bytes: float
    options: dict[str, Any] = field(default_factory=dict)


LAYOUTS = [
    Layout("float8_e4m3fn", "fp8 scaled (float8_e4m3fn)", 1.01, {"scale": "recalculate"}),
    Layout("float8_e5m2", "fp8 scaled (float8_e5m2)", 1.01, {"scale": "recalculate"}),
    Layout("int8_tensorwise", "int8, a scale per tensor", 1.01),
    Layout("int8_tensorwise", "int8, a scale per output", 1.02, {"per_channel": True}),
    Layout("int8_tensorwise", "int8 ConvRot (groups of 256)", 1.06, {"per_channel": True, "convrot": True}),
    Layout(
        "int8_tensorwise",
        "int8 ConvRot (groups of 64)",
        1.06,
        {"per_channel": True, "convrot": True, "convrot_groupsize": 64},
    ),
    Layout("convrot_w4a4", "int4 ConvRot (groups of 256)", 0.56),
    Layout("mxfp8", "mxfp8", 1.04),
    Layout("nvfp4", "nvfp4", 0.57),
]


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    """A wide transformer; some of its weights stand far out, as in real ones."""
    found = random_state(WIDE, torch.Generator().manual_seed(0))
    for name, tensor in found.items():
        if name.startswith("blocks.") and tensor.ndim == 2:
            tensor[3, ::50] *= 8
    return found


def quantised_names(state: dict[str, torch.Tensor]) -> list[str]:
    """Names of layers: the blocks', and one that is made plain when it is loaded."""
    parts = ("self_attn", "cross_attn", "mlp")
    blocks = [n for n, t in state.items() if n.startswith("blocks.") and n.split(".")[2] in parts and t.ndim == 2]
    return [name.removesuffix(".weight") for name in [*blocks, "final_layer.linear.weight"]]


def velocity(model) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    latents, text = torch.randn(2, 16, 8, 8, generator=g), torch.randn(2, 512, 256, generator=g)
    return model(latents, torch.tensor([0.3, 0.9]), text)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
def test_a_file_of_comfyui_has_comfyuis_numbers(comfyui_oracle, state, tmp_path, layout):
    names = quantised_names(state)
    weights = {name: state[f"{name}.weight"] for name in names}
    found = comfyui_oracle("oracle_quantised.py", weights, format=layout.format, options=layout.options, dtypes=DTYPES)
    rest = {name: tensor for name, tensor in state.items() if name.removesuffix(".weight") not in names}
    file = {key.removeprefix("file."): tensor for key, tensor in found.items() if key.startswith("file.")}
    save_file(rest | file, tmp_path / "quantised.safetensors")
    for dtype in DTYPES:
        theirs = {f"{name}.weight": found[f"{dtype}.{name}"] for name in names}
        save_file(rest | theirs, tmp_path / f"{dtype}.safetensors")
        ours = load_transformer(tmp_path / "quantised.safetensors", getattr(torch, dtype))
        plain = load_transformer(tmp_path / f"{dtype}.safetensors", getattr(torch, dtype))
        kept = dict(frozen_linears(ours))
        assert kept.keys() == set(names) - {"final_layer.linear"}
        assert {layer.stored.kind for layer in kept.values()} == {layout.kind}
        assert all(layer.stored.bytes <= layout.bytes * layer.stored.shape.numel() + 500 for layer in kept.values())
        for name in names:
            assert torch.equal(ours.get_submodule(name).weight, theirs[f"{name}.weight"]), name
        with torch.no_grad():
            assert torch.equal(velocity(ours), velocity(plain)), dtype


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
def test_a_weight_that_is_written_in_pieces_has_comfyuis_numbers(comfyui_oracle, tmp_path, layout):
    weights = {"layer": torch.randn(2304, 2048)}
    found = comfyui_oracle("oracle_quantised.py", weights, format=layout.format, options=layout.options, dtypes=["bfloat16"])
    save_file({k.removeprefix("file."): t for k, t in found.items() if k.startswith("file.")}, tmp_path / "one.safetensors")
    ((_, weight),) = read_weights(tmp_path / "one.safetensors")
    assert len(list(pieces(weight.shape))) > 1
    assert torch.equal(weight.numbers(torch.bfloat16, "cpu"), found["bfloat16.layer"])


def fp8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = weight.abs().amax() / torch.finfo(torch.float8_e4m3fn).max
    return (weight / scale).to(torch.float8_e4m3fn), scale


def scaled_fp8(state, prefix: str):
    """The older format: a marker for the file, and scales of other names."""
    file = {f"{prefix}scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, tensor in state.items():
        layer = name.removesuffix(".weight")
        if layer in quantised_names(state):
            file[prefix + name], file[f"{prefix}{layer}.scale_weight"] = fp8(tensor)
            file[f"{prefix}{layer}.scale_input"] = torch.tensor(1.0)
        else:
            file[prefix + name] = tensor
    return file, {}


def header_metadata(state, prefix: str):
    """The format that says in the header's metadata how layers are stored."""
    layers = quantised_names(state)
    said = {"format_version": "1.0", "layers": {prefix + layer: {"format": "float8_e4m3fn"} for layer in layers}}
    file = {prefix + name: tensor for name, tensor in state.items()}
    for layer in layers:
        file[f"{prefix}{layer}.weight"], file[f"{prefix}{layer}.weight_scale"] = fp8(state[f"{layer}.weight"])
    return file, {"_quantization_metadata": json.dumps(said)}


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
@pytest.mark.parametrize("older", [scaled_fp8, header_metadata])
def test_a_file_of_an_older_format_has_comfyuis_numbers(comfyui_oracle, state, tmp_path, older, prefix):
    file, metadata = older(state, prefix)
    save_file(file, tmp_path / "old.safetensors", metadata)
    layers = [prefix + name for name in quantised_names(state)]
    theirs = comfyui_oracle("oracle_quantised.py", file, prefix=prefix, metadata=metadata, dtype="bfloat16", layers=layers)
    ours = load_transformer(tmp_path / "old.safetensors", torch.bfloat16)
    assert len(dict(frozen_linears(ours))) == len(layers) - 1
    for name, weight in theirs.items():
        assert torch.equal(ours.get_submodule(name.removeprefix(prefix)).weight, weight), name

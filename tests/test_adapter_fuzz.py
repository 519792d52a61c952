"""Adapters with tensors of any shape under any names: each reader gives a result or one line of AnimaError."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from anima_core.adapters.analysis import analyse
from anima_core.adapters.formats import convert_file, load_into, read_adapter
from anima_core.adapters.from_file import network_of
from anima_core.adapters.inspection import summarise
from anima_core.adapters.network import AdapterNetwork
from anima_core.errors import SettingError
from anima_core.settings import NetworkConfig

from .test_adapters import model
from .test_fuzz import one_line_at_most

pytestmark = pytest.mark.slow

LAYERS = [
    "diffusion_model.blocks.0.mlp.layer1",
    "lora_unet_blocks_1_self_attn_q_proj",
    "blocks.0.self_attn.qkv_proj",
    "transformer.transformer_blocks.1.attn2.to_kv",
    "base_model.model.llm_adapter.embed",
    "diffusion_model.blocks.0.self_attn.q_norm",
    "lora_te_layers_0_self_attn_q_proj",
    "elsewhere.layer",
]
NAMES = "lora_down.weight lora_up.weight lora_A.weight lora_B.default.weight alpha dora_scale lora_magnitude_vector lokr_w1"
NAMES += " lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b hada_w1_a hada_w1_b hada_w2_a hada_w2_b w_norm diff"
NAMES += " diff_b weight on_input lora_ups.0.weight vera_lambda_b oft_R"
shapes = st.lists(st.sampled_from([0, 1, 2, 4, 64, 256]), max_size=3)
tensors = st.tuples(st.sampled_from(NAMES.split()), shapes, st.sampled_from([0.0, 0.5, float("nan"), float("inf")]))
files = st.dictionaries(st.sampled_from(LAYERS), st.lists(tensors, min_size=1, max_size=4), min_size=1, max_size=3)


def written(layers: dict, folder: str) -> Path:
    state = {f"{layer}.{name}": torch.full(shape, value) for layer, found in layers.items() for name, shape, value in found}
    save_file(state, Path(folder) / "a.safetensors")
    return Path(folder) / "a.safetensors"


@settings(max_examples=150, deadline=None, derandomize=True)
@given(files)
def test_any_tensors_give_a_result_or_one_line(layers):
    with tempfile.TemporaryDirectory() as folder:
        path = written(layers, folder)
        for reader in (summarise, read_adapter, network_of, analyse):
            with one_line_at_most():
                reader(path)
        with one_line_at_most():
            convert_file(path, Path(folder) / "b.safetensors", "lora_unet")
        with one_line_at_most():
            load_into(AdapterNetwork.inject(model(), NetworkConfig(**network_of(path)), 0), path)


def test_tensors_that_do_not_fit_one_another_are_named(tmp_path):
    path = written({LAYERS[0]: [("lokr_w1_a", [4, 2], 1.0), ("lokr_w2", [4, 4], 1.0)]}, str(tmp_path))
    with pytest.raises(SettingError, match="the tensors of a lokr do not fit one another .*; choose a whole file"):
        network_of(path)


def test_an_embedding_is_named(tmp_path):
    path = written({LAYERS[4]: [("lora_A.weight", [4, 8], 1.0), ("lora_B.default.weight", [8, 4], 1.0)]}, str(tmp_path))
    with pytest.raises(SettingError, match=r"llm_adapter.embed is an embedding, which is not trained here; start from"):
        network_of(path)

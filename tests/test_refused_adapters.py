"""Adapters that cannot be continued: their format is named, and what would work, before anything is loaded."""

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from anima_core.adapters.formats import check_blocks, read_adapter
from anima_core.adapters.from_file import network_of
from anima_core.compat.arguments import config_of
from anima_core.errors import AnimaError, FileError, SettingError
from anima_core.settings import NetworkConfig
from anima_core.training.preflight import preflight

from .test_foreign_adapters import flags
from .tiny import train_config, write

STEM = "lora_unet_blocks_0_self_attn_q_proj"
NOT_TRAINED = {
    "oft": [f"{STEM}.oft_blocks", f"{STEM}.alpha"],
    "oft of OneTrainer": ["transformer.transformer_blocks.0.attn1.to_q.oft_R.weight"],
    "unknown": [f"{STEM}.lora_down.weight", f"{STEM}.lora_up.weight", f"{STEM}.something"],
    "ia3": [f"{STEM}.weight", f"{STEM}.on_input"],
    "ia3 of PEFT": ["base_model.model.blocks.0.self_attn.q_proj.ia3_l"],
    "hydra": [f"{STEM}.lora_down.weight", f"{STEM}.lora_ups.0.weight", f"{STEM}.lora_ups.1.weight", f"{STEM}.router.weight"],
    "t-lokr": [f"{STEM}.{name}{end}" for name in ("lokr_w1", "lokr_w2_a", "lokr_w2_b") for end in ("", "_init")],
    "ortho-lora": [f"{STEM}.q_layer.weight", f"{STEM}.p_layer.weight", f"{STEM}.lambda_layer"],
    "vera": ["base_model.vera_A", "base_model.model.blocks.0.self_attn.q_proj.vera_lambda_b"],
    "glora": [f"{STEM}.{name}.weight" for name in ("a1", "a2", "b1", "b2")],
}


@pytest.mark.parametrize("kind", NOT_TRAINED)
def test_a_type_that_is_not_trained_is_named_in_one_line(kind, model, tmp_path):
    state = {key: torch.tensor(2.0) if key.endswith("alpha") else torch.zeros(4, 4) for key in NOT_TRAINED[kind]}
    save_file(state, tmp_path / "a.safetensors")
    with pytest.raises(AnimaError) as refused:
        config_of(flags(model, tmp_path / "a.safetensors"))
    text = str(refused.value)
    assert kind.split()[0] in text and "which is not trained here; start from a file of " in text and "\n" not in text


def test_a_controlnet_lllite_is_named(tmp_path):
    keys = [f"lllite_dit_blocks_0_self_attn_q_proj.{name}.weight" for name in ("down", "mid", "up")]
    save_file({key: torch.zeros(4, 4) for key in keys}, tmp_path / "a.safetensors")
    with pytest.raises(FileError, match="not an adapter; it is a ControlNet-LLLite"):
        network_of(tmp_path / "a.safetensors")


def test_two_tensors_of_one_place_are_refused(tmp_path):
    keys = ["diffusion_model.blocks.0.mlp.layer1.lora_A.weight", "lora_unet_blocks_0_mlp_layer1.lora_down.weight"]
    save_file({key: torch.zeros(4, 4) for key in keys}, tmp_path / "a.safetensors")
    with pytest.raises(SettingError, match=r"a second lora_down.weight of blocks.0.mlp.layer1; leave one of them out"):
        read_adapter(tmp_path / "a.safetensors")


def of_blocks(count: int) -> dict[str, Tensor]:
    return {
        f"lora_unet_blocks_{n}_mlp_layer1.{half}.weight": torch.zeros(4, 4)
        for n in range(count)
        for half in ("lora_down", "lora_up")
    }


@pytest.mark.parametrize(
    "count, blocks, metadata, text",
    [
        (28, 40, None, r"was made for 28 blocks \(Anima\), the model has 40 \(Anima-2.9B\)"),
        (40, 28, None, r"was made for 40 blocks \(Anima-2.9B\), the model has 28 \(Anima\)"),
        (3, 2, None, "was made for 3 blocks, the model has 2"),
        (3, 40, {"ss_num_blocks": "28"}, "was made for 28 blocks"),
        (14, 28, None, ""),  # the first half of a model is no other model
        (28, 28, {"ss_num_blocks": "x"}, ""),
    ],
)
def test_an_adapter_of_another_model_is_named(count, blocks, metadata, text, tmp_path):
    save_file(of_blocks(count), tmp_path / "a.safetensors", metadata=metadata)
    if not text:
        return check_blocks(tmp_path / "a.safetensors", blocks)
    with pytest.raises(SettingError, match=text):
        check_blocks(tmp_path / "a.safetensors", blocks)


def test_preflight_looks_at_the_blocks_before_anything_is_loaded(model, tmp_path):
    save_file(of_blocks(28), tmp_path / "a.safetensors")
    write(tmp_path / "pictures", "a.png")
    config = train_config(
        model, tmp_path / "pictures", tmp_path, network=NetworkConfig(weights=str(tmp_path / "a.safetensors"))
    )
    with pytest.raises(SettingError, match=r"made for 28 blocks \(Anima\), the model has 2;"):
        preflight(config)

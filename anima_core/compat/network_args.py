"""The names that --network_args takes: words of sd-scripts and LyCORIS for settings of the network."""

from dataclasses import dataclass
from typing import Any

from ..settings import NetworkConfig
from ..settings.setting import name_of, settings_of
from .lycoris import LYCORIS


@dataclass(frozen=True)
class NetworkArg:
    """A name that --network_args takes. setting: the `section.field` it sets; empty where `translate` has a rule."""

    setting: str
    help: str


def argument(field_name: str) -> NetworkArg:
    return NetworkArg(name_of(NetworkConfig, field_name), settings_of(NetworkConfig)[field_name].help)


NETWORK_ARGS = {
    "target_modules": NetworkArg("", "Patterns of layers, comma-separated, instead of the preset."),
    "targets": argument("targets"),
    "include_patterns": NetworkArg("", "Further layers: a Python list of regular expressions on the whole name."),
    "exclude_patterns": NetworkArg("", "Layers left out: a Python list of regular expressions on the whole name."),
    "network_reg_dims": NetworkArg("", "Ranks by regular expression on the whole name: re=16,re=0."),
    "network_reg_alphas": NetworkArg("", "Alphas by regular expression on the whole name: re=8,re=0 (the rank)."),
    "network_reg_lrs": NetworkArg("", "Learning rates by regular expression on the whole name: re=1e-4."),
    "loraplus_lr_ratio": argument("loraplus_lr_ratio"),
    "loraplus_unet_lr_ratio": argument("loraplus_lr_ratio"),
    "algo": NetworkArg("", "Type, where --network_module is lycoris.kohya: lora, locon, loha or lokr."),
    "preset": NetworkArg("", "LyCORIS' word for the layers: attn-only or attn-mlp; with any other they are those of targets."),
    "dora_wd": argument("dora"),
    "wd_on_output": NetworkArg(
        "", "Whose lengths dora_wd trains: only false, the inputs'; ComfyUI applies the outputs' wrongly."
    ),
    "tlora_min_rank": argument("tlora_min_rank"),
    "tlora_alpha": argument("tlora_alpha"),
    "tlora_alpha_rank_scale": argument("tlora_alpha"),
    "tlora_rank_schedule": argument("tlora_schedule"),
    "lokr_factor": argument("factor"),
    "factor": argument("factor"),
    "lokr_full_matrix": argument("full_matrix"),
    "full_matrix": argument("full_matrix"),
    "lokr_decompose_both": argument("decompose_both"),
    "decompose_both": argument("decompose_both"),
    "rank_dropout": argument("rank_dropout"),
    "lokr_rank_dropout": argument("rank_dropout"),
    "module_dropout": argument("module_dropout"),
    "lokr_module_dropout": argument("module_dropout"),
    "train_norm": argument("train_norm"),
    "train_llm_adapter": NetworkArg("", "Also train the LLM adapter."),
}
OF_LOKR = {name_of(NetworkConfig, field) for field in ("factor", "full_matrix", "decompose_both")}  # no other type reads them
# (module, type) -> what the settings start from there, where that is not what they start from here
MODULE_DEFAULTS: dict[tuple[str, str], dict[str, Any]] = {
    ("networks.lokr", "lokr"): {"factor": -1},
    (LYCORIS, "lokr"): {"factor": -1},
    ("networks.tlora_anima", "lora"): {"tlora_min_rank": 1, "tlora_schedule": "cosine"},
}

"""Keys that front ends write beside sd-scripts' own: kohya_ss, lora-scripts (-next, -anima), Anima-Standalone-Trainer.

They are keys of files only. Each is a flag under another name, an argument, a part of the previews, noted, or refused.
"""

# ruff: noqa: E501 (one line for each reason)

from collections.abc import Mapping
from typing import Any

from ..data.caption_files import JSON, TEXT
from ..errors import SettingError
from .optimizers import PRODIGY, keys_of
from .prompts import one_line
from .unmapped import HARDWARE, is_on

Values = dict[str, Any]

RENAMED = {  # -> flag
    "dit_path": "anima_transformer",
    "qwen3_path": "qwen",
    "vae_path": "vae",
    "timestep_sample_method": "timestep_sampling",
    "source_image_dir": "train_data_dir",
    "prompt_file": "sample_prompts",
}
TLORA = ("tlora_min_rank", "tlora_rank_schedule", "tlora_orthogonal_init")
ARGUMENTS = {  # the page for LyCORIS -> name within --network_args
    "lycoris_algo": "algo",
    "lokr_factor": "factor",
    **{name: name for name in ("full_matrix", "decompose_both", "rank_dropout", "module_dropout", "dropout", "conv_dim", "conv_alpha", "use_cp", "use_scalar", "dora_wd", "wd_on_output", "bypass_mode", "rank_dropout_scale", "block_size", "constraint", "rescaled", "rs_lora", *TLORA)},
}  # fmt: skip
OPTIMIZER = {"weight_decay": "weight_decay", "betas": "betas", "eps": "eps"}  # -> name within --optimizer_args
LISTS = {"network_args_custom": "network_args", "optimizer_args_custom": "optimizer_args"}  # -> flag that they add to
PREVIEWS = {  # of one prompt -> its flag
    "negative_prompts": "n",
    "sample_width": "w",
    "sample_height": "h",
    "sample_seed": "d",
}
CADENCE = ("sample_prompts", "sample_every_n_steps", "sample_every_n_epochs", "sample_at_first", "sample_at_end")
TYPES = {  # lora_type -> network_module
    "lora": "networks.lora_anima",
    "locon": "networks.lora_anima",
    "dora": "networks.lora_anima",
    "tlora": "networks.tlora_anima",
    "loha": "networks.loha",
    "lokr": "networks.lokr",
}
PREFER_JSON = "prefer_json_caption"
RULES = ("enable_preview", "positive_prompts", "lora_type", "model_train_type", "fast_variant", PREFER_JSON)
PRESET = ("name", "version", "author", "train_type", "description")  # what [metadata] says of a preset

_PAGE = "it is the front end's own"
_FAST = "belongs to another trainer, anima_lora"

IGNORED = {  # key -> reason
    "epoch": "max_train_epochs and max_train_steps set the length",
    "noise_offset_type": "noise_offset alone sets it",
    "stop_text_encoder_training": "the text encoder is never trained",
    **dict.fromkeys(("template_version", "scope", "base_model", "gpu_ids", "enable_base_weight", "enable_debug_options", "json_caption_hint"), _PAGE),
    "randomly_choice_prompt": "the prompts are those of the file",
    **dict.fromkeys(("anima_profile_window", "anima_nan_check_interval", "anima_debug_mode", "anima_rope_mismatch_mode", "anima_rope_max_seq_tokens"), HARDWARE),
    **dict.fromkeys(("method", "methods_subdir", "base_config", "use_vae_cache", "use_text_cache", "resized_image_dir", "lora_cache_dir", "progress_jsonl", "static_token_count", "compile_dynamic_seq"), _FAST),
    **dict.fromkeys(("stopcoef", "came_weight_decouple", "came_fixed_decay", "came_clip_threshold", "came_ams_bound", "came_eps1", "came_eps2"), "belongs to another optimizer"),
    "timestep_bias_strategy": "timestep_sampling alone chooses t",
    "apply_t5_attn_mask": "padding is always masked",
    "transformer_dtype": "mixed_precision sets it",
    "freeze_llm_adapter": "the LLM adapter is frozen unless --network_args train_llm_adapter=true",
    "auto_resume_last_state": "use --resume latest",
}  # fmt: skip
REFUSED = {  # key -> why, and the way out
    "conditioning": "image editing is not trained here; leave it out",
    "pissa_init": "PiSSA's start is not available; leave it out",
    "ui_custom_params": "write its lines into the file itself",
}
REFUSED_WORDS = {  # (key, value) -> why, and the way out
    ("model_train_type", "anima-finetune"): "only adapters are trained; choose anima-lora",
    ("model_train_type", "anima-edit-lora"): "image editing is not trained here; choose anima-lora",
}
KEYS = (*RENAMED, *ARGUMENTS, *OPTIMIZER, *PRODIGY, *LISTS, *PREVIEWS, *RULES, *IGNORED, *REFUSED)


def flag_values(own: Mapping[str, Any], flags: Values) -> Values:
    """Return what the front end's keys make of a file's flags. own: those keys, where they are set, each as its kind."""
    values = dict(flags)
    for key, flag in LISTS.items():
        values[flag] = [*values.get(flag, ()), *own.get(key, ())]
    values.setdefault("network_module", network_module(own))
    named = {name: own[key] for key, name in ARGUMENTS.items() if key in own and (key not in TLORA or is_tlora(values))}
    values |= json_first(own, values.get("caption_extension"))
    dora = {"dora_wd": True} if own.get("lora_type") == "dora" else {}
    add_missing(values, "network_args", named | dora)
    optimizer = OPTIMIZER | keys_of(values.get("optimizer_type", ""))
    add_missing(values, "optimizer_args", {name: own[key] for key, name in optimizer.items() if key in own})
    if not is_on(own.get("enable_preview", True)):
        return {name: value for name, value in values.items() if value not in ("", []) and name not in CADENCE}
    if "positive_prompts" in own:
        values.setdefault("sample_prompts", preview_line(own))
    return {name: value for name, value in values.items() if value not in ("", [])}


def json_first(own: Mapping[str, Any], extension: Any) -> Values:
    """Return the caption_extension of who prefers JSON captions; where there is none, text files of the usual endings are read."""
    usual = extension in (None, "", *TEXT, *(ending.removeprefix(".") for ending in TEXT))
    return {"caption_extension": JSON} if usual and is_on(own.get(PREFER_JSON, False)) else {}


def add_missing(values: Values, flag: str, arguments: Values) -> None:
    """Add name=value for what the list itself does not name: the page's fields and the list that it made of them."""
    named = {item.partition("=")[0].strip() for item in values.get(flag, ())}
    values[flag] = [*values.get(flag, ()), *(f"{name}={value}" for name, value in arguments.items() if name not in named)]


def is_tlora(values: Values) -> bool:
    """Tell whether the fields of the page for T-LoRA count; there they stand with their defaults for other types, too."""
    return values["network_module"] == TYPES["tlora"]


def network_module(own: Mapping[str, Any]) -> str:
    return TYPES[str(own["lora_type"])] if "lora_type" in own else ""


def preview_line(own: Mapping[str, Any]) -> str:
    """Write the previews' fields as one prompt with its flags; the page has one prompt, in as many lines as its user likes."""
    flags = [f"--{flag} {one_line(own[key])}" for key, flag in PREVIEWS.items() if key in own]
    return " ".join([one_line(own["positive_prompts"]), *flags])


def refuse(key: str, value: Any, where: str) -> None:
    """Raise SettingError for a key or a word that asks for what is not trained here."""
    if key in REFUSED and is_on(value):
        raise SettingError(f"{where}: {REFUSED[key]}")
    if (key, str(value)) in REFUSED_WORDS:
        raise SettingError(f"{where}={value}: {REFUSED_WORDS[key, str(value)]}")
    if key in ("lora_type", "fast_variant") and str(value) not in TYPES:
        raise SettingError(f"{where}={value!r}: only {', '.join(TYPES)} are trained; choose one of them")

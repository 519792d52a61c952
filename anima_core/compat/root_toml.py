"""The sectioned TOML of sd-scripts-anima: [model] [dataset] [training] [lora] [optimizer] [output] -> flag values.

Keys and quirks are that program's own. Every key is mapped, noted as having no effect, or an error that names its table
and line.
"""

from typing import Any

from ..errors import SettingError
from ..settings.toml_file import line_of
from .flags import as_flag_kind, mapped_flags
from .optimizers import PRODIGY, keys_of
from .unknown import Unknown, refuse_unknown
from .unmapped import is_on

Values = dict[str, Any]

SAME_NAME = {
    "training": (
        "learning_rate",
        "mixed_precision",
        "seed",
        "resume",
        "lr_scheduler",
        "lr_warmup_steps",
        "lr_warmup_ratio",
        "lr_scheduler_num_cycles",
        "noise_offset",
    ),
    "output": ("output_dir", "output_name", "save_state"),
}
RENAMED = {
    ("model", "transformer_path"): "anima_transformer",
    ("model", "vae_path"): "vae",
    ("model", "text_encoder_path"): "qwen",
    ("model", "t5_tokenizer_dir"): "t5_tokenizer_dir",
    ("model", "t5_tokenizer_path"): "t5_tokenizer_dir",
    ("dataset", "cache_dir"): "cache_dir",
    ("dataset", "cache_latents"): "cache_latents",
    ("training", "max_steps"): "max_train_steps",
    ("training", "epochs"): "max_train_epochs",
    ("training", "batch_size"): "train_batch_size",
    ("training", "grad_accum"): "gradient_accumulation_steps",
    ("training", "grad_checkpoint"): "gradient_checkpointing",
    ("training", "xformers"): "xformers",
    ("training", "grad_clip"): "max_grad_norm",
    ("training", "lr_min_ratio"): "lr_scheduler_min_lr_ratio",
    ("lora", "lora_rank"): "network_dim",
    ("lora", "lora_alpha"): "network_alpha",
    ("lora", "lora_dropout"): "network_dropout",
    ("optimizer", "type"): "optimizer_type",
    ("output", "save_every"): "save_every_n_steps",
    ("output", "save_state_every"): "checkpoint_every_n_steps",
}
DATASET_KEYS = {  # -> kohya's dataset keys
    "resolution": "resolution",
    "min_reso": "min_bucket_reso",
    "max_reso": "max_bucket_reso",
    "reso_step": "bucket_reso_steps",
    "shuffle_caption": "shuffle_caption",
    "keep_tokens": "keep_tokens",
    "keep_tokens_separator": "keep_tokens_separator",
    "caption_extension": "caption_extension",
    "flip_augment": "flip_aug",
}
NETWORK_ARGS = (
    "lokr_factor",
    "lokr_full_matrix",
    "lokr_decompose_both",
    "lokr_rank_dropout",
    "lokr_module_dropout",
    "train_norm",
)
PRESETS = {"v101": "+llm_adapter", "anima_block": "+adaln", "anima_block_llm": "+adaln+llm_adapter"}
WITHOUT_EFFECT = {
    ("dataset", "max_ar"): "every aspect ratio within min_reso and max_reso has its bucket",
    ("dataset", "shuffle_caption_per_epoch"): "captions are shuffled anew in every epoch",
    ("training", "seq_len"): "captions are never cut, and padded to 512 as in ComfyUI",
    ("training", "num_workers"): "one thread reads ahead; no workers are needed",
    ("training", "persistent_data_loader_workers"): "one thread reads ahead; no workers are needed",
    ("training", "auto_install"): "nothing is installed",
    ("training", "train_parts"): "lora.lora_targets and train_llm_adapter choose what is trained",
    ("training", "text_cache_size"): "text is cached on disk",
    ("training", "max_token_length"): "captions are never cut",
    ("training", "log_every"): "log.jsonl has every step",
    ("training", "interactive"): "nothing is asked",
    ("lora", "lokr_use_tucker"): "only linear layers are trained",
    ("lora", "lokr_constraint"): "norms are not limited; such limits were missing from exported files",
    ("lora", "lokr_normalize"): "norms are not limited; such limits were missing from exported files",
    ("output", "comfyui_format"): "files always load in ComfyUI",
}
OTHER_BETAS = (0.9, 0.999)  # AdamW's own, where a file gives only one: there sd-scripts-anima leaves the other to torch
TABLES_WITHOUT_EFFECT = {
    "monitor": "the log has every number",
    "wandb": "--log_with wandb on the command line asks for it",
    "progress": "the bar is always shown",
}
TABLES = ("model", "dataset", "training", "lora", "optimizer", "output")


def is_root_style(data: dict[str, Any]) -> bool:
    return isinstance(data.get("model"), dict) and isinstance(data.get("training"), dict)


def read_root(data: dict[str, Any], path: str, typed: Values) -> tuple[Values, list[str]]:
    """Read the file as flag values and notes. typed: the command line's flags, which may supply what the file lacks."""
    refuse_unknown(path, unknown_keys(data))
    data = {table: set_keys(entries) for table, entries in data.items()}
    notes = [f"{path}: [{t}] has no effect: {why}" for t, why in TABLES_WITHOUT_EFFECT.items() if t in data]
    for (table, key), why in WITHOUT_EFFECT.items():
        if key in data.get(table, {}):
            notes.append(f"{path}, line {line_of(path, table, key)}: {table}.{key} has no effect: {why}")
    values = plain_values(data, path)
    for part in (model_values, length_values, schedule_values, network_values, optimizer_values, output_values):
        part(data, values, path)
    if not values.get("t5_tokenizer_dir") and not typed.get("t5_tokenizer_dir"):
        raise SettingError(
            "Input config is missing model.t5_tokenizer_dir/model.t5_tokenizer_path. LLMAdapter training requires T5 tokenizer."
        )
    if data.get("dataset", {}).get("data_dir"):
        values["inline_datasets"] = inline_datasets(data)
    return values, notes


def known_keys(table: str) -> set[str]:
    keys = {key for (t, key) in (*RENAMED, *WITHOUT_EFFECT) if t == table} | set(SAME_NAME.get(table, ()))
    own = {
        "dataset": {"data_dir", "repeats", "caption_tag_dropout_rate", *DATASET_KEYS},
        "training": {"caption_tag_dropout_rate"},
        "lora": {"network_type", "lora_targets", "lora_name", "train_llm_adapter", "anima_target_preset", *NETWORK_ARGS},
        "optimizer": {"weight_decay", "eps", "beta1", "beta2", *PRODIGY},
    }
    return keys | own.get(table, set())


def unknown_keys(data: dict[str, Any]) -> list[Unknown]:
    """List the tables and keys that the dialect does not have."""
    found = []
    for table, entries in data.items():
        if table in TABLES_WITHOUT_EFFECT:
            continue
        if table not in TABLES or not isinstance(entries, dict):
            found.append(Unknown("", table, TABLES, is_table=True))
            continue
        known = known_keys(table)
        found += [Unknown(table, key, known, f"{table}.") for key in entries if key not in known]
    return found


def set_keys(entries: Any) -> Any:
    """Return a table without the keys that are empty, which are not set; what is no table as it is."""
    return {key: value for key, value in entries.items() if value not in ("", [])} if isinstance(entries, dict) else entries


def plain_values(data: dict[str, Any], path: str) -> Values:
    """Read the keys that are a flag under another name, checked against the flag's kind."""
    flags = {flag.name: flag for flag in mapped_flags()}
    names = RENAMED | {(table, key): key for table, keys in SAME_NAME.items() for key in keys}
    values = {}
    for (table, key), flag in names.items():
        if key in data.get(table, {}):
            where = f"{path}, line {line_of(path, table, key)}: {table}.{key}"
            values[flag] = as_flag_kind(flags[flag], data[table][key], where)
    return values


def model_values(data: dict[str, Any], values: Values, path: str) -> None:
    """Apply a rule: t5_tokenizer_dir wins over t5_tokenizer_path."""
    if data["model"].get("t5_tokenizer_dir"):
        values["t5_tokenizer_dir"] = str(data["model"]["t5_tokenizer_dir"])


def length_values(data: dict[str, Any], values: Values, path: str) -> None:
    """Apply a rule: max_steps above 0 wins over epochs; the other is left out."""
    if values.get("max_train_steps", 0) > 0:
        values["max_train_epochs"] = 0
    else:
        values.pop("max_train_steps", None)


def schedule_values(data: dict[str, Any], values: Values, path: str) -> None:
    """Apply a rule: cosine with lr_min_ratio is cosine_with_min_lr."""
    if values.get("lr_scheduler") == "cosine" and values.get("lr_scheduler_min_lr_ratio", 0) > 0:
        values["lr_scheduler"] = "cosine_with_min_lr"


def network_values(data: dict[str, Any], values: Values, path: str) -> None:
    lora = data.get("lora", {})
    from ..adapters.types import ADAPTER_TYPES  # loads torch

    kind = str(lora.get("network_type", "lora")).lower()
    if kind not in ADAPTER_TYPES.names:
        where = f"{path}, line {line_of(path, 'lora', 'network_type')}: lora.network_type"
        raise SettingError(f"{where}={kind!r}: must be one of {', '.join(ADAPTER_TYPES.names)}")
    values["network_module"] = ADAPTER_TYPES[kind].modules[0]
    arguments = [f"{key}={lora[key]}" for key in NETWORK_ARGS if key in lora and (kind == "lokr" or not key.startswith("lokr"))]
    targets = lora.get("lora_targets")
    if targets:
        names = [targets] if isinstance(targets, str) else targets
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            line = line_of(path, "lora", "lora_targets")
            raise SettingError(f"{path}, line {line}: lora.lora_targets={targets!r}: must be a list of names")
        arguments.append(f"target_modules={','.join(names)}")
    elif lora.get("anima_target_preset"):
        preset = PRESETS.get(str(lora["anima_target_preset"]))
        if preset is None:
            line = line_of(path, "lora", "anima_target_preset")
            raise SettingError(f"{path}, line {line}: lora.anima_target_preset: must be one of {', '.join(PRESETS)}")
        arguments.append(f"targets={preset}")
    if is_on(lora.get("train_llm_adapter")):
        arguments.append("train_llm_adapter=true")
    values["network_args"] = arguments


def optimizer_values(data: dict[str, Any], values: Values, path: str) -> None:
    optimizer = data.get("optimizer", {})
    arguments = [f"{key}={optimizer[key]}" for key in ("weight_decay", "eps") if key in optimizer]
    if "beta1" in optimizer or "beta2" in optimizer:
        betas = (optimizer.get(name, default) for name, default in zip(("beta1", "beta2"), OTHER_BETAS))
        arguments.append(f"betas={','.join(map(str, betas))}")
    keys = keys_of(values.get("optimizer_type", ""))
    arguments += [f"{name}={optimizer[key]}" for key, name in keys.items() if key in optimizer]
    values["optimizer_args"] = arguments


def output_values(data: dict[str, Any], values: Values, path: str) -> None:
    """Apply a rule: lora_name names the output when output_name does not."""
    if not values.get("output_name") and data.get("lora", {}).get("lora_name"):
        values["output_name"] = str(data["lora"]["lora_name"])


def inline_datasets(data: dict[str, Any]) -> dict[str, Any]:
    """Return [dataset] as kohya's dataset_config."""
    source = data["dataset"]
    general = {DATASET_KEYS[key]: source[key] for key in DATASET_KEYS if key in source}
    buckets = ("min_reso", "max_reso", "reso_step", "max_ar")
    general["enable_bucket"] = any(key in source for key in buckets)
    rate = source.get("caption_tag_dropout_rate", data["training"].get("caption_tag_dropout_rate"))
    if rate is not None:
        general["caption_tag_dropout_rate"] = rate
    subset = {"image_dir": source["data_dir"], "num_repeats": source.get("repeats", 1)}
    batch = data["training"].get("batch_size", 1)
    return {"general": general, "datasets": [{"batch_size": batch, "subsets": [subset]}]}

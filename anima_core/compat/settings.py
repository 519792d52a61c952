"""Flag values -> TrainConfig: where sd-scripts' words become ours."""

import ast
from pathlib import Path
from typing import Any

from ..config import (
    FULL_MATRIX_RANK,
    DatasetConfig,
    FlowConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    SampleConfig,
    SubsetConfig,
    TrainConfig,
)
from ..errors import FileError, SettingError
from .dataset_config import DATASET_KEYS, SUBSET_KEYS, datasets_from, read_dataset_config, resolution
from .flags import NETWORK_ARGS, PRECISIONS, TIMESTEPS, WEIGHTS

NETWORK_MODULES = {"networks.lora_anima": "lora", "networks.lokr_anima": "lokr"}
TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

Values = dict[str, Any]


def train_config(values: Values, explicit: set[str]) -> tuple[TrainConfig, list[str]]:
    """explicit: what was given, typed or in a file; the rest are defaults. -> the run, and notes."""
    check_required(values)
    optimizer = optimizer_config(values)  # before any file is looked at: its refusals are documented to come first
    datasets, notes = dataset_configs(values, explicit)
    config = TrainConfig(
        model=ModelConfig(
            transformer=values["anima_transformer"],
            vae=values["vae"],
            qwen=values["qwen"],
            t5_tokenizer_dir=values["t5_tokenizer_dir"],
            qwen_tokenizer_dir=values["qwen_tokenizer_dir"],
            dtype=PRECISIONS[one_of(values, "mixed_precision", tuple(PRECISIONS))],
        ),
        datasets=datasets,
        network=network_config(values),
        optimizer=optimizer,
        flow=flow_config(values),
        samples=sample_config(values),
        output=output_config(values),
        max_train_steps=values["max_train_steps"],
        max_train_epochs=values["max_train_epochs"],
        gradient_accumulation_steps=values["gradient_accumulation_steps"],
        gradient_checkpointing=values["gradient_checkpointing"],
        ema_decay=values["ema_decay"],
        seed=values["seed"],
        device=values["device"],
        cache_dir=values["cache_dir"],
        cache_latents=values["cache_latents"],
        cache_text=values["cache_text_encoder_outputs"],
        caption_variants=values["caption_variants"],
        vae_batch_size=values["vae_batch_size"],
        strict_data=values["strict"],
    )
    return config, notes


def one_of(values: Values, name: str, allowed: tuple[str, ...]) -> str:
    """argparse checks typed choices; a file's are checked here."""
    if values[name] not in allowed:
        raise SettingError(f"{name}={values[name]}: must be one of {', '.join(a for a in allowed if a)}")
    return values[name]


def check_required(values: Values) -> None:
    if not values["anima_transformer"]:
        either = "Set --anima_transformer or --pretrained_model_name_or_path."
        raise SettingError(f"Anima transformer path is required. {either}")
    if not values["vae"]:
        raise SettingError("Anima VAE path is required. Set --vae.")
    if not values["qwen"]:
        raise SettingError("Qwen path is required. Set --qwen.")
    if not values["t5_tokenizer_dir"]:
        raise SettingError("T5 tokenizer directory is required. Set --t5_tokenizer_dir.")
    if values["network_module"] not in NETWORK_MODULES:
        expected = tuple(NETWORK_MODULES)
        raise SettingError(f"Unsupported network module: {values['network_module']}. Expected one of: {expected}")


def flow_config(values: Values) -> FlowConfig:
    sampling, shift = TIMESTEPS[one_of(values, "timestep_sampling", tuple(TIMESTEPS))], values["discrete_flow_shift"]
    weighting = one_of(values, "weighting_scheme", tuple(WEIGHTS))
    if values["timestep_sampling"] == "sigma":
        if weighting == "mode" or shift != 1:
            raise SettingError("timestep_sampling=sigma: mode and discrete_flow_shift are not available with it; use shift")
        sampling = "logit_normal" if weighting == "logit_normal" else "uniform"
    if values["anima_flow_shift"] > 0:
        sampling, shift = "shift", values["anima_flow_shift"]
    losses = {"l2": "mse", "smooth_l1": "huber"}
    return FlowConfig(
        timestep_sampling=sampling,
        sigmoid_scale=values["sigmoid_scale"],
        shift=shift,
        loss=losses.get(values["loss_type"], values["loss_type"]),
        huber_delta=values["huber_c"],
        weighting=WEIGHTS[weighting],
        noise_offset=values["noise_offset"],
    )


def output_config(values: Values) -> OutputConfig:
    return OutputConfig(
        dir=values["output_dir"],
        name=values["output_name"],
        save_dtype=PRECISIONS.get(values["save_precision"], values["save_precision"]),
        key_format=values["save_keys"],
        save_every_n_steps=values["save_every_n_steps"],
        save_every_n_epochs=values["save_every_n_epochs"],
        save_last_n=values["save_last_n_steps"],
        save_state=values["save_state"],
        checkpoint_every_n_steps=values["checkpoint_every_n_steps"],
        checkpoint_every_n_minutes=values["checkpoint_every_n_minutes"],
        keep_checkpoints=values["keep_checkpoints"],
        resume_with_changes=values["resume_with_changes"],
        resume=values["resume"],
        comment=values["training_comment"],
    )


def optimizer_config(values: Values) -> OptimizerConfig:
    own = key_values(values["optimizer_args"], "optimizer_args")
    settings: Values = {}
    try:
        for name in ("weight_decay", "eps"):
            if name in own:
                settings[name] = float(own.pop(name))
        if "betas" in own:
            settings["betas"] = tuple(float(b) for b in own.pop("betas").strip("()[] ").split(","))
    except ValueError as error:
        raise SettingError(f"optimizer_args: {error}") from None
    if values["optimizer_type"].lower() == "adafactor":
        absolute_steps_only(own)
    kind = "AdamW8bit" if values["use_8bit_adam"] else "Lion" if values["use_lion_optimizer"] else values["optimizer_type"]
    steps = values["lr_warmup_steps"]
    return OptimizerConfig(
        type=kind,
        learning_rate=values["unet_lr"] or values["learning_rate"],
        args=tuple(f"{k}={v}" for k, v in own.items()),
        max_grad_norm=values["max_grad_norm"],
        scheduler=values["lr_scheduler"],
        warmup_steps=0 if 0 < steps < 1 else int(steps),
        warmup_ratio=values["lr_warmup_ratio"] or (steps if 0 < steps < 1 else 0.0),
        num_cycles=values["lr_scheduler_num_cycles"],
        power=values["lr_scheduler_power"],
        min_lr_ratio=values["lr_scheduler_min_lr_ratio"],
        **settings,
    )


def absolute_steps_only(own: dict[str, str]) -> None:
    """sd-scripts' Adafactor switches. Here its learning rate is always absolute: False is taken out, True is refused."""
    for name in ("relative_step", "scale_parameter", "warmup_init"):
        if name in own and boolean(own.pop(name), name):
            raise SettingError(f"optimizer_args {name}=True: Adafactor's step is learning_rate here; use {name}=False")


def network_config(values: Values) -> NetworkConfig:
    own = key_values(values["network_args"], "network_args")
    unknown = [name for name in own if name not in NETWORK_ARGS]
    if unknown:
        raise SettingError(f"network_args: unknown {unknown[0]}; known are {', '.join(NETWORK_ARGS)}")
    kind = NETWORK_MODULES[values["network_module"]]
    rank, alpha = values["network_dim"], values["network_alpha"]
    if values["dim_from_weights"]:
        rank, alpha = size_of_weights(values["network_weights"])
    full = kind == "lokr" and rank >= FULL_MATRIX_RANK
    return NetworkConfig(
        type=kind,
        rank=rank,
        alpha=0.0 if full else alpha,
        dropout=values["network_dropout"],
        weights=values["network_weights"],
        train_norm=values["train_norm"] or boolean(own.get("train_norm", "false"), "train_norm"),
        **targets_from(own),
        **numbers_from(own),
    )


def targets_from(own: dict[str, str]) -> Values:
    """Which layers. sd-scripts matches include_patterns and exclude_patterns against the whole name."""
    targets = own.get("targets", "attn+mlp")
    if boolean(own.get("train_llm_adapter", "false"), "train_llm_adapter"):
        targets = (targets if targets.startswith("+") else f"{targets}") + "+llm_adapter"
    include = tuple(f"re:^(?:{p})$" for p in python_list(own.get("include_patterns", ""), "include_patterns"))
    exclude = tuple(f"re:^(?:{p})$" for p in python_list(own.get("exclude_patterns", ""), "exclude_patterns"))
    if "target_modules" in own:
        targets, include = "", (*include, *(p.strip() for p in own["target_modules"].split(",") if p.strip()))
    ranks, rates = (pairs(own.get(name, ""), name) for name in ("network_reg_dims", "network_reg_lrs"))
    return {"targets": targets, "include": include, "exclude": exclude, "ranks": ranks, "learning_rates": rates}


def numbers_from(own: dict[str, str]) -> Values:
    names = {
        "lokr_factor": ("factor", int),
        "rank_dropout": ("rank_dropout", float),
        "lokr_rank_dropout": ("rank_dropout", float),
        "module_dropout": ("module_dropout", float),
        "lokr_module_dropout": ("module_dropout", float),
        "loraplus_lr_ratio": ("loraplus_lr_ratio", float),
        "loraplus_unet_lr_ratio": ("loraplus_lr_ratio", float),
    }
    settings: Values = {}
    for key, (name, kind) in names.items():
        if key in own:
            try:
                settings[name] = kind(own[key])
            except ValueError:
                raise SettingError(f"network_args: {key}={own[key]}: must be {kind.__name__}") from None
    for key, name in (("lokr_full_matrix", "full_matrix"), ("lokr_decompose_both", "decompose_both")):
        if key in own:
            settings[name] = boolean(own[key], key)
    return settings


def size_of_weights(path: str) -> tuple[int, float]:
    """Rank and alpha of an adapter file, of its first layer that has a rank; a whole LoKr asks for a full matrix."""
    from ..adapters.formats import read_adapter

    if not path:
        raise SettingError("dim_from_weights: needs --network_weights")
    for tensors in read_adapter(path).values():
        inner = next((tensors[k].shape[0] for k in ("lora_down.weight", "lokr_w2_b", "lokr_w1_b") if k in tensors), None)
        if inner is not None:
            return inner, float(tensors.get("alpha", inner))
    return FULL_MATRIX_RANK, 0.0


def dataset_configs(values: Values, explicit: set[str]) -> tuple[tuple[DatasetConfig, ...], list[str]]:
    """A dataset_config file, the [dataset] of a sectioned TOML, or a folder. Flags that were given fill what a file leaves."""
    given = {key: values[key] for key in (*SUBSET_KEYS, *DATASET_KEYS, "resolution") if key in explicit and key in values}
    given |= {"batch_size": values["train_batch_size"]} if "train_batch_size" in explicit else {}
    given |= {"prior_loss_weight": values["prior_loss_weight"]}
    if values["dataset_config"]:
        return read_dataset_config(values["dataset_config"], given)
    if "inline_datasets" in values:
        typed = {key: value for key, value in given.items() if key != "batch_size"}
        return datasets_from(values["inline_datasets"], typed, "[dataset]")
    if not values["train_data_dir"]:
        raise SettingError("No pictures: set --dataset_config, or --train_data_dir with a folder of captioned pictures.")
    return (folder_dataset(values),), []


def folder_dataset(values: Values) -> DatasetConfig:
    names = {ours: values[key] for key, ours in SUBSET_KEYS.items() if key in values}
    own = {"num_repeats": values["dataset_repeats"], "mask_dir": values["conditioning_data_dir"]}
    subsets = [SubsetConfig(image_dir=values["train_data_dir"], **(names | own))]
    if values["reg_data_dir"]:
        weight = {"loss_weight": values["prior_loss_weight"]}
        subsets.append(SubsetConfig(image_dir=values["reg_data_dir"], **(names | own | weight)))
    return DatasetConfig(
        subsets=tuple(subsets),
        resolutions=(resolution(values["resolution"], "resolution"),),
        batch_size=values["train_batch_size"],
        **{ours: values[key] for key, ours in DATASET_KEYS.items() if key in values},
    )


def sample_config(values: Values) -> SampleConfig:
    path = values["sample_prompts"]
    if not path:
        return SampleConfig()
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"{path}: cannot be read ({error}); check --sample_prompts") from None
    width, height = resolution(values["sample_size"], "sample_size")
    return SampleConfig(
        prompts=tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")),
        width=width,
        height=height,
        steps=values["sample_steps"],
        cfg=values["sample_cfg"],
        seed=values["seed"],
        every_n_steps=values["sample_every_n_steps"],
        every_n_epochs=values["sample_every_n_epochs"],
        at_first=values["sample_at_first"],
    )


def key_values(items: Any, flag: str) -> dict[str, str]:
    """["a=1", "b=2"] -> {"a": "1", "b": "2"}."""
    found = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingError(f"{flag}: {item!r} must be written name=value")
        found[key.strip()] = value.strip()
    return found


def boolean(text: str, name: str) -> bool:
    if text.lower() not in TRUE_WORDS + FALSE_WORDS:
        raise SettingError(f"{name}={text}: must be true or false")
    return text.lower() in TRUE_WORDS


def python_list(text: str, name: str) -> list[str]:
    """sd-scripts writes these as Python lists: "['re','re']"."""
    if not text:
        return []
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise SettingError(f"network_args: {name}={text}: write it as \"['regex','regex']\"")
    return found


def pairs(text: str, name: str) -> tuple[str, ...]:
    """ "re=16,re=0" -> ("re:^(?:re)$=16", …): whole names, as in sd-scripts."""
    found = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        pattern, equals, number = item.rpartition("=")
        if not equals:
            raise SettingError(f"network_args: {name}: {item!r} must be written pattern=number")
        found.append(f"re:^(?:{pattern})$={number}")
    return tuple(found)

"""The flags of sd-scripts' Anima trainers that set something here.

A flag is named after its setting and has its default and its help unless the tables below say otherwise. docs/flags.md is
written from these tables, and from those of `unmapped`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, get_type_hints

from ..errors import SettingError, in_words
from ..settings import (
    DatasetConfig,
    FlowConfig,
    HeldOutConfig,
    MetadataConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    PriorConfig,
    SampleConfig,
    SubsetConfig,
    TrainConfig,
)
from ..settings.optimizer import OPTIMIZERS, SCHEDULES
from ..settings.samples import SAMPLERS, SCHEDULERS
from ..settings.setting import name_of, settings_of
from .attention import MODES
from .kinds import EXPECTED, FROM_FILE, KINDS
from .network_args import NETWORK_ARGS
from .unmapped import ARGUMENTS_IGNORED, ARGUMENTS_REFUSED, IGNORED, REFUSED

# sd-scripts' words -> ours
PRECISIONS = {"no": "fp32", "float": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "auto": "auto", "int8": "int8"}
FILE_PRECISIONS = {name: PRECISIONS[name] for name in ("float", "fp32", "bf16", "fp16")}
WEIGHTS = {  # logit_normal and mode are densities of t, which timestep_sampling=sigma alone reads
    **dict.fromkeys(("none", "uniform", "logit_normal", "mode"), "none"),
    **{name: name for name in ("sigma_sqrt", "cosmap", "min_snr", "detail_inv_t")},
}
TIMESTEPS = {
    "logit_normal": "logit_normal",
    "sigmoid": "logit_normal",
    "uniform": "uniform",
    "shift": "shift",
    "flux_shift": "resolution_shift",
    "resolution_shift": "resolution_shift",
    "sigma": "uniform",  # or what `translate` makes of weighting_scheme
    "mode": "mode",
}
LOSSES = {"l2": "mse", "smooth_l1": "smooth_l1", "mse": "mse", "huber": "huber", "l1": "l1"}
ADAFACTOR = "adafactor"  # a schedule of sd-scripts: none, for an Adafactor that finds its step itself
RECOMPUTE = {True: "recompute", False: "keep", "": "auto"}

# Flags that start from another value than the setting does -> the value, and why
OTHER_DEFAULTS: dict[str, tuple[Any, str]] = {
    "network_dim": (4, "sd-scripts' default"),
    "network_alpha": (1.0, "sd-scripts' default"),
    "max_train_steps": (1600, "sd-scripts' default"),
}


@dataclass(frozen=True)
class Flag:
    """A flag of the command line and a key of flat files.

    kind: str, path (of what is read), prompts (a path, or the prompts), int, float, steps (or a share of all), switch
    (--x / --no-x), list.
    setting: the `section.field` that it sets; empty for a word of sd-scripts that `translate` reads by a rule of its own.
    words: sd-scripts' values -> ours, where they differ.
    """

    name: str
    kind: str
    default: Any
    help: str
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    setting: str = ""
    words: Mapping[Any, Any] = field(default_factory=dict)

    @property
    def full_help(self) -> str:
        """Return the help with the values that may be chosen, in the command line's words."""
        choices = ", ".join(self.choices)
        return in_words(f"{self.help} One of: {choices}." if choices else self.help, setting_words())


def sets(
    cls: type, field_name: str, name: str = "", *aliases: str, words: Mapping[Any, Any] | None = None, **other: Any
) -> Flag:
    """Make the flag of a setting, named after it or as sd-scripts names it. other: what the flag has for itself."""
    facts, default = settings_of(cls)[field_name], cls.__dataclass_fields__[field_name].default  # type: ignore[attr-defined]
    kind = KINDS.get(get_type_hints(cls)[field_name], "list")
    words = words or {}
    flag = {
        "name": name or field_name,
        "kind": "path" if facts.path == "read" else "switch" if True in words else kind,
        "default": "" if not isinstance(default, str | int | float | tuple) else default,  # required: it is checked later
        "help": facts.help,
        "aliases": aliases,
        "choices": () if True in words else tuple(words) or facts.choices,
        "setting": name_of(cls, field_name),
        "words": words,
    }
    if flag["name"] in OTHER_DEFAULTS:
        flag["default"] = OTHER_DEFAULTS[flag["name"]][0]
    return Flag(**(flag | other))


def same_name(cls: type, names: str) -> list[Flag]:
    """Make the flags of settings that sd-scripts names as we do, or that only exist here."""
    return [sets(cls, name) for name in names.split()]


MAPPED = {
    "models": [
        sets(ModelConfig, "transformer", "anima_transformer", "pretrained_model_name_or_path"),
        sets(ModelConfig, "vae"),
        sets(ModelConfig, "qwen", "", "qwen3"),
        sets(ModelConfig, "qwen_tokenizer_dir"),
        sets(ModelConfig, "t5_tokenizer_dir", "", "t5_tokenizer_path"),
        sets(ModelConfig, "llm_adapter", "", "llm_adapter_path"),
        sets(ModelConfig, "dtype", "mixed_precision", words=PRECISIONS),
        Flag(
            "fp8_base",
            "switch",
            False,
            "The model's weights in 8 bits: the same as --mixed_precision int8, which has the size of fp8 and is closer.",
            ("fp8_base_unet", "fp8_scaled"),
        ),
        sets(TrainConfig, "device"),
    ],
    "data": [
        Flag("dataset_config", "path", "", "kohya's dataset TOML: folders, repeats, resolutions, captions."),
        Flag(
            "train_data_dir",
            "path",
            "",
            "A folder of captioned pictures, or of sub-folders named N_words (N draws of each), instead of --dataset_config.",
        ),
        Flag("reg_data_dir", "path", "", "The same for regularisation pictures: as many draws as --train_data_dir has."),
        Flag("prior_loss_weight", "float", 1.0, "Loss weight of regularisation pictures."),
        Flag(
            "resolution",
            "str",
            "1024",
            "Size of the pictures in pixels: 1024, or width,height such as 1024,768.",
            setting="dataset.resolutions",
        ),
        sets(DatasetConfig, "batch_size", "train_batch_size"),
        *same_name(DatasetConfig, "enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale"),
        sets(SubsetConfig, "num_repeats", "dataset_repeats", "num_repeats"),
        sets(SubsetConfig, "caption_extension", "", "caption_extention"),
        *same_name(SubsetConfig, "caption_prefix caption_suffix caption_separator class_tokens shuffle_caption keep_tokens"),
        *same_name(SubsetConfig, "keep_tokens_separator caption_dropout_rate caption_tag_dropout_rate flip_aug alpha_mask"),
        *same_name(SubsetConfig, "enable_wildcard secondary_separator caption_trigger caption_order random_crop"),
        Flag("min_timestep", "float", 0.0, "Least noise that is trained at, in thousandths of t; 0 is none."),
        Flag("max_timestep", "float", 1000.0, "Most noise that is trained at, in thousandths of t; 1000 is nothing but noise."),
        *same_name(SubsetConfig, "caption_sources caption_replace caption_blacklist category_shuffle category_dropout"),
        sets(SubsetConfig, "metadata_file", "", "in_json"),
        sets(SubsetConfig, "mask_dir", "conditioning_data_dir", "mask_dir"),
        *same_name(SubsetConfig, "timestep_offset validation_split validation_split_num"),
        sets(HeldOutConfig, "seed", "validation_seed"),
        sets(HeldOutConfig, "folder", "held_out_folder"),
        sets(HeldOutConfig, "most", "max_validation_steps"),
        sets(HeldOutConfig, "every_n_steps", "validate_every_n_steps"),
        sets(HeldOutConfig, "every_n_epochs", "validate_every_n_epochs"),
        sets(HeldOutConfig, "patience", "held_out_patience"),
        sets(HeldOutConfig, "keep_best", "held_out_keep_best"),
        sets(TrainConfig, "cache_latents", "", "cache_latents_to_disk"),
        sets(TrainConfig, "cache_text", "cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk"),
        *same_name(TrainConfig, "cache_dir caption_variants crop_variants vae_batch_size vae_tile"),
        sets(TrainConfig, "strict_data", "strict"),
    ],
    "network": [
        Flag(
            "network_module",
            "str",
            "networks.lora_anima",
            "Type of the adapter: a word of the table in docs/flags.md.",
            setting="network.type",
        ),
        sets(NetworkConfig, "rank", "network_dim", help="Rank; 100000 or more asks for a LoKr of two whole factors."),
        sets(NetworkConfig, "alpha", "network_alpha"),
        sets(NetworkConfig, "dropout", "network_dropout"),
        Flag("network_args", "list", (), "name=value, see the table of network_args in docs/flags.md."),
        sets(NetworkConfig, "weights", "network_weights"),
        Flag(
            "dim_from_weights",
            "switch",
            False,
            "Take each layer's rank and alpha from --network_weights, whatever --network_dim and --network_alpha say.",
        ),
        sets(NetworkConfig, "train_norm"),
    ],
    "optimizer": [
        sets(
            OptimizerConfig,
            "type",
            "optimizer_type",
            help=f"The optimizer: {', '.join(OPTIMIZERS.names)}, or module.Class of an installed package.",
        ),
        sets(OptimizerConfig, "learning_rate"),
        Flag("unet_lr", "float", 0.0, "Learning rate of the network; above 0 it wins over --learning_rate."),
        sets(OptimizerConfig, "args", "optimizer_args"),
        Flag("use_8bit_adam", "switch", False, "The same as --optimizer_type AdamW8bit."),
        Flag("use_lion_optimizer", "switch", False, "The same as --optimizer_type Lion."),
        sets(OptimizerConfig, "scheduler", "lr_scheduler", choices=(*SCHEDULES, ADAFACTOR)),
        sets(
            OptimizerConfig,
            "warmup_steps",
            "lr_warmup_steps",
            kind="steps",
            default=0.0,
            help="Steps over which the learning rate rises from 0; below 1, or as 10%, a share of all steps.",
        ),
        sets(OptimizerConfig, "warmup_ratio", "lr_warmup_ratio"),
        sets(
            OptimizerConfig,
            "num_cycles",
            "lr_scheduler_num_cycles",
            help="How often cosine_with_restarts falls; half waves of cosine_with_min_lr and warmup_stable_decay, 1: one fall.",
        ),
        sets(OptimizerConfig, "power", "lr_scheduler_power"),
        sets(
            OptimizerConfig,
            "min_lr_ratio",
            "lr_scheduler_min_lr_ratio",
            help="Floor of cosine_with_min_lr and warmup_stable_decay, relative to the learning rate.",
        ),
        sets(
            OptimizerConfig,
            "decay_steps",
            "lr_decay_steps",
            kind="steps",
            default=0.0,
            help="Steps at the end over which warmup_stable_decay falls; below 1, or as 10%, a share of all steps.",
        ),
        sets(OptimizerConfig, "timescale", "lr_scheduler_timescale"),
        Flag("lr_scheduler_args", "list", (), "name=value: step_rules=1:500,0.1:900,0.01 for piecewise_constant."),
        sets(OptimizerConfig, "max_grad_norm"),
    ],
    "training": [
        *same_name(TrainConfig, "max_train_steps max_train_epochs gradient_accumulation_steps"),
        sets(
            TrainConfig,
            "memory",
            "gradient_checkpointing",
            words=RECOMPUTE,
            default="",
            help="Recompute every block in the backward pass: least memory, most time; with --no-… no matrix product and no "
            "attention. Neither: as few as fit the memory.",
        ),
        Flag(
            "cpu_offload_checkpointing",
            "switch",
            False,
            "Recompute every block as --gradient_checkpointing does, and keep the blocks' inputs in host memory meanwhile: the "
            "least memory.",
            ("unsloth_offload_checkpointing",),
        ),
        *same_name(TrainConfig, "blocks_to_swap memory_gb attention trim_text"),
        Flag("attn_mode", "str", "", f"sd-scripts' word for --attention: {', '.join(MODES)}.", ("anima_attention_backend",)),
        Flag("sdpa", "switch", False, "The same as --attention sdpa."),
        Flag("xformers", "switch", False, "The same as --attention xformers where the package is installed.", ("xfomers",)),
        Flag(
            "flash_attn",
            "switch",
            False,
            "The same as --attention flash_attn where the package is installed.",
            ("use_flash_attn",),
        ),
        Flag("use_sage_attn", "switch", False, "Noted: SageAttention has no backward pass; torch's attention is used."),
        Flag("mem_eff_attn", "switch", False, "Noted: torch's attention, which is used, takes as little memory."),
        *same_name(TrainConfig, "plain"),
        sets(TrainConfig, "compile", "", "torch_compile"),
        *same_name(TrainConfig, "ema_decay seed"),
        sets(FlowConfig, "timestep_sampling", "", "anima_timestep_sampling", words=TIMESTEPS),
        sets(FlowConfig, "sigmoid_scale", "", "anima_sigmoid_scale"),
        sets(FlowConfig, "shift", "discrete_flow_shift", "training_shift"),
        Flag("anima_flow_shift", "float", 0.0, "Above 0 the same as --timestep_sampling shift with this shift."),
        sets(FlowConfig, "loss", "loss_type", words=LOSSES),
        sets(FlowConfig, "huber_delta", "huber_c"),
        Flag("huber_scale", "float", 1.0, "Factor on --huber_c."),
        sets(FlowConfig, "weighting", "weighting_scheme", words=WEIGHTS),
        Flag(
            "logit_mean",
            "float",
            0.0,
            "Where sigma draws t by logit_normal: its centre; above 0 favours little noise.",
        ),
        Flag("logit_std", "float", 1.0, "Where sigma draws t by logit_normal: its width."),
        sets(FlowConfig, "mode_scale"),
        sets(FlowConfig, "noise_offset", "", "anima_noise_offset"),
        *same_name(FlowConfig, "ip_noise_gamma snr_gamma multiscale_loss_weight multires_noise_iterations"),
        *same_name(FlowConfig, "multires_noise_discount lowres_scale lowres_above lowres_below"),
        sets(PriorConfig, "masked", "prior_masked_weight"),
        sets(PriorConfig, "weight", "prior_class_weight"),
        sets(PriorConfig, "trigger", "prior_trigger"),
        sets(PriorConfig, "class_words", "prior_class_words"),
    ],
    "output": [
        sets(OutputConfig, "dir", "output_dir"),
        sets(OutputConfig, "name", "output_name"),
        sets(OutputConfig, "save_dtype", "save_precision", words=FILE_PRECISIONS),
        sets(OutputConfig, "key_format", "save_keys"),
        *same_name(OutputConfig, "save_every_n_steps save_every_n_epochs"),
        *same_name(OutputConfig, "save_last_n save_last_n_steps save_last_n_epochs"),
        *same_name(OutputConfig, "save_last_n_steps_state save_last_n_epochs_state save_state"),
        *same_name(OutputConfig, "checkpoint_every_n_steps checkpoint_every_n_minutes keep_checkpoints"),
        *same_name(OutputConfig, "resume resume_with_changes"),
        Flag(
            "sample_prompts",
            "prompts",
            "",
            "Prompts of the previews: a .txt of one a line with --n --w --h --d --s --l --fs --ss --sch, a .json, a .toml, or "
            "a prompt.",
        ),
        sets(SampleConfig, "every_n_steps", "sample_every_n_steps"),
        sets(SampleConfig, "every_n_epochs", "sample_every_n_epochs"),
        sets(SampleConfig, "at_first", "sample_at_first"),
        sets(SampleConfig, "at_end", "sample_at_end"),
        Flag("sample_size", "str", "1024,1024", "Width,height of the previews in pixels."),
        sets(SampleConfig, "steps", "sample_steps"),
        sets(SampleConfig, "cfg", "sample_cfg"),
        *(
            sets(SampleConfig, name, f"sample_{name}", choices=(), help=f"{what} of the previews: {', '.join(known)}.")
            for name, what, known in (("sampler", "Sampler", SAMPLERS), ("scheduler", "Noise levels of the steps", SCHEDULERS))
        ),
        sets(SampleConfig, "held_out", "sample_held_out"),
        sets(OutputConfig, "comment", "training_comment"),
        *(sets(MetadataConfig, name, f"metadata_{name}") for name in ("title", "author", "description", "license", "tags")),
        *(sets(MetadataConfig, name, f"metadata_{name}") for name in ("usage_hint", "trigger_phrase", "tag_frequency")),
        sets(MetadataConfig, "picture", "metadata_thumbnail"),
        sets(MetadataConfig, "thumbnail", "thumbnail"),
        Flag(
            "log_with",
            "str",
            "",
            "Where numbers and samples also go: TensorBoard's files, Weights & Biases, both. Nothing is sent without it.",
            choices=("tensorboard", "wandb", "all"),
        ),
        Flag("logging_dir", "str", "logs", "Folder of TensorBoard's and wandb's files; given alone, it asks for the former."),
        Flag("log_prefix", "str", "", "TensorBoard's files go into a folder of this name and the time, within --logging_dir."),
        Flag("log_config", "switch", False, "Log the settings, too; of paths only the last part."),
        Flag("log_tracker_name", "str", "network_train", "The project in Weights & Biases."),
        Flag("log_tracker_config", "path", "", "A TOML whose [wandb] goes to wandb.init, such as entity, tags, group, id."),
        Flag("wandb_run_name", "str", "", "Name of the run in Weights & Biases; without it --output_name."),
        Flag("wandb_api_key", "str", "", "Key for Weights & Biases, for this run; it is written nowhere. Better: wandb login."),
        Flag("config", "path", "", "A sectioned TOML: [model] [dataset] [training] [lora] [optimizer] [output]."),
        Flag("config_file", "path", "", "A sectioned TOML, or a flat one of these flags."),
        Flag("output_config", "switch", False, "Write the settings as one TOML and stop."),
    ],
}


def mapped_flags() -> list[Flag]:
    return [flag for group in MAPPED.values() for flag in group]


def known_arguments() -> list[str]:
    """List the names that --network_args may hold."""
    return [*NETWORK_ARGS, *ARGUMENTS_IGNORED, *ARGUMENTS_REFUSED]


def known_names() -> list[str]:
    names = [name for flag in mapped_flags() for name in (flag.name, *flag.aliases)]
    return [*names, *IGNORED, *REFUSED]


@cache
def setting_words() -> dict[str, str]:
    """Return what the command line calls each setting: `section.field` -> flag, or name within --network_args."""
    within = {arg.setting: f"--network_args {name}" for name, arg in reversed(NETWORK_ARGS.items()) if arg.setting}
    patterns = {"include": "target_modules", "exclude": "exclude_patterns", "ranks": "network_reg_dims"}
    patterns |= {"alphas": "network_reg_alphas", "learning_rates": "network_reg_lrs"}
    within |= {f"network.{name}": f"--network_args {own}" for name, own in patterns.items()}
    within |= {f"optimizer.{name}": f"--optimizer_args {name}" for name in ("weight_decay", "betas", "eps")}
    within |= {"optimizer.step_rules": "--lr_scheduler_args step_rules", "optimizer.decay_ratio": "--lr_decay_steps"}
    within |= {"held_out.share": "--validation_split", "held_out.count": "--validation_split_num"}
    within |= {"subset.min_timestep": "--min_timestep", "subset.max_timestep": "--max_timestep"}
    within |= {"flow.logit_mean": "--logit_mean", "sample.prompts": "--sample_prompts"}
    within |= {"subset.image_dir": "--train_data_dir, --reg_data_dir or the dataset file's image_dir"}
    within |= {"sample.width": "--sample_size", "sample.height": "--sample_size"}
    within |= {"train.memory=recompute": "--gradient_checkpointing", "train.memory=keep": "--no-gradient_checkpointing"}
    within |= {"train.memory=offload": "--cpu_offload_checkpointing"}
    return within | {flag.setting: f"--{flag.name}" for flag in mapped_flags() if flag.setting}


def as_flag_kind(flag: Flag, value: Any, where: str) -> Any:
    """Return a value of a file as the flag's kind, which may come as text. Raises SettingError with the place."""
    try:
        found = FROM_FILE[flag.kind](value)
    except (TypeError, ValueError, OverflowError):
        raise SettingError(f"{where}={value!r}: must be {EXPECTED[flag.kind]}") from None
    if flag.choices and found not in flag.choices:
        raise SettingError(f"{where}={value!r}: must be one of {', '.join(map(str, flag.choices))}")
    return found

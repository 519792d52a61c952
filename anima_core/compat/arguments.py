"""The sd-scripts command line for Anima -> TrainConfig. Names and texts: `reference/seed_family.md` §4.5."""

import argparse
from pathlib import Path
from typing import Any

from ..config import (
    FULL_MATRIX_RANK,
    LOSSES,
    OPTIMIZERS,
    SCHEDULES,
    WEIGHTINGS,
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
from .dataset_config import DATASET_KEYS, SUBSET_KEYS, read_dataset_config, resolution

NETWORK_MODULES = {"networks.lora_anima": "lora", "networks.lokr_anima": "lokr"}
PRECISIONS = {"no": "fp32", "float": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "auto": "auto"}
TIMESTEPS = {  # sd-scripts' words -> ours
    "logit_normal": "logit_normal",
    "sigmoid": "logit_normal",
    "uniform": "uniform",
    "shift": "shift",
    "flux_shift": "resolution_shift",
    "resolution_shift": "resolution_shift",
}
TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes", "on"), ("false", "0", "no", "off")


class Parser(argparse.ArgumentParser):
    """One line and exit status 2, like every refused setting."""

    def error(self, message: str) -> None:
        raise SettingError(message)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    switch = argparse.BooleanOptionalAction
    add = parser.add_argument_group("models").add_argument
    add("--anima_transformer", "--pretrained_model_name_or_path", default="", help="Anima transformer, .safetensors")
    add("--vae", default="", help="Qwen-Image VAE, .safetensors")
    add("--qwen", default="", help="Qwen3-0.6B: a ComfyUI .safetensors file or a Hugging Face directory")
    add("--qwen_tokenizer_dir", default="", help="default: beside the model, else ComfyUI's")
    add("--t5_tokenizer_dir", default="", help="holds config.json, spiece.model, tokenizer.json")
    add("--mixed_precision", default="auto", choices=sorted(PRECISIONS), help="dtype of the frozen base model")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, xpu, mps")

    add = parser.add_argument_group("data").add_argument
    add("--dataset_config", default="", help="kohya's dataset TOML; or give a folder:")
    add("--train_data_dir", default="", help="a folder of captioned pictures")
    add("--resolution", default="1024", help="1024 or 1024,768")
    add("--train_batch_size", type=int, default=1)
    add("--enable_bucket", action=switch, default=True)
    add("--min_bucket_reso", type=int, default=256)
    add("--max_bucket_reso", type=int, default=4096)
    add("--bucket_reso_steps", type=int, default=64)
    add("--bucket_no_upscale", action=switch, default=False)
    add("--num_repeats", type=int, default=1)
    add("--caption_extension", default=".txt")
    add("--caption_prefix", default="")
    add("--caption_suffix", default="")
    add("--class_tokens", default="", help="caption of pictures that have none")
    add("--shuffle_caption", action=switch, default=False)
    add("--keep_tokens", type=int, default=0)
    add("--keep_tokens_separator", default="")
    add("--caption_dropout_rate", type=float, default=0.0)
    add("--caption_tag_dropout_rate", type=float, default=0.0)
    add("--flip_aug", action=switch, default=False)
    add("--alpha_mask", action=switch, default=False)
    add("--cache_dir", default="", help="default: .anima_cache in the first folder of pictures")
    add("--caption_variants", type=int, default=16, help="cached shuffles per picture; 0 encodes on the fly")
    add("--vae_batch_size", type=int, default=1)

    add = parser.add_argument_group("network").add_argument
    add("--network_module", default="networks.lora_anima", help=" or ".join(NETWORK_MODULES))
    add("--network_dim", type=int, default=4)
    add("--network_alpha", type=float, default=1.0)
    add("--network_dropout", type=float, default=0.0)
    add("--network_args", nargs="*", default=[], metavar="NAME=VALUE")
    add("--network_weights", default="", help="start from this adapter file")

    add = parser.add_argument_group("optimizer").add_argument
    add("--optimizer_type", default="AdamW", help=", ".join(OPTIMIZERS))
    add("--learning_rate", type=float, default=1e-4)
    add("--optimizer_args", nargs="*", default=[], metavar="NAME=VALUE")
    add("--lr_scheduler", default="constant", help=", ".join(SCHEDULES))
    add("--lr_warmup_steps", type=float, default=0, help="below 1: a ratio of all steps")
    add("--lr_warmup_ratio", type=float, default=0.0)
    add("--lr_scheduler_num_cycles", type=float, default=1.0)
    add("--lr_scheduler_power", type=float, default=1.0)
    add("--lr_scheduler_min_lr_ratio", type=float, default=0.0)
    add("--max_grad_norm", type=float, default=1.0)

    add = parser.add_argument_group("training").add_argument
    add("--max_train_steps", type=int, default=1600)
    add("--max_train_epochs", type=int, default=0)
    add("--gradient_accumulation_steps", type=int, default=1)
    add("--gradient_checkpointing", action=switch, default=True)
    add("--ema_decay", type=float, default=0.0)
    add("--seed", type=int, default=42)
    add("--timestep_sampling", default="logit_normal", choices=sorted(TIMESTEPS))
    add("--sigmoid_scale", type=float, default=1.0)
    add("--discrete_flow_shift", type=float, default=1.0)
    add("--loss_type", default="mse", choices=("l2", *LOSSES))
    add("--huber_c", type=float, default=0.1)
    add("--weighting_scheme", default="none", choices=WEIGHTINGS)
    add("--noise_offset", type=float, default=0.0)

    add = parser.add_argument_group("output").add_argument
    add("--output_dir", default="output")
    add("--output_name", default="anima")
    add("--save_precision", default="bf16", choices=("float", "fp32", "bf16", "fp16"))
    add("--save_keys", dest="key_format", default="diffusion_model", choices=("diffusion_model", "lora_unet"))
    add("--save_every_n_steps", type=int, default=0)
    add("--save_every_n_epochs", type=int, default=0)
    add("--save_last_n", type=int, default=0)
    add("--save_state", action=switch, default=False)
    add("--resume", default="", help="a checkpoint folder, or latest")
    add("--sample_prompts", default="", help="a text file, one prompt a line")
    add("--sample_every_n_steps", type=int, default=0)
    add("--sample_at_first", action=switch, default=False)
    add("--sample_size", default="1024,1024")
    add("--sample_steps", type=int, default=30)
    add("--sample_cfg", type=float, default=4.0)


def config_from(args: argparse.Namespace) -> TrainConfig:
    """The parsed command line as a TrainConfig. Checks run in sd-scripts' order, with its texts."""
    check_required(args)
    return TrainConfig(
        model=ModelConfig(
            transformer=args.anima_transformer,
            vae=args.vae,
            qwen=args.qwen,
            t5_tokenizer_dir=args.t5_tokenizer_dir,
            qwen_tokenizer_dir=args.qwen_tokenizer_dir,
            dtype=PRECISIONS[args.mixed_precision],
        ),
        optimizer=optimizer_config(args),
        network=network_config(args),
        datasets=dataset_configs(args),
        flow=FlowConfig(
            timestep_sampling=TIMESTEPS[args.timestep_sampling],
            sigmoid_scale=args.sigmoid_scale,
            shift=args.discrete_flow_shift,
            loss="mse" if args.loss_type == "l2" else args.loss_type,
            huber_delta=args.huber_c,
            weighting=args.weighting_scheme,
            noise_offset=args.noise_offset,
        ),
        samples=sample_config(args),
        output=OutputConfig(
            dir=args.output_dir,
            name=args.output_name,
            save_dtype=PRECISIONS[args.save_precision],
            key_format=args.key_format,
            save_every_n_steps=args.save_every_n_steps,
            save_every_n_epochs=args.save_every_n_epochs,
            save_last_n=args.save_last_n,
            save_state=args.save_state,
            resume=args.resume,
        ),
        max_train_steps=args.max_train_steps,
        max_train_epochs=args.max_train_epochs,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        gradient_checkpointing=args.gradient_checkpointing,
        ema_decay=args.ema_decay,
        seed=args.seed,
        device=args.device,
        cache_dir=args.cache_dir,
        caption_variants=args.caption_variants,
        vae_batch_size=args.vae_batch_size,
    )


def check_required(args: argparse.Namespace) -> None:
    if not args.anima_transformer:
        either = "Set --anima_transformer or --pretrained_model_name_or_path."
        raise SettingError(f"Anima transformer path is required. {either}")
    if not args.vae:
        raise SettingError("Anima VAE path is required. Set --vae.")
    if not args.qwen:
        raise SettingError("Qwen path is required. Set --qwen.")
    if not args.t5_tokenizer_dir:
        raise SettingError("T5 tokenizer directory is required. Set --t5_tokenizer_dir.")
    if args.network_module not in NETWORK_MODULES:
        expected = tuple(NETWORK_MODULES)
        raise SettingError(f"Unsupported network module: {args.network_module}. Expected one of: {expected}")


def optimizer_config(args: argparse.Namespace) -> OptimizerConfig:
    own = key_values(args.optimizer_args, "optimizer_args")
    settings: dict[str, Any] = {}
    try:
        if "weight_decay" in own:
            settings["weight_decay"] = float(own.pop("weight_decay"))
        if "eps" in own:
            settings["eps"] = float(own.pop("eps"))
        if "betas" in own:
            settings["betas"] = tuple(float(b) for b in own.pop("betas").strip("()[] ").split(","))
    except ValueError as error:
        raise SettingError(f"optimizer_args: {error}") from None
    ratio = args.lr_warmup_ratio or (args.lr_warmup_steps if 0 < args.lr_warmup_steps < 1 else 0.0)
    return OptimizerConfig(
        type=args.optimizer_type,
        learning_rate=args.learning_rate,
        args=tuple(f"{k}={v}" for k, v in own.items()),
        max_grad_norm=args.max_grad_norm,
        scheduler=args.lr_scheduler,
        warmup_steps=int(args.lr_warmup_steps) if args.lr_warmup_steps >= 1 or args.lr_warmup_steps < 0 else 0,
        warmup_ratio=ratio,
        num_cycles=args.lr_scheduler_num_cycles,
        power=args.lr_scheduler_power,
        min_lr_ratio=args.lr_scheduler_min_lr_ratio,
        **settings,
    )


def network_config(args: argparse.Namespace) -> NetworkConfig:
    own = key_values(args.network_args, "network_args")
    kind = NETWORK_MODULES[args.network_module]
    settings: dict[str, Any] = {}
    try:
        if "lokr_factor" in own:
            settings["factor"] = int(own.pop("lokr_factor"))
        for key, name in (("rank_dropout", "rank_dropout"), ("module_dropout", "module_dropout")):
            for spelling in (key, f"lokr_{key}"):
                if spelling in own:
                    settings[name] = float(own.pop(spelling))
        if "loraplus_lr_ratio" in own:
            settings["loraplus_lr_ratio"] = float(own.pop("loraplus_lr_ratio"))
    except ValueError as error:
        raise SettingError(f"network_args: {error}") from None
    flags = (("lokr_full_matrix", "full_matrix"), ("lokr_decompose_both", "decompose_both"), ("train_norm", "train_norm"))
    for key, name in flags:
        if key in own:
            settings[name] = boolean(own.pop(key), key)
    train_adapter = boolean(own.pop("train_llm_adapter", "false"), "train_llm_adapter")
    settings["targets"] = "+llm_adapter" if train_adapter else own.pop("targets", "attn+mlp")
    if "target_modules" in own:
        settings |= {"targets": "", "include": split_list(own.pop("target_modules"))}
    if "exclude" in own:
        settings["exclude"] = split_list(own.pop("exclude"))
    if own:
        raise SettingError(f"network_args: unknown {', '.join(own)}")
    full = kind == "lokr" and args.network_dim >= FULL_MATRIX_RANK
    return NetworkConfig(
        type=kind,
        rank=args.network_dim,
        alpha=0.0 if full else args.network_alpha,
        dropout=args.network_dropout,
        weights=args.network_weights,
        **settings,
    )


def dataset_configs(args: argparse.Namespace) -> tuple[DatasetConfig, ...]:
    if args.dataset_config:
        fallback = {"resolution": args.resolution, "batch_size": args.train_batch_size}
        return read_dataset_config(args.dataset_config, fallback)
    if not args.train_data_dir:
        raise SettingError("No pictures: set --dataset_config, or --train_data_dir with a folder of captioned pictures.")
    subset = {ours: getattr(args, key) for key, ours in SUBSET_KEYS.items() if hasattr(args, key)}
    dataset = {ours: getattr(args, key) for key, ours in DATASET_KEYS.items() if hasattr(args, key)}
    return (
        DatasetConfig(
            subsets=(SubsetConfig(image_dir=args.train_data_dir, **subset),),
            resolutions=(resolution(args.resolution, "--resolution"),),
            batch_size=args.train_batch_size,
            **dataset,
        ),
    )


def sample_config(args: argparse.Namespace) -> SampleConfig:
    if not args.sample_prompts:
        return SampleConfig()
    try:
        lines = Path(args.sample_prompts).read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise FileError(f"{args.sample_prompts}: cannot be read ({error.strerror}); check --sample_prompts") from None
    width, height = resolution(args.sample_size, "--sample_size")
    return SampleConfig(
        prompts=tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")),
        width=width,
        height=height,
        steps=args.sample_steps,
        cfg=args.sample_cfg,
        seed=args.seed,
        every_n_steps=args.sample_every_n_steps,
        at_first=args.sample_at_first,
    )


def key_values(items: list[str], flag: str) -> dict[str, str]:
    """["a=1", "b=2"] -> {"a": "1", "b": "2"}."""
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals:
            raise SettingError(f"{flag}: {item!r} must be written name=value")
        pairs[key.strip()] = value.strip()
    return pairs


def boolean(text: str, name: str) -> bool:
    if text.lower() not in TRUE_WORDS + FALSE_WORDS:
        raise SettingError(f"{name}={text}: must be true or false")
    return text.lower() in TRUE_WORDS


def split_list(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.strip("[]").split(",") if part.strip())

"""Every flag of sd-scripts' Anima trainers, and what it does here: mapped, ignored with the reason, or refused.

The table `docs/flags.md` is written from these lists. Names and defaults: `reference/seed_family.md` §4 and sd-scripts.
"""

# ruff: noqa: E501 (the tables below have one line for each reason)

from dataclasses import dataclass
from typing import Any

from ..config import LOSSES, OPTIMIZERS, SCHEDULES


@dataclass(frozen=True)
class Flag:
    """kind: str, path (of what is read), int, float, switch (--x / --no-x), list. sets: what it sets here, for the help text and the docs."""

    name: str
    kind: str
    default: Any
    sets: str
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


PRECISIONS = {"no": "fp32", "float": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16", "auto": "auto"}
# sd-scripts' loss weights -> ours; logit_normal and mode are densities of t, which only timestep_sampling=sigma reads
WEIGHTS = {
    "none": "none",
    "uniform": "none",
    "logit_normal": "none",
    "mode": "none",
    "sigma_sqrt": "sigma_sqrt",
    "cosmap": "cosmap",
}
TIMESTEPS = {  # sd-scripts' words -> ours
    "logit_normal": "logit_normal",
    "sigmoid": "logit_normal",
    "uniform": "uniform",
    "shift": "shift",
    "flux_shift": "resolution_shift",
    "resolution_shift": "resolution_shift",
    "sigma": "uniform",  # or logit_normal, as weighting_scheme says
}

MAPPED = {
    "models": [
        Flag("anima_transformer", "path", "", "the Anima transformer, .safetensors", ("pretrained_model_name_or_path",)),
        Flag("vae", "path", "", "the Qwen-Image VAE, .safetensors"),
        Flag("qwen", "path", "", "Qwen3-0.6B: ComfyUI's .safetensors file or a Hugging Face directory", ("qwen3",)),
        Flag("qwen_tokenizer_dir", "path", "", "Qwen's tokenizer; default: beside the model, else ComfyUI's"),
        Flag("t5_tokenizer_dir", "path", "", "folder with config.json, spiece.model, tokenizer.json", ("t5_tokenizer_path",)),
        Flag("mixed_precision", "str", "auto", "dtype of the frozen base model", choices=tuple(PRECISIONS)),
        Flag("device", "str", "auto", "auto, cpu, cuda, cuda:1, xpu, mps"),
    ],
    "data": [
        Flag("dataset_config", "path", "", "kohya's dataset TOML"),
        Flag("train_data_dir", "path", "", "a folder of captioned pictures, instead of dataset_config"),
        Flag("reg_data_dir", "path", "", "a folder of regularisation pictures beside train_data_dir"),
        Flag("prior_loss_weight", "float", 1.0, "loss weight of regularisation pictures"),
        Flag("resolution", "str", "1024", "1024 or 1024,768"),
        Flag("train_batch_size", "int", 1, "pictures in a micro-batch"),
        Flag("enable_bucket", "switch", True, "aspect-ratio buckets (sd-scripts: off)"),
        Flag("min_bucket_reso", "int", 256, "shortest side of a bucket, px"),
        Flag("max_bucket_reso", "int", 4096, "longest side of a bucket, px (sd-scripts: 1024, which caps 1024 px runs)"),
        Flag("bucket_reso_steps", "int", 64, "sides are multiples of this"),
        Flag("bucket_no_upscale", "switch", False, "small pictures keep their size"),
        Flag("dataset_repeats", "int", 1, "how often each picture comes in an epoch", ("num_repeats",)),
        Flag("caption_extension", "str", ".txt", "ending of caption files", ("caption_extention",)),
        Flag("caption_prefix", "str", "", "written before each caption"),
        Flag("caption_suffix", "str", "", "written after each caption"),
        Flag("caption_separator", "str", ",", "what separates tags"),
        Flag("class_tokens", "str", "", "caption of pictures that have none"),
        Flag("shuffle_caption", "switch", False, "shuffle tags in every epoch"),
        Flag("keep_tokens", "int", 0, "leading tags that keep their place"),
        Flag("keep_tokens_separator", "str", "", "what stands before it keeps its place"),
        Flag("caption_dropout_rate", "float", 0.0, "chance of an empty caption"),
        Flag("caption_tag_dropout_rate", "float", 0.0, "chance of each tag"),
        Flag("flip_aug", "switch", False, "also mirrored"),
        Flag("alpha_mask", "switch", False, "transparency weighs the loss"),
        Flag("conditioning_data_dir", "path", "", "grey pictures of the same names that weigh the loss", ("mask_dir",)),
        Flag(
            "cache_latents",
            "switch",
            True,
            "latents on disk; --no-cache_latents keeps them in memory",
            ("cache_latents_to_disk",),
        ),
        Flag(
            "cache_text_encoder_outputs",
            "switch",
            True,
            "text on disk; --no-… keeps it in memory",
            ("cache_text_encoder_outputs_to_disk",),
        ),
        Flag("cache_dir", "str", "", "where caches are; default: .anima_cache in the first folder of pictures"),
        Flag("caption_variants", "int", 16, "cached shuffles of each caption; 0 encodes on the fly"),
        Flag("vae_batch_size", "int", 1, "pictures that the VAE encodes at once; on the CPU one"),
        Flag("strict", "switch", False, "whatever the data check warns of ends the run before it begins"),
    ],
    "network": [
        Flag("network_module", "str", "networks.lora_anima", "networks.lora_anima or networks.lokr_anima"),
        Flag("network_dim", "int", 4, "rank; 100000 or more means a full-matrix LoKr"),
        Flag("network_alpha", "float", 1.0, "the adapter is scaled by alpha / rank"),
        Flag("network_dropout", "float", 0.0, "dropout"),
        Flag("network_args", "list", (), "name=value: " + "see the table of network_args"),
        Flag("network_weights", "path", "", "start from this adapter file"),
        Flag("dim_from_weights", "switch", False, "take rank and alpha from network_weights"),
        Flag("train_norm", "switch", False, "also train the norms (sd-scripts-anima: on)"),
    ],
    "optimizer": [
        Flag("optimizer_type", "str", "AdamW", ", ".join(OPTIMIZERS)),
        Flag("learning_rate", "float", 1e-4, "learning rate"),
        Flag("unet_lr", "float", 0.0, "learning rate of the network; wins over learning_rate"),
        Flag("optimizer_args", "list", (), "name=value arguments of the optimizer"),
        Flag("use_8bit_adam", "switch", False, "optimizer_type=AdamW8bit"),
        Flag("use_lion_optimizer", "switch", False, "optimizer_type=Lion"),
        Flag("lr_scheduler", "str", "constant", ", ".join(SCHEDULES)),
        Flag("lr_warmup_steps", "float", 0.0, "warm-up steps; below 1 a part of all steps"),
        Flag("lr_warmup_ratio", "float", 0.0, "warm-up as a part of all steps"),
        Flag("lr_scheduler_num_cycles", "float", 1.0, "cycles of the cosine schedules"),
        Flag("lr_scheduler_power", "float", 1.0, "power of polynomial"),
        Flag("lr_scheduler_min_lr_ratio", "float", 0.0, "floor of cosine_with_min_lr"),
        Flag("max_grad_norm", "float", 1.0, "gradient clipping; 0 is off"),
    ],
    "training": [
        Flag("max_train_steps", "int", 1600, "optimizer steps"),
        Flag("max_train_epochs", "int", 0, "epochs; wins over max_train_steps"),
        Flag("gradient_accumulation_steps", "int", 1, "micro-batches in a step"),
        Flag("gradient_checkpointing", "switch", True, "recompute blocks in backward (sd-scripts: off)"),
        Flag("ema_decay", "float", 0.0, "average of the adapter over steps; 0 is off"),
        Flag("seed", "int", 42, "every random draw follows from it"),
        Flag(
            "timestep_sampling",
            "str",
            "logit_normal",
            "how t is drawn",
            ("anima_timestep_sampling",),
            tuple(TIMESTEPS),
        ),
        Flag("sigmoid_scale", "float", 1.0, "width of the logit-normal", ("anima_sigmoid_scale",)),
        Flag("discrete_flow_shift", "float", 1.0, "shift of t, for timestep_sampling=shift", ("training_shift",)),
        Flag("anima_flow_shift", "float", 0.0, "timestep_sampling=shift with this shift (sd-scripts-anima: always 3.0)"),
        Flag("loss_type", "str", "mse", "mse (l2), huber (smooth_l1), l1", choices=("l2", "smooth_l1", *LOSSES)),
        Flag("huber_c", "float", 0.1, "where Huber turns linear"),
        Flag("weighting_scheme", "str", "none", "loss weight by t", choices=tuple(WEIGHTS)),
        Flag("noise_offset", "float", 0.0, "shared noise per channel", ("anima_noise_offset",)),
    ],
    "output": [
        Flag("output_dir", "str", "output", "where the adapter and the run folder go"),
        Flag("output_name", "str", "anima", "their name"),
        Flag("save_precision", "str", "bf16", "dtype of the file", choices=("float", "fp32", "bf16", "fp16")),
        Flag("save_keys", "str", "diffusion_model", "key names of the file", choices=("diffusion_model", "lora_unet")),
        Flag("save_every_n_steps", "int", 0, "also save on the way"),
        Flag("save_every_n_epochs", "int", 0, "also save on the way"),
        Flag(
            "save_last_n_steps",
            "int",
            0,
            "how many of those to keep",
            ("save_last_n_epochs", "save_last_n", "save_last_n_steps_state", "save_last_n_epochs_state"),
        ),
        Flag("save_state", "switch", False, "with them, checkpoints to resume from", ("save_state_on_train_end",)),
        Flag("checkpoint_every_n_steps", "int", 0, "checkpoints alone"),
        Flag("checkpoint_every_n_minutes", "float", 10.0, "the same by the clock; 0 is off"),
        Flag("keep_checkpoints", "int", 2, "how many of those to keep; 0 keeps all"),
        Flag("resume", "str", "", "a checkpoint's or a run's folder, or latest"),
        Flag("resume_with_changes", "switch", False, "let learning rate, data and the like differ from the checkpoint's"),
        Flag("sample_prompts", "path", "", "a text file, one prompt a line, with --w --h --s --l --d --n --fs"),
        Flag("sample_every_n_steps", "int", 0, "steps between previews"),
        Flag("sample_every_n_epochs", "int", 0, "epochs between previews"),
        Flag("sample_at_first", "switch", False, "also before the first step"),
        Flag("sample_size", "str", "1024,1024", "width,height of previews"),
        Flag("sample_steps", "int", 30, "sampling steps of previews"),
        Flag("sample_cfg", "float", 4.0, "guidance of previews"),
        Flag("training_comment", "str", "", "written into the metadata"),
        Flag("log_with", "str", "", "tensorboard also writes TensorBoard files", choices=("", "tensorboard")),
        Flag("logging_dir", "str", "logs", "where TensorBoard files go"),
        Flag("config", "path", "", "a sectioned TOML: [model] [dataset] [training] [lora] [optimizer] [output]"),
        Flag("config_file", "path", "", "a sectioned TOML, or a flat one of these flags"),
        Flag("output_config", "switch", False, "write the settings as one TOML and stop"),
    ],
}

_FAMILY = "belongs to other model families"
_HARDWARE = "this trainer chooses by itself"
_HUB = "nothing is uploaded"
_UNUSED = "has no effect in sd-scripts' Anima trainer either"
_CHECKPOINT = "the run folder's checkpoints know it"
_TEXT = "the text encoder is never trained"
_LOG = "log.jsonl in the run folder has every number"
_MEMORY = "gradient checkpointing bounds memory; blocks are not swapped"

IGNORED = {  # name -> (number of values, reason)
    **dict.fromkeys(("sdpa", "xformers", "xfomers", "mem_eff_attn", "use_flash_attn", "use_sage_attn", "split_attn"), (0, _HARDWARE)),
    **dict.fromkeys(("attn_mode", "anima_attention_backend"), (1, _HARDWARE)),
    **dict.fromkeys(("lowram", "highvram", "no_half_vae", "disable_mmap_load_safetensors", "vae_disable_cache"), (0, _HARDWARE)),
    **dict.fromkeys(("vae_chunk_size", "text_encoder_batch_size"), (1, _HARDWARE)),
    **dict.fromkeys(("torch_compile",), (0, "compiled blocks are not available yet")),
    **dict.fromkeys(("dynamo_backend",), (1, "compiled blocks are not available yet")),
    **dict.fromkeys(("blocks_to_swap",), (1, _MEMORY)),
    **dict.fromkeys(("cpu_offload_checkpointing", "unsloth_offload_checkpointing"), (0, _MEMORY)),
    **dict.fromkeys(("max_data_loader_n_workers",), (1, "one thread reads ahead; no workers are needed")),
    **dict.fromkeys(("persistent_data_loader_workers",), (0, "one thread reads ahead; no workers are needed")),
    **dict.fromkeys(("anima_seq_len", "qwen3_max_token_length", "t5_max_token_length", "max_token_length"), (1, "captions are never cut, and padded to 512 as in ComfyUI")),
    **dict.fromkeys(("v2", "v_parameterization", "zero_terminal_snr", "debiased_estimation_loss", "weighted_captions", "scale_v_pred_loss_like_noise_pred", "fused_backward_pass"), (0, _FAMILY)),
    **dict.fromkeys(("clip_skip", "min_snr_gamma", "v_pred_like_loss", "guidance_scale", "model_prediction_type"), (1, _FAMILY)),
    **dict.fromkeys(("min_timestep", "max_timestep", "adaptive_noise_scale", "multires_noise_iterations", "multires_noise_discount", "ip_noise_gamma", "logit_mean", "logit_std", "mode_scale"), (1, _UNUSED)),
    **dict.fromkeys(("noise_offset_random_strength", "ip_noise_gamma_random_strength", "perlin_noise"), (0, _UNUSED)),
    **dict.fromkeys(("huber_schedule", "huber_scale"), (1, "Huber has one width for all t")),
    **dict.fromkeys(("network_train_unet_only",), (0, _TEXT)),
    **dict.fromkeys(("text_encoder_lr",), ("*", _TEXT)),
    **dict.fromkeys(("masked_loss",), (0, "masks are used wherever alpha_mask or conditioning_data_dir gives one")),
    **dict.fromkeys(("full_fp16", "full_bf16", "fp16_master_weights_and_gradients"), (0, "the adapter is always fp32: in bf16 most updates of a LoKr round away")),
    **dict.fromkeys(("initial_epoch", "initial_step"), (1, _CHECKPOINT)),
    **dict.fromkeys(("skip_until_initial_step", "anima_resume_snapshot_strict", "resume_ignore_optimizer_mismatch"), (0, _CHECKPOINT)),
    **dict.fromkeys(("save_model_as",), (1, "adapters are safetensors")),
    **dict.fromkeys(("save_n_epoch_ratio",), (1, "use save_every_n_epochs")),
    **dict.fromkeys(("use_safetensors", "no_metadata", "skip_cache_check", "debug_dataset", "random_crop", "color_aug", "enable_wildcard"), (0, "not done here")),
    **dict.fromkeys(("face_crop_aug_range", "token_warmup_min", "token_warmup_step", "caption_dropout_every_n_epochs", "secondary_separator", "resize_interpolation", "cache_info", "in_json", "dataset_class", "tokenizer_cache_dir"), (1, "not done here")),
    **dict.fromkeys(("validation_split", "validation_seed", "validate_every_n_steps", "validate_every_n_epochs", "max_validation_steps"), (1, "validation runs are not available yet")),
    **dict.fromkeys(("sample_sampler",), (1, "previews use euler")),
    **dict.fromkeys(("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token", "huggingface_repo_visibility"), (1, _HUB)),
    **dict.fromkeys(("async_upload", "save_state_to_huggingface"), (0, _HUB)),
    **dict.fromkeys(("log_prefix", "log_tracker_name", "log_tracker_config", "wandb_api_key", "wandb_run_name", "console_log_level", "console_log_file", "tensorboard_host", "tensorboard_port", "tensorboard_logdir"), (1, _LOG)),
    **dict.fromkeys(("log_config", "console_log_simple", "auto_start_tensorboard"), (0, _LOG)),
    **dict.fromkeys(("anima_monitor_memory",), (0, "memory stands in every step's event")),
    **dict.fromkeys(("anima_monitor_alert_policy", "anima_monitor_memory_warn_ratio", "anima_monitor_loss_spike_ratio"), (1, "non-finite losses are reported and stop the run; flow losses vary too much with t for a spike rule")),
    **dict.fromkeys(("auto_download_t5_tokenizer", "t5_tokenizer_modelscope_fallback", "t5_tokenizer_validate_strict"), (0, "nothing is downloaded; the tokenizer is always checked")),
    **dict.fromkeys(("t5_tokenizer_repo_id", "t5_tokenizer_subfolder", "t5_tokenizer_modelscope_repo_id", "t5_tokenizer_modelscope_revision", "t5_tokenizer_modelscope_subfolder", "llm_adapter_path"), (1, "nothing is downloaded; the tokenizer is always checked")),
    **dict.fromkeys(("ddp_timeout",), (1, "accelerate's own defaults are used")),
    **dict.fromkeys(("ddp_gradient_as_bucket_view", "ddp_static_graph"), (0, "gradients are one buffer already")),
    **dict.fromkeys(tuple(f"metadata_{name}" for name in ("title", "author", "description", "license", "tags", "usage_hint", "thumbnail", "merged_from", "trigger_phrase", "preprocessor", "is_negative_embedding")), (1, "metadata is written from the settings")),
    **dict.fromkeys(("lr_scheduler_args", "schedulefree_wrapper_args"), ("*", "the schedule's own flags set it")),
    **dict.fromkeys(("lr_scheduler_timescale", "lr_decay_steps"), (1, "the schedule's own flags set it")),
}  # fmt: skip

REFUSED = {  # name -> (number of values, why, and the way out)
    **dict.fromkeys(("fp8_base", "fp8_base_unet", "fp8_scaled"), (0, "8-bit base weights are not available; leave it out")),
    **dict.fromkeys(("offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device", "offload_param_nvme_path", "zero_stage"), (1, "DeepSpeed is not supported; use accelerate's plain data parallelism")),
    **dict.fromkeys(("zero3_init_flag", "zero3_save_16bit_model", "deepspeed"), (0, "DeepSpeed is not supported; use accelerate's plain data parallelism")),
    **dict.fromkeys(("network_train_text_encoder_only",), (0, "the text encoder cannot be trained; leave it out")),
    **dict.fromkeys(("scale_weight_norms",), (1, "weight norms are not limited here; leave it out and lower the learning rate")),
    **dict.fromkeys(("base_weights", "base_weights_multiplier"), ("*", "merging adapters into the base is not done here; merge first")),
    **dict.fromkeys(("resume_from_huggingface",), (0, "nothing is downloaded; give --resume a folder")),
    **dict.fromkeys(("lr_scheduler_type",), (1, "schedulers of your own are not loaded; use --lr_scheduler")),
    **dict.fromkeys(("optimizer_schedulefree_wrapper",), (0, "use optimizer_type=AdamWScheduleFree, RAdamScheduleFree or SGDScheduleFree")),
    **dict.fromkeys(("llm_adapter_lr", "self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr"), (1, "use --network_args network_reg_lrs=<pattern>=<rate>")),
}  # fmt: skip

NETWORK_ARGS = {  # what --network_args takes -> what it sets
    "target_modules": "patterns of layers, comma-separated: re:<regex>, globs, or ends of names; replaces the preset",
    "targets": "preset: attn+mlp, +adaln, +llm_adapter, all",
    "include_patterns": "further layers, a Python list of regular expressions on the whole name",
    "exclude_patterns": "layers left out, a Python list of regular expressions on the whole name",
    "network_reg_dims": "ranks by regular expression, re=16,re=0",
    "network_reg_lrs": "learning rates by regular expression, re=1e-4",
    "loraplus_lr_ratio": "learning rate of the zero-initialised factor, relative",
    "loraplus_unet_lr_ratio": "the same",
    "lokr_factor": "size of the small Kronecker factor",
    "lokr_full_matrix": "both factors whole",
    "lokr_decompose_both": "the small factor low-rank as well",
    "rank_dropout": "dropout of ranks",
    "lokr_rank_dropout": "the same",
    "module_dropout": "dropout of layers",
    "lokr_module_dropout": "the same",
    "train_norm": "also train the norms",
    "train_llm_adapter": "also train the LLM adapter",
    "verbose": "ignored",
}


def mapped_flags() -> list[Flag]:
    return [flag for group in MAPPED.values() for flag in group]


def known_names() -> list[str]:
    names = [name for flag in mapped_flags() for name in (flag.name, *flag.aliases)]
    return [*names, *IGNORED, *REFUSED]

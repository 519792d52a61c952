"""Flags of sd-scripts' Anima trainers that set nothing here: accepted without effect, or refused, each with its reason."""

# ruff: noqa: E501 (one line for each reason)

from typing import Any

_FAMILY = "belongs to other model families"
HARDWARE = "this trainer chooses by itself"
_HUB = "nothing is uploaded"
_UNUSED = "sd-scripts' Anima trainer does not read it either"
_CHECKPOINT = "the run folder's checkpoints know it"
_TEXT = "the text encoder is never trained"
_COMPILE = "compile has one form here: Inductor, whole graphs of blocks, one for pictures of all sizes"
_NO_GRAPHS = "compile has one form here: CUDA graphs and long searches for kernels are left out"
_CONSOLE = "the console has one form; redirect it to keep it"
_BOARD = "no server is started; --log_with tensorboard writes the files, tensorboard --logdir shows them"

IGNORED = {  # name -> (number of values, reason)
    **dict.fromkeys(("split_attn",), (0, "the pictures of a batch have one size, and attention takes no more memory for several")),
    **dict.fromkeys(("lowram", "highvram", "no_half_vae", "disable_mmap_load_safetensors", "vae_disable_cache", "cuda_allow_tf32", "cuda_cudnn_benchmark"), (0, HARDWARE)),
    **dict.fromkeys(("qwen_image_vae_2d",), (0, "the VAE reads the same weights and gives the same numbers")),
    **dict.fromkeys(("vae_chunk_size", "text_encoder_batch_size"), (1, HARDWARE)),
    **dict.fromkeys(("compile_fullgraph",), (0, _COMPILE)),
    **dict.fromkeys(("dynamo_backend", "compile_backend", "compile_dynamic", "compile_cache_size_limit"), (1, _COMPILE)),
    **dict.fromkeys(("compile_mode",), (1, _NO_GRAPHS)),
    **dict.fromkeys(("show_timesteps", "show_timesteps_resolution"), (1, "no chart is drawn; the run trains")),
    **dict.fromkeys(("skip_image_resolution",), (1, "small pictures are trained as well")),
    **dict.fromkeys(("max_data_loader_n_workers",), (1, "one thread reads ahead; no workers are needed")),
    **dict.fromkeys(("persistent_data_loader_workers",), (0, "one thread reads ahead; no workers are needed")),
    **dict.fromkeys(("anima_seq_len", "qwen3_max_token_length", "t5_max_token_length", "max_token_length"), (1, "captions are never cut, and padded to 512 as in ComfyUI")),
    **dict.fromkeys(("v2", "v_parameterization", "zero_terminal_snr", "debiased_estimation_loss", "weighted_captions", "scale_v_pred_loss_like_noise_pred"), (0, _FAMILY)),
    **dict.fromkeys(("fused_backward_pass",), (0, "belongs to full fine-tuning; an adapter's gradients are small")),
    **dict.fromkeys(("clip_skip", "v_pred_like_loss", "guidance_scale", "model_prediction_type"), (1, _FAMILY)),
    **dict.fromkeys(("adaptive_noise_scale",), (1, _UNUSED)),
    **dict.fromkeys(("min_snr_gamma",), (1, "sd-scripts' Anima trainer does not read it either; use weighting_scheme=min_snr and snr_gamma")),
    **dict.fromkeys(("noise_offset_random_strength", "perlin_noise"), (0, _UNUSED)),
    **dict.fromkeys(("ip_noise_gamma_random_strength",), (0, "the strength is ip_noise_gamma in every step")),
    **dict.fromkeys(("huber_schedule",), (1, "Huber has one width for all t")),
    **dict.fromkeys(("network_train_unet_only",), (0, _TEXT)),
    **dict.fromkeys(("text_encoder_lr",), ("*", _TEXT)),
    **dict.fromkeys(("masked_loss",), (0, "masks are used wherever alpha_mask or conditioning_data_dir gives one")),
    **dict.fromkeys(("full_fp16", "full_bf16", "fp16_master_weights_and_gradients"), (0, "the adapter is always fp32: in bf16 most updates of a LoKr round away")),
    **dict.fromkeys(("initial_epoch", "initial_step"), (1, _CHECKPOINT)),
    **dict.fromkeys(("skip_until_initial_step", "anima_resume_snapshot_strict", "resume_ignore_optimizer_mismatch"), (0, _CHECKPOINT)),
    **dict.fromkeys(("save_state_on_train_end",), (0, "the last step's state is always written")),
    **dict.fromkeys(("save_model_as",), (1, "adapters are safetensors")),
    **dict.fromkeys(("save_n_epoch_ratio",), (1, "use save_every_n_epochs")),
    **dict.fromkeys(("use_safetensors",), (0, "adapters are always safetensors")),
    **dict.fromkeys(("no_metadata",), (0, "metadata is always written; it names no folder and no user")),
    **dict.fromkeys(("skip_cache_check",), (0, "caches are found by content, which needs no check")),
    **dict.fromkeys(("debug_dataset",), (0, "python -m anima_core check shows the data")),
    **dict.fromkeys(("face_crop_aug_range",), (1, "faces are not looked for; random_crop draws the place")),
    **dict.fromkeys(("color_aug",), (0, "colours are trained as they are")),
    **dict.fromkeys(("token_warmup_min", "token_warmup_step"), (1, "all tags train from the start")),
    **dict.fromkeys(("caption_dropout_every_n_epochs",), (1, "use caption_dropout_rate")),
    **dict.fromkeys(("resize_interpolation",), (1, "Lanczos is used")),
    **dict.fromkeys(("cache_info",), (0, "the index of the cache folder does this")),
    **dict.fromkeys(("dataset_class",), (1, "datasets of your own code are not loaded")),
    **dict.fromkeys(("tokenizer_cache_dir",), (1, "nothing is downloaded; tokenizers are folders of their own")),
    **dict.fromkeys(("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token", "huggingface_repo_visibility"), (1, _HUB)),
    **dict.fromkeys(("async_upload", "save_state_to_huggingface"), (0, _HUB)),
    **dict.fromkeys(("console_log_level", "console_log_file"), (1, _CONSOLE)),
    **dict.fromkeys(("console_log_simple",), (0, _CONSOLE)),
    **dict.fromkeys(("tensorboard_host", "tensorboard_port", "tensorboard_logdir"), (1, _BOARD)),
    **dict.fromkeys(("auto_start_tensorboard",), (0, _BOARD)),
    **dict.fromkeys(("anima_monitor_memory",), (0, "memory stands in every step's event")),
    **dict.fromkeys(("anima_monitor_alert_policy", "anima_monitor_memory_warn_ratio", "anima_monitor_loss_spike_ratio"), (1, "non-finite losses are reported and stop the run; flow losses vary too much with t for a spike rule")),
    **dict.fromkeys(("auto_download_t5_tokenizer", "t5_tokenizer_modelscope_fallback", "t5_tokenizer_validate_strict"), (0, "nothing is downloaded; the tokenizer is always checked")),
    **dict.fromkeys(("t5_tokenizer_repo_id", "t5_tokenizer_subfolder", "t5_tokenizer_modelscope_repo_id", "t5_tokenizer_modelscope_revision", "t5_tokenizer_modelscope_subfolder"), (1, "nothing is downloaded; the tokenizer is always checked")),
    **dict.fromkeys(("ddp_timeout",), (1, "accelerate's own defaults are used")),
    **dict.fromkeys(("ddp_gradient_as_bucket_view", "ddp_static_graph"), (0, "gradients are one buffer already")),
    **dict.fromkeys(tuple(f"metadata_{name}" for name in ("merged_from", "preprocessor", "is_negative_embedding")), (1, "metadata is written from the settings")),
    **dict.fromkeys(("schedulefree_wrapper_args",), ("*", "no optimizer is wrapped; use optimizer_type=AdamWScheduleFree")),
}  # fmt: skip

REFUSED = {  # name -> (number of values, why, and the way out)
    **dict.fromkeys(("offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device", "offload_param_nvme_path", "zero_stage"), (1, "DeepSpeed is not supported; use accelerate's plain data parallelism")),
    **dict.fromkeys(("zero3_init_flag", "zero3_save_16bit_model", "deepspeed"), (0, "DeepSpeed is not supported; use accelerate's plain data parallelism")),
    **dict.fromkeys(("train_inpainting",), (0, "inpainting models are not trained here; leave it out")),
    **dict.fromkeys(("network_train_text_encoder_only",), (0, "the text encoder cannot be trained; leave it out")),
    **dict.fromkeys(("scale_weight_norms",), (1, "weight norms are not limited here; leave it out and lower the learning rate")),
    **dict.fromkeys(("base_weights", "base_weights_multiplier"), ("*", "merging adapters into the base is not done here; merge first")),
    **dict.fromkeys(("resume_from_huggingface",), (0, "nothing is downloaded; give --resume a folder")),
    **dict.fromkeys(("lr_scheduler_type",), (1, "schedulers of your own are not loaded; use --lr_scheduler")),
    **dict.fromkeys(("optimizer_schedulefree_wrapper",), (0, "use optimizer_type=AdamWScheduleFree, RAdamScheduleFree or SGDScheduleFree")),
    **dict.fromkeys(("llm_adapter_lr", "self_attn_lr", "cross_attn_lr", "mlp_lr", "mod_lr"), (1, "use --network_args network_reg_lrs=<pattern>=<rate>")),
}  # fmt: skip

# Names within --network_args: LyCORIS' and older sd-scripts' -> why
ARGUMENTS_IGNORED = {
    **dict.fromkeys(
        ("conv_dim", "conv_alpha", "use_tucker", "use_cp", "use_conv_cp", "disable_conv_cp"), "only linear layers are trained"
    ),
    "dropout": "use --network_dropout",
    "bypass_mode": "it changes no number",
    "rank_dropout_scale": "the ranks that are kept are always scaled",
    "block_size": "belongs to another algorithm",
    "train_t5xxl": _TEXT,
    "loraplus_text_encoder_lr_ratio": _TEXT,
    "verbose": "docs and notes name the layers",
}
ARGUMENTS_REFUSED = {
    "tlora_orthogonal_init": "T-LoRA starts as a LoRA does here; leave it out",
    "use_scalar": "a learnt scale is not available; leave it out",
    "rs_lora": "the scale is alpha / rank; leave it out, and multiply --network_alpha by the root of the rank",
    "unbalanced_factorization": "factors are only balanced; leave it out",
    "constraint": "norms are not limited; leave it out",
    "rescaled": "norms are not limited; leave it out",
    **dict.fromkeys(
        ("self_attn_dim", "cross_attn_dim", "mlp_dim", "mod_dim", "llm_adapter_dim", "emb_dims"),
        "use network_reg_dims=<pattern>=<rank>",
    ),
    "train_block_indices": "use exclude_patterns",
}
OFF = ("", "0", "0.0", "false", "no", "off", "none", "null", "undefined", "nan")  # what front ends write for nothing


def is_on(value: Any) -> bool:
    """Tell whether a word that has no effect, or is refused, asks for anything at all."""
    return bool(value) and str(value).strip().lower() not in OFF

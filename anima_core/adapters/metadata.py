"""What an adapter file says about itself: sd-scripts' `ss_*`, Stability's `modelspec.*`, and the whole configuration.

No local path and no user name leaves the machine: of every path only its last part is written.
"""

import hashlib
import json
import time
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from ..config import TrainConfig, to_dict

MODULES = {"lora": "networks.lora_anima", "lokr": "networks.lokr_anima"}
PATH_KEYS = {"transformer", "vae", "qwen", "t5_tokenizer_dir", "qwen_tokenizer_dir", "image_dir", "mask_dir", "weights"}
PATH_KEYS |= {"cache_dir", "dir", "adapter_dir", "resume"}


def file_name(path: str) -> str:
    """The last part of a path of either system."""
    return PurePath(path.replace("\\", "/")).name


def without_paths(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: without_paths(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [without_paths(v, key) for v in value]
    return file_name(value) if key in PATH_KEYS and isinstance(value, str) else value


def build_metadata(config: TrainConfig, extra: dict[str, str], state: dict[str, Tensor]) -> dict[str, str]:
    """extra: what only the run knows (steps, times, pictures). All values are strings, as the format wants."""
    network, optimizer = config.network, config.optimizer
    width, height = config.datasets[0].resolutions[0]
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime())
    arguments = {"targets": network.targets, "include": network.include, "exclude": network.exclude}
    if network.type == "lokr":
        arguments |= {"lokr_factor": network.factor, "lokr_full_matrix": network.full_matrix}
        arguments |= {"lokr_decompose_both": network.decompose_both}
    return {
        "ss_network_module": MODULES[network.type],
        "ss_network_dim": str(network.rank),
        "ss_network_alpha": str(network.alpha or float(network.rank)),
        "ss_network_dropout": str(network.dropout),
        "ss_network_args": json.dumps(arguments),
        "ss_output_name": config.output.name,
        "ss_training_comment": config.output.comment,
        "ss_learning_rate": str(optimizer.learning_rate),
        "ss_optimizer": optimizer.type,
        "ss_lr_scheduler": optimizer.scheduler,
        "ss_lr_warmup_steps": str(optimizer.warmup_steps),
        "ss_max_grad_norm": str(optimizer.max_grad_norm),
        "ss_max_train_steps": str(config.max_train_steps),
        "ss_gradient_accumulation_steps": str(config.gradient_accumulation_steps),
        "ss_gradient_checkpointing": str(config.gradient_checkpointing),
        "ss_total_batch_size": str(config.datasets[0].batch_size * config.gradient_accumulation_steps),
        "ss_resolution": f"({width}, {height})",
        "ss_seed": str(config.seed),
        "ss_timestep_sampling": config.flow.timestep_sampling,
        "ss_sigmoid_scale": str(config.flow.sigmoid_scale),
        "ss_discrete_flow_shift": str(config.flow.shift),
        "ss_weighting_scheme": config.flow.weighting,
        "ss_loss_type": config.flow.loss,
        "ss_base_model_version": "anima",
        "ss_sd_model_name": file_name(config.model.transformer),
        "ss_vae_name": file_name(config.model.vae),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"anima-preview/{network.type}",
        "modelspec.implementation": "https://huggingface.co/circlestone-labs/Anima",
        "modelspec.title": config.output.name,
        "modelspec.date": date,
        "modelspec.resolution": f"{width}x{height}",
        "sshs_model_hash": tensor_hash(state),
        "anima_trainer.config": json.dumps(without_paths(to_dict(config))),
    } | extra


def tensor_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 over the tensors, sorted by name: the same weights give the same hash, whatever the metadata says."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

"""What an adapter file says about itself: sd-scripts' `ss_*`, Stability's `modelspec.*`, and the whole configuration.

`ss_base_quantization` tells how the weights that it was trained on were stored: "fp8 scaled (float8_e4m3fn)", "none".
No local path and no user name leaves the machine: of every path only its last part is written.
"""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import PurePath

from torch import Tensor

from ..models.checkpoint import tensor_bytes
from ..settings import MetadataConfig, NetworkConfig, TrainConfig, to_dict
from ..version import __version__
from .types import ADAPTER_TYPES

OWN_KEYS = ("type", "rank", "alpha", "dropout", "weights")  # settings of the network that `ss_*` has keys for, or nobody needs


def file_name(path: str) -> str:
    """Return the last part of a path of either system."""
    return PurePath(path.replace("\\", "/")).name


def model_name(path: str, folder: str) -> str:
    """Return the name of a model's file, or of the folder in diffusers' layout that its own is in."""
    return file_name(path.replace("\\", "/").removesuffix(f"/{folder}"))


def build_metadata(config: TrainConfig, extra: dict[str, str], state: dict[str, Tensor]) -> dict[str, str]:
    """Return everything as strings, as the format wants. extra: what only the run knows (steps, times, pictures)."""
    found = network_metadata(config.network) | training_metadata(config) | model_metadata(config)
    return found | said_by(config.metadata) | {
        "sshs_model_hash": tensor_hash(state),
        "anima_trainer.version": __version__,
        "anima_trainer.config": json.dumps(to_dict(config, path=file_name)),
    } | extra  # fmt: skip


def network_metadata(network: NetworkConfig) -> dict[str, str]:
    chosen = {f.name: getattr(network, f.name) for f in fields(network) if f.name not in OWN_KEYS}
    return {
        "ss_network_module": ADAPTER_TYPES[network.type].modules[0],
        "ss_network_dim": str(network.rank),
        "ss_network_alpha": str(network.alpha or float(network.rank)),
        "ss_network_dropout": str(network.dropout),
        "ss_network_args": json.dumps(chosen),
    }


def training_metadata(config: TrainConfig) -> dict[str, str]:
    optimizer, flow, dataset = config.optimizer, config.flow, config.datasets[0]
    width, height = dataset.resolutions[0]
    return {
        "ss_learning_rate": str(optimizer.learning_rate),
        "ss_optimizer": optimizer.type,
        "ss_lr_scheduler": optimizer.scheduler,
        "ss_lr_warmup_steps": str(optimizer.warmup_steps),
        "ss_max_grad_norm": str(optimizer.max_grad_norm),
        "ss_max_train_steps": str(config.max_train_steps),
        "ss_gradient_accumulation_steps": str(config.gradient_accumulation_steps),
        "ss_total_batch_size": str(dataset.batch_size * config.gradient_accumulation_steps),
        "ss_resolution": f"({width}, {height})",
        "ss_seed": str(config.seed),
        "ss_timestep_sampling": flow.timestep_sampling,
        "ss_sigmoid_scale": str(flow.sigmoid_scale),
        "ss_discrete_flow_shift": str(flow.shift),
        "ss_weighting_scheme": flow.weighting,
        "ss_loss_type": flow.loss,
    }


def model_metadata(config: TrainConfig) -> dict[str, str]:
    width, height = config.datasets[0].resolutions[0]
    return {
        "ss_output_name": config.output.name,
        "ss_training_comment": config.output.comment,
        "ss_base_model_version": "anima",
        "ss_sd_model_name": model_name(config.model.transformer, "transformer"),
        "ss_vae_name": model_name(config.model.vae, "vae"),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"anima-preview/{config.network.type}",
        "modelspec.implementation": "https://huggingface.co/circlestone-labs/Anima",
        "modelspec.title": config.output.name,
        "modelspec.date": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime()),
        "modelspec.resolution": f"{width}x{height}",
    }


def said_by(metadata: MetadataConfig) -> dict[str, str]:
    """Return what whoever trained it says of the adapter."""
    names = ("title", "author", "description", "license", "tags", "usage_hint", "trigger_phrase")
    return {f"modelspec.{name}": text for name in names if (text := getattr(metadata, name))}


def tensor_hash(state: Mapping[str, Tensor]) -> str:
    """Return a SHA-256 over the tensors, sorted by name: the same weights give the same hash, whatever the metadata says."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(tensor_bytes(state[name]))
    return digest.hexdigest()

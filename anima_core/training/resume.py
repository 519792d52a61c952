"""What may differ between a checkpoint and the run that continues it."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..config import TrainConfig, from_dict, to_dict
from ..data.cache import file_digest
from ..data.folder import Picture
from ..errors import SettingError
from ..models.checkpoint import file_identity
from ..toml_file import read_toml
from .state import read_content

# Free: they shape no number of the steps that are left, or only how many there are.
FREE = (
    "max_train_steps",
    "max_train_epochs",
    "output.",
    "samples.",
    "device",
    "cache_",
    "vae_",
    "gradient_checkpointing",
    "strict_",
)
# Never: the stored tensors would mean something else.
FIXED = ("network.", "optimizer.type", "model.dtype", "content of the transformer")
# Where the same content lies does not matter.
PATHS = ("model.transformer", "model.vae", "model.qwen", "model.t5_tokenizer_dir", "model.qwen_tokenizer_dir")
FOLDERS = ("image_dir", "mask_dir")


def contents(config: TrainConfig, pictures: Sequence[Sequence[Picture]]) -> dict[str, str]:
    """SHA-256 of what a run is made from: the model files, and the pictures with their captions and masks, in order."""
    models = {
        "transformer": config.model.transformer,
        "VAE": config.model.vae,
        "Qwen": config.model.qwen,
        "T5 tokenizer": config.model.t5_tokenizer_dir,
    }
    data = hashlib.sha256()
    for group in pictures:
        for p in group:
            mask = file_digest(p.mask_path) if p.mask_path else ""
            data.update(json.dumps([p.digest, p.caption, p.repeats, mask]).encode())
        data.update(b"\n")
    return {f"content of the {name}": file_identity(path) for name, path in models.items()} | {
        "content of the data": data.hexdigest()
    }


def compare_with(checkpoint: Path, config: TrainConfig, content: dict[str, str]) -> list[str]:
    """Differences as warnings. Raises SettingError for what cannot work, and for what can unless it is allowed."""
    before = flat(to_dict(from_dict(TrainConfig, read_toml(checkpoint / "config.toml"), "checkpoint")))
    before |= read_content(checkpoint)
    now = flat(to_dict(config)) | content
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    notable = [key for key in changed if not (key.startswith(FREE) or key in PATHS or key.endswith(FOLDERS))]
    differences = [difference(key, before.get(key), now.get(key)) for key in notable]
    for key, text in zip(notable, differences):
        if key.startswith(FIXED):
            raise SettingError(f"resume: {text}; this cannot continue: start a new run, or give network_weights")
    if notable and not config.output.resume_with_changes:
        listed = ", ".join(differences[:3])
        raise SettingError(
            f"resume: {len(notable)} settings differ ({listed}); add --resume_with_changes to go on with the new ones"
        )
    return [f"resumed with a change: {text}" for text in differences]


def difference(key: str, before: Any, now: Any) -> str:
    if key.startswith("content of"):
        return f"{key} is not what it was"
    return f"{key} was {before!r}, now {now!r}"


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists -> {"a.b[0].c": value}."""
    if isinstance(data, dict):
        return {k: v for key, item in data.items() for k, v in flat(item, f"{prefix}.{key}" if prefix else key).items()}
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return {k: v for i, item in enumerate(data) for k, v in flat(item, f"{prefix}[{i}]").items()}
    return {prefix: data}

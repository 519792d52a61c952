"""What may differ between a checkpoint and the run that continues it."""

from pathlib import Path
from typing import Any

from ..config import TrainConfig, from_dict, to_dict
from ..errors import SettingError
from ..models.checkpoint import file_identity
from ..toml_file import read_toml

# Free: they shape no number of the steps that are left, or only how many there are.
FREE = ("max_train_steps", "max_train_epochs", "output.", "samples.", "device", "cache_", "vae_", "gradient_checkpointing")
# Never: the stored tensors would mean something else.
FIXED = ("network.", "optimizer.type", "model.dtype")
PATHS = ("model.transformer", "model.vae", "model.qwen", "model.t5_tokenizer_dir", "model.qwen_tokenizer_dir")


def compare_with(checkpoint: Path, config: TrainConfig) -> list[str]:
    """Differences as warnings. Raises SettingError for what cannot work, and for what can unless it is allowed."""
    before = flat(to_dict(from_dict(TrainConfig, read_toml(checkpoint / "config.toml"), "checkpoint")))
    now = flat(to_dict(config))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    notable = [key for key in changed if not key.startswith(FREE) and not same_content(key, before, now)]
    for key in notable:
        if key.startswith(FIXED) or key in PATHS[:1]:
            difference = f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
            raise SettingError(f"resume: {difference}; this cannot continue: start a new run, or give network_weights")
    if notable and not config.output.resume_with_changes:
        listed = ", ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in notable[:3])
        raise SettingError(
            f"resume: {len(notable)} settings differ ({listed}); add --resume_with_changes to go on with the new ones"
        )
    return [f"resumed with another {key}: {before.get(key)!r} -> {now.get(key)!r}" for key in notable]


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts and lists -> {"a.b[0].c": value}."""
    if isinstance(data, dict):
        return {k: v for key, item in data.items() for k, v in flat(item, f"{prefix}.{key}" if prefix else key).items()}
    if isinstance(data, list) and any(isinstance(item, dict) for item in data):
        return {k: v for i, item in enumerate(data) for k, v in flat(item, f"{prefix}[{i}]").items()}
    return {prefix: data}


def same_content(key: str, before: dict[str, Any], now: dict[str, Any]) -> bool:
    """A model file that only moved is the same model."""
    if key not in PATHS or not before.get(key) or not now.get(key):
        return False
    old, new = Path(before[key]), Path(now[key])
    return old.exists() and new.exists() and file_identity(old) == file_identity(new)

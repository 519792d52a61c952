"""The scale of an adapter that PEFT or diffusers saved: both keep alpha out of the tensors.

PEFT writes `adapter_config.json` beside `adapter_model.safetensors`; diffusers the same facts into the file's header, as
`lora_adapter_metadata`, behind the name of the component. Without either the scale is 1, as in ComfyUI.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FileError
from ..models.checkpoint import read_metadata

HEADER, FILE, BESIDE = "lora_adapter_metadata", "adapter_model.safetensors", "adapter_config.json"
COMPONENT = "transformer."
RANKED = re.compile(r"\.(lora_A(?:\.default)?\.weight|hada_w1_b|lokr_w2_b|lokr_w1_b)$")  # its first side is the rank
LEADING = re.compile(r"^(?:base_model\.model\.|transformer\.|diffusion_model\.)+")


def with_config_alphas(path: str | Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's tensors with the alphas that its configuration gives. Raises FileError for a damaged one."""
    found = dict(tensors)
    config = scales_of(path)
    if not config:
        return found
    for key, tensor in tensors.items():
        mark = RANKED.search(key)
        stem = key[: mark.start()] if mark else ""
        if stem and tensor.ndim and f"{stem}.alpha" not in tensors:
            found[f"{stem}.alpha"] = torch.tensor(alpha_of_module(LEADING.sub("", stem), tensor.shape[0], config))
    return found


def scales_of(path: str | Path) -> dict[str, Any]:
    """Return what PEFT's configuration of a file says about its scale, empty where there is none. Raises FileError."""
    header, beside = read_metadata(path).get(HEADER, ""), Path(path).parent / BESIDE
    if header:
        where = f"{path}: its {HEADER}"
        config = {name.removeprefix(COMPONENT): value for name, value in _table(header, where).items()}
    elif Path(path).name == FILE and beside.is_file():
        where, config = str(beside), _table(beside.read_text(encoding="utf-8", errors="replace"), str(beside))
    else:
        return {}
    alpha, patterns = config.get("lora_alpha", config.get("alpha")), config.get("alpha_pattern") or {}
    if alpha is None:
        return {}
    values = [alpha, *patterns.values()] if isinstance(patterns, dict) else [patterns]
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise FileError(f"{where}: its alphas are no numbers ({str(values)[:60]}); repair it, or take it away")
    return {"alpha": alpha, "patterns": patterns, "root": config.get("use_rslora") is True}


def _table(text: str, where: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise FileError(f"{where}: not a JSON table; repair it, or take it away")
    return found


def alpha_of_module(module: str, rank: int, config: dict[str, Any]) -> float:
    """Return the alpha of a module by PEFT's rules: its own where a pattern is its name's end; rank-stabilised, times √r."""
    own = (value for pattern, value in config["patterns"].items() if module == pattern or module.endswith(f".{pattern}"))
    alpha = float(next(own, config["alpha"]))
    return alpha * math.sqrt(rank) if config["root"] else alpha

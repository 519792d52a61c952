"""Devices, dtypes and what they hold."""

import gc

import torch

from ..errors import SettingError
from ..models.checkpoint import DTYPES
from ..settings import TrainConfig

# Bytes on the device from which "auto" keeps activations: a LoRA step at 1024 px needs 17.7 GB then (docs/model.md §10.2).
ROOMY = 20e9


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or the best there is: CUDA (ROCm answers to that name), XPU, MPS, CPU. Raises SettingError."""
    if name != "auto":
        return _named_device(name)
    for kind in ("cuda", "xpu", "mps"):
        if _available(kind):
            return torch.device(kind, torch.accelerator.current_device_index()) if kind != "mps" else torch.device(kind)
    return torch.device("cpu")


def _available(kind: str) -> bool:
    backend = torch.backends.mps if kind == "mps" else getattr(torch, kind, None)
    return backend is not None and backend.is_available()


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingError(f"`train.device`={name}: not a device; use auto, cpu, cuda, cuda:1, xpu or mps") from None
    if device.type != "cpu" and not _available(device.type):
        torch_here = f"this machine's torch {torch.__version__} has none"
        raise SettingError(f"`train.device`={name}: {torch_here}; use `train.device=auto`")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return a dtype by name. auto: bf16 where the device computes in it, fp16 on older CUDA cards and MPS, fp32 on the CPU."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) and torch.version.hip is None:
        return torch.float16  # before Ampere bf16 is emulated
    return torch.float16 if device.type == "mps" else torch.bfloat16


def recomputes(memory: str, device: torch.device) -> bool:
    """Decide whether blocks are recomputed in the backward pass, see `train.memory`."""
    if memory != "auto":
        return memory == "recompute"
    return device.type != "cpu" and total_memory(device) < ROOMY


def total_memory(device: torch.device) -> int:
    """Return the bytes that an accelerator has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "xpu":
        return torch.xpu.get_device_properties(device).total_memory
    return torch.mps.recommended_max_memory() if device.type == "mps" else 0


def free_memory() -> None:
    """Give back what dropped models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif _available("xpu"):
        torch.xpu.empty_cache()
    elif _available("mps"):
        torch.mps.empty_cache()


def peak_gb(device: torch.device) -> float:
    """Return the peak memory that torch reserved on the device, in GB; 0 where it does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    if device.type == "xpu":
        return torch.xpu.max_memory_reserved(device) / 1e9
    return torch.mps.driver_allocated_memory() / 1e9 if device.type == "mps" else 0.0


def out_of_memory_advice(config: TrainConfig, recompute: bool, shapes: list[torch.Size], error: BaseException) -> str:
    """Name the first setting that would make the step fit. shapes: of its micro-batches' latents, [B, 16, h, w]."""
    count, _, h, w = max(shapes, key=lambda s: s[0] * s[2] * s[3])
    if not recompute:
        advice = "use `train.memory=recompute`"
    elif count > 1:
        accumulation = config.gradient_accumulation_steps * 2
        advice = f"use `dataset.batch_size={max(1, count // 2)}` with `train.gradient_accumulation_steps={accumulation}`"
    else:
        advice = "use a smaller `dataset.resolutions` or `network.rank`"
    return f"out of memory at {count} pictures of {8 * w}x{8 * h} ({str(error).splitlines()[0][:120]}); {advice}"

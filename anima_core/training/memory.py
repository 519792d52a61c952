"""Devices, dtypes and what they hold."""

import gc
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from ..errors import SettingError, is_out_of_memory
from ..models.checkpoint import DTYPES
from ..settings import TrainConfig

T = TypeVar("T")
MPS_TILE = 1024  # px: at 1536 the VAE's attention scores, 5.4 GB, pass what Metal allows for one tensor


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or the best there is: CUDA (ROCm answers to that name), XPU, MPS, CPU. Raises SettingError."""
    if name != "auto":
        return _named_device(name)
    for kind in ("cuda", "xpu", "mps"):
        if _available(kind):
            return torch.device(kind) if kind == "mps" else torch.device(kind, getattr(torch, kind).current_device())
    return torch.device("cpu")


def _available(kind: str) -> bool:
    backend = torch.backends.mps if kind == "mps" else getattr(torch, kind, None)
    return backend is not None and backend.is_available()


def _named_device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SettingError(f"`train.device`={name}: not a device; use auto, cpu, cuda, cuda:1, xpu or mps") from None
    if device.type == "privateuseone":
        others = "use a CUDA, ROCm, XPU or MPS build of torch, or the CPU"
        raise SettingError(f"`train.device`={name}: DirectML cannot train this model; {others}")
    if device.type != "cpu" and not _available(device.type):
        torch_here = f"this machine's torch {torch.__version__} has none"
        raise SettingError(f"`train.device`={name}: {torch_here}; use `train.device=auto`")
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype in which a model computes, by `model.dtype`.

    auto and int8: bf16 where the device computes in it, fp16 on older CUDA cards and MPS, fp32 on the CPU.
    """
    if name in DTYPES:
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) and torch.version.hip is None:
        return torch.float16  # before Ampere bf16 is emulated
    return torch.float16 if device.type == "mps" else torch.bfloat16


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still get on an accelerator."""
    if device.type in ("cuda", "xpu"):
        backend = getattr(torch, device.type)
        unused = backend.memory_reserved(device) - backend.memory_allocated(device)
        if hasattr(backend, "mem_get_info"):
            return backend.mem_get_info(device)[0] + unused
        return backend.get_device_properties(device).total_memory - backend.memory_allocated(device)  # XPU before torch 2.6
    return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory() if device.type == "mps" else 0


def card_of(device: torch.device) -> tuple[str, int]:
    """Return the name of a device, as its driver gives it, and the bytes of its memory, 0 where unknown."""
    if device.type in ("cuda", "xpu"):
        facts = getattr(torch, device.type).get_device_properties(device)
        return facts.name, facts.total_memory
    return device.type, 0


def vae_tile(device: torch.device, tile: int) -> int:
    """Return the tile, px, that the VAE can take on a device, see `train.vae_tile`."""
    return min(tile or MPS_TILE, MPS_TILE) if device.type == "mps" else tile


def free_memory() -> None:
    """Give back what dropped models held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif _available("xpu"):
        torch.xpu.empty_cache()
    elif _available("mps"):
        torch.mps.empty_cache()


def once_more(function: Callable[..., T], *inputs: Any) -> T:
    """Call a function, and when memory runs out give back what torch holds unused and call it again.

    It must change nothing before it has all that it allocates.
    """
    try:
        return function(*inputs)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    free_memory()
    return function(*inputs)


def reset_peak(device: torch.device) -> None:
    """Begin to measure the peak from what is in use now."""
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)


def taken_since_reset(device: torch.device) -> int | None:
    """Return the most bytes of tensors that there were since `reset_peak` beyond those that there are; None if not told."""
    if device.type not in ("cuda", "xpu"):
        return None
    backend = getattr(torch, device.type)
    return backend.max_memory_allocated(device) - backend.memory_allocated(device)


def peak_gb(device: torch.device) -> float:
    """Return the peak memory that torch reserved on the device since `reset_peak`, in GB; 0 where it does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    if device.type == "xpu":
        return torch.xpu.max_memory_reserved(device) / 1e9
    return torch.mps.driver_allocated_memory() / 1e9 if device.type == "mps" else 0.0


def out_of_memory_advice(config: TrainConfig, shapes: list[torch.Size], error: str) -> str:
    """Say what would make a step fit when all has been done that changes no number. shapes: of its latents, [B, 16, h, w]."""
    _, _, h, w = max(shapes, key=lambda s: s[2] * s[3])
    said = error.partition("\n")[0][:120]
    advice = "use a smaller `dataset.resolutions` or `network.rank`"
    if config.memory_gb:
        advice += f", or a higher `train.memory_gb` than {config.memory_gb:g}"
    return f"out of memory at one picture of {8 * w}x{8 * h} with every block recomputed ({said}); {advice}"

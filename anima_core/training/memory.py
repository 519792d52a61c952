"""Devices, dtypes and what they hold."""

import gc

import torch

from ..errors import SettingError
from ..models.checkpoint import DTYPES
from ..models.transformer import PATCH, AnimaTransformer
from ..models.vae import SCALE
from ..settings import TrainConfig

# Tensors of N x D that a block keeps for its backward pass, by what stands in its layers (docs/model.md §10.2).
KEPT = {"lora": 26.9}
KEPT_BY_OTHERS = 38.0  # LoKr with whole factors
KEPT_BY_ADALN = 6.1  # more, where the modulation is trained
KEPT_BY_FP16 = 3.0  # more, for a residual in fp32
MOMENTS = 8  # bytes for each trained number whose optimizer makes them in its first step
FRAGMENTS = 1.06  # of what a step holds torch's allocator takes, about
MARGIN = 0.5e9  # bytes: the temporary tensors of one block's backward pass
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
    """Return a dtype by name. auto: bf16 where the device computes in it, fp16 on older CUDA cards and MPS, fp32 on the CPU."""
    if name != "auto":
        return DTYPES[name]
    if device.type == "cpu":
        return torch.float32
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0) and torch.version.hip is None:
        return torch.float16  # before Ampere bf16 is emulated
    return torch.float16 if device.type == "mps" else torch.bfloat16


def recomputes(config: TrainConfig, model: AnimaTransformer, trained: int, pixels: int) -> tuple[bool, str]:
    """Decide whether blocks are recomputed in the backward pass, see `train.memory`; return it with the reason for auto.

    model: on its device, with everything else that will be there except what a step makes. trained: how many numbers will get
    their moments in the first step; pixels: of the run's largest batch.
    """
    if config.memory != "auto" or model.device.type == "cpu":
        return config.memory == "recompute", ""
    needed, free = FRAGMENTS * (kept_bytes(config, model, pixels) + MOMENTS * trained) + MARGIN, free_bytes(model.device)
    what = f"keeping all activations takes {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free on {model.device}"
    recompute = needed > free
    return recompute, f"{what}: blocks are {'recomputed' if recompute else 'not recomputed'} in the backward pass"


def kept_bytes(config: TrainConfig, model: AnimaTransformer, pixels: int) -> float:
    """Return what all blocks keep for the backward pass of a batch of so many pixels, all its pictures together."""
    tensors = KEPT.get(config.network.type, KEPT_BY_OTHERS)
    if any("adaln" in name for name, p in model.named_parameters() if p.requires_grad):
        tensors += KEPT_BY_ADALN
    if model.dtype == torch.float16:
        tensors += KEPT_BY_FP16
    rows = pixels / (SCALE * PATCH) ** 2
    return tensors * model.config.blocks * rows * model.config.width * model.dtype.itemsize


def free_bytes(device: torch.device) -> int:
    """Return the bytes that this process can still get on an accelerator."""
    if device.type in ("cuda", "xpu"):
        backend = getattr(torch, device.type)
        unused = backend.memory_reserved(device) - backend.memory_allocated(device)
        if hasattr(backend, "mem_get_info"):
            return backend.mem_get_info(device)[0] + unused
        return backend.get_device_properties(device).total_memory - backend.memory_allocated(device)  # XPU before torch 2.6
    return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory() if device.type == "mps" else 0


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


def reset_peak(device: torch.device) -> None:
    """Begin to measure the peak from what is in use now."""
    if device.type in ("cuda", "xpu"):
        getattr(torch, device.type).reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float:
    """Return the peak memory that torch reserved on the device since `reset_peak`, in GB; 0 where it does not tell."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device) / 1e9
    if device.type == "xpu":
        return torch.xpu.max_memory_reserved(device) / 1e9
    return torch.mps.driver_allocated_memory() / 1e9 if device.type == "mps" else 0.0


def out_of_memory_advice(config: TrainConfig, shapes: list[torch.Size], error: str) -> str:
    """Name the first setting that would make a step fit which recomputation does not. shapes: of its latents, [B, 16, h, w]."""
    count, _, h, w = max(shapes, key=lambda s: s[0] * s[2] * s[3])
    if count > 1:
        accumulation = config.gradient_accumulation_steps * 2
        advice = f"use `dataset.batch_size={max(1, count // 2)}` with `train.gradient_accumulation_steps={accumulation}`"
    else:
        advice = "use a smaller `dataset.resolutions` or `network.rank`"
    what = f"out of memory at {count} pictures of {8 * w}x{8 * h} with blocks recomputed"
    said = error.partition("\n")[0][:120]
    return f"{what} ({said}); {advice}"

"""Fast functions prove themselves on the device where they are to run: once, on a few numbers, before the first step."""

from collections.abc import Callable

import torch
from torch import Tensor

from ..models.ops import PLAIN, Ops
from .lean import LEAN

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of a norm; each is ten roundings or more
SHAPE = (1, 24, 2, 128)  # [B, S, H, d]


def proven(device: torch.device, dtype: torch.dtype, fast: Ops = LEAN) -> tuple[Ops, str]:
    """Return the fast functions, or the plain ones and the reason: the others fail there, or give other numbers."""
    try:
        errors = {name: difference(getattr(PLAIN, name), getattr(fast, name), device, dtype) for name in ("norm_rope", "gelu")}
    except RuntimeError as error:  # NotImplementedError too: an operation that the device lacks
        return PLAIN, str(error).partition("\n")[0][:120]
    name, worst = max(errors.items(), key=lambda item: item[1])
    if worst <= TOLERANCE[dtype]:
        return fast, ""
    return PLAIN, f"{name} differs by {worst:.1e} from its plain form"


def difference(slow: Callable[..., Tensor], fast: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> float:
    """Return how far results and gradients of two functions are apart, relative to their size, the farthest; inf for NaN."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(SHAPE, generator=generator).to(device, dtype) for _ in range(2))
    inputs = arguments(slow, device, dtype)
    results = []
    for function in (slow, fast):
        own = x.clone().requires_grad_(True)
        y = function(own, *inputs)
        results.append((y.detach().float(), torch.autograd.grad(y, own, g.clone())[0].float()))
    apart = [((a - b).norm() / a.norm()).item() for a, b in zip(*results)]
    return max(apart) if all(torch.tensor(apart).isfinite()) else float("inf")


def arguments(function: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> tuple:
    """Return what a function takes beside x."""
    if function is not PLAIN.norm_rope:
        return ()
    angles = torch.linspace(0, 6, SHAPE[1] * SHAPE[3] // 2, device=device).view(SHAPE[1], 1, -1)
    return torch.linspace(0.5, 1.5, SHAPE[3], device=device, dtype=dtype), (angles.cos(), angles.sin())

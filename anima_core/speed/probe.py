"""Fast functions prove themselves on the device where they are to run: once, on a few numbers, before the first step."""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from ..adapters.casts import Casts
from ..adapters.layers import AdaptedLinear
from ..adapters.network import AdapterNetwork
from ..models.frozen import FrozenLinear, FrozenWeight, frozen_linears, home
from ..models.ops import PLAIN, Ops
from .lean import LEAN

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of a norm; each is ten roundings or more
SHAPE = (1, 24, 2, 128)  # [B, S, H, d]
ROWS = 24  # of an adapted layer's input
TINY = 1e-30


def proven(device: torch.device, dtype: torch.dtype, fast: Ops = LEAN) -> tuple[Ops, str]:
    """Return the fast functions, or the plain ones and the reason: the others fail there, or give other numbers."""

    def errors() -> dict[str, float]:
        names = ("norm_rope", "gelu")
        return {name: difference(getattr(PLAIN, name), getattr(fast, name), device, dtype) for name in names}

    reason = verdict(errors, dtype)
    return (PLAIN, reason) if reason else (fast, "")


def adapters_proven(network: AdapterNetwork) -> str:
    """Return why the fast form of a network's adapters is to be left out; empty where it proves itself, or there is none.

    Of the layers whose adapters have the same parts the smallest is tried, as a copy with numbers of its own.
    """
    alike: dict[tuple[str, ...], AdaptedLinear] = {}
    for module in sorted(network.linears, key=lambda module: module.base.in_features * module.base.out_features):
        alike.setdefault(tuple(name for name, _ in module.adapter.named_parameters()), module)
    if not alike:
        return ""

    def errors() -> dict[str, float]:
        return {network.kind.name: max(map(adapter_difference, alike.values()))}

    return verdict(errors, home(network.linears[0].base).dtype)


def weights_proven(model: nn.Module) -> str:
    """Return why weights that are stored in another way are not to be used on their device; empty where they are right.

    Of each kind the smallest is written there, and beside it on the CPU.
    """
    smallest: dict[str, FrozenLinear] = {}
    for _, layer in sorted(frozen_linears(model), key=lambda found: found[1].stored.shape.numel()):
        smallest.setdefault(layer.stored.kind, layer)

    def errors() -> dict[str, float]:
        return {kind: weight_difference(layer.stored, home(layer)) for kind, layer in smallest.items()}

    return verdict(errors, home(next(iter(smallest.values()))).dtype) if smallest else ""


def weight_difference(stored: FrozenWeight, like: Tensor) -> float:
    """Return how far the numbers of a weight are apart as the CPU and another tensor's device write them, in its dtype."""

    @torch.no_grad()
    def written(device: torch.device) -> list[Tensor]:
        into = torch.empty(stored.shape, dtype=like.dtype, device=device)
        stored.twin(lambda buffer: buffer.to(device)).write(into)
        return [into.cpu()]

    return apart(written(torch.device("cpu")), written(like.device))


def verdict(errors: Callable[[], Mapping[str, float]], dtype: torch.dtype) -> str:
    """Return why what was tried is not to be used: it raised, or is too far from its plain form; empty where it is right."""
    try:
        name, worst = max(errors().items(), key=lambda item: item[1])
    except RuntimeError as error:  # NotImplementedError too: an operation that the device lacks
        return str(error).partition("\n")[0][:120]
    return "" if worst <= TOLERANCE[dtype] else f"{name} differs by {worst:.1e} from its plain form"


def verdict_on(results: Callable[[], Sequence[Tensor]], truth: Sequence[Tensor], dtype: torch.dtype) -> str:
    """Return why what computes these results is not to be used; empty where it is right. It may raise anything."""
    try:
        worst = apart(truth, results())
    except Exception as error:
        return str(error).partition("\n")[0].partition(". ")[0][:120] or type(error).__name__
    if worst == math.inf:
        return "its output or a gradient is not finite"
    return "" if worst <= TOLERANCE[dtype] else f"differs by {worst:.1e} from its plain form"


def difference(slow: Callable[..., Tensor], fast: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> float:
    """Return how far results and gradients of two functions are apart."""
    generator = torch.Generator().manual_seed(0)
    x, g = (torch.randn(SHAPE, generator=generator).to(device, dtype) for _ in range(2))
    inputs = arguments(slow, device, dtype)
    results = []
    for function in (slow, fast):
        own = x.clone().requires_grad_(True)
        y = function(own, *inputs)
        results.append((y.detach(), torch.autograd.grad(y, own, g.clone())[0]))
    return apart(*results)


def adapter_difference(module: AdaptedLinear) -> float:
    """Return how far an adapted layer's output and gradients are apart in its two forms."""
    generator, like = torch.Generator().manual_seed(0), home(module.base)
    inputs, outputs = module.base.in_features, module.base.out_features

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(like.device) / shape[-1] ** 0.5

    base = nn.Linear(inputs, outputs, bias=False, device="meta")
    base.weight = nn.Parameter(random(outputs, inputs).to(like.dtype), requires_grad=False)
    layer = type(module)(base, deepcopy(module.adapter).eval())  # without dropout
    for parameter in layer.adapter.parameters():
        parameter.data = random(*parameter.shape)
    x, g = (random(ROWS, side).mul_(side**0.5).to(like.dtype) for side in (inputs, outputs))
    results = []
    for layer.fused in (False, True):
        own = x.clone().requires_grad_(True)
        for parameter in layer.adapter.parameters():
            parameter.requires_grad_(True).grad = torch.zeros_like(parameter)
        with Casts([layer.adapter], (), like.dtype).in_use():
            y = layer(own)
            y.backward(g.clone())
        results.append([y.detach(), own.grad, *(parameter.grad for parameter in layer.adapter.parameters())])
    return apart(*results)


def apart(slow: Sequence[Tensor], fast: Sequence[Tensor]) -> float:
    """Return how far tensors are apart, relative to their size, the farthest; inf for NaN."""
    found = [((a.float() - b.float()).norm() / a.float().norm().clamp_min(TINY)).item() for a, b in zip(slow, fast)]
    return max(found) if all(torch.tensor(found).isfinite()) else float("inf")


def arguments(function: Callable[..., Tensor], device: torch.device, dtype: torch.dtype) -> tuple:
    """Return what a function takes beside x."""
    if function is not PLAIN.norm_rope:
        return ()
    angles = torch.linspace(0, 6, SHAPE[1] * SHAPE[3] // 2, device=device).view(SHAPE[1], 1, -1)
    return torch.linspace(0.5, 1.5, SHAPE[3], device=device, dtype=dtype), (angles.cos(), angles.sin())

"""Samplers by ComfyUI's names: each is a function that takes one step, to the level of noise that comes next.

The model is a rectified flow: x = (1 - sigma) picture + sigma noise, and its velocity v foretells the picture x0 = x - sigma v.
Then dx / d sigma = v = (x - x0) / sigma, which the deterministic samplers solve. Stochastic ones add noise on the way.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from ..errors import SettingError

Draw = Callable[[float, float], Tensor]  # (sigma, the next one) -> noise ~ N(0, 1) of the shape of x
KEPT = 3  # predictions that a sampler may look back at
INTEGRATION_POINTS = 200  # of ER-SDE's integrals: as many as its authors' code and ComfyUI take
SEEDS = 2**64  # a seed wraps around


@dataclass(frozen=True)
class Step:
    """What a sampler knows in one step. sigmas: the levels so far, the last to be stepped to; x0s: foretold at those before."""

    x: Tensor
    velocity: Tensor
    sigmas: Sequence[float]
    x0s: Sequence[Tensor]
    draw: Draw

    @property
    def ends(self) -> bool:
        return self.sigmas[-1] == 0

    @property
    def noise(self) -> Tensor:
        return self.draw(self.sigmas[-2], self.sigmas[-1])


def euler(step: Step) -> Tensor:
    """Follow the velocity: x' = x + (sigma' - sigma) v. Of first order."""
    sigma, following = step.sigmas[-2:]
    return step.x + step.velocity * (following - sigma)


def euler_ancestral(step: Step) -> Tensor:
    """Follow the velocity below the next level, to d = sigma'^2 / sigma, and come up to it with fresh noise.

    x' = k (x + (d - sigma) v) + sqrt(sigma'^2 - (k d)^2) z with k = (1 - sigma') / (1 - d), which keeps the picture's share:
    the ancestral step of Karras et al. 2022, arXiv 2206.00364, for a flow.
    """
    sigma, following = step.sigmas[-2:]
    if step.ends:
        return step.x0s[-1]
    down = following**2 / sigma
    scale = (1 - following) / (1 - down)
    kept = down / sigma
    x = kept * step.x + (1 - kept) * step.x0s[-1]
    return scale * x + math.sqrt(max(0.0, following**2 - (scale * down) ** 2)) * step.noise


def dpmpp_2m(step: Step) -> Tensor:
    """DPM-Solver++(2M), Lu et al. 2022, arXiv 2211.01095, algorithm 2. Of second order.

    With h = log(sigma / sigma'): x' = e^-h x + (1 - e^-h) D, where D goes on from the last two x0 by half a step.
    """
    sigma, following = step.sigmas[-2:]
    kept = following / sigma
    x0 = step.x0s[-1]
    if len(step.x0s) > 1 and not step.ends:
        ratio = math.log(sigma / following) / math.log(step.sigmas[-3] / sigma)
        x0 = x0 + ratio / 2 * (x0 - step.x0s[-2])
    return kept * step.x + (1 - kept) * x0


def res_multistep(step: Step) -> Tensor:
    """RES, the multistep form, Zhang et al. 2023, arXiv 2308.02157, with the order conditions of exponential integrators.

    With h = log(sigma / sigma'), z = -h, phi1 = (e^z - 1) / z, phi2 = (phi1 - 1) / z and c, the last step over -h:
    x' = e^z x + h ((phi1 - phi2 / c) x0 + phi2 / c x0 before). Of second order; the first and last step are Euler's.
    """
    sigma, following = step.sigmas[-2:]
    if len(step.x0s) < 2 or step.ends:
        return euler(step)
    h = math.log(sigma / following)
    phi1 = math.expm1(-h) / -h
    before = (phi1 - 1) / math.log(step.sigmas[-3] / sigma)  # phi2 / c
    return math.exp(-h) * step.x + h * ((phi1 - before) * step.x0s[-1] + before * step.x0s[-2])


def dpmpp_2m_sde(step: Step) -> Tensor:
    """SDE-DPM-Solver++(2M), Lu et al. 2022, arXiv 2211.01095, section 5 and appendix B, with the midpoint rule.

    With lambda = log((1 - sigma) / sigma), h = lambda' - lambda and D, which goes on from the last two x0 by half a step:
    x' = sigma' / sigma e^-h x + (1 - sigma') (1 - e^-2h) D + sigma' sqrt(1 - e^-2h) z.
    """
    if step.ends:
        return step.x0s[-1]
    sigma, following = step.sigmas[-2:]
    h = signal(following) - signal(sigma)
    fresh = -math.expm1(-2 * h)
    x0 = step.x0s[-1]
    if len(step.x0s) > 1:
        x0 = x0 + h / (signal(sigma) - signal(step.sigmas[-3])) / 2 * (x0 - step.x0s[-2])
    x = following / sigma * math.exp(-h) * step.x + (1 - following) * fresh * x0
    return x + following * math.sqrt(fresh) * step.noise


def signal(sigma: float) -> float:
    """Return half the log of the signal-to-noise ratio: log((1 - sigma) / sigma)."""
    return math.log((1 - sigma) / sigma)


def er_sde(step: Step) -> Tensor:
    """ER-SDE-Solver-3, Cui et al. 2023, arXiv 2309.06169, equations of its VP form, with the noise scale that they prefer.

    With lambda = sigma / (1 - sigma), y = x / (1 - sigma), r = phi(lambda') / phi(lambda), and D1, D2, the slopes of x0 over
    lambda that the last two and three x0 tell:
    y' = r y + (1 - r) x0 + (d + phi(lambda') I0) D1 + (d^2 / 2 + phi(lambda') I1) D2 + sqrt(lambda'^2 - (r lambda)^2) z,
    d = lambda' - lambda, In = the integral of (u - lambda)^n / phi(u) from lambda' to lambda. x0s that are not there count as
    if nothing changed.
    """
    if step.ends:
        return step.x0s[-1]
    *before, now, then = (sigma / (1 - sigma) for sigma in step.sigmas[-KEPT - 1 :])
    ratio, d = er_scale(then) / er_scale(now), then - now
    y = ratio / (1 - step.sigmas[-2]) * step.x + (1 - ratio) * step.x0s[-1]
    if before:
        first, second = er_integrals(now, then)
        slope = (step.x0s[-1] - step.x0s[-2]) / (now - before[-1])
        y = y + (d + er_scale(then) * first) * slope
        if len(before) > 1:
            slope_before = (step.x0s[-2] - step.x0s[-3]) / (before[-1] - before[-2])
            y = y + (d**2 / 2 + er_scale(then) * second) * (slope - slope_before) / ((now - before[-2]) / 2)
    return (1 - step.sigmas[-1]) * (y + math.sqrt(max(0.0, then**2 - (now * ratio) ** 2)) * step.noise)


def er_scale(level: float) -> float:
    """Return phi(lambda) = lambda (e^(lambda^0.3) + 10), ER_SDE_5 in the paper's table of noise scales."""
    return level * (math.exp(level**0.3) + 10)


def er_integrals(now: float, then: float) -> tuple[float, float]:
    """Sum 1 / phi and (u - now) / phi from `then` to `now`, each stretch by its lower end."""
    width = (now - then) / INTEGRATION_POINTS
    points = [then + i * width for i in range(INTEGRATION_POINTS)]
    return sum(width / er_scale(u) for u in points), sum(width * (u - now) / er_scale(u) for u in points)


def fresh_noise(x: Tensor, sigmas: Sequence[float], seed: int) -> Draw:
    """Draw noise step by step as ComfyUI does: on the device of x, where that is the CPU from the seed after the picture's."""
    generator = torch.Generator(x.device).manual_seed((seed + (x.device.type == "cpu")) % SEEDS)
    return lambda sigma, following: torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)


def brownian_noise(x: Tensor, sigmas: Sequence[float], seed: int, host: bool = True) -> Draw:
    """Draw the increments of one Brownian motion over the levels, as ComfyUI does: more steps follow the same path.

    host: draw on the CPU, whatever the device. The package torchsde comes with ComfyUI.
    """
    from torchsde import BrownianTree

    device = "cpu" if host else x.device
    ends = (torch.tensor(level, device=device) for level in (min(s for s in sigmas if s > 0), max(sigmas)))
    tree = BrownianTree(next(ends), torch.zeros_like(x, device=device), next(ends), entropy=seed)

    def draw(sigma: float, following: float) -> Tensor:
        begin, end = torch.tensor(following, device=device), torch.tensor(sigma, device=device)
        return -(tree(begin, end) / (end - begin).sqrt()).to(x)

    return draw


@dataclass(frozen=True)
class Sampler:
    """step: takes one; below_noise: it divides by the picture's share, so that it cannot begin at noise alone.

    package: what its noise needs.
    """

    step: Callable[[Step], Tensor]
    below_noise: bool = False
    noise: Callable[[Tensor, Sequence[float], int], Draw] = fresh_noise
    package: str = ""


SAMPLERS = {
    "euler": Sampler(euler),
    "euler_ancestral": Sampler(euler_ancestral),
    "er_sde": Sampler(er_sde, below_noise=True),
    "dpmpp_2m": Sampler(dpmpp_2m),
    "dpmpp_2m_sde": Sampler(dpmpp_2m_sde, True, brownian_noise, "torchsde"),
    "dpmpp_2m_sde_gpu": Sampler(dpmpp_2m_sde, True, partial(brownian_noise, host=False), "torchsde"),
    "res_multistep": Sampler(res_multistep),
}


def sampler_of(name: str) -> Sampler:
    """Return a sampler. Raises SettingError for a name that is not known, and for a package that is not there."""
    if name not in SAMPLERS:
        raise SettingError(f"sampler={name}: must be one of {', '.join(SAMPLERS)}")
    if package := missing_package(name):
        raise SettingError(f"sampler={name}: needs the package {package}: pip install {package}")
    return SAMPLERS[name]


def missing_package(name: str) -> str:
    """Return the package that a sampler needs and that is not installed; empty when nothing is missing."""
    package = SAMPLERS[name].package
    return package if package and find_spec(package) is None else ""

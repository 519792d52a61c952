"""Schedules of noise levels, by ComfyUI's names and with its numbers for a flow model.

A level sigma in [0, 1] is the noise in x = (1 - sigma) picture + sigma noise. A shift moves levels towards noise:
s(t) = shift t / (1 + (shift - 1) t), Esser et al. 2024, arXiv 2403.03206, section 5.3.2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import SettingError

TABLE_SIZE = 1000  # sigmas that ComfyUI's discrete flow sampling tabulates
ALPHA = 0.6  # of the beta distribution: arXiv 2407.12173
TERMS = 60  # of a series that halves at least with each: beyond fp64
HALVINGS = 60  # of an interval of length 1/2: beyond fp64

T = torch.float64


def simple_sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """Return ComfyUI's "simple" schedule for a flow model: [steps + 1] fp32, falling, the last 0.

    The table is s(i / 1000), i = 1 … 1000, with s(t) = shift t / (1 + (shift - 1) t); "simple" takes entries evenly from
    its end. Raises SettingError for no steps.
    """
    return sigmas_of("simple", steps, shift)


def sigmas_of(scheduler: str, steps: int, shift: float = 3.0) -> Tensor:
    """Return a schedule by its name: fp32, falling, the last 0; [steps + 1], of beta fewer where two fall on one entry.

    Raises SettingError for an unknown name and for no steps.
    """
    if scheduler not in SCHEDULES:
        raise SettingError(f"scheduler={scheduler}: must be one of {', '.join(SCHEDULES)}")
    if steps < 1:
        raise SettingError(f"sample steps={steps}: must be at least 1")
    sigmas = SCHEDULES[scheduler](steps, shift)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def shifted(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)


def table(shift: float) -> Tensor:
    """Return s(i / 1000), i = 1 … 1000: [1000] fp32, rising to 1."""
    return shifted(torch.arange(1, TABLE_SIZE + 1, dtype=torch.float32) / TABLE_SIZE, shift)


def simple(steps: int, shift: float) -> Tensor:
    stride = TABLE_SIZE / steps  # divide first: i * TABLE_SIZE / steps rounds to another entry at 38 steps
    return table(shift)[[-(1 + int(i * stride)) for i in range(steps)]]


def normal(steps: int, shift: float) -> Tensor:
    """Shift times that are even from 1 to the table's least level. That one is shifted already, and is once more."""
    return shifted(torch.linspace(1, table(shift)[0].item(), steps), shift)


def sgm_uniform(steps: int, shift: float) -> Tensor:
    """As `normal`, one step finer and without its last level."""
    return normal(steps + 1, shift)[:-1]


def beta(steps: int, shift: float) -> Tensor:
    """Take entries of the table by quantiles of a beta distribution, which lie denser at both ends: arXiv 2407.12173."""
    quantiles = beta_quantile(1 - torch.arange(steps, dtype=T) / steps)
    return table(shift)[torch.unique_consecutive((quantiles * (TABLE_SIZE - 1)).round().long())]


def beta_quantile(p: Tensor, a: float = ALPHA) -> Tensor:
    """Invert the distribution function of Beta(a, a), fp64: by its symmetry within [0, 1/2], by halving intervals.

    Below x its mass is x^a sum_k (1 - a)_k / k! x^k / (a + k), over its value for x = 1/2 twice: DLMF 8.17.7.
    """
    tail = torch.minimum(p, 1 - p).to(T)
    k = torch.arange(TERMS, dtype=T)
    factors = torch.cat([k.new_ones(1), torch.cumprod((k + 1 - a) / (k + 1), 0)[:-1]]) / (a + k)

    def mass(x: Tensor) -> Tensor:
        return x**a * (x[..., None] ** k * factors).sum(-1)

    low, high = torch.zeros_like(tail), torch.full_like(tail, 0.5)
    whole = 2 * mass(torch.tensor(0.5, dtype=T))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        beyond = mass(middle) > tail * whole
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return torch.where(p > 0.5, 1 - low, low)


SCHEDULES: dict[str, Callable[[int, float], Tensor]] = {
    "simple": simple,
    "normal": normal,
    "sgm_uniform": sgm_uniform,
    "beta": beta,
}

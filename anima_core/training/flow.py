"""Rectified flow: how t is drawn, what the model sees, what it should answer, what a miss costs.

Everything is fp32. Generators live on the CPU, so that the draws are the same on every device.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..settings import FlowConfig

T_EDGE = 1e-5  # keeps t off 0 and 1, where sigmoid and rand can land in fp32


def sample_timesteps(n: int, flow: FlowConfig, generator: torch.Generator, tokens: int = 4096) -> Tensor:
    """Draw t [n] in (0, 1), fp32, on the generator's device. tokens: image tokens of a picture, (H/16) (W/16).

    logit_normal: sigmoid(mean + scale N(0, 1)), the model author's recipe at 0 and 1. mode: u + scale (cos^2(pi u / 2) - 1
    + u), u uniform (Stable Diffusion 3, arXiv 2403.03206). shift, also of mode: s t / (1 + (s - 1) t) on top.
    resolution_shift: e^mu / (e^mu + 1/t - 1) on top, mu linear in tokens, 0.5 at 256 and 1.15 at 4096 (FLUX's rule).
    """
    where: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    if flow.timestep_sampling in ("uniform", "mode"):
        return shaped(torch.rand(n, **where), flow, tokens)
    return shaped(torch.sigmoid(flow.logit_mean + flow.sigmoid_scale * torch.randn(n, **where)), flow, tokens)


def timestep_quantiles(levels: Sequence[float], flow: FlowConfig, tokens: int = 4096) -> Tensor:
    """Return the t below which `sample_timesteps` draws these shares of its t, fp32, on the CPU.

    Exact: whatever is done to u or to a normal number there rises with it, so that quantiles pass through. diffusion-pipe
    measures its losses at nine of them, 10 % to 90 %, of the distribution that it trains with.
    """
    u = torch.tensor(levels, dtype=torch.float64)
    if flow.timestep_sampling not in ("uniform", "mode"):
        u = torch.sigmoid(flow.logit_mean + flow.sigmoid_scale * torch.special.ndtri(u))
    return shaped(u, flow, tokens).float()


def shaped(t: Tensor, flow: FlowConfig, tokens: int) -> Tensor:
    """Move t as the bump of mode and the shifts of `sample_timesteps` do."""
    if flow.timestep_sampling == "mode":
        t = (t + flow.mode_scale * (torch.cos(math.pi * t / 2).square() - 1 + t)).clamp(0, 1)
    if flow.timestep_sampling in ("shift", "mode"):
        t = flow.shift * t / (1 + (flow.shift - 1) * t)
    elif flow.timestep_sampling == "resolution_shift":
        mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
        t = math.exp(mu) / (math.exp(mu) + (1 / t - 1))
    return t.clamp(T_EDGE, 1 - T_EDGE)


def noise_like(latents: Tensor, generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """Draw eps ~ N(0, 1) of the latents' shape [B, C, h, w], fp32, on the generator's device.

    offset adds offset N(0, 1), one draw per sample and channel.
    """
    where: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    noise = torch.randn(latents.shape, **where)
    if offset > 0:
        noise += offset * torch.randn(*latents.shape[:2], 1, 1, **where)
    return noise


def input_noise(noise: Tensor, generator: torch.Generator, gamma: float) -> Tensor:
    """Return eps + gamma N(0, 1), which the model's input is mixed with while the target keeps eps (arXiv 2301.11706)."""
    return noise + gamma * noise_like(noise, generator)


def interpolate(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """Compute x_t = (1 - t) x0 + t eps. x0, eps [B, C, h, w]; t [B]."""
    t = t.view(-1, 1, 1, 1)
    return (1 - t) * x0 + t * eps


def velocity_target(x0: Tensor, eps: Tensor) -> Tensor:
    """Compute dx_t / dt = eps - x0."""
    return eps - x0


def flow_loss(
    prediction: Tensor,
    target: Tensor,
    t: Tensor,
    flow: FlowConfig,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Compute the loss of each sample, [B] fp32. prediction, target [B, C, h, w]; mask [B, 1, h, w] in [0, 1]; weight [B].

    A mask takes a weighted mean: a small masked area counts as much as a whole picture; an empty mask counts nothing.
    """
    error = prediction.float() - target.float()
    if flow.loss == "mse":
        loss = error.square()
    elif flow.loss == "l1":
        loss = error.abs()
    else:  # sd-scripts' pseudo-Huber: error^2 near zero, 2 delta |error| far from it; its smooth_l1 is that over delta
        delta = flow.huber_delta
        slope = delta if flow.loss == "huber" else 1.0
        loss = 2 * slope * error.square() / ((error.square() + delta**2).sqrt() + delta)
    loss = masked_mean(loss, mask) * loss_weight(t, flow.weighting)
    return loss if weight is None else loss * weight


def masked_mean(loss: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the mean of each sample, [B]. loss [B, C, h, w], mask [B, 1, h, w]."""
    per_pixel = loss.mean(dim=1, keepdim=True)
    if mask is None:
        return per_pixel.flatten(1).mean(dim=1)
    return (per_pixel * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp_min(1e-6)


def loss_weight(t: Tensor, weighting: str) -> Tensor:
    """Return sd-scripts' weightings: none 1, sigma_sqrt t^-2 (at most 1e6), cosmap 2 / (pi (1 - 2 t + 2 t^2))."""
    if weighting == "sigma_sqrt":
        return t.clamp_min(1e-3) ** -2
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * t + 2 * t.square()))
    return torch.ones_like(t)

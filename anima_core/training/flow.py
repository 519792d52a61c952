"""Rectified flow: how t is drawn, what the model sees, what it should answer, what a miss costs.

Everything is fp32. Generators live on the CPU, so that the draws are the same on every device.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..settings import FlowConfig, SubsetConfig, TrainConfig
from ..settings.flow import WITH_OFFSET

T_EDGE = 1e-5  # keeps t off 0 and 1, where sigmoid and rand can land in fp32
LARGE = 0.9 * 1024 / 8  # latent rows of a square picture from which on it has a second scale: diffusion-pipe's threshold
DETAIL_MOST = 5.0  # AnimaLoraStudio's bound of detail_inv_t

PerSample = Tensor | float  # [n], or one for all


def sample_timesteps(
    n: int,
    flow: FlowConfig,
    generator: torch.Generator,
    tokens: int = 4096,
    offset: PerSample = 0.0,
    low: PerSample = 0.0,
    high: PerSample = 1.0,
) -> Tensor:
    """Draw t [n] in (0, 1), fp32, on the generator's device. tokens: image tokens of a picture, (H/16) (W/16).

    logit_normal: sigmoid(mean + scale (N(0, 1) + offset)), the model author's recipe at 0, 1 and 0. mode: u + scale
    (cos^2(pi u / 2) - 1 + u), u uniform (Stable Diffusion 3, arXiv 2403.03206). shift, also of mode: s t / (1 + (s - 1) t)
    on top. resolution_shift: e^mu / (e^mu + 1/t - 1) on top, mu linear in tokens, 0.5 at 256 and 1.15 at 4096 (FLUX's rule).

    offset: sd-scripts' `custom_attributes.timestep_sampling.offset` (arXiv 2603.10785), which uniform and mode do not have.
    low, high: the range that t is scaled into in the end, low + (high - low) t, as musubi-tuner does with its min_timestep and
    max_timestep.
    """
    where: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    if flow.timestep_sampling in WITH_OFFSET:
        t = torch.sigmoid(flow.logit_mean + flow.sigmoid_scale * (torch.randn(n, **where) + offset))
    else:
        t = torch.rand(n, **where)
    return (low + (high - low) * shaped(t, flow, tokens)).clamp(T_EDGE, 1 - T_EDGE)


def timestep_quantiles(
    levels: Sequence[float],
    flow: FlowConfig,
    tokens: int = 4096,
    offset: float = 0.0,
    low: float = 0.0,
    high: float = 1.0,
) -> Tensor:
    """Return the t below which `sample_timesteps`, of the same arguments, draws these shares of its t, fp32, on the CPU.

    Exact: whatever is done to u or to a normal number there rises with it, so that quantiles pass through. diffusion-pipe
    measures its losses at nine of them, 10 % to 90 %, of the distribution that it trains with.
    """
    u = torch.tensor(levels, dtype=torch.float64)
    if flow.timestep_sampling in WITH_OFFSET:
        u = torch.sigmoid(flow.logit_mean + flow.sigmoid_scale * (torch.special.ndtri(u) + offset))
    return (low + (high - low) * shaped(u, flow, tokens)).clamp(T_EDGE, 1 - T_EDGE).float()


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


def draw_timesteps(subsets: Sequence[SubsetConfig], flow: FlowConfig, generator: torch.Generator, tokens: int = 4096) -> Tensor:
    """Draw t [n] of pictures of one size, each as its subset says; see `sample_timesteps`."""
    ranges = torch.tensor([[s.timestep_offset, s.min_timestep, s.max_timestep] for s in subsets])
    return sample_timesteps(len(subsets), flow, generator, tokens, *ranges.T)


def trains_smaller(t: Tensor, flow: FlowConfig) -> Tensor:
    """Tell which draws [n] are so noisy that they train on the smaller picture: anima_lora's sigma-lowres (arXiv 2608.04448).

    t is drawn first, so its distribution stays as it is. Their windows for pictures of about 1024 px, within which the model
    answers the smaller picture as it does the whole one: (0.65, 0.95) for 768 px, (0.5, 1) for 896 px.
    """
    if flow.lowres_scale == 1:
        return torch.zeros_like(t, dtype=torch.bool)
    return (t > flow.lowres_above) & (t < flow.lowres_below)


def draw_noise(latents: Tensor, flow: FlowConfig, generator: torch.Generator) -> Tensor:
    """Draw the noise that a picture is mixed with, [B, C, h, w] as the latents, fp32, on the generator's device."""
    noise = noise_like(latents, generator, flow.noise_offset)
    if flow.multires_noise_iterations:
        noise = multires_noise(noise, generator, flow.multires_noise_iterations, flow.multires_noise_discount)
    return noise


def noise_like(latents: Tensor, generator: torch.Generator, offset: float = 0.0) -> Tensor:
    """Draw eps ~ N(0, 1) of the latents' shape [B, C, h, w], fp32, on the generator's device.

    offset adds offset N(0, 1), one draw per sample and channel.
    """
    where: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    noise = torch.randn(latents.shape, **where)
    if offset > 0:
        noise += offset * torch.randn(*latents.shape[:2], 1, 1, **where)
    return noise


def multires_noise(noise: Tensor, generator: torch.Generator, iterations: int, discount: float) -> Tensor:
    """Add coarser noise: (noise + sum_i discount^i up(N(0, 1) of h / r_i^i x w / r_i^i)) / its deviation, i = 0, 1, ...

    r_i uniform in [2, 4), `up` bilinear to h x w; it ends at a side of 1. sd-scripts' pyramid noise, but for the deviation,
    which is each picture's own here: no draw depends on the pictures beside it.
    """
    where: dict[str, Any] = {"generator": generator, "device": generator.device, "dtype": torch.float32}
    height, width = noise.shape[2:]
    for i in range(iterations):
        shrink = (2 + 2 * torch.rand((), **where).item()) ** i
        size = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse = torch.randn(*noise.shape[:2], *size, **where)
        noise = noise + discount**i * F.interpolate(coarse, (height, width), mode="bilinear")
        if min(size) == 1:
            break
    return noise / noise.std(dim=(1, 2, 3), keepdim=True)


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
    loss = masked_mean(pixel_loss(error, flow), mask)
    if flow.multiscale_loss_weight > 0 and is_large(error):
        loss = multiscale(loss, error, mask, flow.multiscale_loss_weight)
    loss = loss * loss_weight(t, flow)
    return loss if weight is None else loss * weight


def pixel_loss(error: Tensor, flow: FlowConfig) -> Tensor:
    """Compute the loss of each number of an error, of its shape."""
    if flow.loss == "mse":
        return error.square()
    if flow.loss == "l1":
        return error.abs()
    # sd-scripts' pseudo-Huber: error^2 near zero, 2 delta |error| far from it; its smooth_l1 is that over delta
    delta = flow.huber_delta
    slope = delta if flow.loss == "huber" else 1.0
    return 2 * slope * error.square() / ((error.square() + delta**2).sqrt() + delta)


def is_large(error: Tensor) -> bool:
    """Tell whether latents [B, C, h, w] are large enough for a second scale."""
    return math.sqrt(error.shape[2] * error.shape[3]) >= LARGE


def multiscale(loss: Tensor, error: Tensor, mask: Tensor | None, weight: float) -> Tensor:
    """Compute (loss + weight mean(pool(error)^2)) / (1 + weight), [B], pool the mean of 2 x 2: diffusion-pipe's loss.

    It is for pictures from 0.9 * 1024 px on, sqrt(H W). There no mask weighs the second loss; here the pooled mask does.
    """
    coarse = None if mask is None else F.avg_pool2d(mask, 2)
    return (loss + weight * masked_mean(F.avg_pool2d(error, 2).square(), coarse)) / (1 + weight)


def masked_mean(loss: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the mean of each sample, [B]. loss [B, C, h, w], mask [B, 1, h, w]."""
    per_pixel = loss.mean(dim=1, keepdim=True)
    if mask is None:
        return per_pixel.flatten(1).mean(dim=1)
    return (per_pixel * mask).flatten(1).sum(dim=1) / mask.flatten(1).sum(dim=1).clamp_min(1e-6)


def loss_weight(t: Tensor, flow: FlowConfig) -> Tensor:
    """Return the weight of each t.

    sd-scripts' none 1, sigma_sqrt t^-2 (at most 1e6), cosmap 2 / (pi (1 - 2 t + 2 t^2)). AnimaLoraStudio's min_snr
    min(1, gamma / SNR), SNR = ((1 - t) / t)^2, which takes Min-SNR's weight of a noise prediction (arXiv 2303.09556) for the
    velocity's, and detail_inv_t 1 / t, at most 5.
    """
    if flow.weighting == "sigma_sqrt":
        return t.clamp_min(1e-3) ** -2
    if flow.weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * t + 2 * t.square()))
    if flow.weighting == "min_snr":
        return (flow.snr_gamma * (t / (1 - t)).square()).clamp_max(1)
    if flow.weighting == "detail_inv_t":
        return (1 / t).clamp_max(DETAIL_MOST)
    return torch.ones_like(t)


def warnings(config: TrainConfig) -> list[str]:
    """Tell which settings of the noise and of the loss have no effect in this run."""
    flow, found = config.flow, []
    offsets = [s.timestep_offset for dataset in config.datasets for s in dataset.subsets if s.timestep_offset]
    if offsets and flow.timestep_sampling not in WITH_OFFSET:
        why = f"`flow.timestep_sampling`={flow.timestep_sampling} does not read it; use one of {', '.join(WITH_OFFSET)}"
        found.append(f"`subset.timestep_offset`={offsets[0]:g} has no effect: {why}")
    area = max(width * height for dataset in config.datasets for width, height in dataset.resolutions)
    if flow.multiscale_loss_weight > 0 and math.sqrt(area) / 8 < LARGE:
        why = f"it is for pictures of {math.ceil(LARGE * 8)} px a side, and these have {math.isqrt(area)}"
        found.append(f"`flow.multiscale_loss_weight`={flow.multiscale_loss_weight:g} has no effect: {why}")
    return found + unread(config)


def unread(config: TrainConfig) -> list[str]:
    """Tell which settings were set and are only read beside another one that was not."""
    flow, usual = config.flow, FlowConfig()
    needs = {
        "snr_gamma": (flow.weighting == "min_snr", "`flow.weighting`=min_snr"),
        "multires_noise_discount": (flow.multires_noise_iterations > 0, "`flow.multires_noise_iterations` above 0"),
        "lowres_above": (flow.lowres_scale < 1, "`flow.lowres_scale` below 1"),
        "lowres_below": (flow.lowres_scale < 1, "`flow.lowres_scale` below 1"),
    }
    unmet = [(name, other) for name, (met, other) in needs.items() if not met and getattr(flow, name) != getattr(usual, name)]
    return [f"`flow.{name}`={getattr(flow, name):g} has no effect: set {other} beside it" for name, other in unmet]

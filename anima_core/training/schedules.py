"""Learning-rate schedules as pure functions of the step, so that resuming needs no scheduler state."""

import math

import torch

from ..settings import OptimizerConfig


def lr_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """Return the factor on the learning rate for the step with this index (0 first) of `total`.

    Warm-up rises linearly from 0 over its steps, as in transformers' schedules, which are the oracle in tests.
    """
    warmup = config.warmup_steps or round(config.warmup_ratio * total)
    if step < warmup:
        return step / warmup
    if config.scheduler in ("constant", "constant_with_warmup"):
        return 1.0
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return decay(config, progress)


def decay(config: OptimizerConfig, progress: float) -> float:
    """Return the factor after warm-up. progress: 0 after warm-up, 1 at the end."""
    match config.scheduler:
        case "linear":
            return 1 - progress
        case "cosine":  # num_cycles 1: one fall from 1 to 0
            return max(0.0, 0.5 * (1 + math.cos(math.pi * config.num_cycles * progress)))
        case "cosine_with_restarts":
            return 0.0 if progress >= 1 else 0.5 * (1 + math.cos(math.pi * (config.num_cycles * progress % 1)))
        case "cosine_with_min_lr":
            wave = 0.5 * (1 + math.cos(math.pi * config.num_cycles * progress))
            return config.min_lr_ratio + (1 - config.min_lr_ratio) * max(0.0, wave)
        case "polynomial":
            return (1 - progress) ** config.power
    raise AssertionError(config.scheduler)


def apply_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor

"""Learning-rate schedules as pure functions of the step, so that resuming needs no scheduler state."""

import math

import torch

from ..settings import OptimizerConfig
from ..settings.optimizer import pieces

TIMESCALE = 10_000  # of inverse_sqrt without warm-up, as in transformers


def lr_factor(config: OptimizerConfig, step: int, total: int) -> float:
    """Return the factor on the learning rate for the step with this index (0 first) of `total`.

    Warm-up rises linearly from 0 over its steps, as in transformers' schedules, which are the oracle in tests; so is
    diffusers' for piecewise_constant, which has none.
    """
    step, warmup = min(step, total), warmup_steps(config, total)
    match config.scheduler:
        case "piecewise_constant":
            return piece(config.step_rules, step)
        case "warmup_stable_decay":
            return stable_decay(config, step, warmup, total)
    if step < warmup:
        return step / warmup
    match config.scheduler:
        case "constant" | "constant_with_warmup":
            return 1.0
        case "inverse_sqrt":
            scale = config.timescale or warmup or TIMESCALE
            return 1 / math.sqrt((step - warmup + scale) / scale)
    return decay(config, (step - warmup) / max(1, total - warmup))


def warmup_steps(config: OptimizerConfig, total: int) -> int:
    """Count the steps of warm-up. A share of all steps is cut to whole ones, as in sd-scripts."""
    return config.warmup_steps or int(config.warmup_ratio * total)


def decay(config: OptimizerConfig, progress: float) -> float:
    """Return the factor after warm-up. progress: 0 after warm-up, 1 at the end."""
    match config.scheduler:
        case "linear":
            return 1 - progress
        case "cosine":
            return half_waves(1, progress)
        case "cosine_with_restarts":
            return 0.0 if progress >= 1 else half_waves(1, config.num_cycles * progress % 1)
        case "cosine_with_min_lr":
            return above(config.min_lr_ratio, half_waves(config.num_cycles, progress))
        case "polynomial":
            return (1 - progress) ** config.power
    raise AssertionError(config.scheduler)


def stable_decay(config: OptimizerConfig, step: int, warmup: int, total: int) -> float:
    """Return warmup_stable_decay's factor: it rises from the floor and falls to it over the last steps."""
    falling = config.decay_steps or int(config.decay_ratio * total)
    start = total - falling
    if step < warmup:
        factor = step / warmup
    elif step < start:
        factor = 1.0
    else:
        factor = half_waves(config.num_cycles, (step - start) / falling) if step < total else 0.0
    return above(config.min_lr_ratio, factor)


def piece(rules: str, step: int) -> float:
    ends, last = pieces(rules)
    return next((factor for end, factor in ends if step < end), last)


def half_waves(number: float, progress: float) -> float:
    """Return a cosine that starts at 1 and takes `number` half waves, each from one end of 0 to 1 to the other."""
    return max(0.0, 0.5 * (1 + math.cos(math.pi * number * progress)))


def above(floor: float, factor: float) -> float:
    return floor + (1 - floor) * factor


def warnings(config: OptimizerConfig, total: int) -> list[str]:
    """Say what is wrong with a schedule for a run of `total` steps."""
    warmup = warmup_steps(config, total)
    if warmup and config.scheduler == "piecewise_constant":
        instead = "write it into `optimizer.step_rules`"
        return [f"`optimizer.warmup_steps`={warmup} has no effect: piecewise_constant has no warm-up; {instead}"]
    if warmup >= total > 0:
        shorter = "make `optimizer.warmup_steps` shorter than the run"
        return [f"`optimizer.warmup_steps`={warmup}: the run has {total} steps, its learning rate is never reached; {shorter}"]
    return []


def apply_lr(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor

"""Learning-rate schedules against transformers' own, step by step."""

import pytest
import torch
from transformers import get_scheduler

from anima_core.settings import OptimizerConfig
from anima_core.settings.optimizer import SCHEDULES
from anima_core.training.schedules import apply_lr, lr_factor

TOTAL = 40


def theirs(config: OptimizerConfig, warmup: int, total: int) -> list[float]:
    """transformers' factors; its own num_cycles of the plain cosines counts whole waves, ours half ones."""
    extra = {
        "cosine": {"num_cycles": config.num_cycles / 2},
        "cosine_with_restarts": {"num_cycles": config.num_cycles},
        "cosine_with_min_lr": {"num_cycles": config.num_cycles / 2, "min_lr_rate": config.min_lr_ratio},
        "polynomial": {"power": config.power, "lr_end": 0.0},
    }.get(config.scheduler, {})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    name = "constant_with_warmup" if config.scheduler == "constant" else config.scheduler
    scheduler = get_scheduler(name, optimizer, warmup, total, scheduler_specific_kwargs=extra)
    factors = scheduler.get_last_lr()
    for _ in range(total - 1):
        optimizer.step()
        scheduler.step()
        factors += scheduler.get_last_lr()
    return factors


@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 7, TOTAL])
@pytest.mark.parametrize("cycles, power, floor", [(1.0, 1.0, 0.0), (3.0, 2.0, 0.1), (2.5, 0.5, 1.0)])
def test_every_schedule_is_transformers(scheduler, warmup, cycles, power, floor):
    config = OptimizerConfig(scheduler=scheduler, warmup_steps=warmup, num_cycles=cycles, power=power, min_lr_ratio=floor)
    ours = [lr_factor(config, step, TOTAL) for step in range(TOTAL)]
    assert ours == pytest.approx(theirs(config, warmup, TOTAL), abs=1e-6)


@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 7])
def test_past_the_end_the_rate_stays(scheduler, warmup):
    """transformers' cosines rise again there."""
    config = OptimizerConfig(scheduler=scheduler, warmup_steps=warmup, min_lr_ratio=0.1)
    end = lr_factor(config, TOTAL, TOTAL)
    constant, floor = scheduler.startswith("constant"), 0.1 * scheduler.endswith("min_lr")
    assert end == pytest.approx(1.0 if constant else floor)
    assert all(lr_factor(config, TOTAL + more, TOTAL) == end for more in (1, 2, 100))


def test_the_shapes_of_the_curves():
    def factors(**settings):
        return [lr_factor(OptimizerConfig(**settings), step, 100) for step in (0, 25, 50, 75, 100)]

    assert factors(scheduler="constant") == [1, 1, 1, 1, 1]
    assert factors(scheduler="linear") == [1, 0.75, 0.5, 0.25, 0]
    assert factors(scheduler="cosine")[::2] == pytest.approx([1, 0.5, 0])
    assert factors(scheduler="cosine_with_min_lr", min_lr_ratio=0.2)[::2] == pytest.approx([1, 0.6, 0.2])
    assert factors(scheduler="cosine_with_restarts", num_cycles=2.0) == pytest.approx([1, 0.5, 1, 0.5, 0])
    assert factors(scheduler="polynomial", power=2.0) == pytest.approx([1, 0.5625, 0.25, 0.0625, 0])


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_warm_up_rises_in_every_schedule_and_may_be_a_ratio(scheduler):
    steps = OptimizerConfig(scheduler=scheduler, warmup_steps=10)
    ratio = OptimizerConfig(scheduler=scheduler, warmup_ratio=0.1)
    for step in range(100):
        assert lr_factor(steps, step, 100) == lr_factor(ratio, step, 100)
        if step <= 10:
            assert lr_factor(steps, step, 100) == pytest.approx(step / 10)


def test_steps_win_over_the_ratio():
    config = OptimizerConfig(scheduler="linear", warmup_steps=4, warmup_ratio=0.5)
    assert lr_factor(config, 2, 100) == 0.5 and lr_factor(config, 4, 100) == 1.0


def test_a_factor_scales_every_group_from_its_own_rate():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr, "initial_lr": lr} for lr in (1e-4, 1.6e-3)]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    for factor in (0.5, 0.0, 1.0):
        apply_lr(optimizer, factor)
        assert [g["lr"] for g in optimizer.param_groups] == [1e-4 * factor, 1.6e-3 * factor]

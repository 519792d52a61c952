"""Learning-rate schedules against transformers' own, as sd-scripts calls them, step by step."""

import pytest
import torch
from transformers import get_scheduler

from anima_core.errors import SettingError
from anima_core.settings import OptimizerConfig
from anima_core.settings.optimizer import SCHEDULES
from anima_core.training.schedules import apply_lr, lr_factor, warnings

TOTAL = 40
PIECES = "1:10,0.5:25,0.1"
OF_TRANSFORMERS = [name for name in SCHEDULES if name != "piecewise_constant"]  # which is diffusers'


def schedule(name: str, **others) -> OptimizerConfig:
    rules = {"step_rules": PIECES} if name == "piecewise_constant" else {}
    return OptimizerConfig(scheduler=name, **rules, **others)


def theirs(config: OptimizerConfig, warmup: int, total: int) -> list[float]:
    """transformers' factors; its num_cycles counts whole waves, ours half ones, and sd-scripts gives cosine none at all."""
    extra = {
        "cosine_with_restarts": {"num_cycles": config.num_cycles},
        "cosine_with_min_lr": {"num_cycles": config.num_cycles / 2, "min_lr_rate": config.min_lr_ratio},
        "polynomial": {"power": config.power, "lr_end": 0.0},
        "inverse_sqrt": {"timescale": config.timescale or None},
        "warmup_stable_decay": {
            "num_stable_steps": total - warmup - config.decay_steps,
            "num_decay_steps": config.decay_steps,
            "num_cycles": config.num_cycles / 2,
            "min_lr_ratio": config.min_lr_ratio,
        },
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


@pytest.mark.parametrize("scheduler", OF_TRANSFORMERS)
@pytest.mark.parametrize("warmup", [0, 1, 7, TOTAL])
@pytest.mark.parametrize("cycles, power, floor", [(1.0, 1.0, 0.0), (3.0, 2.0, 0.1), (2.5, 0.5, 1.0)])
@pytest.mark.parametrize("falling, timescale", [(0, 0), (12, 5)])
def test_every_schedule_is_transformers(scheduler, warmup, cycles, power, floor, falling, timescale):
    length = {"decay_steps": falling, "timescale": timescale, "warmup_steps": warmup}
    config = OptimizerConfig(scheduler=scheduler, num_cycles=cycles, power=power, min_lr_ratio=floor, **length)
    ours = [lr_factor(config, step, TOTAL) for step in range(TOTAL)]
    assert ours == pytest.approx(theirs(config, warmup, TOTAL), abs=1e-6)


@pytest.mark.parametrize("scheduler", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 7])
def test_past_the_end_the_rate_stays(scheduler, warmup):
    """transformers' cosines rise again there."""
    config = schedule(scheduler, warmup_steps=warmup, min_lr_ratio=0.1, timescale=TOTAL - warmup)
    end = lr_factor(config, TOTAL, TOTAL)
    ends = {"constant": 1, "constant_with_warmup": 1, "inverse_sqrt": 2**-0.5}
    ends |= dict.fromkeys(("cosine_with_min_lr", "warmup_stable_decay", "piecewise_constant"), 0.1)
    assert end == pytest.approx(ends.get(scheduler, 0))
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
    assert factors(scheduler="warmup_stable_decay", decay_ratio=0.5) == pytest.approx([1, 1, 1, 0.5, 0])
    assert factors(scheduler="inverse_sqrt", timescale=25)[1::2] == pytest.approx([0.5**0.5, 0.25**0.5])
    assert factors(scheduler="piecewise_constant", step_rules="1:26,0.1:50,0.02:51,0") == [1, 1, 0.02, 0, 0]


def test_cosine_falls_once_however_many_cycles_are_set():
    """GUIs write lr_scheduler_num_cycles for every schedule; sd-scripts hands it to those that have cycles."""
    one, many = (OptimizerConfig(scheduler="cosine", num_cycles=cycles) for cycles in (1.0, 4.0))
    assert all(lr_factor(one, step, 30) == lr_factor(many, step, 30) for step in range(31))


@pytest.mark.parametrize("rules", ["", "1:10", "1:10,x", "a:10,1", "1:1.5,1", "1:10,nan", "-1:10,1", "1:10,", "1,0.5"])
def test_pieces_that_cannot_be_read_are_refused(rules):
    with pytest.raises(SettingError, match="optimizer.step_rules=.*write factor:step"):
        OptimizerConfig(scheduler="piecewise_constant", step_rules=rules)


def test_a_share_of_the_steps_is_cut_to_whole_ones():
    config = OptimizerConfig(scheduler="constant_with_warmup", warmup_ratio=0.05)
    assert [lr_factor(config, step, 39) for step in (0, 1)] == [0, 1]  # 1.95 steps: int() in sd-scripts


@pytest.mark.parametrize(
    "settings, total, told",
    [
        ({"warmup_steps": 10}, 10, "optimizer.warmup_steps`=10: the run has 10 steps"),
        ({"warmup_steps": 10}, 11, ""),
        ({"warmup_ratio": 0.99}, 2, ""),
        ({"scheduler": "piecewise_constant", "step_rules": "1:5,0.1", "warmup_steps": 2}, 9, "has no warm-up"),
    ],
)
def test_a_warm_up_that_the_run_does_not_outlast_is_told(settings, total, told):
    said = warnings(OptimizerConfig(**settings), total)
    assert bool(said) == bool(told) and all(told in text for text in said)


@pytest.mark.parametrize("scheduler", OF_TRANSFORMERS)
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

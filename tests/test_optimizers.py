"""Optimizers: they learn, remember, and say what they lack. What needs a package is tested where that is installed."""

import importlib.util
import sys

import pytest
import torch

from anima_core.errors import SettingError
from anima_core.settings import OptimizerConfig
from anima_core.settings.optimizer import OPTIMIZERS
from anima_core.training.optimizer_state import load_exactly
from anima_core.training.optimizers import build_optimizer, evaluating, optimizer_class, preflight
from anima_core.training.trial import through_a_file

PACKAGED = {kind.name: kind.package for kind in OPTIMIZERS if kind.package != "torch"}
RATES = {"Lion": 0.01, "Prodigy": 1.0, "SGDScheduleFree": 1.0, "ProdigyPlusScheduleFree": 1.0}
STEPS = {"AdafactorRelative": 1200, "ProdigyPlusScheduleFree": 300}  # of those that find their own rate, from small to large
TARGET = torch.linspace(-0.9, 0.8, 32).view(8, 4)


def package_of(name: str) -> str:
    return OPTIMIZERS[name].module.split(".")[0]


def installed(name: str) -> bool:
    return importlib.util.find_spec(package_of(name)) is not None


ALL = [
    pytest.param(name, marks=pytest.mark.skipif(not installed(name), reason=f"{OPTIMIZERS[name].package} is not installed"))
    for name in OPTIMIZERS.names
]


SCHEDULE_FREE = [entry for entry in ALL if OPTIMIZERS[entry.values[0]].schedule_free]


def factor() -> torch.nn.Parameter:
    """A zero-initialised factor, as an adapter has."""
    return torch.nn.Parameter(torch.zeros(8, 4))


def built(name: str, *parameters: torch.nn.Parameter, **settings) -> torch.optim.Optimizer:
    config = OptimizerConfig(type=name, **{"learning_rate": RATES.get(name, 0.05), "weight_decay": 0.0} | settings)
    groups = [{"name": str(i), "params": [p], "lr": config.learning_rate} for i, p in enumerate(parameters)]
    return build_optimizer(groups, config)


def miss(parameter: torch.Tensor) -> torch.Tensor:
    return (parameter - TARGET).square().mean()


def train(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        miss(parameter).backward()
        optimizer.step()


@pytest.mark.parametrize("name", ALL)
def test_every_optimizer_descends_from_zero(name):
    parameter = factor()
    before = miss(parameter).item()
    optimizer = built(name, parameter)
    train(optimizer, parameter, STEPS.get(name, 150))
    with evaluating(optimizer):
        assert miss(parameter).item() < 0.05 * before


@pytest.mark.parametrize("name", ALL)
def test_the_factor_has_left_zero_when_the_watchdog_looks(name):
    parameter = factor()
    train(built(name, parameter, learning_rate=1e-4), parameter, 5)
    assert parameter.abs().max() > 0


@pytest.mark.parametrize("name", ALL)
def test_state_goes_on_through_plain_files(name):
    """Fifteen steps equal three, a trip through JSON and tensors, and twelve, to the last bit."""
    whole, half = factor(), factor()
    straight, first = built(name, whole), built(name, half)
    train(straight, whole, 15)
    train(first, half, 3)
    state = through_a_file(first.state_dict())
    second = built(name, half)
    load_exactly(second, state)
    train(second, half, 12)
    assert torch.equal(whole, half)


def test_adamw_is_torchs_with_our_settings():
    ours, theirs = factor(), factor()
    optimizer = built("AdamW", ours, weight_decay=0.1, betas=(0.8, 0.95), eps=1e-6)
    reference = torch.optim.AdamW([theirs], lr=0.05, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.1, fused=False, foreach=False)
    train(optimizer, ours, 20)
    train(reference, theirs, 20)
    assert optimizer.param_groups[0]["fused"] is True
    assert torch.allclose(ours, theirs, atol=1e-6)
    state, expected = optimizer.state[ours], reference.state[theirs]
    assert state["step"].item() == 20
    assert all(torch.allclose(state[k], expected[k], atol=1e-7) for k in ("exp_avg", "exp_avg_sq"))


def test_adafactors_learning_rate_is_absolute():
    """torch scales it by the parameter's size, with a floor of 0.001: a zero factor would move at a thousandth of it."""
    parameter = factor()
    train(built("Adafactor", parameter, learning_rate=1e-3), parameter, 1)
    assert parameter.detach().square().mean().sqrt().item() == pytest.approx(1e-3, rel=0.05)
    plain = factor()
    train(built("Adafactor", plain, learning_rate=1e-3, args=("eps=(None, 0.001)",)), plain, 1)
    assert plain.detach().square().mean().sqrt().item() == pytest.approx(1e-6, rel=0.05)


def test_groups_keep_their_own_rates():
    groups = [{"name": str(lr), "params": [factor()], "lr": lr, "weight_decay": wd} for lr, wd in ((1e-4, 0.01), (1.6e-3, 0.0))]
    optimizer = build_optimizer(groups, OptimizerConfig())
    assert [(g["lr"], g["initial_lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (1e-4, 1e-4, 0.01),
        (1.6e-3, 1.6e-3, 0.0),
    ]
    assert groups[0]["name"] == "0.0001", "the caller's groups are not touched"


def train_on_noise(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


@pytest.mark.parametrize("name", SCHEDULE_FREE)
def test_schedule_free_shows_its_average_and_trains_on_undisturbed(name):
    """Large and irregular, since its own way there and back rounds a few numbers in a thousand."""
    disturbed, left_alone = (torch.nn.Parameter(torch.zeros(128, 64)) for _ in range(2))
    args = ("d0=1e-2",) if name == "ProdigyPlusScheduleFree" else ()  # noise gives it no cause for larger steps
    a, b = built(name, disturbed, args=args), built(name, left_alone, args=args)
    train_on_noise(a, disturbed, 30)
    train_on_noise(b, left_alone, 30)
    training = disturbed.detach().clone()
    with evaluating(a):
        average = disturbed.detach().clone()
        with evaluating(a):
            assert torch.equal(disturbed, average), "inside another it changes nothing"
        assert torch.equal(disturbed, average)
        beta, z = a.param_groups[0].get("momentum") or a.param_groups[0]["betas"][0], a.state[disturbed]["z"]
    assert torch.allclose(training, beta * average + (1 - beta) * z, atol=1e-4), "training happens between average and z"
    assert (average - training).abs().max() > 1e-3
    assert torch.equal(disturbed, training), "the exact values return"
    train_on_noise(a, disturbed, 10)
    train_on_noise(b, left_alone, 10)
    assert torch.equal(disturbed, left_alone)


def test_schedule_free_returns_to_training_after_an_error():
    parameter = factor()
    optimizer = built("RAdamScheduleFree", parameter)
    train(optimizer, parameter, 10)
    training = parameter.detach().clone()
    with pytest.raises(RuntimeError, match="inside"), evaluating(optimizer):
        raise RuntimeError("inside")
    assert torch.equal(parameter, training)
    train(optimizer, parameter, 1)  # refuses outside train mode


def test_evaluating_leaves_others_alone():
    parameter = factor()
    optimizer = built("AdamW", parameter)
    train(optimizer, parameter, 3)
    before = parameter.detach().clone()
    with evaluating(optimizer):
        assert torch.equal(parameter, before)
    assert torch.equal(parameter, before)


@pytest.mark.parametrize("name, package", PACKAGED.items())
def test_a_missing_package_is_one_line_with_two_ways_out(name, package, monkeypatch):
    module = package_of(name)
    for loaded in [m for m in sys.modules if m.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)  # what import raises ModuleNotFoundError for
    expected = f"optimizer.type={name} needs the package {package}: pip install {package}, or choose AdamW"
    with pytest.raises(SettingError) as refused:
        preflight(OptimizerConfig(type=name))
    assert str(refused.value) == expected


def test_any_spelling_finds_an_optimizer():
    assert OPTIMIZERS["adamw_schedulefree"].name == "AdamWScheduleFree" and OPTIMIZERS["adamw8bit"].name == "AdamW8bit"
    assert optimizer_class(OPTIMIZERS["AdamW"]) is torch.optim.AdamW


def test_arguments_are_literals():
    arguments = ("amsgrad=True", "eps = 1e-4", "betas=0.5,0.6")
    group = built("AdamW", factor(), args=arguments).param_groups[0]
    assert (group["amsgrad"], group["eps"], group["betas"]) == (True, 1e-4, (0.5, 0.6))
    assert built("AdamW", factor(), args=("amsgrad=true",)).param_groups[0]["amsgrad"] is True
    momentum = built("SGDScheduleFree", factor(), betas=(0.7, 0.9)).param_groups[0]["momentum"]
    assert momentum == 0.7


@pytest.mark.parametrize(
    "argument, message",
    [
        ("d_coef=2", r"optimizer.args 'd_coef=2': AdamW takes name=value with betas, eps, amsgrad"),
        ("amsgrad", r"optimizer.args 'amsgrad': AdamW takes name=value with"),
        ("params=1", r"optimizer.args 'params=1': AdamW takes"),
        ("lr=1", r"optimizer.args 'lr=1': use the setting optimizer.learning_rate instead"),
        ("weight_decay=0.1", r"optimizer.args 'weight_decay=0.1': use the setting optimizer.weight_decay instead"),
        ("eps=-1", r"optimizer.type=AdamW: Invalid epsilon value: -1; check optimizer.args"),
        ("betas=0.9", r"optimizer.type=AdamW: .*; check optimizer.args and optimizer.betas"),
        ("foreach=True", r"optimizer.type=AdamW: .*fused.*; check optimizer.args"),
        ("betas=__import__('os').getcwd()", r"optimizer.type=AdamW: .*; check optimizer.args"),
    ],
)
def test_arguments_that_cannot_work_are_refused_before_anything_loads(argument, message):
    with pytest.raises(SettingError, match=message) as refused:
        preflight(OptimizerConfig(args=(argument,)))
    assert "\n" not in str(refused.value)


def test_preflight_works_inside_inference_mode():
    with torch.inference_mode():
        assert preflight(OptimizerConfig()) == []


@pytest.fixture
def prodigy():
    return pytest.importorskip("prodigyopt", reason="prodigyopt is not installed")


def test_a_small_rate_of_prodigy_is_a_warning(prodigy):
    assert "`optimizer.learning_rate`=0.0001" in preflight(OptimizerConfig(type="Prodigy", learning_rate=1e-4))[0]
    assert preflight(OptimizerConfig(type="Prodigy", learning_rate=1.0)) == []


def test_prodigy_with_averages_says_what_hampers_it():
    pytest.importorskip("prodigyplus", reason="prodigy-plus-schedule-free is not installed")
    warned = preflight(OptimizerConfig(type="ProdigyPlusScheduleFree", learning_rate=1e-4))
    assert [text.partition(":")[0].partition(";")[0] for text in warned] == [
        "`optimizer.type`=ProdigyPlusScheduleFree finds its own step size",
        "`optimizer.max_grad_norm`=1.0 hampers ProdigyPlusScheduleFree, which clips by itself",
    ]
    assert preflight(OptimizerConfig(type="ProdigyPlusScheduleFree", learning_rate=1.0, max_grad_norm=0.0)) == []


def test_prodigy_with_averages_keeps_its_half_precision_sums_and_its_version(capsys):
    """They are bf16, which torch's own loading would widen; a version that comes back as a list is another to it."""
    pytest.importorskip("prodigyplus", reason="prodigy-plus-schedule-free is not installed")
    p, other = factor(), factor()
    first, second = built("ProdigyPlusScheduleFree", p), built("ProdigyPlusScheduleFree", other)
    train(first, p, 3)
    load_exactly(second, through_a_file(first.state_dict()))
    assert second.state[other]["s"].dtype == torch.bfloat16 and torch.equal(second.state[other]["s"], first.state[p]["s"])
    assert isinstance(second.param_groups[0]["running_d_numerator"], torch.Tensor)
    capsys.readouterr()
    other.grad = torch.ones_like(other)
    second.step()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("module", ["transformers.optimization", "came_pytorch"])
def test_other_peoples_classes_give_the_same_steps(module):
    """CAME beside its authors' own; Adafactor of relative steps beside transformers' with sd-scripts' arguments."""
    theirs = pytest.importorskip(module, reason=f"{module} is not installed")
    ours, other = factor(), factor()
    if module == "came_pytorch":
        pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
        optimizer, reference = built("CAME", ours, betas=(0.9, 0.999)), theirs.CAME([other], lr=0.05)
    else:
        optimizer, reference = built("AdafactorRelative", ours), theirs.Adafactor([other], lr=None, relative_step=True)
    train(optimizer, ours, 30)
    train(reference, other, 30)
    assert ours.abs().max() > 1e-5 and torch.allclose(ours, other, rtol=1e-4, atol=1e-7)


def test_adafactors_switches_are_its_arguments():
    pytest.importorskip("transformers.optimization", reason="transformers is not installed")
    group = built("AdafactorRelative", factor(), args=("scale_parameter=false", "warmup_init=true")).param_groups[0]
    assert (group["relative_step"], group["scale_parameter"], group["warmup_init"]) == (True, False, True)
    (warned,) = preflight(OptimizerConfig(type="AdafactorRelative"))
    assert warned == (
        "`optimizer.learning_rate`=0.0001 has no effect: `optimizer.type`=AdafactorRelative finds its own step size"
    )


@pytest.mark.parametrize("changes", [dict(scheduler="cosine"), dict(warmup_steps=5), dict(warmup_ratio=0.1)])
def test_relative_steps_take_no_schedule(changes):
    with pytest.raises(SettingError, match="optimizer=AdafactorRelative requires lr_"):
        OptimizerConfig(type="AdafactorRelative", **changes)


def test_prodigy_takes_one_rate():
    groups = [{"params": [factor()], "lr": lr} for lr in (1.0, 16.0)]
    with pytest.raises(SettingError, match="optimizer.type=Prodigy takes one learning rate: .*loraplus_lr_ratio"):
        build_optimizer(groups, OptimizerConfig(type="Prodigy", learning_rate=1.0))

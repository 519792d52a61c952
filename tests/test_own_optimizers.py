"""Optimizers that a user names as module.Class: only what is installed, tried first, recorded, and continued exactly."""

import copy
import importlib.util
import json
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from anima_core import train
from anima_core.demo.pictures import write_pictures
from anima_core.errors import SettingError
from anima_core.settings import NetworkConfig, OptimizerConfig, OutputConfig
from anima_core.settings.optimizer import OPTIMIZERS
from anima_core.training import optimizers, packages, trial
from anima_core.training.optimizer_state import flatten_optimizer, unflatten_optimizer
from anima_core.training.optimizers import evaluating, preflight
from anima_core.training.trial import Trial, through_a_file, try_out

from .test_optimizers import built, factor, miss
from .test_optimizers import train as train_factor
from .test_training import fixed_loss
from .tiny import same_tensors, train_config


def named(*names: str, module: str, reads: tuple[int, int] = (0, 0), rate: float = 0.05, steps: int = 150):
    """Return a case for each class. reads: numbers that a step reads back once, and for each tensor."""
    package = module.partition(".")[0]
    skip = pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")
    return [pytest.param(f"{module}.{name}", reads, rate, steps, marks=skip, id=f"{module}.{name}") for name in names]


CASES = [
    *named("Adam", "NAdam", "RAdam", "RMSprop", "Adamax", module="torch.optim"),
    *named("CAME", module="came_pytorch"),
    *named("SOAP", "Lion", "Adan", "StableAdamW", "ScheduleFreeAdamW", "AggMo", module="pytorch_optimizer"),
    *named("SPlus", module="pytorch_optimizer", rate=0.5),
    *named("AdamP", module="pytorch_optimizer", reads=(0, 2)),
    *named("MADGRAD", module="pytorch_optimizer", reads=(1, 0)),
    *named("Prodigy", module="pytorch_optimizer", reads=(2, 0), rate=1.0, steps=300),
    *named("PagedAdamW8bit", "Lion8bit", "PagedAdEMAMix8bit", module="bitsandbytes.optim"),
]
KIND = "name, reads, rate, steps"


def tried(name: str, **settings) -> Trial:
    config = OptimizerConfig(type=name, **{"weight_decay": 0.0} | settings)
    return optimizers.tried(OPTIMIZERS[config.type], config)


@pytest.mark.parametrize(KIND, CASES)
def test_others_classes_learn(name, reads, rate, steps):
    parameter = factor()
    before = miss(parameter).item()
    optimizer = built(name, parameter, learning_rate=rate / 5 if "Lion" in name else rate)
    train_factor(optimizer, parameter, steps)
    with evaluating(optimizer):
        assert miss(parameter).item() < 0.1 * before


@pytest.mark.parametrize(KIND, CASES)
def test_others_classes_go_on_exactly_and_read_back_what_is_said(name, reads, rate, steps):
    assert tried(name, learning_rate=rate) == Trial(*reads)


@pytest.mark.parametrize("name", ["AdamW8bit", "bitsandbytes.optim.Lion8bit", "bitsandbytes.optim.PagedAdEMAMix8bit"])
def test_moments_in_8_bits_go_on_exactly(monkeypatch, name):
    """Below 4096 numbers bitsandbytes keeps them in 32 bits."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    monkeypatch.setattr(trial, "PAIR", ((16, 256), (256, 16)))
    assert tried(name) == Trial()
    optimizer = built(name, p := nn.Parameter(torch.zeros(16, 256)))
    p.grad = torch.ones_like(p)
    optimizer.step()
    assert through_a_file(optimizer.state_dict())["state"][0]["state1"].dtype == torch.uint8


@pytest.mark.parametrize("name, times", [("Adafactor", 2), ("AdamW", 0), ("RAdamScheduleFree", 0)])
def test_what_torchs_own_read_back_is_counted_without_their_counters(name, times):
    assert tried(name) == Trial(0, times)


@pytest.mark.parametrize(
    "name, said",
    [
        (
            "json.JSONDecoder",
            "no package that is installed has json; check its spelling, install the package",
        ),
        ("tests.tiny.Tiny", "no package that is installed has tests"),
        ("torch.optim.Nope", "torch .* has no Nope; check its spelling"),
        ("torch.optim.no_such.Nope", "needs the package torch: pip install torch, or choose AdamW"),
        ("torch.nn.Linear", "is no torch.optim.Optimizer; name the class of one"),
        ("torch.optim.lr_scheduler.LambdaLR", "is no torch.optim.Optimizer"),
        ("torch.optim.LBFGS", "does not train two small tensors .*closure"),
        ("torch.optim.SparseAdam", "does not train two small tensors .*dense gradients"),
        ("./own.py", "is no class' name; write module.Class of an installed package"),
        ("folder/own.Class", "is no class' name"),
        ("pip.__main__.X", "is no class' name"),
    ],
)
def test_what_cannot_be_used_is_one_line_before_anything_loads(name, said):
    with pytest.raises(SettingError, match=rf"optimizer.type='?{name}'? ?:?.*{said}") as refused:
        preflight(OptimizerConfig(type=name))
    assert "\n" not in str(refused.value)


def test_a_file_that_python_would_find_is_not_run(tmp_path, monkeypatch):
    (tmp_path / "lying_about.py").write_text("raise SystemExit('it was run')", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SettingError, match="no package that is installed has lying_about"):
        preflight(OptimizerConfig(type="lying_about.Optimizer"))
    assert "lying_about" not in sys.modules


def test_a_package_that_fails_at_import_is_one_line(monkeypatch):
    monkeypatch.setattr(packages, "distributions", lambda: {"broken_one": ["broken-one"]})
    monkeypatch.setattr(packages.metadata, "version", lambda name: "1.0")

    def broken(name):
        raise OSError("libcudart.so.13: cannot open\nshared object")

    monkeypatch.setattr("anima_core.training.optimizers.importlib.import_module", broken)
    with pytest.raises(SettingError, match=r"X cannot be imported \(libcudart.so.13: cannot open shared object\); repair"):
        preflight(OptimizerConfig(type="broken_one.X"))


@pytest.mark.parametrize(
    "argument, said",
    [
        ("momentum_decy=1", "torch.optim.NAdam takes name=value with betas, eps, momentum_decay"),
        ("lr=1", "use the setting optimizer.learning_rate instead"),
        ("momentum_decay=-1", "Invalid momentum_decay value: -1"),
        ("betas=0.9", "check optimizer.args"),
    ],
)
def test_arguments_of_ones_own_are_checked_against_the_class(argument, said):
    with pytest.raises(SettingError, match=said):
        preflight(OptimizerConfig(type="torch.optim.NAdam", args=(argument,)))


def test_a_class_that_takes_any_name_is_asked_which_it_knows():
    pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
    (warned,) = preflight(OptimizerConfig(type="pytorch_optimizer.SOAP", args=("precondition_freqency=5",)))
    assert "`optimizer.args` 'precondition_freqency=5': pytorch_optimizer.SOAP does not name it" in warned
    assert preflight(OptimizerConfig(type="pytorch_optimizer.SOAP", args=("precondition_frequency=5",))) == []


def test_what_norms_learn_is_tried_where_they_are_trained():
    muon = OptimizerConfig(type="torch.optim.Muon")
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    assert preflight(muon) == []
    with pytest.raises(SettingError, match="optimizer.type=torch.optim.Muon: .*2D"):
        preflight(muon, norms=True)
    assert preflight(OptimizerConfig(), norms=True) == []


def test_settings_that_only_arguments_can_give_are_named():
    (warned,) = preflight(OptimizerConfig(type="torch.optim.NAdam", betas=(0.8, 0.9)))
    assert warned == "`optimizer.betas`=(0.8, 0.9) has no effect: torch.optim.NAdam takes its own, among `optimizer.args`"
    (warned,) = preflight(OptimizerConfig(type="torch.optim.Rprop", weight_decay=0.1))
    assert warned == "`optimizer.weight_decay`=0.1 has no effect: torch.optim.Rprop has none"


def test_how_often_one_waits_is_said_for_a_card():
    pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
    card = torch.device("cuda")
    (once,) = preflight(OptimizerConfig(type="pytorch_optimizer.MADGRAD"), card)
    assert once.endswith("MADGRAD reads 1 number back from the device in each step, which waits for it")
    (each,) = preflight(OptimizerConfig(type="pytorch_optimizer.AdamP"), card)
    assert "waits for the device twice for each trained tensor in every step, 1120 times by default" in each


# What a trial finds


class Sgd(torch.optim.Optimizer):
    """Steps against the gradient, and lets a test do something else for each tensor before."""

    def __init__(self, params, lr=0.1, before=lambda optimizer, parameter: None):
        super().__init__(params, {"lr": lr})
        self.before, self.steps = before, 0

    @torch.no_grad()
    def step(self, closure=None):
        self.steps += 1
        for parameter in self.param_groups[0]["params"]:
            factor = self.before(self, parameter)
            parameter.sub_(parameter.grad, alpha=0.1 if factor is None else factor)


def is_first(optimizer: Sgd, parameter: nn.Parameter) -> bool:
    return parameter is optimizer.param_groups[0]["params"][0]


def trial_of(before) -> Trial:
    return try_out(lambda parameters: Sgd(parameters, before=before))


def test_a_number_read_for_each_tensor_is_told_from_one_read_once():
    assert trial_of(lambda optimizer, p: p.norm().item()) == Trial(0, 1)
    assert trial_of(lambda optimizer, p: p.norm().item() if p is optimizer.param_groups[0]["params"][0] else None) == Trial(
        1, 0
    )
    assert trial_of(lambda optimizer, p: torch.tensor(0.1).item()) == Trial(0, 0), "a number of the CPU's own"
    assert trial_of(lambda optimizer, p: 0.1 if (p != p).any() else 0.2) == Trial(0, 1)


def test_random_numbers_are_noticed_and_the_callers_are_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert trial_of(lambda optimizer, p: torch.rand(()).item()).draws
    assert torch.equal(torch.get_rng_state(), before)


def test_what_is_remembered_beside_the_state_is_noticed():
    assert not trial_of(lambda optimizer, p: 1 / optimizer.steps).exact


def test_a_step_that_needs_a_card_is_not_held_against_it():
    def step(optimizer, parameter):
        raise NotImplementedError("no kernel for 'aten::fancy' on the CPU")

    assert trial_of(step).untried == "no kernel for 'aten::fancy' on the CPU"

    def wrong(optimizer, parameter):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        trial_of(wrong)


# States


def test_any_state_comes_back_as_it_was():
    """Lists, tuples, tables by number, half precision, tensors that lie across, and what is kept beside the parameters."""
    across = torch.arange(6.0).view(2, 3).t()
    state = {
        "state": {
            0: {"step": 3, "sides": [across, None, (torch.ones(2), 1.5)], "half": torch.ones(3, dtype=torch.bfloat16)},
            1: {"by_beta": {0.9: torch.zeros(2), 0.99: torch.ones(2)}, "across": across},
            "k": torch.tensor([4]),
        },
        "param_groups": [
            {"params": [0, 1], "betas": (0.9, 0.99), "sum": torch.tensor(2.0), "version": (2, 0), "dtype": torch.half}
        ],
    }
    found = through_a_file(copy.deepcopy(state))
    first, second = found["state"][0], found["state"][1]
    assert first["step"] == 3 and first["sides"][1] is None and first["sides"][2][1] == 1.5
    assert torch.equal(first["sides"][0], across) and first["sides"][0].stride() == second["across"].stride() == across.stride()
    assert first["half"].dtype == torch.bfloat16 and list(second["by_beta"]) == [0.9, 0.99]
    assert torch.equal(found["state"]["k"], torch.tensor([4]))
    (group,) = found["param_groups"]
    assert (group["params"], group["betas"], group["version"], group["dtype"]) == ([0, 1], (0.9, 0.99), (2, 0), None)
    assert torch.equal(group["sum"], torch.tensor(2.0))


def test_a_state_that_no_file_can_hold_is_named():
    with pytest.raises(TypeError, match=r"its state holds a Sgd \(helper\), which no checkpoint can"):
        flatten_optimizer({"state": {0: {"helper": Sgd([nn.Parameter(torch.ones(1))])}}, "param_groups": []})


def test_the_names_of_moments_are_those_of_earlier_checkpoints():
    optimizer = built("AdamW", p := factor())
    train_factor(optimizer, p, 2)
    tensors, scalars = flatten_optimizer(optimizer.state_dict())
    assert set(tensors) == {f"optimizer.0.{name}" for name in ("step", "exp_avg", "exp_avg_sq")}
    assert set(scalars) == {"state", "param_groups"} and scalars["state"] == {"0": {}}
    scalars["param_groups"][0]["betas"] = [0.9, 0.99]  # as they were written
    earlier = unflatten_optimizer(
        {k.removeprefix("optimizer."): v for k, v in tensors.items()}, json.loads(json.dumps(scalars))
    )
    assert earlier["param_groups"][0]["betas"] == (0.9, 0.99)


# In a run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


@pytest.mark.slow
def test_a_run_records_the_package_and_a_resumed_one_compares_it(model, pictures, tmp_path, monkeypatch):
    pytest.importorskip("pytorch_optimizer", reason="pytorch-optimizer is not installed")
    output = dict(dir=str(tmp_path), name="test", save_dtype="fp32")
    soap = OptimizerConfig(type="pytorch_optimizer.SOAP", learning_rate=2e-3)

    def configured(**more):
        return train_config(model, pictures, tmp_path, optimizer=soap, output=OutputConfig(**output, **more))

    def texts(config, stop=0):
        seen = []
        train(config, lambda e: seen.append(e) or ("stop" if stop and e.get("step") == stop else None))
        return [e["text"] for e in seen if "text" in e]

    version = packages.version_of(OPTIMIZERS["pytorch_optimizer.SOAP"])
    assert f"`optimizer.type`=pytorch_optimizer.SOAP: of {version}" in texts(configured(), stop=3)
    config_text = (tmp_path / "test-run" / "config.toml").read_text(encoding="utf-8")
    assert config_text.startswith(f"# pytorch_optimizer.SOAP: {version}\n")
    with safe_open(tmp_path / "test.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_optimizer"], metadata["anima_trainer.optimizer"]) == ("pytorch_optimizer.SOAP", version)
    monkeypatch.setattr(packages.metadata, "version", lambda name: "99.0")
    said = rf"package of the optimizer was {version}, now \w+ 99.0"
    with pytest.raises(SettingError, match=said):
        train(configured(resume="latest"))
    assert any("package of the optimizer was" in text for text in texts(configured(resume="latest", resume_with_changes=True)))


OWN = [*named("NAdam", module="torch.optim"), *named("SOAP", "ScheduleFreeAdamW", module="pytorch_optimizer")]


@pytest.mark.slow
@pytest.mark.parametrize(KIND, OWN)
def test_a_run_cut_in_two_gives_the_same_bits(model, pictures, tmp_path, name, reads, rate, steps):
    optimizer = OptimizerConfig(type=name, learning_rate=2e-3)

    def configured(folder, resume=""):
        output = OutputConfig(str(tmp_path / folder), "test", save_dtype="fp32", resume=resume)
        return train_config(model, pictures, tmp_path / folder, optimizer=optimizer, output=output, max_train_steps=7)

    whole = train(configured("whole"))
    train(configured("parts"), lambda e: "stop" if e.get("step") == 3 else None)
    resumed = train(configured("parts", "latest"))
    assert resumed.losses == whole.losses and whole.losses[-1] < whole.losses[0] + 1.0
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))


def learning(name: str, rate: float, *marks):
    package = OPTIMIZERS[name].top
    skip = pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")
    return pytest.param(name, rate, marks=(skip, *marks), id=name)


LEARNING = [
    learning("CAME", 1e-3),
    learning("ProdigyPlusScheduleFree", 1.0, pytest.mark.long),
    learning("AdafactorRelative", 1e-3, pytest.mark.long),
    learning("torch.optim.NAdam", 1e-3, pytest.mark.long),
    learning("pytorch_optimizer.SOAP", 1e-3, pytest.mark.long),
    learning("pytorch_optimizer.ScheduleFreeAdamW", 3e-3, pytest.mark.long),
    learning("bitsandbytes.optim.Lion8bit", 3e-4, pytest.mark.long),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, rate", LEARNING)
def test_training_learns_with_it(model, pictures, tmp_path, name, rate):
    """150 steps take a third off the loss on fixed t and noise, as AdamW's do."""
    optimizer = OptimizerConfig(type=name, learning_rate=rate, weight_decay=0.0)
    changes = dict(network=NetworkConfig(rank=16, alpha=16, targets="all"), dataset={"batch_size": 3}, seed=1)
    config = train_config(model, pictures, tmp_path, optimizer=optimizer, max_train_steps=150, **changes)
    assert fixed_loss(config, train(config).adapter_path) < 0.67 * fixed_loss(config)

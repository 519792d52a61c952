"""Fast functions that fail on a device, or compute something else there, are not used."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from anima_core.adapters import functions
from anima_core.demo.pictures import write_pictures
from anima_core.models.ops import PLAIN
from anima_core.settings import NetworkConfig
from anima_core.speed.lean import LEAN
from anima_core.speed.probe import adapters_proven, proven
from anima_core.training import loop

from .conftest import relative_error
from .test_fused import NETWORKS, network_of
from .tiny import train_config

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_lean_functions_prove_themselves_here(dtype):
    assert proven(CPU, dtype) == (LEAN, "")


class WrongGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return PLAIN.gelu(x)

    @staticmethod
    def backward(ctx, g):
        return g


def missing(*inputs):
    raise NotImplementedError("Could not run 'aten::_fused_rms_norm' with arguments from this backend.\nmore")


@pytest.mark.parametrize(
    "name, broken, reason",
    [
        ("gelu", WrongGradient.apply, "gelu differs by"),
        ("gelu", lambda x: PLAIN.gelu(x) * float("nan"), "gelu differs by inf"),
        ("norm_rope", lambda x, weight, rope: LEAN.norm_rope(x, weight, None), "norm_rope differs by"),
        ("norm_rope", missing, "Could not run 'aten::_fused_rms_norm' with arguments from this backend."),
    ],
)
def test_what_fails_or_differs_is_left_out_with_the_reason(name, broken, reason):
    ops, why = proven(CPU, torch.float32, dataclasses.replace(LEAN, **{name: broken}))
    assert ops is PLAIN and why.startswith(reason) and "\n" not in why


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", NETWORKS)
def test_the_fused_adapters_prove_themselves_here(kind, dtype):
    network = network_of(NETWORKS[kind], dtype)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    assert adapters_proven(network) == ""
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in network.named_parameters())  # a copy was tried
    assert network.fused


def raises(*_):
    raise RuntimeError("not implemented for this backend\nmore")


@pytest.mark.parametrize(
    "kind, part, broken, reason",
    [
        ("lora", "LoRAFunction.forward", lambda y: y * 1.01, "lora differs by 1.0e-02 from its plain form"),
        ("lora", "LoRAFunction.backward", lambda found: (found[0] * -1, *found[1:]), "lora differs by 2.0e+00"),
        (
            "lora everywhere",
            "LoRAFunction.backward",
            lambda found: (found[0] * float("nan"), *found[1:]),
            "lora differs by inf",
        ),
        ("lokr", "LoKrFunction.backward", lambda found: (found[0] * 2, *found[1:]), "lokr differs by 1.0e+00"),
        ("loha of two ranks", "LoHaFunction.backward", lambda found: (found[0] * 2, *found[1:]), "loha differs by 1.0e+00"),
        ("dora", "LoRAFunction.backward", lambda found: (found[0] * 2, *found[1:]), "lora differs by 1.0e+00"),
        ("lokr whole", "WholeLoKrFunction.forward", raises, "not implemented for this backend"),
    ],
)
def test_a_fused_adapter_that_fails_or_differs_is_left_out_with_the_reason(monkeypatch, kind, part, broken, reason):
    owner, name = getattr(functions, part.partition(".")[0]), part.partition(".")[2]
    right = getattr(owner, name)
    monkeypatch.setattr(owner, name, staticmethod(lambda *given: broken(right(*given))))
    why = adapters_proven(network_of(NETWORKS[kind]))
    assert why.startswith(reason) and "\n" not in why


def test_a_gradient_that_does_not_arrive_is_seen(monkeypatch):
    """The factors' gradients go straight to where they are collected."""
    monkeypatch.setattr(functions, "product", lambda left, right, scale: torch.zeros(left.shape[0], right.shape[1]))
    assert adapters_proven(network_of(NetworkConfig(rank=4))).startswith("lora differs by 1.0e+00")


def test_a_run_whose_fused_adapters_fail_takes_the_slow_form_and_says_so(model, tmp_path, monkeypatch):
    write_pictures(tmp_path / "pictures", 2)
    monkeypatch.setattr(functions.LoRAFunction, "forward", staticmethod(raises))
    events: list[dict] = []
    with loop.opened(train_config(model, tmp_path / "pictures", tmp_path), events.append) as run:
        assert not run.state.network.fused and {form.ops for form in run.model.forms} == {LEAN}
        assert not run.fit.counter.empty[1].fused  # memory is planned for the slow form
        run.go()
    told = [event["text"] for event in events if event["event"] == "warning"]
    text = "cpu: the fast form of adapters is left out: not implemented for this backend; steps take longer"
    assert text in told and len([event for event in events if event["event"] == "step"]) == 6


def test_a_run_says_that_it_does_without(model, tmp_path, monkeypatch):
    write_pictures(tmp_path / "pictures", 2)
    monkeypatch.setattr(loop, "proven", lambda device, dtype: (PLAIN, "gelu differs by 1.0e+00 from its plain form"))
    events: list[dict] = []
    with loop.opened(train_config(model, tmp_path / "pictures", tmp_path), events.append) as run:
        assert {form.ops for form in run.model.forms} == {PLAIN}
    told = [event["text"] for event in events if event["event"] == "warning"]
    assert any("the fast functions are left out: gelu differs" in text for text in told)


def test_a_run_in_plain_forms_trains_the_same_adapter(model, tmp_path):
    write_pictures(tmp_path / "pictures", 2)
    found = []
    for plain in (False, True):
        config = train_config(model, tmp_path / "pictures", tmp_path / str(plain), plain=plain)
        with loop.opened(config) as run:
            assert {form.ops for form in run.model.forms} == {PLAIN if plain else LEAN}
            assert run.state.network.fused != plain and bool(run.state.network.flat) != plain
            found.append(load_file(run.go().adapter_path))
    fast, slow = found
    for name, tensor in slow.items():
        assert relative_error(fast[name], tensor) < 1e-4, name

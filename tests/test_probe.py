"""Fast functions that fail on a device, or compute something else there, are not used."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file

from anima_core.demo.pictures import write_pictures
from anima_core.models.ops import PLAIN
from anima_core.speed.lean import LEAN
from anima_core.speed.probe import proven
from anima_core.training import loop

from .conftest import relative_error
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

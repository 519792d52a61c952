"""Blocks compiled in earnest, and every network and level as graphs: `make compile`, apart from `make test`."""

import dataclasses

import pytest
import torch
from torch import Tensor

from anima_core.demo.pictures import write_pictures
from anima_core.settings import NetworkConfig
from anima_core.speed import compile_trial
from anima_core.speed.attention import CANDIDATES
from anima_core.speed.compiled import CHOICES, CompiledBlocks
from anima_core.speed.costs import Shape
from anima_core.speed.counting import Meter
from anima_core.speed.forms import LevelForm
from anima_core.speed.lean import LEAN

from .conftest import relative_error
from .test_compiled import CASES, adapted, backend, compare, graphs, results, times, trained_run

__all__ = ["backend", "times"]  # fixtures
pytestmark = pytest.mark.inductor

COMPILED = ("keep", *CHOICES)  # levels; offload is not
WHOLE = {
    "lora": NetworkConfig(rank=4, alpha=2),
    "lokr": NetworkConfig(type="lokr", rank=3, alpha=1, factor=4),
    "lokr whole": NetworkConfig(type="lokr", full_matrix=True, factor=4),
    "lokr both": NetworkConfig(type="lokr", rank=1, factor=-1, decompose_both=True),
    "adaln, norms": NetworkConfig(rank=4, targets="+adaln", train_norm=True),
}


@pytest.mark.parametrize(
    "case, dtype, int8",
    [
        *((case, dtype, False) for case in WHOLE for dtype in (torch.float32, torch.bfloat16)),
        ("lora", torch.bfloat16, True),
        ("lokr whole", torch.float32, True),
    ],
)
def test_every_network_and_level_gives_the_plain_numbers(backend, case, dtype, int8):
    compare(WHOLE[case], [*COMPILED, *COMPILED], dtype, int8)


def test_text_without_its_zero_rows_is_one_more_graph_whatever_their_number(backend):
    model, adapters = adapted(CASES["lora"][0])
    blocks, ops = CompiledBlocks(model, pytest.fail), dataclasses.replace(LEAN, attention=CANDIDATES["sdpa"])
    for zeros in (0, 64, 320):
        model.forms = [LevelForm("attention", ops)] * 2
        expected = results(model, adapters, (8, 6), zeros)
        model.forms = [LevelForm("attention", ops, blocks)] * 2
        found = results(model, adapters, (8, 6), zeros)
        assert all(relative_error(one, other) < 1e-5 for one, other in zip(found, expected))
    assert graphs() == 2


def test_inductor_gives_the_plain_numbers(backend):
    backend("inductor")
    compare(WHOLE["adaln, norms"], ["keep", "checkpoint"], torch.float32, int8=True)


@pytest.mark.parametrize("level", COMPILED)
def test_a_compiled_block_keeps_what_its_level_was_counted_for(backend, level):
    """As the planner counts it; what a rotary table takes, which is there anyway, is left out."""
    model, _ = adapted(WHOLE["lora"], torch.bfloat16)
    blocks, inputs = CompiledBlocks(model, pytest.fail), compile_trial.inputs_of(model, Shape(1, 32, 32, 512))
    there = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *inputs[1], inputs[2], *inputs[3]]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = LevelForm(level, LEAN, blocks)(model.blocks[0], *inputs)
    with Meter() as meter:
        x = inputs[0].detach().clone().requires_grad_()
        expected = LevelForm(level, LEAN)(model.blocks[0], x, *inputs[1:])
        counted = meter.live - expected.nbytes
    assert y.shape == expected.shape
    assert 0.9 * counted < sum(kept.values()) < 1.1 * counted + 2**14  # a state of random numbers for each attention


def test_a_run_with_inductor_has_the_losses_of_a_plain_one(model, tmp_path, times):
    write_pictures(tmp_path / "pictures", 3)
    plain, _ = trained_run(model, tmp_path)
    fast, _ = trained_run(model, tmp_path, compile=True)
    assert fast == pytest.approx(plain, rel=1e-5)
    assert any((tmp_path / "1" / "cache" / "compiled").rglob("*.py"))  # kept for the next run

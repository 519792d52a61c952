"""What a block keeps for its backward pass, and in which functions it runs, changes no number."""

import dataclasses
import gc
import weakref

import pytest
import torch

from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.random_transformer import REAL, TINY, random_state
from anima_core.models.ops import PLAIN, Ops
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import NetworkConfig
from anima_core.speed import lean
from anima_core.speed.counting import Meter, cuda_kernels
from anima_core.speed.forms import LEVELS, levels_of, make_lean, make_plain, recomputes_blocks

from .conftest import relative_error

pytestmark = pytest.mark.slow

NETWORKS = {
    "lora": NetworkConfig(rank=4, alpha=4),
    "lokr": NetworkConfig(type="lokr", rank=4, alpha=4, factor=4),
    "whole lokr": NetworkConfig(type="lokr", factor=4, full_matrix=True),
    "adaln": NetworkConfig(rank=4, alpha=4, targets="+adaln"),
    "norms": NetworkConfig(rank=4, alpha=4, train_norm=True),
    "dropout": NetworkConfig(rank=4, alpha=4, dropout=0.2, rank_dropout=0.2),
    "some layers": NetworkConfig(rank=4, alpha=4, targets="mlp", exclude=("re:blocks.0",)),
}


def adapted(network: NetworkConfig, dtype: torch.dtype = torch.float32) -> tuple[AnimaTransformer, AdapterNetwork]:
    model = AnimaTransformer(TINY)
    model.load_state_dict(random_state(TINY, torch.Generator().manual_seed(0)))
    model = model.to(dtype).requires_grad_(False)
    adapters = AdapterNetwork.inject(model, network, 0)
    adapters.parameter_groups(1e-4, 0.0)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in adapters.zero_init_parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    return model, adapters


def inputs(batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(batch, 520, TINY.context_dim, generator=generator)
    lengths = torch.tensor([520, 512][:batch])
    return torch.randn(batch, 16, 6, 4, generator=generator), torch.rand(batch, generator=generator), text, lengths


def results(model: AnimaTransformer, adapters: AdapterNetwork, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    adapters.zero_grad()
    velocity = model(*inputs(batch))
    velocity.float().square().mean().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in adapters.parameters()]
    return velocity.detach(), torch.cat([g.flatten() for g in gradients])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_level_gives_the_same_bits(network, dtype):
    model, adapters = adapted(NETWORKS[network], dtype)
    found = []
    for level in LEVELS:
        make_lean(model, [level] * len(model.blocks))
        found.append(results(model, adapters))
    assert found[0][1].count_nonzero() > 0
    for level, other in zip(LEVELS, found):
        assert torch.equal(other[0], found[0][0]) and torch.equal(other[1], found[0][1]), level


@pytest.mark.parametrize("level", LEVELS)
def test_the_text_gets_the_same_gradient(level):
    """It is an input of every block; an LLM adapter that is trained learns by it."""
    model, _ = adapted(NETWORKS["lora"])
    latents, t, text, lengths = inputs()
    text.requires_grad_(True)
    found = []
    for levels in ([], [level] * len(model.blocks)):
        make_lean(model, levels)
        velocity = model(latents, t, text, lengths)
        found.append((velocity.detach(), *torch.autograd.grad(velocity.square().mean(), text)))
    assert found[0][1].count_nonzero() > 0
    assert all(torch.equal(one, other) for one, other in zip(*found))


def test_levels_may_differ_from_block_to_block():
    model, adapters = adapted(NETWORKS["lora"])
    make_lean(model)
    before = results(model, adapters)
    make_lean(model, ["attention", *["cheap"] * (len(model.blocks) - 1)])
    after = results(model, adapters)
    assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    assert levels_of(model)[:2] == ["attention", "cheap"] and recomputes_blocks(model)
    make_plain(model)
    assert not recomputes_blocks(model)


@pytest.mark.parametrize("network", NETWORKS)
def test_lean_functions_give_the_plain_ones_numbers(network):
    model, adapters = adapted(NETWORKS[network])
    make_plain(model)
    slow = results(model, adapters)
    make_lean(model)
    fast = results(model, adapters)
    assert relative_error(fast[0], slow[0]) < 1e-6 and relative_error(fast[1], slow[1]) < 1e-6


def test_in_half_precision_lean_functions_are_as_near_to_the_truth():
    """Both against fp32: what they differ by is rounding, not a fault."""
    truth = results(*adapted(NETWORKS["lora"]))
    model, adapters = adapted(NETWORKS["lora"], torch.bfloat16)
    slow = results(model, adapters)
    make_lean(model)
    fast = results(model, adapters)
    for number in (0, 1):
        assert relative_error(fast[number], truth[number]) < 1.2 * relative_error(slow[number], truth[number])


@pytest.mark.parametrize("rope", [True, False])
def test_the_lean_norm_has_the_plain_ones_gradients(rope):
    x, weight = torch.randn(2, 5, 3, 8, dtype=torch.float64), torch.rand(8, dtype=torch.float64) + 0.5
    angles = torch.rand(5, 1, 4)
    table = (angles.cos(), angles.sin()) if rope else None
    outputs = []
    for ops in (PLAIN, lean.LEAN):
        ours = x.float().requires_grad_(True), weight.float().requires_grad_(True)
        y = ops.norm_rope(*ours, table)
        outputs.append([y, *torch.autograd.grad((y * torch.arange(8.0)).sum(), ours)])
    for slow, fast in zip(*outputs):
        assert relative_error(fast, slow) < 1e-6


@pytest.mark.parametrize("level", LEVELS)
def test_without_gradients_nothing_is_recorded(level):
    model, adapters = adapted(NETWORKS["lora"])
    make_plain(model)
    with torch.no_grad():
        before = model(*inputs())
        make_lean(model, [level] * len(model.blocks))
        assert relative_error(model(*inputs()), before) < 1e-6
    results(model, adapters)


@pytest.mark.parametrize("level", LEVELS)
def test_a_graph_may_be_gone_through_twice(level):
    model, adapters = adapted(NETWORKS["lora"])
    make_lean(model, [level] * len(model.blocks))
    loss = model(*inputs()).square().mean()
    parameters = [p for p in adapters.parameters() if p.requires_grad]
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("level", LEVELS)
def test_a_graph_that_is_dropped_leaves_nothing_alive(level):
    """Without the garbage collector: out of memory in a backward pass, the next try must have its room at once."""
    model, _ = adapted(NETWORKS["lora"])
    seen: list[weakref.ref] = []

    def gelu(x: torch.Tensor) -> torch.Tensor:
        y = PLAIN.gelu(x)
        seen.append(weakref.ref(y.untyped_storage()))
        return y

    make_lean(model, [level] * len(model.blocks), dataclasses.replace(lean.LEAN, gelu=gelu))
    gc.disable()
    try:
        loss = model(*inputs()).square().mean()
        loss.backward()
        del loss
        assert seen and not any(ref() is not None for ref in seen)
        loss = model(*inputs()).square().mean()
        del loss
        assert not any(ref() is not None for ref in seen)
    finally:
        gc.enable()


@pytest.mark.parametrize("level, calls", [("keep", 1), ("cheap", 1), ("attention", 1), ("checkpoint", 2)])
def test_attention_runs_again_only_where_its_output_is_not_kept(level, calls):
    model, adapters = adapted(NETWORKS["lora"])
    count = 0

    def attention(*inputs: torch.Tensor) -> torch.Tensor:
        nonlocal count
        count += 1
        return PLAIN.attention(*inputs)

    make_lean(model, [level] * len(model.blocks), dataclasses.replace(lean.LEAN, attention=attention))
    results(model, adapters)
    assert count == 2 * len(model.blocks) * calls


def test_the_modulation_table_holds_the_weights_themselves():
    model, adapters = adapted(NETWORKS["lora"])
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    make_lean(model)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    stacks = {model.blocks[i].adaln_modulation_mlp[1].weight.untyped_storage().data_ptr() for i in range(len(model.blocks))}
    assert len(stacks) == 1
    adapters.eject()


UNIT = 4096 * 2048 * 2  # bytes of one tensor of 1024 px tokens, bf16


def kept_units(network: NetworkConfig, level: str) -> float:
    """Return what a block of the real size keeps, in tensors of N x D: three blocks less two, on meta tensors."""
    kept = []
    for blocks in (2, 3):
        with torch.device("meta"):
            model = AnimaTransformer(dataclasses.replace(REAL, blocks=blocks)).to(torch.bfloat16)
        adapters = AdapterNetwork.inject(model.requires_grad_(False), network, 0)
        make_lean(model, [level] * blocks)
        data = (torch.empty(1, 16, 128, 128), torch.empty(1), torch.empty(1, 512, 1024))
        with adapters.micro_batch(0), cuda_kernels(), Meter() as meter:
            loss = model(*(tensor.to("meta") for tensor in data)).square().mean()
            kept.append(meter.live)
        del loss
    return (kept[1] - kept[0]) / UNIT


@pytest.mark.parametrize("level, most", [("keep", 23.8), ("cheap", 13.7), ("attention", 3.1), ("checkpoint", 1.01)])
def test_what_a_block_keeps_does_not_grow(level, most):
    assert 0.9 * most < kept_units(NetworkConfig(rank=32, alpha=32), level) <= most


def test_ops_are_a_record_of_plain_functions():
    assert all(callable(getattr(PLAIN, field.name)) for field in dataclasses.fields(Ops))

"""Compiled blocks: the plain ones' numbers at every level, few graphs, and the plain form where a graph is not to be had.

`aot_eager` traces a block and its gradient as whole graphs as Inductor does, and runs them as they are; Inductor itself, all
networks with all their layers and every level are in test_inductor.py (`make compile`).
"""

import dataclasses
import gc
import importlib
import logging
import os
import weakref

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.pictures import write_pictures
from anima_core.demo.random_transformer import TINY, random_state
from anima_core.errors import SettingError
from anima_core.models.frozen import FrozenLinear, Scratch
from anima_core.models.int8 import rounded
from anima_core.models.ops import PLAIN
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import NetworkConfig
from anima_core.speed import compile_trial, compiled
from anima_core.speed.compile_trial import compile_blocks
from anima_core.speed.compiled import CompiledBlocks, compiling, no_compiler
from anima_core.speed.costs import Shape
from anima_core.speed.forms import LevelForm, make_lean
from anima_core.speed.lean import LEAN
from anima_core.training import loop

from .conftest import relative_error
from .tiny import train_config

SOME = {
    "targets": "",
    "include": ("blocks.*.self_attn.q_proj", "blocks.*.mlp.layer2"),
}  # each layer more is traced for a quarter of a second
CASES = {  # name -> (network, level, dtype)
    "lora": (NetworkConfig(rank=4, alpha=2, **SOME), "keep", torch.float32),
    "lokr": (NetworkConfig(type="lokr", rank=3, alpha=1, factor=4, **SOME), "cheap", torch.float32),
    "lokr whole": (NetworkConfig(type="lokr", full_matrix=True, factor=4, **SOME), "attention", torch.float32),
    "lokr both": (NetworkConfig(type="lokr", rank=1, factor=-1, decompose_both=True, **SOME), "checkpoint", torch.float32),
    "adaln, norms": (NetworkConfig(rank=4, targets="adaln", train_norm=True), "cheap", torch.float32),
    "lora on int8": (NetworkConfig(rank=4, alpha=2, **SOME), "attention", torch.float32),
    "lora in bf16": (NetworkConfig(rank=4, alpha=2, **SOME), "checkpoint", torch.bfloat16),
}
PICTURES = ((6, 4), (16, 16), (8, 24))  # latents; 64 tokens are also the tiny model's width, and 6 its rows
SHAPE = Shape(2, 4, 4, 512)


def adapted(
    network: NetworkConfig, dtype: torch.dtype = torch.float32, int8: bool = False, blocks: int = 2
) -> tuple[AnimaTransformer, AdapterNetwork]:
    sizes = dataclasses.replace(TINY, blocks=blocks)
    model = AnimaTransformer(sizes)
    model.load_state_dict(random_state(sizes, torch.Generator().manual_seed(0)))
    model = model.to(dtype).requires_grad_(False)
    if int8:
        store_in_8_bits(model)
    adapters = AdapterNetwork.inject(model, network, 0)
    adapters.parameter_groups(1e-4, 0.0)
    generator = torch.Generator().manual_seed(5)
    for _, parameter in adapters.zero_init_parameters():
        parameter.data.normal_(0, 0.05, generator=generator)
    make_lean(model)
    return model, adapters


def store_in_8_bits(model: AnimaTransformer) -> None:
    scratch = Scratch(model.dtype, "cpu")
    for block in model.blocks:
        for part in (block.self_attn, block.cross_attn, block.mlp):
            for name, layer in list(part.named_children()):
                if isinstance(layer, torch.nn.Linear):
                    setattr(part, name, FrozenLinear(rounded(layer.weight.float(), 1), scratch))


def results(model: AnimaTransformer, adapters: AdapterNetwork, size: tuple[int, int], zeros: int = 0) -> tuple[Tensor, Tensor]:
    """Velocity, and the gradients of all that is trained. zeros: rows of text that are left out."""
    generator = torch.Generator().manual_seed(1)
    latents, t = torch.randn(2, 16, *size, generator=generator), torch.rand(2, generator=generator)
    adapters.zero_grad()
    with adapters.micro_batch(0):
        velocity = model(latents, t, torch.randn(2, 512 - zeros, TINY.context_dim, generator=generator), None, zeros)
        velocity.float().square().mean().backward()
    return velocity.detach(), torch.cat([p.grad.flatten() for p in adapters.parameters()])


@pytest.fixture
def backend(monkeypatch, tmp_path):
    """Sets what compiles, within the settings of a run; graphs are counted from 0."""

    def use(name) -> None:
        monkeypatch.setattr(compiled, "BACKEND", name)
        counters.clear()

    use("aot_eager")
    with compiling(tmp_path):
        yield use
    counters.clear()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def compare(network: NetworkConfig, levels: list[str], dtype: torch.dtype, int8: bool = False) -> None:
    """Hold a model of blocks at these levels against the same without graphs, for pictures of several sizes."""
    model, adapters = adapted(network, dtype, int8, len(levels))
    told: list[str] = []
    blocks = CompiledBlocks(model, told.append)
    for size in PICTURES:
        model.forms = [LevelForm(level, LEAN) for level in levels]
        expected = results(model, adapters, size)
        model.forms = [LevelForm(level, LEAN, blocks) for level in levels]
        found = results(model, adapters, size)
        if dtype == torch.float32:
            assert all(relative_error(one, other) < 1e-5 for one, other in zip(found, expected)), size
        else:  # what they differ by is rounding, not a fault
            truth = results(*adapted(network, int8=int8, blocks=len(levels)), size)
            for ours, theirs, true in zip(found, expected, truth):
                assert relative_error(ours, true) < 1.2 * relative_error(theirs, true)
    assert told == [] and graphs() == len(set(levels))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_one_graph_serves_all_blocks_and_sizes_and_gives_the_plain_numbers(backend, case):
    network, level, dtype = CASES[case]
    compare(network, [level, level], dtype, int8="int8" in case)


def test_settings_are_those_of_the_run_and_put_back_after(monkeypatch, tmp_path):
    for name in compiled.CACHES:
        monkeypatch.delenv(name, raising=False)
    names = [(module, key) for module, wanted in compiled.SETTINGS for key in wanted]

    def now() -> list[object]:
        found = [getattr(importlib.import_module(module), key) for module, key in names]
        return [
            *found,
            *(os.environ.get(name) for name in compiled.CACHES),
            logging.getLogger("torch._higher_order_ops.wrap").level,
        ]

    before = now()
    with pytest.raises(RuntimeError), compiling(tmp_path / "compiled"):
        assert now()[: len(names)] == [value for _, wanted in compiled.SETTINGS for value in wanted.values()]
        assert os.environ[compiled.CACHES[0]] == str(tmp_path / "compiled")
        os.environ[compiled.CACHES[1]] = "as the compiler sets it"
        raise RuntimeError
    assert now() == before
    torch_own = str(tmp_path / "torchinductor_somebody")  # what torch names its own, in the folder for temporary files
    monkeypatch.setenv(compiled.CACHES[0], torch_own)
    with compiling(tmp_path):
        assert os.environ[compiled.CACHES[0]] == str(tmp_path)
    assert os.environ[compiled.CACHES[0]] == torch_own
    monkeypatch.setenv(compiled.CACHES[0], "the user's")
    with compiling(tmp_path):
        assert os.environ[compiled.CACHES[0]] == "the user's"
    assert os.environ[compiled.CACHES[0]] == "the user's"


def test_what_inductor_is_told_it_knows():
    assert compiled.options() == dict.fromkeys(compiled.OFF, False)


def broken(graph, inputs):
    raise ValueError("no such instruction\nmore")


def test_a_compiler_that_fails_is_told_once_and_the_run_goes_on_without(backend):
    backend(broken)
    model, adapters = adapted(CASES["lora"][0])
    expected = results(model, adapters, (4, 4))
    told: list[str] = []
    model.forms = [LevelForm("checkpoint", LEAN, CompiledBlocks(model, told.append))] * len(model.blocks)
    for _ in range(2):
        found = results(model, adapters, (4, 4))
        assert all(torch.equal(one, other) for one, other in zip(found, expected))
    assert len(told) == 1 and "no such instruction" in told[0] and "\n" not in told[0]


def test_running_out_of_memory_is_no_fault_of_the_compiler(backend):
    model, adapters = adapted(CASES["lora"][0])
    blocks = CompiledBlocks(model, pytest.fail)

    def full(*_) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    blocks.graph, model.forms = full, [LevelForm("keep", LEAN, blocks)] * len(model.blocks)
    with pytest.raises(torch.OutOfMemoryError):
        results(model, adapters, (4, 4))
    assert not blocks.stopped


def test_previews_and_blocks_of_other_levels_run_without_a_graph(backend):
    model, _ = adapted(CASES["lora"][0])
    blocks = CompiledBlocks(model, pytest.fail)
    blocks.graph = pytest.fail
    inputs = compile_trial.inputs_of(model, SHAPE)
    with torch.no_grad():
        LevelForm("keep", LEAN, blocks)(model.blocks[0], *inputs)
    assert blocks("elsewhere", LEAN, model.blocks[0], inputs) is None


def said(model: AnimaTransformer, adapters: AdapterNetwork, before: bool | None = None) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    taken = compile_blocks(model, adapters, SHAPE, lambda event, text: told.append((event, text)), before)
    assert taken == is_compiled(model)
    return told


def is_compiled(model: AnimaTransformer) -> bool:
    return all(form.compiled is not None for form in model.forms)


@pytest.fixture
def times(monkeypatch):
    """Lets a block take so many seconds without and with a graph."""

    def take(plain: float, fast: float) -> None:
        monkeypatch.setattr(compile_trial, "seconds", lambda form, *_: plain if form.compiled is None else fast)

    take(0.002, 0.001)
    return take


def test_a_run_that_goes_on_does_as_before(backend, times, monkeypatch):
    """Where a graph was left out it is not tried again; where it was taken it stays, though it is the slower one today."""
    monkeypatch.setattr(torch, "compile", graph_that(lambda y: y))
    times(0.001, 0.002)
    model, adapters = adapted(CASES["lora"][0])
    assert said(model, adapters, before=False) == [("note", "blocks are not compiled, as before")]
    assert said(model, adapters, before=True)[-1] == (
        "note",
        "blocks are compiled, as before: one takes 2 ms, and 1 ms without",
    )


def graph_that(change):
    """Stands for torch.compile: calls the block itself, and changes what it returns."""
    return lambda function, **_: lambda level, ops, block, *inputs: change(block(*inputs, ops=ops))


@pytest.mark.parametrize(
    "change, seconds, event, text",
    [
        (lambda y: y, (0.002, 0.001), "note", "blocks are compiled: one takes 1 ms, and 2 ms without"),
        (lambda y: y, (0.001, 0.002), "note", "blocks are not compiled: one takes 2 ms, and 1 ms without"),
        (lambda y: y * 1.01, (0.002, 0.001), "warning", "blocks are not compiled: their numbers differ by 1.0e-02 from"),
        (lambda y: y.detach() + 0 * y, (0.002, 0.001), "warning", "blocks are not compiled: their numbers differ by 1.0e+00"),
        (lambda y: y * float("nan"), (0.002, 0.001), "warning", "blocks are not compiled: their numbers differ by inf"),
    ],
)
def test_a_graph_is_used_where_it_is_right_and_faster(backend, monkeypatch, times, change, seconds, event, text):
    monkeypatch.setattr(torch, "compile", graph_that(change))
    times(*seconds)
    model, adapters = adapted(CASES["lokr"][0])
    before = [parameter.clone() for parameter in adapters.parameters()]
    told = said(model, adapters)
    assert [kind for kind, _ in told] == ["note", event] and told[1][1].startswith(text)
    assert is_compiled(model) == (text.startswith("blocks are compiled"))
    assert all(torch.equal(one, other) for one, other in zip(before, adapters.parameters()))  # the trial leaves no trace
    assert not any(p.grad.count_nonzero() for p in adapters.parameters() if p.grad is not None)


class FailsBackwards(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y):
        return y.view_as(y)

    @staticmethod
    def backward(ctx, g):
        raise NotImplementedError("no such kernel\nmore")


def test_a_graph_whose_backward_pass_fails_is_not_used(backend, monkeypatch, times):
    monkeypatch.setattr(torch, "compile", graph_that(FailsBackwards.apply))
    model, adapters = adapted(CASES["lora"][0])
    assert said(model, adapters)[1:] == [
        ("warning", "compiled blocks: failed (NotImplementedError: no such kernel more); from here on they run without")
    ]
    assert not is_compiled(model)


def test_without_a_compiler_it_is_said_why(monkeypatch):
    def none():
        raise RuntimeError("no g++ here")

    monkeypatch.setattr("torch._inductor.cpp_builder.get_cpp_compiler", none)
    told = said(*adapted(CASES["lora"][0]))
    assert told == [("note", "blocks are not compiled: there is no C++ compiler (RuntimeError: no g++ here)")]
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert "triton is not installed" in no_compiler(torch.device("cuda")) and "mps" in no_compiler(torch.device("mps"))
    monkeypatch.setattr(compiled, "find_spec", lambda name: name)
    assert no_compiler(torch.device("cuda")) == ""


@pytest.mark.parametrize("settings", [dict(type="loha"), dict(dora=True), dict(tlora_min_rank=1)])
def test_adapters_whose_plain_form_is_not_for_graphs_take_the_fast_one_and_say_so(settings):
    ((event, text),) = said(*adapted(NetworkConfig(rank=4, **settings)))
    assert event == "note" and text.startswith("blocks are not compiled: the plain form of these adapters makes whole weights")


def test_dropout_takes_the_plain_path_and_says_so():
    ((event, text),) = said(*adapted(NetworkConfig(rank=4, rank_dropout=0.1)))
    assert event == "note" and text.startswith("blocks are not compiled: dropout")


def test_plain_and_compiled_exclude_each_other(model, tmp_path):
    with pytest.raises(SettingError, match=r"compile.*leave one out"):
        train_config(model, tmp_path, tmp_path, plain=True, compile=True)


def trained_run(model, folder, **changes) -> tuple[list[float], list[str]]:
    events: list[dict] = []
    config = train_config(model, folder / "pictures", folder / str(len(changes)), max_train_steps=4, **changes)
    with loop.opened(config, events.append) as run:
        uses, gone = is_compiled(run.model), weakref.ref(run.model)
        losses = run.go().losses
    assert uses == bool(changes)
    del run
    gc.collect()
    assert gone() is None  # graphs hold nothing of the model
    return losses, [event["text"] for event in events if event["event"] in ("note", "warning")]


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_a_plain_one(model, tmp_path, monkeypatch, times):
    write_pictures(tmp_path / "pictures", 3)
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    plain, _ = trained_run(model, tmp_path)
    fast, notes = trained_run(model, tmp_path, compile=True)
    assert fast == pytest.approx(plain, rel=1e-5)
    assert [text for text in notes if "compile" in text][-1] == "blocks are compiled: one takes 1 ms, and 2 ms without"
    assert all(os.environ.get(name) != str(tmp_path) for name in compiled.CACHES)


def test_a_graph_is_made_of_plain_functions_but_for_the_attention_that_was_chosen(backend):
    model, _ = adapted(CASES["lora"][0])
    other = dataclasses.replace(LEAN, attention=lambda *inputs: PLAIN.attention(*inputs))
    blocks, seen = CompiledBlocks(model, pytest.fail), []
    blocks.graph = lambda level, ops, block, x, *_: seen.append(ops) or x
    LevelForm("keep", other, blocks)(model.blocks[0], *compile_trial.inputs_of(model, SHAPE))
    (ops,) = seen
    assert ops.attention.args == (other.attention,)
    assert dataclasses.replace(ops, attention=PLAIN.attention) == PLAIN

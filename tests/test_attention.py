"""The ways to compute attention: those that fail, are wrong or give NaN are not taken; of the others the fastest."""

import dataclasses
import functools
import sys
import types

import pytest
import torch

from anima_core.errors import SettingError
from anima_core.models.ops import PLAIN
from anima_core.settings.train import ATTENTION, ATTENTION_PACKAGES
from anima_core.speed import attention as attention_module
from anima_core.speed import chunked as chunked_module
from anima_core.speed import race as race_module
from anima_core.speed.attention import CANDIDATES, Chosen, Size, Trial, check_usable, package_function, unusable, usable
from anima_core.speed.counting import Meter, cuda_kernels
from anima_core.speed.forms import LEVELS, make_lean
from anima_core.speed.lean import LEAN
from anima_core.speed.race import Candidate, race
from anima_core.training.attending import sizes_of

from .attention_fakes import FAKES, clocked, put
from .conftest import relative_error
from .test_recompute import NETWORKS, adapted
from .test_recompute import results as step_of

CPU, HEAD = torch.device("cpu"), 16
SIZES = (Size(40, 40), Size(40, 24), Size(40, 30, masked=True), Size(40, 24, trimmed=True))


# The race


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["sdpa", "flash", "chunked", "math"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_what_the_cpu_has_is_right(monkeypatch, name, size, dtype):
    monkeypatch.setitem(sys.modules["anima_core.speed.probe"].TOLERANCE, torch.float64, 1e-12)
    assert Trial(size, CPU, dtype, HEAD).verdict(name) == ""


@pytest.mark.parametrize("fake", FAKES)
@pytest.mark.parametrize("size", [SIZES[0], SIZES[2]], ids=str)
def test_what_is_not_right_is_not_taken(monkeypatch, fake, size):
    attend, reason = FAKES[fake]
    put(monkeypatch, fake=attend)
    clocked(monkeypatch, fake=0.001)
    found = Trial(size, CPU, torch.float32, HEAD).race(("sdpa", "fake", "chunked"))
    assert [one.name for one in found] == ["sdpa", "chunked", "fake"]
    assert found[-1].reason == reason and str(found[-1]) == f"fake left out ({reason})"


@pytest.mark.parametrize(
    "seconds, first",
    [
        (dict(sdpa=1.0, flash=1.0), "sdpa"),
        (dict(sdpa=1.01, flash=1.0), "sdpa"),  # as good as a tie
        (dict(sdpa=1.1, flash=1.0), "flash"),
        (dict(sdpa=0.9, flash=1.0), "sdpa"),
    ],
)
def test_the_fastest_comes_first_and_of_two_as_fast_the_earlier(monkeypatch, seconds, first):
    clocked(monkeypatch, **seconds, chunked=5.0)
    found = Trial(SIZES[0], CPU, torch.float32, HEAD).race(("sdpa", "flash", "chunked"))
    assert found[0].name == first and found[2].name == "chunked"


def test_a_race_of_none_is_lost_by_none():
    assert race([], [], torch.float32, CPU) == []


def test_anything_may_be_raced():
    """A block in its compiled form, say: what it computes is compared, and a pass of it timed."""
    x = torch.randn(4, 4)
    runs: list[str] = []

    def candidate(name, results):
        return Candidate(name, lambda: results, lambda: runs.append(name))

    found = race([candidate("wrong", [x + 1]), candidate("right", [x.clone()])], [x], torch.float32, CPU)
    assert [one.name for one in found] == ["right", "wrong"] and runs.count("right") > 2


def test_a_card_is_timed_by_its_own_events(monkeypatch):
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        record = lambda self: told.append("record")  # noqa: E731
        synchronize = lambda self: told.append("wait")  # noqa: E731
        elapsed_time = lambda self, other: 3.0  # noqa: E731

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert race_module.once(lambda: told.append("work"), torch.device("cuda")) == pytest.approx(0.003)
    assert told == ["record", "work", "record", "wait"]


def test_it_has_gradients_where_a_node_has_none():
    with torch.inference_mode():
        assert Trial(SIZES[0], CPU, torch.float32, HEAD).verdict("sdpa") == ""
        assert Trial(SIZES[0], CPU, torch.float32, HEAD).race(("sdpa",))[0].reason == ""


def test_what_is_timed_is_all_heads_and_no_more_than_there_is_room_for():
    def timed(n, head_dim, **counts):
        """Of meta tensors: pictures and heads."""
        trial = Trial(Size(n, n), torch.device("meta"), torch.bfloat16, head_dim, **counts)
        assert trial.inputs[0].shape == (1, n, 2, head_dim)
        assert trial.timed[3].shape == (*trial.timed[0].shape[:2], trial.timed[0].shape[2] * head_dim)
        return trial.timed[0].shape[0], trial.timed[0].shape[2]

    assert timed(64, HEAD, heads=8, pictures=3) == (3, 8)
    assert timed(4096, 128, heads=16, pictures=8) == (2, 16)
    assert timed(16384, 128, heads=16, pictures=8) == (1, 16)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_is_true_is_made_in_pieces(monkeypatch, size):
    whole = Trial(size, CPU, torch.bfloat16, HEAD).truth
    monkeypatch.setattr(attention_module, "ROWS", 16)
    trial = Trial(size, CPU, torch.bfloat16, HEAD)
    pieces = trial.truth
    assert all(relative_error(ours, theirs) < 1e-6 for ours, theirs in zip(pieces, whole)) and len(whole) == 4
    assert whole[0].dtype == torch.float32 and not any(x.requires_grad for x in trial.inputs)


# In pieces


@pytest.mark.parametrize("level", LEVELS)
def test_a_step_in_pieces_is_that_of_the_plain_form(level, monkeypatch):
    monkeypatch.setattr(chunked_module, "ROWS", 4)  # of 6 tokens: a piece and a rest
    model, adapters = adapted(NETWORKS["lora"])
    make_lean(model)
    plain = step_of(model, adapters)
    make_lean(model, [level] * len(model.blocks), dataclasses.replace(LEAN, attention=CANDIDATES["chunked"]))
    for ours, theirs in zip(step_of(model, adapters), plain):
        assert relative_error(ours, theirs) < 1e-6


@pytest.mark.parametrize("mask", [None, (2, 1, 1, 30), (2, 3, 50, 30), (1, 1, 50, 30)])
def test_pieces_meet_the_mask_that_is_theirs(mask, monkeypatch):
    monkeypatch.setattr(chunked_module, "ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    looks = None if mask is None else (torch.rand(mask, generator=generator) > 0.5).logical_or(torch.arange(30) == 0)
    *qkv, g = (
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in ((2, 50, 3, 16), (2, 30, 3, 16), (2, 30, 3, 16), (2, 50, 48))
    )
    found = []
    for attend in (CANDIDATES["chunked"], PLAIN.attention):
        own = [x.clone().requires_grad_(True) for x in qkv]
        out = attend(*own, looks)
        found.append([out, *torch.autograd.grad(out, own, g)])
    assert all(relative_error(ours, theirs) < 1e-12 for ours, theirs in zip(*found))


def peak(attend, n: int) -> int:
    """The most bytes of a forward and backward pass of n rows that look at each other, on the meta device."""
    q, k, v = (torch.empty(1, n, 16, 128, device="meta", dtype=torch.bfloat16, requires_grad=True) for _ in range(3))
    with Meter() as meter:
        out = attend(q, k, v)
        out.backward(torch.empty_like(out))
    return meter.peak


def test_the_memory_of_pieces_grows_with_the_pixels_and_not_with_their_square():
    for n in (4096, 16384):
        assert peak(CANDIDATES["chunked"], n) < 80 * n * 2048 + 3 * 4 * chunked_module.SCORES
    assert peak(CANDIDATES["math"], 16384) > 10 * peak(CANDIDATES["chunked"], 16384)


def test_what_keeps_all_scores_is_counted_so():
    """Where the memory of a run is planned, on the meta device."""
    kept = {}
    with cuda_kernels():
        for name in ("math", "flash", "chunked", "flash_attn"):
            q, k, v = (torch.empty(1, 4096, 16, 128, device="meta", requires_grad=True) for _ in range(3))
            with Meter() as meter:
                out = CANDIDATES[name](q, k, v)
            kept[name] = meter.live
            del out
    scores = 4 * 16 * 4096**2
    assert kept["math"] > scores > 10 * kept["chunked"] and kept["flash"] == kept["flash_attn"]


# Packages


def test_packages_are_asked_for_as_they_want_it(monkeypatch):
    """[B, S, H, d], contiguous as it comes; masks are left to others."""
    called = []

    def attend(name, q, k, v, **options):
        called.append((name, q.shape, options))
        return PLAIN.attention(q, k, v).unflatten(-1, q.shape[2:])

    def installed(name, **functions):
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(**functions))

    installed("flash_attn", flash_attn_func=functools.partial(attend, "flash_attn"))
    installed("xformers.ops", memory_efficient_attention=functools.partial(attend, "xformers"))
    installed("sageattention", sageattn=lambda *a, **o: attend("sage", *a, **o).detach())
    package_function.cache_clear()
    monkeypatch.setattr(attention_module, "find_spec", lambda name: name)
    try:
        reasons = {name: unusable(name, CPU, torch.float32, HEAD) for name in ATTENTION_PACKAGES}
        assert reasons == {"flash_attn": "", "xformers": "", "sage": "it has no backward pass: it can draw, and not train"}
        assert {name: options for name, _, options in called} == {
            "flash_attn": {},
            "xformers": {},
            "sage": {"tensor_layout": "NHD"},
        }
        assert {shape for _, shape, _ in called} == {(1, 128, 2, HEAD)}
        assert Trial(SIZES[2], CPU, torch.float32, HEAD).verdict("xformers") == "takes no mask here"
    finally:
        package_function.cache_clear()


def test_each_word_of_the_setting_is_a_candidate():
    assert set(ATTENTION) == {"auto", *CANDIDATES} and set(ATTENTION_PACKAGES) <= set(CANDIDATES)


# What is chosen


def test_a_size_that_was_not_tried_is_computed_as_the_nearest(monkeypatch):
    used = []
    put(
        monkeypatch,
        **{name: functools.partial(lambda name, *inputs: used.append(name), name) for name in ("sdpa", "flash", "cudnn")},
    )
    chosen = Chosen({Size(4096, 4096): "flash", Size(4096, 512): "cudnn"})

    def call(queries, keys, mask=None, zeros=0):
        chosen(torch.empty(1, queries, 1, 8), torch.empty(1, keys, 1, 8), None, mask, zeros)
        return used[-1]

    assert (call(4096, 4096), call(3996, 3996), call(4096, 512), call(1024, 512)) == ("flash", "flash", "cudnn", "cudnn")
    assert call(4096, 600, torch.ones(1)) == call(4096, 128, zeros=384) == "sdpa"  # nothing like it was tried


@pytest.mark.slow
def test_a_graph_takes_what_was_chosen_for_all_sizes_alike():
    """One graph serves all sizes."""
    chosen = Chosen({Size(40, 40): "flash", Size(40, 24): "chunked", Size(40, 24, trimmed=True): "chunked"})
    assert chosen.in_graphs == [["sdpa", "chunked"], ["sdpa", "sdpa"]]
    graph = torch.compile(chosen, backend="aot_eager", dynamic=True, fullgraph=True)
    for queries, keys, zeros in ((40, 40, 0), (64, 24, 488)):
        *qkv, _ = Trial(Size(queries, keys), CPU, torch.float32, HEAD).inputs
        assert relative_error(graph(*qkv, None, zeros), PLAIN.attention(*qkv, None, zeros)) < 1e-6
    torch._dynamo.reset()


class Sizes:
    def __init__(self, *sizes):
        self.sizes = lambda: set(sizes)


def test_every_size_that_a_run_has_is_tried():
    found = sizes_of(Sizes((2, (64, 32)), (1, (64, 32)), (1, (32, 32))), 512, trim=True)
    assert found == {
        Size(4, 4): 1,
        Size(4, 256, trimmed=True): 1,
        Size(4, 512): 1,
        Size(8, 8): 2,
        Size(8, 256, trimmed=True): 2,
        Size(8, 512): 2,
    }
    assert sizes_of(Sizes((2, (32, 32)), (1, (32, 32))), 600, trim=False) == {
        Size(4, 4): 2,
        Size(4, 512): 2,
        Size(4, 600): 1,
        Size(4, 600, masked=True): 2,
    }


def test_a_package_that_is_not_there_is_named():
    assert unusable("flash_attn", CPU, torch.float32, HEAD) == "the package flash_attn is not installed"
    with pytest.raises(SettingError, match="the package sageattention is not installed; use one of auto, sdpa"):
        check_usable("sage", CPU, torch.float32, HEAD)
    assert "sage" not in usable(CPU, torch.float32, HEAD)

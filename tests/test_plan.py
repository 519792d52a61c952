"""What blocks keep on cards that are not here: simulated at the released sizes, on tensors without bytes."""

import dataclasses
import functools
import itertools
import re
from pathlib import Path

import pytest
import torch

from anima_core.demo.random_transformer import REAL
from anima_core.settings import DatasetConfig, ModelConfig, NetworkConfig, SubsetConfig, TrainConfig
from anima_core.speed.cards import FRAGMENTS, GB, Card, card_of_text
from anima_core.speed.costs import Cost, Costs, Shape, empty, with_adapters
from anima_core.speed.counting import Meter, cuda_kernels
from anima_core.speed.forms import LEVELS, apply_away, make_lean
from anima_core.speed.plan import WORTH, Budget, best, choose, summary
from anima_core.speed.stream import NOWHERE, Away, Sizes, Streaming
from anima_core.speed.transfer import Direct
from anima_core.training.budget import Counter, bytes_on
from anima_core.training.forecast import forecast_on
from benchmarks import plans, training_step

pytestmark = pytest.mark.slow

NETWORKS = {
    "lora": NetworkConfig(rank=32, alpha=32),
    "lokr": NetworkConfig(type="lokr", rank=100000, factor=8),
    "dropout": NetworkConfig(rank=32, alpha=32, dropout=0.1),
    "norms": NetworkConfig(rank=32, alpha=32, train_norm=True),
    "adaln and norms": NetworkConfig(rank=32, alpha=32, targets="attn+mlp+adaln", train_norm=True),
    "loha": NetworkConfig(type="loha", rank=32, alpha=32),
    "dora": NetworkConfig(rank=32, alpha=32, dora=True),
    "last blocks": NetworkConfig(rank=32, alpha=32, include=("re:blocks\\.2[0-9]\\.",), targets=""),
}
BF16 = torch.bfloat16


def config(network: str = "lora", **changes) -> TrainConfig:
    data = DatasetConfig((SubsetConfig("pictures"),))
    return TrainConfig(ModelConfig("t", "v", "q", "t5"), (data,), network=NETWORKS[network], **changes)


@functools.cache
def counter(network: str, side: int, blocks: int = 28, pictures: int = 1, dtype: torch.dtype = BF16) -> Counter:
    shape = Shape(pictures, side // 16, side // 16, 512)
    return Counter(lambda: empty(dataclasses.replace(REAL, blocks=blocks), dtype), config(network), [shape], None)


def raised(levels: tuple[str, ...]) -> list[tuple[str, ...]]:
    """List what is one level more of one block."""
    higher = {level: LEVELS[number - 1] for number, level in enumerate(LEVELS) if number}
    return [(*levels[:i], higher[level], *levels[i + 1 :]) for i, level in enumerate(levels) if level in higher]


@pytest.mark.parametrize("blocks", [28, 40])
@pytest.mark.parametrize("side", [512, 768, 1024, 1536])
@pytest.mark.parametrize("network", ["lora", "lokr"])
def test_no_plan_is_over_its_budget_and_none_recomputes_needlessly(network, side, blocks):
    seconds = []
    for gib in (6, 8, 10, 12, 16, 24, 32, 80):
        budget, levels = forecast_on(counter(network, side, blocks), Card("", gib, 0, 0).usable)
        assert budget.fits(levels) or budget.taken(levels) <= min(budget.taken([level] * blocks) for level in LEVELS)
        assert not any(budget.fits(more) for more in raised(levels))
        assert list(levels) == sorted(levels, key=LEVELS.index, reverse=True), "what is recomputed first stands first"
        seconds.append(budget.seconds(levels))
    for less, more in itertools.pairwise(seconds):
        assert more * (1 - WORTH) <= less, "more memory is never slower, but for what streaming has to be worth"
    assert set(levels) == {"keep"} and budget.away == NOWHERE


ROOT = Path(__file__).parents[1]
CELL = r"\+(\d+) %, ([\d.]+) GB(?:, (\d+) streamed)?|–"


def tables_in(name: str) -> list[list[list[str]]]:
    """The cells of each table of cards, line by line."""
    text = (ROOT / name).read_text(encoding="utf-8")
    tables = re.findall(r"(?:^\| \d+ GB, .* usable .*\n)+", text, re.MULTILINE)
    return [[line.strip("| \n").split(" | ")[1:] for line in table.splitlines()] for table in tables]


def is_near(known: str, found: str) -> bool:
    """Within 3 points, 0.2 GB and 3 blocks."""
    (there,), (here,) = (re.findall(CELL, text) for text in (known, found))
    return all((a == "") == (b == "") and abs(float(a or 0) - float(b or 0)) <= m for a, b, m in zip(there, here, (3, 0.2, 3)))


@pytest.mark.slow
def test_the_readmes_table_is_what_is_computed_and_that_of_the_docs():
    """`python -m benchmarks.plans` prints it anew."""
    (shown,), tables = tables_in("README.md"), tables_in("docs/memory.md")
    assert shown == [[tables[number][line][-1] for number in (0, 1, 4, 5)] for line in range(len(plans.CARDS))]
    for number in (0, 1):
        for line, row in zip(
            tables[number], plans.rows(plans.CARDS, list(plans.TABLES.values())[number], (1024,)), strict=True
        ):
            assert is_near(line[-1], row), row


@pytest.mark.long
@pytest.mark.parametrize("number", range(len(plans.TABLES)))
def test_the_tables_of_the_docs_are_what_is_computed(number):
    rows = plans.rows(plans.CARDS, list(plans.TABLES.values())[number])
    for line, row in zip(tables_in("docs/memory.md")[number], rows, strict=True):
        assert all(is_near(*pair) for pair in zip(line, row.strip("| \n").split(" | ")[1:], strict=True)), row


@pytest.mark.parametrize(
    "network, levels, dtype",
    [
        ("lora", ["checkpoint", "attention", "cheap", "keep"], BF16),
        ("lora", ["offload"] * 4, BF16),
        ("lora", ["offload", "checkpoint", "offload", "keep"], torch.float16),
        ("lora", ["keep"] * 4, torch.float16),
        ("lokr", ["checkpoint", "checkpoint", "cheap", "cheap"], BF16),
        ("dropout", ["attention", "attention", "keep", "keep"], BF16),
        ("norms", ["attention", "cheap", "keep", "keep"], BF16),
        ("adaln and norms", ["attention", "cheap", "cheap", "keep"], BF16),
        ("loha", ["checkpoint", "attention", "cheap", "keep"], BF16),
        ("dora", ["checkpoint", "attention", "cheap", "keep"], BF16),
        ("last blocks", ["checkpoint"] * 2 + ["cheap"] * 26, BF16),
    ],
)
def test_the_peak_of_a_whole_step_is_what_was_counted_on_single_blocks(network, levels, dtype):
    """The same model, run as a whole: within 3 %."""
    model = empty(dataclasses.replace(REAL, blocks=len(levels)), dtype)
    adapters = with_adapters(model, NETWORKS[network], 1e-4)
    make_lean(model, levels)
    assert adapters.casts.bytes > 0, "they are there between steps, and not counted here"
    inputs = torch.empty(1, 16, 128, 128), torch.empty(1), torch.empty(1, 512, 1024)
    with cuda_kernels(), Meter() as meter, adapters.micro_batch(0):
        model(*(tensor.to("meta") for tensor in inputs)).square().mean().backward()
    assert counter(network, 1024, len(levels), dtype=dtype).worst.peak(levels) == pytest.approx(meter.peak, rel=0.03)


def test_a_run_in_plain_functions_is_planned_for_what_these_take():
    plain = Counter(lambda: empty(dataclasses.replace(REAL, blocks=2), BF16), config(plain=True), [Shape(1, 64, 64, 512)], None)
    for level in LEVELS:
        ours, theirs = (each.worst.blocks[1][level] for each in (counter("lora", 1024, 4), plain))
        assert ours.seconds < theirs.seconds and ours.peak < theirs.peak


def steps(*levels: tuple[int, float]) -> dict[str, Cost]:
    """The costs of a block: bytes and seconds of each level."""
    return {name: Cost(kept, kept, seconds) for name, (kept, seconds) in zip(LEVELS, levels)}


BLOCK = steps((24, 1.0), (14, 1.1), (3, 1.6), (1, 2.0), (0, 2.01))


def test_what_saves_most_time_for_its_bytes_comes_first():
    costs = Costs(0, Cost(), (BLOCK,) * 3, Cost())
    assert choose(costs, 3, LEVELS[:4]) == ("checkpoint",) * 3
    assert choose(costs, 5, LEVELS[:4]) == ("checkpoint", "checkpoint", "attention")
    assert choose(costs, 9, LEVELS[:4]) == ("attention",) * 3
    assert choose(costs, 20, LEVELS[:4]) == ("attention", "attention", "cheap")
    assert choose(costs, 42, LEVELS[:4]) == ("cheap",) * 3
    assert choose(costs, 1000, LEVELS[:4]) == ("keep",) * 3
    assert choose(costs, 3) == ("offload", "offload", "attention")
    assert choose(costs, 1000) == ("keep",) * 3


def test_only_what_is_allowed_is_chosen():
    costs = Costs(0, Cost(), (BLOCK,) * 3, Cost())
    assert choose(costs, 0, ("keep", "cheap")) == ("cheap",) * 3
    assert choose(costs, 1000, ("checkpoint",)) == ("checkpoint",) * 3


def test_a_block_that_keeps_nothing_needs_no_room_to_be_raised():
    """As the blocks before the first one that is trained."""
    frozen = steps((0, 1.0), (0, 1.0), (0, 1.0), (0, 1.5), (0, 1.6))
    assert choose(Costs(0, Cost(), (frozen, BLOCK), Cost()), 1)[0] == "keep"


def test_what_a_recomputed_block_takes_for_a_while_counts():
    """The last block is recomputed while all others still keep theirs."""
    costs = Costs(2, Cost(), (dataclasses.replace(BLOCK["keep"], kept=10, peak=15),), Cost(3, 9))
    assert Costs(2, Cost(1, 1), ({"keep": Cost(10, 15)}, {"keep": Cost(10, 17)}), Cost(3, 9)).peak(["keep"] * 2) == 32
    assert costs.shared == 2


# Streaming

EVEN = steps((20, 1.0), (14, 1.1), (3, 1.3), (1, 1.33), (0, 1.34))


def with_weights(count: int, link: float) -> Costs:
    """Blocks of 10 bytes of weights each and 1 of modulation; a third of their seconds is the forward pass."""
    block = {level: dataclasses.replace(cost, forward=cost.seconds / 3) for level, cost in EVEN.items()}
    return Costs(0, Cost(), (block,) * count, Cost(), Sizes((10,) * count, (1,) * count), x=1, link=link)


def test_what_is_fetched_meanwhile_costs_nothing():
    fast, slow, everything = with_weights(8, link=1000), with_weights(8, link=10), Away(8, adaln=True)
    moved = 2 * (8 - 2) * 10 + 7  # bytes: each block but for those in their places still, the modulation's but for one
    for level in ("keep", "checkpoint"):
        levels, alone = (level,) * 8, 8 * EVEN[level].seconds
        assert fast.seconds(levels) == pytest.approx(alone)
        assert fast.seconds(levels, everything) == pytest.approx(alone, rel=0.02)
        assert moved / 10 <= slow.seconds(levels, everything) <= moved / 10 + alone / 3


def test_inputs_that_are_stored_meanwhile_cost_nothing():
    parked = ("offload",) * 8
    assert with_weights(8, link=1000).seconds(parked) == pytest.approx(8 * 1.34, rel=0.01)
    assert with_weights(8, link=0.1).seconds(parked) == pytest.approx(2 * 7 / 0.1, rel=0.1)


def test_weights_are_streamed_where_that_is_faster_or_the_only_way():
    budget = Budget(with_weights(8, link=1000), resident=88, room=200)
    assert best(budget)[0].away == NOWHERE, "all keep"
    streaming, levels = best(dataclasses.replace(budget, room=100))
    assert streaming.away.blocks > 2 and streaming.fits(levels)
    assert streaming.seconds(levels) < (1 - WORTH) * budget.costs.seconds(choose(budget.costs, 100))
    slow = Budget(with_weights(8, link=1), resident=88, room=100)
    assert best(slow)[0].away == NOWHERE, "recomputing is faster than such a link"
    tight, levels = best(dataclasses.replace(slow, room=-10))
    assert tight.fits(levels) and 2 < tight.away.blocks < 8
    nothing, levels = best(dataclasses.replace(slow, room=-100))
    assert not nothing.fits(levels) and nothing.away == Away(8, adaln=True) and set(levels) == {"offload"}


def test_at_least_as_many_blocks_are_streamed_as_are_asked_for():
    budget = Budget(with_weights(8, link=1), resident=88, room=1000)
    assert [best(budget, at_least=number)[0].away.blocks for number in (0, 3, 5, 8, 20)] == [0, 3, 5, 8, 8]


def test_streamed_blocks_are_spread_evenly():
    assert Away(28).which(28) == tuple(range(28)) and Away(0).which(28) == ()
    assert Away(4).which(28) == (3, 10, 17, 24) and Away(3).which(5) == (0, 2, 4)


def test_modulation_through_which_something_learns_is_not_streamed():
    assert len(counter("lora", 1024, 4).worst.sizes.adaln) == 4
    for network in ("norms", "adaln and norms"):
        assert counter(network, 1024, 4).worst.sizes.adaln == ()


@pytest.mark.parametrize("away", [Away(0, True), Away(4), Away(6, True)])
def test_what_streaming_saves_is_what_is_then_on_the_device(away):
    """The same model, its weights away: bytes of parameters, buffers and places."""
    model = empty(dataclasses.replace(REAL, blocks=6), BF16)
    sizes, streaming = Sizes.of(model), Streaming(model, Direct(torch.device("meta")))
    before = bytes_on(model.device, model.parameters())
    make_lean(model)
    apply_away(model, streaming, away)
    after = bytes_on(model.device, [*model.parameters(), *model.buffers(), *streaming.tensors])
    assert before - after == sizes.saved(away) > 0


@pytest.mark.parametrize(
    "most, case",
    [
        (1.8, training_step.Case(level="offload", away=Away(28, True))),
        (2.0, training_step.Case(level="checkpoint", away=Away(28, True))),
        (3.4, training_step.Case(level="offload", int8=True, away=Away(0, True))),
        (1.4, training_step.Case(level="offload", int8=True, away=Away(28, True))),
    ],
)
def test_a_whole_step_at_1024_px_takes_no_more(most, case):
    """LoRA of rank 32, one picture, AdamW in fp32: GB of all tensors at once."""
    meta = torch.device("meta")
    step = training_step.OurStep(case, training_step.random_weights(case, meta), training_step.batch_of(case, meta))
    assert training_step.count(step)["peak"] / GB < most


def test_a_plan_is_told_with_its_peak_and_seconds_where_the_card_is_known():
    costs = Costs(0, Cost(), (steps((int(2 * GB), 0.2), (1, 0.3), (1, 0.4), (1, 0.5), (0, 0.6)),) * 4, Cost())
    budget = Budget(costs, 4 * GB, 5 * GB / FRAGMENTS, card=card_of_text("h200"), micro_batches=2)
    levels = ("checkpoint", "checkpoint", "keep", "keep")
    said = "2 of 4 blocks keep, 2 are recomputed, peak 8.2 of 9.0 GB"
    assert budget.said(levels) == f"{said}, about 2.8 s/step"
    assert dataclasses.replace(budget, card=card_of_text("16gb")).said(levels) == said
    assert "of 0.0 GB" in dataclasses.replace(budget, room=-3 * GB - budget.resident).said(levels), "no memory is below none"


def test_every_level_has_its_words():
    said = "1 of 5 blocks keep, 1 remake what is cheap, 1 keep their attention, 1 are recomputed"
    assert summary(LEVELS) == f"{said}, 1 are recomputed from host memory"
    assert (
        summary(LEVELS[:1], Away(1, True))
        == "1 of 1 blocks keep, the weights of 1 and the modulation's are streamed from host memory"
    )

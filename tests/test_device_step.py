"""A step as a card meets it: on one device alone, without waiting, from page-locked memory, two steps ahead at most."""

import contextlib
import dataclasses
import itertools
import types
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from anima_core import seeds, tensors
from anima_core.adapters.network import AdapterNetwork
from anima_core.data.embeddings import CachedEmbeddings, LiveEmbeddings, padded, row_counts, stack_rows
from anima_core.models.transformer import AnimaTransformer, check_transformer, load_transformer
from anima_core.settings import FlowConfig, NetworkConfig, OptimizerConfig, PriorConfig
from anima_core.speed.forms import LEVELS, apply_away, make_lean
from anima_core.speed.stream import Away, Streaming, modulation_frozen
from anima_core.speed.transfer import Direct
from anima_core.tensors import to_device
from anima_core.training import flow, optimizers, reporting
from anima_core.training.events import Events
from anima_core.training.feed import Batch, Feed
from anima_core.training.loop import Run
from anima_core.training.prior import Prior
from anima_core.training.ranks import Ranks
from anima_core.training.reporting import STEPS_AHEAD, LossReader, StepRecord
from anima_core.training.state import fresh_state

pytestmark = pytest.mark.slow

LORA = NetworkConfig(rank=4, alpha=4)
STEPS = {
    "lora": (LORA, {}),
    "lora, dropouts": (NetworkConfig(rank=4, alpha=4, dropout=0.1, rank_dropout=0.1, module_dropout=0.1), {}),
    "lokr, norms": (NetworkConfig(type="lokr", rank=4, alpha=2, train_norm=True), {}),
    "lokr, whole factors": (NetworkConfig(type="lokr", rank=100000), {}),
    "fp16": (LORA, dict(dtype=torch.float16)),
    "live text, prior": (NetworkConfig(rank=4, alpha=4, targets="+adaln+llm_adapter"), dict(live=True, kept=True)),
}
LENGTHS = (600, 20)  # tokens of the captions: a batch with a mask
CONTEXT = 64  # the tiny model's


def batch_of(live: bool, dtype: torch.dtype, kept: bool = False) -> Batch:
    """A micro-batch with everything that one may have, on the CPU."""
    g = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 16, 8, 8, generator=g)
    rows = [torch.randn(n, CONTEXT, generator=g).to(dtype) for n in LENGTHS]
    if live:
        entries = [{"hidden": row, "ids": torch.zeros(len(row), dtype=torch.int32)} for row in rows]
        text = padded("hidden", entries) | padded("ids", entries) | row_counts(list(LENGTHS))
    else:
        text = {"embeds": stack_rows(rows)} | row_counts(list(LENGTHS))
    noise, t = flow.noise_like(latents, g, 0.1), flow.sample_timesteps(2, FlowConfig(), g, tokens=16)
    mask, place = torch.rand(2, 1, 8, 8, generator=g), dict(divisor=2, step_batches=2, ends_step=False, next_position={})
    of_class = dict(class_text=text, class_weight=torch.ones(2)) if kept else {}
    return Batch(0, latents, noise, None, t, mask, torch.ones(2), text, ["a", "b"], **place, **of_class)


def step_of(batch: Batch) -> list[Batch]:
    """Two micro-batches."""
    return [batch, dataclasses.replace(batch, ends_step=True)]


def run_on(
    model: AnimaTransformer, network: NetworkConfig, optimizer: OptimizerConfig, live: bool = False, level: str = "checkpoint"
) -> Run:
    """As much of a run as a step touches."""
    model.requires_grad_(False)
    adapters = AdapterNetwork.inject(model, network, 0)
    make_lean(model, [level] * len(model.blocks))
    if level == "offload":  # and the weights too
        apply_away(model, Streaming(model, Direct(model.device)), Away(len(model.blocks), modulation_frozen(model)))
    state = fresh_state(adapters, optimizer, fp16=model.dtype == torch.float16)
    config = types.SimpleNamespace(flow=FlowConfig(), prior=PriorConfig(masked=0.5, weight=0.5), gradient_accumulation_steps=2)
    embeddings = object.__new__(LiveEmbeddings if live else CachedEmbeddings)
    embeddings.model, embeddings.trim = model, False
    run = object.__new__(Run)
    run.plan, run.data = types.SimpleNamespace(config=config), types.SimpleNamespace(embeddings=embeddings)
    run.ranks, run.events, run.model, run.state = Ranks(), Events(None), model, state
    run.fit = types.SimpleNamespace(split=lambda batch: [batch])
    run.held_out = types.SimpleNamespace(command=None)
    run.prior = Prior(config, model, adapters, embeddings)
    adapters.train()
    return run


@pytest.fixture
def meta_generators(monkeypatch):
    """The meta device draws nothing, and has no generators."""
    real = seeds.generator

    def generator(*position, device="cpu"):
        return None if torch.device(device).type == "meta" else real(*position, device=device)

    monkeypatch.setattr(seeds, "generator", generator)


@pytest.mark.usefixtures("meta_generators")
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("case", STEPS)
def test_a_step_mixes_no_devices_and_asks_the_device_for_nothing(model, case, level):
    """On the meta device, which has no numbers: reading one, or computing with a tensor of another device, raises."""
    network, options = STEPS[case]
    dtype, live = options.get("dtype", torch.bfloat16), options.get("live", False)
    with torch.device("meta"):
        empty = AnimaTransformer(check_transformer(model.transformer)).to(dtype)
    run = run_on(empty, network, OptimizerConfig(), live, level)
    batches: list[Batch] = []
    loss = run.accumulate(iter(step_of(batch_of(live, dtype, options.get("kept", False)))), batches)
    told = run.ranks.tell(loss, None, 0)
    norm = run.state.gradient.finish(1.0)
    numbers = torch.stack([*told, norm, run.state.gradient.used_scale])
    assert numbers.device.type == "meta" and numbers.dtype == torch.float32 and len(batches) == 2


class Waits(TorchDispatchMode):
    """Counts the operations that wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
        if function._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
            self.counts[function._schema.name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("name, waits", [("AdamW", 0), ("AdamWScheduleFree", 1), ("RAdamScheduleFree", 1)])
def test_how_often_a_step_waits(model, name, waits):
    """AdamW leaves a step out on the device. The ScheduleFree ones count in Python, which must know once in a step."""
    run = run_on(load_transformer(model.transformer, dtype=torch.bfloat16), LORA, OptimizerConfig(type=name))
    batches = itertools.cycle(step_of(batch_of(False, torch.bfloat16)))

    def step() -> None:
        run.accumulate(batches, [])
        optimizers.step_if_finite(run.state.optimizer, run.state.ema, run.state.gradient.finish(1.0))

    step()
    with Waits() as seen:
        step()
    assert sum(seen.counts.values()) == waits


class Copies:
    """Stands for a tensor; remembers how it was moved."""

    def __init__(self, pinned: bool) -> None:
        self.pinned = pinned

    def is_pinned(self) -> bool:
        return self.pinned

    def to(self, device, non_blocking):
        return device, non_blocking


@pytest.mark.parametrize("pinned", [True, False])
def test_a_copy_does_not_wait_only_from_page_locked_memory(pinned):
    assert to_device(Copies(pinned), torch.device("meta")) == (torch.device("meta"), pinned)


def test_nothing_else_copies_without_waiting():
    """The loss reader's copy goes into page-locked memory that it made itself, streamed weights are waited for by an event."""
    core = Path(tensors.__file__).parent
    found = [path.relative_to(core).as_posix() for path in core.rglob("*.py") if "non_blocking=" in path.read_text("utf-8")]
    assert sorted(found) == ["speed/transfer.py", "tensors.py", "training/reporting.py"]


def test_every_tensor_of_a_batch_moves_the_same_way(monkeypatch):
    batch, moved = batch_of(True, torch.bfloat16), []
    monkeypatch.setattr("anima_core.training.feed.to_device", lambda tensor, device: moved.append(tensor) or tensor.to(device))
    there = batch.to(torch.device("meta"))
    assert len(moved) == 5 + len(batch.text) == 10
    assert {t.device.type for t in (there.latents, there.mask, *there.text.values())} == {"meta"}


class FakeCuda:
    """A card whose work arrives when it is told to."""

    def __init__(self) -> None:
        self.recorded: list[tuple[object, str]] = []
        self.waited: list[object] = []
        self.done: set[object] = set()
        fake = self

        class Event:
            def record(self, stream):
                fake.recorded.append((self, stream))

            def query(self):
                return self in fake.done

            def synchronize(self):
                fake.waited.append(self)

        self.Event = Event

    def current_stream(self, device):
        return f"stream of {device}"


class OnCard:
    """Numbers that say that they are on a card."""

    shape = (5,)

    def __init__(self, values: list[float], device: str) -> None:
        self.values, self.device = torch.tensor(values), torch.device(device)


@pytest.fixture
def card(monkeypatch):
    """The loss reader's torch with a fake card: page-locked memory that takes an `OnCard`."""
    fake = FakeCuda()

    class Host:
        def __init__(self, shape, pin_memory):
            assert pin_memory

        def copy_(self, source, non_blocking):
            assert non_blocking
            self.values = source.values

        def tolist(self):
            return self.values.tolist()

    monkeypatch.setattr(reporting, "torch", types.SimpleNamespace(cuda=fake, empty=Host))
    return fake


def push(reader: LossReader, step: int, device: str = "cuda:1") -> None:
    reader.push(StepRecord(step, 1e-4, []), OnCard([float(step), 0.0, 0.0, 0.5, 1.0], device))


def test_a_loss_is_read_when_the_stream_of_its_own_device_has_it(card):
    """On cuda:1 an event of the current device, cuda:0, would be done at once, and the loss read before it is there."""
    reader = LossReader()
    push(reader, 1)
    assert [stream for _, stream in card.recorded] == ["stream of cuda:1"] and reader.ready() == []
    card.done.add(card.recorded[0][0])
    assert [(r.step, r.loss) for r in reader.ready()] == [(1, 1.0)]


def test_the_host_is_never_more_than_two_steps_ahead(card):
    reader, ahead = LossReader(), 0
    for step in range(1, 20):
        push(reader, step)
        reader.ready()
        ahead = max(ahead, step - len(card.waited))
        assert [event for event, _ in card.recorded][: len(card.waited)] == card.waited
    assert ahead == STEPS_AHEAD == 2


@pytest.mark.parametrize("arrived", [True, False])
def test_several_processes_learn_of_a_step_at_the_same_step(card, arrived):
    """However fast the card of one of them is."""
    reader = LossReader(at_once=False)
    for step in range(1, 6):
        push(reader, step)
        if arrived:
            card.done.update(event for event, _ in card.recorded)
        assert [r.step for r in reader.ready()] == ([step - 2] if step > 2 else [])


def test_micro_batches_are_fetched_when_their_turn_comes(model):
    """All at once at the beginning would let the card wait for the last."""
    run = run_on(load_transformer(model.transformer), LORA, OptimizerConfig())
    seen = []

    def feed():
        for number, batch in enumerate(step_of(batch_of(False, torch.float32))):
            seen.append(f"fetch {number}")
            yield batch

    real = run.forward
    run.forward = lambda batch: seen.append("forward") or real(batch)
    run.accumulate(feed(), [])
    assert seen == ["fetch 0", "forward", "fetch 1", "forward"]


def test_the_feeding_thread_works_on_its_own_device_and_hands_out_page_locked_text(monkeypatch):
    device, inside, current = torch.device("cuda:1"), [], []

    @contextlib.contextmanager
    def fake_current(chosen):
        inside.append(chosen)
        yield
        inside.pop()

    monkeypatch.setattr("anima_core.training.feed.current", fake_current)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: current.append((tensor.shape, list(inside))) or tensor)
    feed = object.__new__(Feed)
    feed.__init__(types.SimpleNamespace(), types.SimpleNamespace(device=device), 0, 1, Ranks())
    batch = batch_of(True, torch.bfloat16)
    feed._make_step = lambda: iter([batch.pinned()])
    with feed:
        next(feed)
    shapes = [shape for shape, _ in current]
    assert batch.text["hidden"].shape in shapes and batch.text["rows"].shape in shapes
    assert all(where == [device] for _, where in current)


def test_a_lost_caption_is_embedded_where_the_llm_adapter_is(model):
    """It leaves the device once all captions are cached."""
    text = {"hidden": torch.randn(5, CONTEXT), "ids": torch.zeros(5, dtype=torch.int32)}
    texts = types.SimpleNamespace(
        entry=lambda caption: text, dtype=torch.float32, cache=types.SimpleNamespace(put=lambda *a: None)
    )
    small = load_transformer(model.transformer)
    expected = small.preprocess_text_embeds(text["hidden"][None], text["ids"][None].long())[0, :5]
    embeddings = object.__new__(CachedEmbeddings)
    embeddings.model, embeddings.texts, embeddings._key = small, texts, lambda caption: "key"
    embeddings.release()
    for module in (small.blocks, small.x_embedder, small.t_embedder, small.t_embedding_norm, small.final_layer):
        module.to("meta")  # where training goes on
    assert small.device.type == "meta"
    assert torch.equal(embeddings._embed(["x"])[0]["embeds"], expected)


def test_releasing_takes_the_whole_llm_adapter():
    moved = []

    class Adapter(nn.Module):
        def to(self, place):
            moved.append(place)

    embeddings = object.__new__(CachedEmbeddings)
    embeddings.model = types.SimpleNamespace(llm_adapter=Adapter())
    embeddings.release()
    assert moved == ["cpu"]

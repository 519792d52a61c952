"""Several processes without processes: how long they wait, what each encodes, and how they hear a command."""

import types
from datetime import timedelta
from pathlib import Path

import accelerate
import pytest
import torch

from anima_core.data.cache import TensorCache, cache_key
from anima_core.training.events import Events
from anima_core.training.prepare import in_shares
from anima_core.training.ranks import Ranks
from anima_core.training.reporting import STEPS_AHEAD, StepRecord, StepReporter
from anima_core.training.watchdog import Watchdog

from .test_training_parts import FakeNetwork

KEYS = [cache_key(number=n) for n in range(40)]


@pytest.fixture
def two(monkeypatch):
    """Two processes of a run, whose collective calls find the other's answer in `others`."""
    others, asked = [], []

    class Accelerator:
        def __init__(self, kwargs_handlers):
            asked.extend(kwargs_handlers)
            self.process_index = len(asked) - 1

        def reduce(self, tensor, reduction):
            assert reduction == "sum"
            return tensor + others.pop(0)

        def wait_for_everyone(self):
            others.append("waited")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(accelerate, "Accelerator", Accelerator)
    return Ranks(), Ranks(), others, asked


def test_processes_wait_for_the_first_one_longer_than_any_caching_takes(two):
    """The library ends all after ten minutes with NCCL, half an hour with gloo."""
    assert [handler.timeout >= timedelta(days=2) for handler in two[3]] == [True, True]


def test_every_key_is_one_process_share(two):
    first, second, *_ = two
    assert all(first.share(key) != second.share(key) for key in KEYS)
    assert 5 < sum(map(first.share, KEYS)) < 35


def test_each_process_encodes_its_share_and_then_only_what_is_missing_still(two, tmp_path):
    cache, done = TensorCache(tmp_path), {0: [], 1: []}

    def fill(rank):
        def encode(mine):
            for key in KEYS:
                if mine(key) and not cache.has(key):
                    cache.put(key, {"x": torch.zeros(1)})
                    done[rank.rank].append(key)

        return encode

    lost = KEYS[7]
    for rank in two[:2]:
        rank.wait = lambda: None  # each in its turn instead of side by side
        fill(rank)(rank.share)
    Path(next(tmp_path.rglob(f"{lost[2:34]}*"))).unlink()
    for rank in two[:2]:
        in_shares(rank, cache, fill(rank))
    assert sorted(done[0] + done[1]) == sorted([*KEYS, lost])
    assert len(done[0]) < len(KEYS) > len(done[1])


def test_a_cache_in_memory_is_filled_by_each_process(two):
    asked = []
    in_shares(two[1], TensorCache(None), lambda mine: asked.append([mine(key) for key in KEYS]))
    assert asked == [[True] * len(KEYS)] and two[2] == []


def test_the_command_travels_with_the_loss(two):
    first, second, others, _ = two
    others.append(torch.tensor([3.0, 0.0, 0.0]))
    assert first.tell(torch.tensor(1.0), "cancel", 0).tolist() == [2.0, 2.0, 0.0]
    others.append(torch.tensor([1.0, 2.0, 0.0]))
    assert second.tell(torch.tensor(3.0), "stop", 0).tolist() == [2.0, 2.0, 0.0], "only the first process' command counts"


def test_the_first_process_tells_when_memory_ran_out_in_another(two):
    """Its own it has told itself, and only it writes a log."""
    first, second, others, _ = two
    others.append(torch.tensor([1.0, 0.0, 0.0]))
    assert second.tell(torch.tensor(1.0), None, 2)[2] == 2
    told: list[dict] = []
    reporter = StepReporter(Events(None, told.append), Watchdog(FakeNetwork(1.0)), [], 10, torch.device("cpu"), world=2)
    for step, lowered in enumerate((0.0, 2.0, 2.0, 3.0), 1):
        others.append(torch.tensor([1.0, 0.0, lowered]))
        loss, command, total = first.tell(torch.tensor(1.0), None, 5)
        reporter.push(StepRecord(step, 1e-4, []), torch.stack([loss, command, total, torch.tensor(1.0), torch.tensor(1.0)]))
    reporter.report(wait=True)
    assert [event["text"] for event in told if event["event"] == "warning"] == [
        "step 2: out of memory 2 times in other processes, which keep less from here on",
        "step 4: out of memory once in other processes, which keep less from here on",
    ]


def test_all_processes_hear_a_command_at_the_same_step():
    reporter = StepReporter(Events(None), Watchdog(FakeNetwork(1.0)), [], 10, torch.device("cpu"), world=2)
    heard = []
    for step in range(1, 8):
        reporter.push(StepRecord(step, 1e-4, []), torch.tensor([0.5, 2.0 if step >= 3 else 0.0, 0.0, 1.0, 1.0]))
        reporter.report(wait=step == 4)  # the process that saves reads ahead of the others
        heard.append(reporter.command(step))
    assert heard == [None] * 4 + ["cancel"] * 3 and heard.index("cancel") + 1 == 3 + STEPS_AHEAD


def test_one_process_hears_a_command_at_once(monkeypatch):
    from anima_core.training.loop import Run

    run = object.__new__(Run)
    run.ranks, run.events = Ranks(), types.SimpleNamespace(command="stop")
    assert run.command() == "stop"

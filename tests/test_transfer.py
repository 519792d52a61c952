"""Copies on streams of a device that is not here: what must come before what, by clocks that streams keep of one another."""

import contextlib
import itertools
from collections import Counter
from mmap import PAGESIZE
from typing import Any

import pytest
import torch
from torch import Tensor

from anima_core.models.frozen import FloatWeight
from anima_core.speed import transfer
from anima_core.speed.forms import apply_levels
from anima_core.speed.offload import Parked
from anima_core.speed.stream import Away
from anima_core.speed.transfer import SAMPLE, Direct, Streams, transfer_on

from .test_stream import BLOCKS, CPU, EVERYTHING, built, same, step, streamed

pytestmark = pytest.mark.slow


class Stream:
    """What has been asked of it, counted; and how much of every other stream is surely done before what it does next."""

    def __init__(self, device: Any = None) -> None:
        self.after: Counter[Stream] = Counter()

    def work(self) -> int:
        self.after[self] += 1
        return self.after[self]

    def wait_stream(self, other: "Stream") -> None:
        self.after |= other.after

    def record_event(self) -> Counter:
        return Counter(self.after)

    def wait_event(self, event: Counter) -> None:
        self.after |= event


class Timer:
    """Every copy takes longer than the one before."""

    times = itertools.count(1)

    def record(self, stream: Stream) -> None:
        self.at = next(self.times) ** 2

    def synchronize(self) -> None:
        """It is done."""

    def elapsed_time(self, end: "Timer") -> float:
        return end.at - self.at


def bytes_of(tensor: Tensor) -> range:
    return range(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes)


def overlap(one: range, other: range) -> bool:
    return one.start < other.stop and other.start < one.stop


class Device:
    """Stands for torch.cuda: computes and copies at once, and remembers in which order a device might have."""

    Stream = Stream

    def __init__(self, grants: int = 10**9) -> None:
        self.computing, self.on = Stream(), None
        self.used: Counter[range] = Counter()  # bytes -> their last use by the computing stream
        self.copied: dict[range, tuple[Stream, int]] = {}  # bytes -> the last copy into them
        self.grants, self.locked, self.launched = grants, {}, 0

    def current_stream(self, device: Any) -> Stream:
        return self.on or self.computing

    @contextlib.contextmanager
    def stream(self, stream: Stream):
        before, self.on = self.on, stream
        yield
        self.on = before

    def copy(self, stream: Stream, into: Tensor) -> None:
        place = bytes_of(into)
        for other in [other for other in self.copied if overlap(place, other)]:
            assert stream.after[self.computing] >= self.used[other], "what is there is still computed with"
            del self.copied[other]
        self.copied[place] = stream, stream.work()

    def use(self, tensor: Tensor) -> None:
        for place in [place for place in self.copied if overlap(place, bytes_of(tensor))]:
            stream, number = self.copied[place]
            assert self.computing.after[stream] >= number, "it has not arrived"
            self.used[place] = self.computing.work()

    def cudart(self) -> "Device":
        return self

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:
        self.grants -= size
        if self.grants >= 0:
            self.locked[address] = size
        return int(self.grants < 0)

    def cudaHostUnregister(self, address: int) -> int:
        return 0 if self.locked.pop(address) else 1

    def synchronize(self, device: Any) -> None:
        self.launched += 1

    def Event(self, enable_timing: bool) -> "Timer":
        return Timer()


class Watched(Streams):
    """Tells the device of each copy."""

    def _copy(self, stream: Any, into: Tensor, source: Tensor):
        arrival = super()._copy(stream, into, source)
        if stream is self.inward:
            # as it was when the copy was asked for: what has been waited for until then
            self.backend.copy(stream, into)
            done = stream.record_event()
            return lambda: (arrival(), self.backend.current_stream(None).wait_event(done))
        return arrival


@pytest.fixture
def device(monkeypatch) -> Device:
    device = Device()
    numbers, take = FloatWeight.tensor, Parked.take

    def tensor(self: FloatWeight, scratch: Any) -> Tensor:
        device.use(self.value)
        return numbers(self, scratch)

    def taken(self: Parked) -> Tensor:
        value = take(self)
        device.use(value)
        return value

    monkeypatch.setattr(FloatWeight, "tensor", tensor)
    monkeypatch.setattr(Parked, "take", taken)
    return device


def run(device: Device, transfer: Streams, away: Away) -> list[Tensor]:
    model, adapters = built()
    apply_levels(model, ["offload"] * BLOCKS, transfer)
    streamed(model, away, transfer)
    return [*step(model, adapters), *step(model, adapters)]


@pytest.mark.parametrize("away", [EVERYTHING, Away(3), Away(0, adaln=True)])
def test_nothing_is_used_before_it_arrives_or_overwritten_while_it_is_used(device, away):
    model, adapters = built()
    expected = step(model, adapters)
    assert same(run(device, Watched(CPU, device), away), [*expected, *expected])
    assert sum(device.used.values()) > 0 and len(device.copied) > 2


@pytest.mark.parametrize(
    "left_out, why", [("wait_event", "it has not arrived"), ("wait_stream", "what is there is still computed with")]
)
def test_without_either_of_its_waits_it_would_be_noticed(device, monkeypatch, left_out, why):
    monkeypatch.setattr(Stream, left_out, lambda self, other: None)
    with pytest.raises(AssertionError, match=why):
        run(device, Watched(CPU, device), EVERYTHING)


def test_host_memory_is_locked_page_by_page_and_unlocked_with_the_transfer():
    device = Device()
    streams = Streams(CPU, device)
    rooms = [streams.host(size) for size in (1000, PAGESIZE + 1)]
    assert device.locked == {room.data_ptr(): -(-room.numel() // PAGESIZE) * PAGESIZE for room in rooms}
    assert [room.numel() for room in rooms] == [1000, PAGESIZE + 1] and streams.pageable == 0
    assert all(address % PAGESIZE == 0 for address in device.locked), "a page that two share cannot be locked twice"
    del streams
    assert device.locked == {} and device.launched == 1, "only when the device is done with it"


def test_what_the_system_does_not_lock_is_used_as_it_is_and_counted():
    """It is asked once: each refusal costs a look at the device, which would tell of it later."""
    device = Device(grants=PAGESIZE + 1)
    streams = Streams(CPU, device)
    rooms = [streams.host(1000) for _ in range(4)]
    assert len(device.locked) == 1 and streams.pageable == 3000 and all(room.numel() == 1000 for room in rooms)
    assert device.launched == 1 and device.grants == 1 - PAGESIZE


def test_how_fast_the_link_is_is_measured_and_leaves_nothing_locked():
    device = Device()
    streams = Streams(CPU, device)
    assert streams.rate() == SAMPLE / 3e-3, "the fastest of some copies"
    assert device.locked == {} and streams.pageable == 0
    assert transfer_on(CPU).rate() is None


class Lossy(Streams):
    def _copy(self, stream: Any, into: Tensor, source: Tensor):
        return super()._copy(stream, into, torch.zeros_like(source))


def fails(device: Any) -> Streams:
    raise AttributeError("module 'torch._C' has no attribute '_CudaStreamBase'")


@pytest.mark.parametrize(
    "made, why",
    [
        (lambda device: Watched(CPU, Device()), ""),
        (lambda device: Lossy(CPU, Device()), "what is copied beside computing arrives as another"),
        (fails, "module 'torch._C' has no attribute '_CudaStreamBase'"),
    ],
)
def test_streams_prove_themselves_or_copies_are_made_at_once(monkeypatch, made, why):
    zeros = torch.zeros
    monkeypatch.setattr(transfer, "Streams", made)
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **facts: zeros(*size, **facts))
    found = transfer.transfer_on(torch.device("cuda"))
    assert found.why == why and isinstance(found, Direct if why else Watched)


def test_devices_without_streams_copy_at_once():
    assert isinstance(transfer_on(CPU), Direct) and isinstance(transfer_on(torch.device("meta")), Direct)
    assert transfer_on(torch.device("meta")).host(10).is_meta and not transfer_on(torch.device("mps")).host(10).is_meta

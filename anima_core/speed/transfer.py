"""Copies between host memory and the device, beside what the device computes."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from mmap import PAGESIZE
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

SAMPLE, COPIES = 32_000_000, 3  # bytes, and how often they are copied, to see how fast a link is

# Lets all that is computed from here on wait for a copy.
Arrival = Callable[[], None]


class Transfer(ABC):
    """Moves bytes. pageable: bytes of host memory that the system did not lock, from which copies are slower.

    why: why it is slower than the device could be, if it is.
    """

    pageable = 0
    why = ""

    @abstractmethod
    def host(self, size: int) -> Tensor:
        """Make room of so many bytes in host memory, uint8."""

    @abstractmethod
    def fetch(self, into: Tensor, source: Tensor) -> Arrival:
        """Begin to copy from the host, as soon as the device has done all that it was given until now."""

    @abstractmethod
    def store(self, into: Tensor, source: Tensor) -> Arrival:
        """Begin to copy to the host, as soon as the device has done all that it was given until now."""

    @abstractmethod
    def settle(self) -> None:
        """Wait until every copy is done, and all that the device was given."""

    def rate(self) -> float | None:
        """Return the bytes a second that come from the host; None where that was not measured."""
        return None


class Direct(Transfer):
    """Copies at once: on the CPU, on devices without streams of their own, and on meta, where a meter does not see the host."""

    def __init__(self, device: torch.device, why: str = "") -> None:
        self.where, self.why = "meta" if device.type == "meta" else "cpu", why

    def host(self, size: int) -> Tensor:
        with _disable_current_modes():
            return torch.empty(size, dtype=torch.uint8, device=self.where)

    def fetch(self, into: Tensor, source: Tensor) -> Arrival:
        into.copy_(source)
        return lambda: None

    def store(self, into: Tensor, source: Tensor) -> Arrival:
        return self.fetch(into, source)

    def settle(self) -> None:
        """Wait for nothing."""


class Streams(Transfer):
    """Copies on a stream for each direction, from and to memory that the system locks. backend: torch.cuda, or what acts so.

    A copy waits for all that was asked of the computing stream before: whoever overwrites a place on the device asks for the
    copy after the last use of what is there. What it reads must stay as it is until it has arrived.
    """

    def __init__(self, device: torch.device, backend: Any = torch.cuda) -> None:
        self.device, self.backend = device, backend
        self.inward, self.outward = backend.Stream(device), backend.Stream(device)
        self.grants = True
        locked: list[Tensor] = []
        self.locked = locked
        weakref.finalize(self, unlock, backend, device, locked).atexit = False  # the process ends: so do its locks

    def host(self, size: int) -> Tensor:
        """Lock the pages of just these bytes: torch's own page-locked memory is rounded up to powers of two."""
        pages = whole_pages(size)
        self.grants = self.grants and lock(self.backend, self.device, pages)
        if self.grants:
            self.locked.append(pages)
        else:
            self.pageable += size
        return pages[:size]

    def fetch(self, into: Tensor, source: Tensor) -> Arrival:
        return self._copy(self.inward, into, source)

    def store(self, into: Tensor, source: Tensor) -> Arrival:
        return self._copy(self.outward, into, source)

    def _copy(self, stream: Any, into: Tensor, source: Tensor) -> Arrival:
        stream.wait_stream(self.backend.current_stream(self.device))
        with self.backend.stream(stream):
            into.copy_(source, non_blocking=True)
        done = stream.record_event()
        return lambda: self.backend.current_stream(self.device).wait_event(done)

    def settle(self) -> None:
        self.backend.synchronize(self.device)

    def rate(self) -> float:
        """Measure it on a few copies, of which the first may be slow."""
        source, into = whole_pages(SAMPLE), torch.empty(SAMPLE, dtype=torch.uint8, device=self.device)
        rooms = [source] if lock(self.backend, self.device, source) else []
        seconds = min(self._timed(into, source) for _ in range(COPIES))
        unlock(self.backend, self.device, rooms)
        return SAMPLE / seconds

    def _timed(self, into: Tensor, source: Tensor) -> float:
        begin, end = (self.backend.Event(enable_timing=True) for _ in range(2))
        self.inward.wait_stream(self.backend.current_stream(self.device))
        begin.record(self.inward)
        with self.backend.stream(self.inward):
            into.copy_(source[:SAMPLE], non_blocking=True)
        end.record(self.inward)
        end.synchronize()
        return begin.elapsed_time(end) / 1000


def whole_pages(size: int) -> Tensor:
    """Make room of so many bytes or a little more, uint8, that shares no page with anything: no page is locked twice."""
    pages = -(-size // PAGESIZE) * PAGESIZE
    room = torch.empty(pages + PAGESIZE, dtype=torch.uint8)
    begin = -room.data_ptr() % PAGESIZE
    return room[begin : begin + pages]


def lock(backend: Any, device: torch.device, room: Tensor) -> bool:
    """Lock host memory where it is; tell whether the system granted it. Windows locks about half of the RAM."""
    if int(backend.cudart().cudaHostRegister(room.data_ptr(), room.nbytes, 0)) == 0:
        return True
    try:  # CUDA tells of it once more at the next kernel, whoever launches that
        torch.zeros(1, device=device).add_(1)
        backend.synchronize(device)
    except RuntimeError:
        pass
    return False


def unlock(backend: Any, device: torch.device, rooms: list[Tensor]) -> None:
    if rooms:
        backend.synchronize(device)
    while rooms:
        backend.cudart().cudaHostUnregister(rooms.pop().data_ptr())


def transfer_on(device: torch.device) -> Transfer:
    """Return what moves bytes best between the host and a device, if it proves itself there."""
    if device.type != "cuda":
        return Direct(device)
    try:
        streams = Streams(device)
        return streams if carries(streams, device) else Direct(device, "what is copied beside computing arrives as another")
    except (RuntimeError, AttributeError) as error:  # of what only calls itself CUDA
        return Direct(device, str(error).partition("\n")[0][:120])


def carries(transfer: Transfer, device: torch.device) -> bool:
    """Tell whether some bytes come back from a device as they were."""
    numbers = (torch.arange(PAGESIZE) % 251).to(torch.uint8)
    there, back = transfer.host(PAGESIZE).copy_(numbers), transfer.host(PAGESIZE).zero_()
    place = torch.zeros(PAGESIZE, dtype=torch.uint8, device=device)
    transfer.fetch(place, there)()
    transfer.store(back, place)()
    transfer.settle()
    return torch.equal(back, numbers)

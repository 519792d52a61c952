"""Inputs of blocks that wait for their backward pass in host memory."""

import weakref
from collections import defaultdict

import torch
from torch import Tensor

from .transfer import Arrival, Transfer

PLACES = 2  # on the device: one input is computed with while the one before it arrives


class Parked:
    """A tensor in host memory. value: itself, while it is on the device still."""

    def __init__(self, lot: "ParkingLot", value: Tensor, room: Tensor, before: "Parked | None") -> None:
        self.lot, self.room = lot, room
        self.value: Tensor | None = value
        self.shape, self.dtype = value.shape, value.dtype
        self.before = None if before is None else weakref.ref(before)
        self.stored = lot.transfer.store(room, as_bytes(value))

    def gone(self) -> None:
        """Let go of the tensor on the device, once it is stored."""
        if self.value is not None:
            self.stored()
            self.value = None

    def take(self) -> Tensor:
        """Return the tensor on the device, good until the second one before it is taken; the one before begins to come."""
        found = self.lot.bring(self) if self.value is None else self.value
        if self.before is not None and (before := self.before()) is not None and before.value is None:
            self.lot.fetch(before)
        return found

    def within(self, place: Tensor) -> Tensor:
        return place[: self.room.numel()].view(self.dtype).view(self.shape)


class ParkingLot:
    """Parks tensors in host memory, one after the other, and brings them back in the reverse order."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.free: dict[int, list[Tensor]] = defaultdict(list)  # rooms in host memory, by size
        self.last: weakref.ref[Parked] | None = None
        self.places: list[Tensor] = []
        self.holds: list[weakref.ref[Parked] | None] = [None] * PLACES
        self.arrivals: list[Arrival] = [lambda: None] * PLACES
        self.turn = 0

    def park(self, value: Tensor) -> Parked:
        """Begin to store a tensor; the one that was parked before leaves the device."""
        before = self.last and self.last()
        if before is not None:
            before.gone()
        size = value.nbytes
        self.make_places(size, value.device)
        room = self.free[size].pop() if self.free[size] else self.transfer.host(size)
        parked = Parked(self, value.detach(), room, before)
        weakref.finalize(parked, self.free[size].append, room).atexit = False
        self.last = weakref.ref(parked)
        return parked

    def make_places(self, size: int, device: torch.device) -> None:
        if not self.places or self.places[0].numel() < size:
            self.transfer.settle()  # no copy may be on its way to places that are let go
            self.holds = [None] * PLACES
            self.places = [torch.empty(size, dtype=torch.uint8, device=device) for _ in range(PLACES)]

    def fetch(self, parked: Parked) -> int:
        """Return the place that a tensor is in, or on its way to."""
        held = [ref and ref() for ref in self.holds]
        if parked not in held:
            place, self.turn = self.turn, (self.turn + 1) % PLACES
            self.holds[place] = weakref.ref(parked)
            self.arrivals[place] = self.transfer.fetch(self.places[place][: parked.room.numel()], parked.room)
            return place
        return held.index(parked)

    def bring(self, parked: Parked) -> Tensor:
        place = self.fetch(parked)
        self.arrivals[place]()
        return parked.within(self.places[place])


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)

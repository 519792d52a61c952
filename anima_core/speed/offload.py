"""Inputs of blocks that wait for their backward pass in host memory."""

import weakref
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from .transfer import Arrival, Transfer


class Parked:
    """A tensor in host memory. value: itself, while it is on the device: until it is stored, and from when it is taken."""

    def __init__(self, lot: "ParkingLot", value: Tensor, room: Tensor, before: "Parked | None") -> None:
        self.lot, self.room = lot, room
        self.shape, self.dtype, self.device = value.shape, value.dtype, value.device
        self.value: Tensor | None = value
        self.before = None if before is None else weakref.ref(before)
        self.stored = lot.transfer.store(room, as_bytes(value))

    def leave(self) -> None:
        """Let go of the tensor on the device, once it is stored."""
        if self.value is not None:
            self.stored()
            self.value = None

    def take(self) -> Tensor:
        """Return the tensor on the device; the one that was parked before it begins to come."""
        if self.value is None:
            self.value = self.lot.bring(self)
        before = None if self.before is None else self.before()
        if before is not None and before.value is None:
            self.lot.call(before)
        return self.value


class Coming(NamedTuple):
    parked: weakref.ref[Parked]
    value: Tensor
    arrival: Arrival


class ParkingLot:
    """Parks tensors in host memory, one after the other, and brings them back in the reverse order, each before its turn."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer
        self.free: dict[int, list[Tensor]] = defaultdict(list)  # rooms in host memory, by size
        self.last: weakref.ref[Parked] | None = None
        self.coming: Coming | None = None

    def park(self, value: Tensor) -> Parked:
        """Begin to store a tensor; the one that was parked before leaves the device."""
        self.arrived()
        before = self.leave()
        size = value.nbytes
        room = self.free[size].pop() if self.free[size] else self.transfer.host(size)
        parked = Parked(self, value, room, before)
        weakref.finalize(parked, self.free[size].append, room).atexit = False
        self.last = weakref.ref(parked)
        return parked

    def leave(self) -> Parked | None:
        """Let the tensor that was parked last leave the device."""
        last = None if self.last is None else self.last()
        if last is not None:
            last.leave()
        return last

    def bring(self, parked: Parked) -> Tensor:
        self.call(parked)
        value = self.arrived()
        assert value is not None
        return value

    def call(self, parked: Parked) -> None:
        """Let a tensor begin to come, if it is not coming already."""
        if self.coming is None or self.coming.parked() is not parked:
            self.arrived()
            value = torch.empty(parked.shape, dtype=parked.dtype, device=parked.device)
            self.coming = Coming(weakref.ref(parked), value, self.transfer.fetch(as_bytes(value), parked.room))

    def arrived(self) -> Tensor | None:
        """Return what was coming, now that it is there: also when nobody wants it, it is let go only then."""
        coming, self.coming = self.coming, None
        if coming is None:
            return None
        coming.arrival()
        return coming.value


def as_bytes(tensor: Tensor) -> Tensor:
    """View a tensor, which lies in one piece, as uint8 [n]."""
    return tensor.view(-1).view(torch.uint8)

"""Less kept for the backward pass: what is saved there is packed as the way to make it again.

The graph is the same, so gradients are the same to the bit. Two ways: `Cheaply` makes outputs of the plain functions again
from their inputs, without a matrix product or attention; `Again` runs a whole block again, up to the last thing that is
needed, and keeps its attention's outputs if asked.
"""

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..models.ops import Ops
from .counting import tensors_in
from .offload import Parked, ParkingLot

T = TypeVar("T")

REMADE = ("modulate", "norm_rope", "gelu")  # outputs that are cheap to make again
CALLED = (*REMADE, "attention")


class Place(NamedTuple):
    """Where a tensor lies in its storage."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int | torch.SymInt

    @classmethod
    def of(cls, tensor: Tensor) -> "Place":
        return cls(tensor.size(), tensor.stride(), tensor.storage_offset())

    def within(self, whole: Tensor) -> Tensor:
        return whole.as_strided(*self)


class ByStorage(Generic[T]):
    """What is known about tensors, by their storage and only while that is alive. Nothing is kept alive for it."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref, T]] = {}

    def __setitem__(self, tensor: Tensor, value: T) -> None:
        storage = tensor.untyped_storage()
        self._known[storage._cdata] = (weakref.ref(storage), value)

    def get(self, tensor: Tensor) -> T | None:
        storage = tensor.untyped_storage()
        known = self._known.get(storage._cdata)  # not by its address, which is 0 on the meta device
        return known[1] if known is not None and known[0]() is storage else None


def each_call(ops: Ops, names: Sequence[str], around: Callable[..., Tensor]) -> Ops:
    """Return ops whose functions of these names are called by around(name, function, *inputs)."""

    def wrapped(name: str) -> Callable[..., Tensor]:
        function = getattr(ops, name)
        return lambda *inputs: around(name, function, *inputs)

    return replace(ops, **{name: wrapped(name) for name in names})


def detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value


class Recipe:
    """A tensor, as the function and the inputs that make it. It is made at its first use, and let go after its last."""

    def __init__(self, function: Callable[..., Tensor], inputs: Sequence[Any]) -> None:
        self.function, self.inputs = function, [detached(value) for value in inputs]
        self.uses = 0
        self.value: Tensor | None = None

    def use(self) -> Tensor:
        value, self.uses = self.value, self.uses - 1
        if value is None:
            with torch.no_grad():
                value = self.function(*self.inputs)
        # after its last use another backward pass through the same graph makes it once more
        self.value = value if self.uses > 0 else None
        return value


Packed = Tensor | tuple[Recipe, Place | None]


class Cheaply:
    """One pass of a block through functions that are called by `made`: what they return is packed as a recipe."""

    def __init__(self) -> None:
        self.recipes: ByStorage[Recipe] = ByStorage()

    def made(self, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        out = function(*inputs)
        self.recipes[out] = Recipe(function, inputs)
        return out

    def pack(self, tensor: Tensor) -> Packed:
        recipe = self.recipes.get(tensor)
        if recipe is None:
            return tensor.detach()
        recipe.uses += 1
        return recipe, Place.of(tensor)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        recipe, place = packed
        return place.within(recipe.use()) if place else recipe.use()


def cheaply(run: Callable[[Ops], Tensor], ops: Ops) -> Tensor:
    """Run a pass with given functions, those of `REMADE` as recipes."""
    cheap = Cheaply()
    with saved_tensors_hooks(cheap.pack, cheap.unpack):
        return run(each_call(ops, REMADE, cheap.made))


class Ready(Exception):
    """All that was asked for has been made again."""


@dataclass(frozen=True)
class Saved:
    """The nth tensor that a pass saved, not counting attention's own where its outputs are kept."""

    number: int


@dataclass(frozen=True)
class Made:
    """The output of the nth function that a pass called; or one of its inputs, by position."""

    number: int
    input: int | None = None


Wanted = Saved | Made


class Again:
    """A block's pass, of which only the inputs are kept, and attention's outputs if `keep_attention`.

    lot: where the first input is kept meanwhile, in host memory; None: it stays on the device. The first thing that the
    backward pass asks for runs the block again; what else was saved is collected on the way, cheap things as recipes, and the
    run ends as soon as all is there: the last matrix product is not repeated.
    """

    def __init__(self, ops: Ops, keep_attention: bool, lot: ParkingLot | None = None) -> None:
        self.ops, self.keep_attention, self.lot = ops, keep_attention, lot
        self.attended: dict[int, Tensor] = {}  # outputs of attention by number of call, when they are kept
        self.wanted: Counter[Wanted] = Counter()  # and how often
        self.values: dict[Wanted, list[Packed]] = {}  # for as many uses

    def first(self, block: Callable[..., Tensor], inputs: Sequence[Any]) -> Tensor:
        self.block, self.inputs = block, [detached(value) for value in inputs]
        self.needs_grad = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        run = FirstPass(self)
        if self.lot is not None:
            self.inputs[0] = self.lot.park(self.inputs[0])
            run.parked[inputs[0]] = self.inputs[0]
        with saved_tensors_hooks(run.pack, self.unpack):
            return block(*inputs, ops=each_call(self.ops, CALLED, run.called))

    def unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        wanted, place = packed
        if isinstance(wanted, Parked):
            return place.within(wanted.take())
        if not self.values.get(wanted):
            self.run_again()
        found = self.values[wanted].pop()
        return place.within(Cheaply.unpack(found)) if place else Cheaply.unpack(found)

    def run_again(self) -> None:
        run = SecondPass(self)
        inputs = [v.take() if isinstance(v, Parked) else v for v in self.inputs]
        inputs = [v.detach().requires_grad_(True) if g else v for v, g in zip(inputs, self.needs_grad)]
        try:
            with torch.enable_grad(), saved_tensors_hooks(run.pack, run.unpack):
                self.block(*inputs, ops=each_call(self.ops, CALLED, run.called))
        except Ready:
            pass
        self.values = run.values


class Pass(ABC):
    """What both passes count alike: saved tensors, and calls of the functions."""

    def __init__(self, again: Again) -> None:
        self.again = again
        self.saved = self.calls = -1
        self.attending = False

    def called(self, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        self.calls += 1
        if name == "attention" and self.again.keep_attention:
            return self.attend(self.calls, function, *inputs)
        return self.call(self.calls, name, function, *inputs)

    @abstractmethod
    def call(self, number: int, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Call the function of this number."""

    @abstractmethod
    def attend(self, number: int, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Call attention, whose output is kept."""


class FirstPass(Pass):
    """Notes what is saved, as what it is to be found again by."""

    def __init__(self, again: Again) -> None:
        super().__init__(again)
        self.kept: ByStorage[bool] = ByStorage()  # inputs of the block, outputs of attention
        self.parked: ByStorage[Parked] = ByStorage()
        self.outputs: ByStorage[Made] = ByStorage()
        for value in tensors_in(again.inputs):
            self.kept[value] = True

    def call(self, number: int, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if name in REMADE:
            self.know(number, inputs)
        out = function(*inputs)
        self.outputs[out] = Made(number)
        return out

    def know(self, number: int, inputs: Sequence[Any]) -> None:
        """Name what a function is given, as far as it has no name."""
        for position, value in enumerate(inputs):
            if isinstance(value, Tensor) and self.outputs.get(value) is None:
                self.outputs[value] = Made(number, position)

    def attend(self, number: int, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        self.know(number, inputs)
        self.attending = True
        out = function(*inputs)
        self.attending = False
        self.again.attended[number] = out.detach().requires_grad_(out.requires_grad)
        self.kept[out] = True
        return out

    def pack(self, tensor: Tensor) -> Any:
        if not self.attending:
            self.saved += 1
        if (parked := self.parked.get(tensor)) is not None:
            return parked, Place.of(tensor)
        if is_weight(tensor) or self.kept.get(tensor):
            return tensor.detach()
        if (made := self.outputs.get(tensor)) is not None:
            self.again.wanted[made] += 1
            return made, Place.of(tensor)
        if self.attending:
            return tensor.detach()
        self.again.wanted[Saved(self.saved)] += 1
        return Saved(self.saved), None


def is_weight(tensor: Tensor) -> bool:
    """Tell whether a tensor is a parameter, or one turned round as a matrix product takes it."""
    return isinstance(tensor, nn.Parameter) or isinstance(tensor._base, nn.Parameter)


class SecondPass(Pass):
    """Collects what the first pass has noted."""

    def __init__(self, again: Again) -> None:
        super().__init__(again)
        self.values: dict[Wanted, list[Packed]] = {}
        self.cheap = Cheaply()

    def call(self, number: int, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if name not in REMADE:
            out = function(*inputs)
        else:
            self.know(number, inputs)
            self.leave_to_recipe(Made(number), Recipe(function, inputs))
            out = self.cheap.made(name, function, *inputs)
        self.found(Made(number), out)
        return out

    def know(self, number: int, inputs: Sequence[Any]) -> None:
        for position, value in enumerate(inputs):
            self.found(Made(number, position), value)

    def leave_to_recipe(self, wanted: Wanted, recipe: Recipe) -> None:
        """End the run where all else is there: what is the last is made when it is used, and not before."""
        if self.again.wanted.keys() - self.values.keys() == {wanted}:
            recipe.uses = self.again.wanted[wanted]
            self.values[wanted] = [(recipe, None)] * recipe.uses
            raise Ready

    def attend(self, number: int, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        self.know(number, inputs)
        return self.again.attended[number]

    def found(self, wanted: Wanted, tensor: Tensor) -> None:
        if wanted in self.again.wanted:
            self.values[wanted] = [self.cheap.pack(tensor) for _ in range(self.again.wanted[wanted])]
            if len(self.values) == len(self.again.wanted):
                raise Ready

    def pack(self, tensor: Tensor) -> None:
        self.saved += 1
        self.found(Saved(self.saved), tensor)

    def unpack(self, packed: None) -> Tensor:
        raise RuntimeError("the second pass of a block has no backward pass of its own")

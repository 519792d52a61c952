"""Less kept for the backward pass: what is saved there is packed as the way to make it again.

The graph is the same, so gradients are the same to the bit. Two ways: `Cheaply` makes outputs of the plain functions again
from their inputs, without a matrix product or attention; `Again` runs a whole block again, up to the last thing that is
needed, and keeps its attention's outputs if asked.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ..models.ops import Ops

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


def storage(tensor: Tensor) -> int:
    """Identify a tensor's storage, while that is alive; its address is 0 on the meta device."""
    return tensor.untyped_storage()._cdata


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
        self.uses, self.value = 0, torch.empty(0)

    def use(self) -> Tensor:
        if not self.value.numel():
            with torch.no_grad():
                self.value = self.function(*self.inputs)
        value, self.uses = self.value, self.uses - 1
        if self.uses <= 0:  # another backward pass through the same graph makes it once more
            self.value = torch.empty(0)
        return value


Packed = Tensor | tuple[Recipe, Place]


class Cheaply:
    """One pass of a block through functions that are called by `made`: what they return is packed as a recipe."""

    def __init__(self) -> None:
        self.recipes: dict[int, Recipe] = {}
        self.alive: list[Tensor] = []  # so that no storage is used twice during the pass

    def made(self, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        out = function(*inputs)
        self.recipes[storage(out)] = Recipe(function, inputs)
        self.alive.append(out)
        return out

    def pack(self, tensor: Tensor) -> Packed:
        recipe = self.recipes.get(storage(tensor))
        if recipe is None:
            return tensor.detach()
        recipe.uses += 1
        return recipe, Place.of(tensor)

    @staticmethod
    def unpack(packed: Packed) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed[1].within(packed[0].use())

    def end(self) -> None:
        self.recipes.clear()
        self.alive.clear()


def cheaply(run: Callable[[Ops], Tensor], ops: Ops) -> Tensor:
    """Run a pass with given functions, those of `REMADE` as recipes."""
    cheap = Cheaply()
    try:
        with saved_tensors_hooks(cheap.pack, cheap.unpack):
            return run(each_call(ops, REMADE, cheap.made))
    finally:
        cheap.end()


class Ready(Exception):
    """All that was asked for has been made again."""


@dataclass(frozen=True)
class Saved:
    """The nth tensor that a pass saved; of attention's own, when attention is run again."""

    number: int


@dataclass(frozen=True)
class Made:
    """The output of the nth function that a pass called; or one of the inputs of attention, by position."""

    number: int
    input: int | None = None


Wanted = Saved | Made


class Again:
    """A block's pass, of which only the inputs are kept, and attention's outputs if `keep_attention`.

    The first thing that the backward pass asks for runs the block again; what else was saved is collected on the way, cheap
    things as recipes, and the run ends as soon as all is there: the last matrix product is not repeated.
    """

    def __init__(self, ops: Ops, keep_attention: bool) -> None:
        self.ops, self.keep_attention = ops, keep_attention
        self.attended: dict[int, Tensor] = {}  # outputs of attention by number of call, when they are kept
        self.wanted: Counter[Wanted] = Counter()  # and how often
        self.values: dict[Wanted, list[Packed]] = {}  # for as many uses

    def first(self, block: Callable[..., Tensor], inputs: Sequence[Any]) -> Tensor:
        self.block, self.inputs = block, [detached(value) for value in inputs]
        self.needs_grad = [isinstance(value, Tensor) and value.requires_grad for value in inputs]
        run = FirstPass(self)
        try:
            with saved_tensors_hooks(run.pack, self.unpack):
                return block(*inputs, each_call(self.ops, CALLED, run.called))
        finally:
            run.end()

    def unpack(self, packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        wanted, place = packed
        if not self.values.get(wanted):
            self.run_again()
        found = self.values[wanted].pop()
        return place.within(Cheaply.unpack(found)) if place else Cheaply.unpack(found)

    def run_again(self) -> None:
        run = SecondPass(self)
        inputs = [v.detach().requires_grad_(True) if g else v for v, g in zip(self.inputs, self.needs_grad)]
        try:
            with torch.enable_grad(), saved_tensors_hooks(run.pack, run.unpack):
                self.block(*inputs, each_call(self.ops, CALLED, run.called))
        except Ready:
            pass
        finally:
            run.cheap.end()
        self.values = run.values


class Pass:
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

    def call(self, number: int, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        raise NotImplementedError

    def attend(self, number: int, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        raise NotImplementedError


class FirstPass(Pass):
    """Notes what is saved, as what it is to be found again by."""

    def __init__(self, again: Again) -> None:
        super().__init__(again)
        self.kept = {storage(value) for value in flat(again.inputs)}
        self.outputs: dict[int, Made] = {}
        self.alive: list[Tensor] = []

    def call(self, number: int, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        out = function(*inputs)
        self.remember(out, Made(number))
        return out

    def attend(self, number: int, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        for position, value in enumerate(inputs):
            if isinstance(value, Tensor) and storage(value) not in self.outputs:
                self.remember(value, Made(number, position))
        self.attending = True
        out = function(*inputs)
        self.attending = False
        self.again.attended[number] = out.detach().requires_grad_(out.requires_grad)
        self.kept.add(storage(out))
        return out

    def remember(self, tensor: Tensor, made: Made) -> None:
        if storage(tensor) not in self.kept:
            self.outputs[storage(tensor)] = made
            self.alive.append(tensor)

    def pack(self, tensor: Tensor) -> Any:
        made = self.outputs.get(storage(tensor))
        if not self.attending:
            self.saved += 1
        if made is not None:
            self.again.wanted[made] += 1
            return made, Place.of(tensor)
        if self.attending or isinstance(tensor, nn.Parameter) or storage(tensor) in self.kept:
            return tensor.detach()
        self.again.wanted[Saved(self.saved)] += 1
        return Saved(self.saved), None

    def end(self) -> None:
        self.outputs.clear()
        self.alive.clear()


class SecondPass(Pass):
    """Collects what the first pass has noted."""

    def __init__(self, again: Again) -> None:
        super().__init__(again)
        self.values: dict[Wanted, list[Packed]] = {}
        self.cheap = Cheaply()

    def call(self, number: int, name: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        out = self.cheap.made(name, function, *inputs) if name in REMADE else function(*inputs)
        self.found(Made(number), out)
        return out

    def attend(self, number: int, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        for position, value in enumerate(inputs):
            self.found(Made(number, position), value)
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


def flat(values: Sequence[Any]) -> list[Tensor]:
    """List the tensors in nested tuples."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, tuple):
            found += flat(value)
    return found

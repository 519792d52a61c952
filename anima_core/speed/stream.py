"""Frozen weights that lie in host memory while a model trains, and come to the device for the moment of their use.

What moves together is a `Piece`; a `Ring` of pieces shares two places on the device, and fetches the next piece while the
present one is computed with. Nothing is written back. Outside their turn the weights are empty, so that a use fails.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ..models.frozen import FloatWeight, FrozenLinear, FrozenWeight, Scratch, frozen_linears
from ..models.kept import FREEZABLE
from ..models.transformer import AnimaTransformer, Block, Modulation, modulations
from .transfer import Arrival, Transfer

ADALN = re.compile(r"blocks\.\d+\.adaln_modulation_\w+\.\d\.weight")
ALIGNED = 64  # bytes, at which each tensor of a piece begins
PLACES = 2  # of a ring on the device: one is computed with while the other is filled


class Span(NamedTuple):
    """Where a tensor lies among bytes."""

    begin: int
    end: int
    dtype: torch.dtype
    shape: torch.Size

    def of(self, room: Tensor) -> Tensor:
        return room[self.begin : self.end].view(self.dtype).view(self.shape)


def spans_of(tensors: Iterable[Tensor]) -> list[Span]:
    """Lay tensors one behind the other."""
    spans, begin = [], 0
    for tensor in tensors:
        spans.append(Span(begin, begin + tensor.nbytes, tensor.dtype, tensor.shape))
        begin += aligned(tensor.nbytes)
    return spans


class Piece:
    """Frozen weights, whose buffers are packed into one room in host memory."""

    def __init__(self, weights: Sequence[FrozenWeight], device: torch.device, transfer: Transfer) -> None:
        modules = [module for weight in weights for module in weight.modules()]
        self.buffers = [(module, name) for module in modules for name, buffer in module.named_buffers(recurse=False)]
        tensors = [module.get_buffer(name) for module, name in self.buffers]
        self.spans = spans_of(tensors)
        self.size = self.spans[-1].end
        self.packed = transfer.host(self.size)
        for span, tensor in zip(self.spans, tensors):
            span.of(self.packed).copy_(tensor)
        self.nothing = [torch.empty(0, dtype=span.dtype, device=device) for span in self.spans]
        self.close()

    def open(self, views: Sequence[Tensor]) -> None:
        """Let the weights be what these tensors hold."""
        for (module, name), view in zip(self.buffers, views):
            module._buffers[name] = view

    def close(self) -> None:
        self.open(self.nothing)

    def views(self, place: Tensor) -> list[Tensor]:
        return [span.of(place) for span in self.spans]

    def settle(self, device: torch.device) -> None:
        """Let the weights stay on a device, each in memory of its own."""
        self.open([view.to(device, copy=True) for view in self.views(self.packed)])


class Ring:
    """Pieces that take turns on the device, in one room whose two ends are the places. One is open at a time.

    The room is as large as the largest two that follow one another, so that large ones cost their size once. moves: how often
    a piece was fetched.
    """

    def __init__(self, pieces: Sequence[Piece], device: torch.device, transfer: Transfer) -> None:
        self.pieces, self.transfer = list(pieces), transfer
        self.room = torch.empty(room_for([aligned(piece.size) for piece in pieces]), dtype=torch.uint8, device=device)
        self.ends = [[self.room[: piece.size], self.room[len(self.room) - aligned(piece.size) :]] for piece in pieces]
        self.views = [[piece.views(end) for end in ends] for piece, ends in zip(pieces, self.ends)]
        self.holds: list[int | None] = [None for _ in pieces[:PLACES]]
        self.arrivals: list[Arrival] = [lambda: None for _ in self.holds]
        self.now: int | None = None
        self.moves = 0

    def enter(self, index: int, following: int | None = None) -> None:
        """Open a piece, close the one before, and begin to fetch the one that follows, if there is room for both."""
        if index != self.now:
            self.leave()
            place = self.bring(index)
            self.arrivals[place]()
            self.pieces[index].open(self.views[index][place])
            self.now = index
        if following is not None and self.fit(index, following):
            self.bring(following)

    def leave(self) -> None:
        if self.now is not None:
            self.pieces[self.now].close()
            self.now = None

    def bring(self, index: int) -> int:
        """Return the place that a piece is in, or on its way to. What it is in still is not moved again."""
        if index not in self.holds:
            place = next(number for number, held in enumerate(self.holds) if held is None or held != self.now)
            self.holds = [held if held is not None and self.fit(held, index) else None for held in self.holds]
            self.holds[place] = index
            self.arrivals[place] = self.transfer.fetch(
                self.ends[index][place][: self.pieces[index].size], self.pieces[index].packed
            )
            self.moves += 1
        return self.holds.index(index)

    def fit(self, one: int, other: int) -> bool:
        """Tell whether two pieces have room beside one another."""
        return aligned(self.pieces[one].size) + aligned(self.pieces[other].size) <= len(self.room)


def aligned(size: int) -> int:
    return -(-size // ALIGNED) * ALIGNED


def room_for(sizes: Sequence[int]) -> int:
    """Return the bytes that pieces of these sizes take on the device, in turn: of the largest two that follow one another."""
    return max(map(sum, pairwise(sizes)), default=sum(sizes))


@dataclass(frozen=True)
class Turn:
    """The turn of a block in a ring of blocks: in their order, and backwards in the backward pass."""

    ring: Ring
    index: int

    def forward(self) -> None:
        following = self.index + 1
        if following < len(self.ring.pieces):
            self.ring.enter(self.index, following)
        else:  # a backward pass begins here, else the next forward pass does at the first
            self.ring.enter(self.index, None if torch.is_grad_enabled() else 0)

    def backward(self) -> None:
        self.ring.enter(self.index, self.index - 1 if self.index else None)

    def left(self, x: Tensor) -> Tensor:
        """Return the output of the block, whose gradient lets the block have its turn again."""
        return Left.apply(x, self)


class Left(Function):
    """The identity, whose backward pass comes before that of all that made its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, turn: Turn) -> Tensor:
        ctx.turn = turn
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        ctx.turn.backward()
        return g, None


@dataclass(frozen=True)
class Away:
    """What of a model's weights is in host memory: so many of its blocks, and the layers that make their modulation."""

    blocks: int = 0
    adaln: bool = False

    def which(self, of: int) -> tuple[int, ...]:
        """Return the numbers of the blocks, spread evenly: what is computed between two of them hides the fetching."""
        return tuple((2 * n + 1) * of // (2 * self.blocks) for n in range(self.blocks))


NOWHERE = Away()


class Streaming:
    """Holds a model's weights away from its device. Its blocks' forms and its modulation follow, see `speed.forms`."""

    def __init__(self, model: AnimaTransformer, transfer: Transfer) -> None:
        self.model, self.transfer, self.away = model, transfer, NOWHERE
        self.pieces: dict[tuple[str, int], Piece] = {}
        self.rings: dict[str, Ring] = {}

    def place(self, away: Away) -> None:
        """Move weights between the device and the host, as far as it is not so already."""
        blocks: list[Block] = list(self.model.blocks)  # type: ignore[arg-type]
        wanted = {("blocks", number): large_layers(blocks[number]) for number in away.which(len(blocks))}
        if away.adaln:
            wanted |= {("adaln", number): list(block.adaln()) for number, block in enumerate(blocks)}
        self.stop()
        for key in wanted.keys() - self.pieces.keys():
            self.pieces[key] = Piece(stored_weights(self.model, wanted[key]), self.model.device, self.transfer)
        for key in self.pieces.keys() - wanted.keys():
            self.pieces.pop(key).settle(self.model.device)
        self.away = away
        self.start()

    def stop(self) -> None:
        """Let go of the places on the device."""
        for ring in self.rings.values():
            ring.leave()
        self.transfer.settle()
        self.rings = {}

    def start(self) -> None:
        for kind in ("adaln", "blocks"):
            if pieces := [self.pieces[key] for key in sorted(self.pieces) if key[0] == kind]:
                self.rings[kind] = Ring(pieces, self.model.device, self.transfer)

    def turns(self) -> list[Turn | None]:
        """Return the turn of each block, none for those that stay."""
        numbers = self.away.which(len(self.model.blocks))
        return [Turn(self.rings["blocks"], numbers.index(i)) if i in numbers else None for i in range(len(self.model.blocks))]

    def modulations(self, blocks: Iterable[Block], emb: Tensor, adaln: Tensor) -> Iterator[Modulation]:
        """Do what `models.transformer.modulations` does, with layers that have their turns. Their backward pass has none."""
        ring = self.rings["adaln"]
        for number, block in enumerate(blocks):
            ring.enter(number, (number + 1) % len(ring.pieces))
            yield from modulations([block], emb, adaln)

    @property
    def tensors(self) -> list[Tensor]:
        """What is on the device whichever piece is open."""
        return [ring.room for ring in self.rings.values()]

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Let all weights have their shapes inside, on the meta device, for who counts them."""
        for ring in self.rings.values():
            ring.leave()
        for piece in self.pieces.values():
            piece.open(piece.views(torch.empty(piece.size, dtype=torch.uint8, device="meta")))
        yield
        for piece in self.pieces.values():
            piece.close()


def stored_weights(model: AnimaTransformer, parents: Iterable[nn.Module]) -> list[FrozenWeight]:
    """Return the weights of all frozen linear layers in some modules. Plain layers become ones that ask for their weights."""
    scratch = next((layer.scratch for _, layer in frozen_linears(model)), None) or Scratch(model.dtype, model.device)
    found: list[FrozenWeight] = []
    for owner, name, layer in linears_in(parents):
        if not isinstance(layer, FrozenLinear):
            layer = FrozenLinear(FloatWeight(layer.weight), scratch, layer.bias)
            setattr(owner, name, layer)
        found.append(layer.stored)
    return found


def linears_in(parents: Iterable[nn.Module]) -> list[tuple[nn.Module, str, nn.Linear]]:
    """List the frozen linear layers below some modules, each with the module that has it and its name there."""
    children = [(owner, *child) for parent in parents for owner in parent.modules() for child in owner.named_children()]
    return [
        (owner, name, layer)
        for owner, name, layer in children
        if isinstance(layer, FrozenLinear) or (type(layer) is nn.Linear and not layer.weight.requires_grad)
    ]


def large_layers(block: Block) -> list[nn.Module]:
    return [block.self_attn, block.cross_attn, block.mlp]


def bytes_in(parents: Iterable[nn.Module]) -> int:
    """Return the size of a piece of the frozen linear layers below some modules."""
    layers = [layer for *_, layer in linears_in(parents)]
    stored = [layer.stored if isinstance(layer, FrozenLinear) else FloatWeight(layer.weight) for layer in layers]
    spans = spans_of(buffer for weight in stored for buffer in weight.buffers())
    return spans[-1].end if spans else 0


@dataclass(frozen=True)
class Sizes:
    """The bytes of what may be streamed of each block; none of the modulation's where that is trained."""

    blocks: tuple[int, ...] = ()
    adaln: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: AnimaTransformer) -> "Sizes":
        blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        adaln = tuple(bytes_in(block.adaln()) for block in blocks) if modulation_frozen(model) else ()
        return cls(tuple(bytes_in(large_layers(block)) for block in blocks), adaln)

    def saved(self, away: Away) -> int:
        """Return how many bytes less of weights are on the device."""
        pieces = [self.blocks[number] for number in away.which(len(self.blocks))], self.adaln if away.adaln else ()
        return sum(sum(sizes) - room_for(sizes) for sizes in pieces)


def modulation_frozen(model: AnimaTransformer) -> bool:
    """Tell whether nothing is trained through the layers that make the modulation: they have no turn in a backward pass."""
    before = [model.t_embedder, model.t_embedding_norm]
    layers = [layers for block in model.blocks for layers in block.adaln()]  # type: ignore[operator]
    return not any(p.requires_grad for module in (*before, *layers) for p in module.parameters())


def stays_on_host(away: Away, blocks: int) -> Callable[[str], bool]:
    """Return what tells of a weight by its name whether it lies in host memory, in a model of so many blocks."""
    numbers = set(away.which(blocks))

    def of(name: str) -> bool:
        large, small = FREEZABLE.fullmatch(name), ADALN.fullmatch(name)
        return (large is not None and int(large[1]) in numbers) or (small is not None and away.adaln)

    return of

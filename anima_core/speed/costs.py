"""What a micro-batch costs at each level of each block: counted on one block of each kind, without a byte of it.

The block is a real one on the meta device with the run's own adapters: a new type of adapter needs no entry here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..adapters.network import AdapterNetwork
from ..models.frozen import Scratch, frozen_linears
from ..models.loading import with_frozen
from ..models.transformer import AnimaTransformer, Block, TransformerConfig, image_rope, length_mask
from ..settings import NetworkConfig
from .cards import TYPICAL, Card
from .counting import Meter, cuda_kernels
from .forms import LEVELS, LevelForm, ops_of
from .offload import ParkingLot
from .stream import NOWHERE, PLACES, Away, Sizes
from .transfer import Direct

LAUNCH = 5e-6  # seconds: an operation takes no less, on the card or to be called from Python


@dataclass(frozen=True)
class Shape:
    """A micro-batch: pictures, the rows and columns of tokens of each, and rows of text, which samples own alike or not."""

    pictures: int
    height: int
    width: int
    text: int
    mixed: bool = False


@dataclass(frozen=True)
class Cost:
    """What a part of the model costs in a step.

    kept: bytes from its forward to its backward pass. peak: the most bytes that it takes in one of the two, those included.
    seconds: of both, on a card; forward: of the first.
    """

    kept: int = 0
    peak: int = 0
    seconds: float = 0.0
    forward: float = 0.0


@dataclass(frozen=True)
class Costs:
    """blocks: the cost of each block, by level; before, after: of what runs before and after them. shared: bytes throughout.

    sizes: of the weights that may be streamed; x: bytes of a block's input; link: bytes a second that a card gets of both.
    """

    shared: int
    before: Cost
    blocks: tuple[Mapping[str, Cost], ...]
    after: Cost
    sizes: Sizes = field(default_factory=Sizes)
    x: int = 0
    link: float = TYPICAL.link_bytes

    def of(self, levels: Sequence[str]) -> list[Cost]:
        return [self.before, *(block[level] for block, level in zip(self.blocks, levels)), self.after]

    def peak(self, levels: Sequence[str]) -> int:
        """Return the most bytes that a micro-batch takes, beside what is there between steps."""
        kept = top = self.shared
        for cost in self.of(levels):  # backwards they run in the reverse order, over the same sums
            top = max(top, kept + cost.peak)
            kept += cost.kept
        return top

    def seconds(self, levels: Sequence[str], away: Away = NOWHERE) -> float:
        """Return what a micro-batch takes: what is fetched and stored meanwhile costs where something waits for it."""
        timeline = Timeline(self, levels, away)
        timeline.forward()
        timeline.backward()
        return timeline.now + self.before.seconds + self.after.seconds


class Timeline:
    """When the blocks of a micro-batch are computed, and what they need is fetched and stored: one after the other.

    Rings of blocks and of the modulation fetch as `speed.stream` does it, parked inputs as `speed.offload`.
    """

    def __init__(self, costs: Costs, levels: Sequence[str], away: Away) -> None:
        count = len(costs.blocks)
        self.costs = costs
        self.blocks = [block[level] for block, level in zip(costs.blocks, levels)]
        self.parked = [number for number, level in enumerate(levels) if level == "offload"]
        self.away, self.adaln = away.which(count), range(count if away.adaln else 0)
        self.now = self.inward = self.outward = 0.0
        self.there: dict[tuple[str, int], float] = {}

    def need(self, kind: str, number: int) -> None:
        self.now = max(self.now, self.there.get((kind, number), 0.0))

    def fetch(self, kind: str, number: int, size: int) -> None:
        self.inward = max(self.inward, self.now) + size / self.costs.link
        self.there[kind, number] = self.inward

    def enter(self, kind: str, numbers: Sequence[int], number: int, sizes: Sequence[int], there: int) -> None:
        """Have a piece, and fetch the one that follows in some order. there: how many are in their places from before."""
        if number in numbers:
            self.need(kind, number)
            following = numbers.index(number) + 1
            if there <= following < len(numbers):
                self.fetch(kind, numbers[following], sizes[numbers[following]])

    def forward(self) -> None:
        for number, block in enumerate(self.blocks):
            self.enter("adaln", self.adaln, number, self.costs.sizes.adaln, there=1)
            self.enter("blocks", self.away, number, self.costs.sizes.blocks, there=PLACES)
            if number in self.parked:
                self.now = max(self.now, self.outward)  # the one before is let go
                self.outward = self.now + self.costs.x / self.costs.link
            self.now += block.forward

    def backward(self) -> None:
        self.there, self.away, self.parked = {}, self.away[::-1], self.parked[::-1]
        for number, block in reversed(list(enumerate(self.blocks))):
            self.enter("blocks", self.away, number, self.costs.sizes.blocks, there=PLACES)
            if number in self.parked:
                self.need("inputs", number)
                for before in self.parked[self.parked.index(number) + 1 :][:1]:
                    self.fetch("inputs", before, self.costs.x)
            self.now += block.seconds - block.forward


def empty(sizes: TransformerConfig, dtype: torch.dtype) -> AnimaTransformer:
    """Build a model without a byte of it."""
    with torch.device("meta"):
        return AnimaTransformer(sizes).to(dtype).requires_grad_(False)


def empty_twin(model: AnimaTransformer) -> AnimaTransformer:
    """Build a model of the same sizes without a byte of it, its frozen weights stored in the same way, without adapters."""
    weights = {f"{name.removesuffix('.base')}.weight": layer.stored.on_meta() for name, layer in frozen_linears(model)}
    return with_frozen(empty(model.config, model.dtype), weights, Scratch(model.dtype, "meta"))


def with_adapters(model: AnimaTransformer, config: NetworkConfig, learning_rate: float) -> AdapterNetwork:
    """Put a run's adapters in training into a model on the meta device, without a byte of them."""
    with torch.device("meta"):
        network = AdapterNetwork.inject(model.requires_grad_(False), config, seed=0)
    network.parameter_groups(learning_rate, 0.0)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter)
    return network.train()


def costs_of(
    model: AnimaTransformer, network: AdapterNetwork, shape: Shape, card: Card | None = None, link: float | None = None
) -> Costs:
    """Count what a micro-batch of a model on the meta device costs, with each block at each level.

    What its network keeps between steps is not in it. card: whose seconds are told; without one of known rates they serve to
    compare levels. link: bytes a second from the host, where measured.
    """
    card, inputs = card if card and card.tflops else TYPICAL, Inputs(model, shape)
    found: dict[Any, dict[str, Cost]] = {}
    kinds = [inputs.kind(block) for block in inputs.blocks]
    with network.micro_batch(0, t=torch.zeros(shape.pictures)):
        before = measured(card, inputs.text, inputs.hidden) if trains(model.llm_adapter) else Cost()
        for block, kind in zip(inputs.blocks, kinds):
            if kind not in found:
                found[kind] = {level: measured(card, inputs.run(block, level), inputs.x(block)) for level in LEVELS}
                found[kind]["offload"] = with_another(found[kind]["offload"], inputs.x(None).nbytes)
        after = measured(card, inputs.finish, inputs.x(None))
    blocks, x = tuple(found[kind] for kind in kinds), inputs.x(None).nbytes
    return Costs(inputs.bytes, before, blocks, after, Sizes.of(model), x, link or card.link_bytes)


def with_another(cost: Cost, size: int) -> Cost:
    """Return the cost of a block during which one more tensor comes to the device."""
    return replace(cost, peak=cost.peak + size)


def trains(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


class Clock(Meter):
    """A meter that tells how long a card takes at best: each operation what its products or its bytes take, or its launch."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.card, self.seconds = card, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        launches, flops, moved = self.launches, self.flops, self.bytes
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.launches > launches:
            products, passes = (self.flops - flops) / self.card.flops, (self.bytes - moved) / self.card.bytes_per_second
            self.seconds += max(products, passes, LAUNCH)
        return result


def measured(card: Card, run: Callable[[Tensor], Tensor], start: Tensor) -> Cost:
    """Count a part of the model, forward and backward.

    start: its input, on the meta device; its gradient is made if it requires one.
    """
    with cuda_kernels(), Clock(card) as clock:
        x = start.clone()  # what stands for the part before: only this one may hold it
        y = run(x)
        del x
        result = y.numel() * y.element_size()  # of the next part, which holds it or not
        kept, peak, forward = clock.live - result, clock.peak, clock.seconds
        clock.reset_peak()
        if y.requires_grad:
            y.backward(gradient=torch.empty_like(y))
        return Cost(kept, max(peak, clock.peak - result), clock.seconds, forward)


class Inputs:
    """What the parts of a model are given in a micro-batch, on the meta device."""

    def __init__(self, model: AnimaTransformer, shape: Shape) -> None:
        self.model, self.shape = model, shape
        self.blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        sizes, rows = model.config, torch.empty(shape.pictures, dtype=torch.int32, device="meta")
        self.emb = self.empty(1, sizes.width, trains(model.t_embedding_norm))
        self.adaln = self.empty(1, 3 * sizes.width, trains(model.t_embedder))
        self.context = self.empty(shape.text, sizes.context_dim, trains(model.llm_adapter))
        self.rope = image_rope(shape.height, shape.width, sizes.head_dim, model.device)
        self.mask = length_mask(rows if shape.mixed else None, shape.text)
        self.first = next((i for i, block in enumerate(self.blocks) if trains(block)), len(self.blocks))
        if self.modulation_trained or trains(model.x_embedder) or trains(model.llm_adapter):
            self.first = 0  # every block's input needs a gradient

    @property
    def modulation_trained(self) -> bool:
        """Tell whether what comes before the blocks' own layers of it is trained."""
        return self.emb.requires_grad or self.adaln.requires_grad

    def empty(self, rows: int, width: int, requires_grad: bool = False) -> Tensor:
        size = (self.shape.pictures, rows, width)
        return torch.empty(size, dtype=self.model.dtype, device="meta", requires_grad=requires_grad)

    @property
    def hidden(self) -> Tensor:
        return self.empty(self.shape.text, self.model.config.llm_adapter.source_dim)

    @property
    def bytes(self) -> int:
        """What is there throughout: text, rotary table, modulation."""
        modulation = 9 * self.model.config.width * self.shape.pictures * len(self.blocks) * self.model.dtype.itemsize
        return modulation + sum(t.numel() * t.element_size() for t in (self.context, *self.rope))

    def text(self, hidden: Tensor) -> Tensor:
        return self.model.preprocess_text_embeds(hidden, torch.empty(hidden.shape[:2], dtype=torch.int64, device="meta"))

    def x(self, block: Block | None) -> Tensor:
        """Return the input of a block, or of the final layer, which needs a gradient if anything before it is trained."""
        index = len(self.blocks) if block is None else self.blocks.index(block)
        x = self.empty(self.shape.height * self.shape.width, self.model.config.width)
        x = x.float() if x.dtype == torch.float16 else x
        return x.requires_grad_(index >= self.first)

    def run(self, block: Block, level: str) -> Callable[[Tensor], Tensor]:
        trained = self.modulation_trained or any(trains(layers) for layers in block.adaln())
        modulation = tuple(self.empty(1, 3 * self.model.config.width, trained) for _ in block.adaln())
        lot = ParkingLot(Direct(self.model.device))
        run = LevelForm(level, ops_of(self.model.forms[0]), lot=lot)

        def of(x: Tensor) -> Tensor:
            y = run(block, x, modulation, self.context, self.rope, self.mask)
            lot.leave()
            return y

        return of

    def finish(self, x: Tensor) -> Tensor:
        return self.model.final_layer(x, self.emb, self.adaln)

    def kind(self, block: Block) -> Any:
        """Return what two blocks have alike that cost the same."""
        own = tuple((name, p.shape, p.requires_grad) for name, p in block.named_parameters())
        return own, self.x(block).requires_grad

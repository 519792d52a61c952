"""What memory a run has, and what its steps need of it: counted without a byte of the model, before it runs or away from it."""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from ..adapters.network import AdapterNetwork
from ..data.batches import Batches
from ..data.buckets import Size
from ..models.llm_adapter import MIN_TEXT_ROWS
from ..models.ops import PLAIN, Ops
from ..models.transformer import PATCH, AnimaTransformer
from ..models.vae import SCALE
from ..settings import OptimizerConfig, TrainConfig
from ..speed.cards import CONTEXT, FRAGMENTS, GB, SPARE, Card
from ..speed.costs import Costs, Shape, costs_of, with_adapters
from ..speed.counting import Meter, tensors_in
from ..speed.forms import LEVELS, make_lean
from ..speed.lean import LEAN
from ..speed.plan import Budget
from ..speed.stream import Streaming
from .memory import free_bytes
from .optimizers import build_optimizer, takes_flat
from .state import TrainState

# By `train.memory`
ALLOWED = {"auto": LEVELS, "recompute": ("checkpoint",), "keep": ("keep", "cheap"), "offload": ("offload",)}
TOKEN = SCALE * PATCH  # px of a picture's side
AS_ADAMW = (8.0, 0.0)  # bytes for each trained number, see `bytes_per_number`
SAMPLE, SAMPLES = (64, 64), 16  # tensors on which an optimizer is looked at


class Counter:
    """Counts what micro-batches of a run cost, each shape once.

    build: makes the run's model on the meta device. shapes: those that may be the largest. card: if known. ops: the functions
    of the run's blocks, fused: whether its adapters take their fast form, if that is decided already. link: see `costs_of`.
    """

    def __init__(
        self,
        build: Callable[[], AnimaTransformer],
        config: TrainConfig,
        shapes: list[Shape],
        card: Card | None,
        ops: Ops | None = None,
        fused: bool | None = None,
        link: float | None = None,
    ) -> None:
        self.link = link
        self.build, self.config, self.shapes, self.card = build, config, shapes, card
        self.ops = ops or (PLAIN if config.plain else LEAN)
        self.fused = not config.plain if fused is None else fused
        self._found: dict[Shape, Costs] = {}

    @cached_property
    def empty(self) -> tuple[AnimaTransformer, AdapterNetwork]:
        """The model and its adapters, on the meta device."""
        model = self.build()
        network = with_adapters(model, self.config.network, self.config.optimizer.learning_rate)
        make_lean(model, ops=self.ops)
        network.fused, network.holds_casts = self.fused, holds_casts(self.config)
        return model, network

    def costs(self, shape: Shape) -> Costs:
        if shape not in self._found:
            self._found[shape] = costs_of(*self.empty, shape, self.card, self.link)
        return self._found[shape]

    @property
    def worst(self) -> Costs:
        """The costs of the micro-batch that takes most."""
        return max(map(self.costs, self.shapes), key=lambda costs: costs.peak(["cheap"] * len(costs.blocks)))

    @cached_property
    def optimizer(self) -> tuple[float, float]:
        return bytes_per_number(self.config.optimizer)

    @cached_property
    def trained(self) -> int:
        return sum(p.numel() for p in self.empty[1].parameters() if p.requires_grad)


def holds_casts(config: TrainConfig) -> bool:
    """Tell whether a run keeps its adapter in the model's dtype beside it, which the least memory has no room for."""
    return config.memory != "offload"


def largest_shapes(batches: Batches, text_rows: int) -> list[Shape]:
    """List the micro-batches of a run that no other one exceeds in pictures as well as in all their pixels together."""
    found = {(count, count * math.prod(size)): size for count, size in batches.sizes()}
    most = [key for key in found if not any(other != key and other >= key and other[1] >= key[1] for other in found)]
    return [shape_of(count, found[count, pixels], text_rows) for count, pixels in sorted(most)]


def shape_of(pictures: int, size: Size, text_rows: int) -> Shape:
    """Return the shape of a micro-batch of pictures of one size, px, whose longest text has so many rows."""
    width, height = size
    mixed = pictures > 1 and text_rows > MIN_TEXT_ROWS
    return Shape(pictures, height // TOKEN, width // TOKEN, text_rows, mixed)


def budget_on(
    device: torch.device, counter: Counter, state: TrainState, model: AnimaTransformer, streaming: Streaming
) -> Budget:
    """Return the memory of a run whose model is on its device, all that stays there made."""
    config = counter.config
    resident = bytes_on(device, (*tensors_of(model, state), *streaming.tensors))
    held, temporary = counter.optimizer
    to_come = 0.0 if state.optimizer.state else held * counter.trained  # some optimizers make their moments in the first step
    limits = [free_bytes(device) - SPARE] if device.type != "cpu" else []
    if config.memory_gb:
        limits.append(config.memory_gb * GB - resident - (CONTEXT if device.type in ("cuda", "xpu") else 0))
    room = (min(limits, default=math.inf) - to_come) / FRAGMENTS
    per_step = config.gradient_accumulation_steps
    least = temporary * counter.trained
    return Budget(counter.worst, resident + to_come, room, least, counter.card, per_step, streaming.away)


def tensors_of(model: AnimaTransformer, state: TrainState) -> Iterator[Tensor]:
    """Yield what a run holds on between steps."""
    yield from model.parameters()
    yield from model.buffers()
    yield from state.network.casts.tensors
    yield state.gradient.buffer
    yield from (tensor for entries in state.optimizer.state.values() for tensor in tensors_in(entries))
    yield from state.ema.shadow if state.ema else ()


def bytes_on(device: torch.device, tensors: Iterable[Tensor]) -> int:
    """Add up the storages of tensors that are on a device, each once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors if t.device == device}
    return sum(storages.values())


def bytes_per_number(config: OptimizerConfig) -> tuple[float, float]:
    """Return the bytes that an optimizer holds for each trained number, and those that a step of it takes for a while.

    Read off a step of its own, on small tensors: one where it takes them all as one, else several. One that cannot take a
    step on the CPU is counted as AdamW.
    """
    count = 1 if takes_flat(config) else SAMPLES
    parameters = [torch.nn.Parameter(torch.ones(SAMPLE)) for _ in range(count)]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = build_optimizer([{"params": parameters, "lr": config.learning_rate}], config)
    numbers = count * math.prod(SAMPLE)
    try:
        with Meter() as meter:
            optimizer.step()
            held = meter.live
            meter.reset_peak()
            optimizer.step()
    except Exception:  # whatever a kernel for cards says on the CPU
        return AS_ADAMW
    return held / numbers, (meter.peak - held) / numbers

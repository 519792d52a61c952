"""How a model's blocks are run while training: in lean functions, and each keeping as much as there is room for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..models.ops import PLAIN, Ops
from ..models.transformer import AnimaTransformer, Block, Form, modulations, plain
from .adaln import ModulationTable, can_stack
from .compiled import CompiledBlocks
from .lean import LEAN
from .offload import ParkingLot
from .recompute import Again, cheaply
from .stream import Away, Streaming, Turn
from .transfer import Transfer, transfer_on

# What a block keeps for its backward pass, from most to least; what it does not keep is made again.
LEVELS = ("keep", "cheap", "attention", "checkpoint", "offload")


@dataclass(frozen=True)
class LevelForm:
    """How a block is run that keeps what its level says.

    keep: whatever autograd saves. cheap: no outputs of norms, rotations, modulation and GELU. attention: its input and its
    attention's outputs. checkpoint: its input. offload: that in host memory, in the `lot`. turn: of a block whose weights are
    in host memory. compiled: runs it while training where it can; these two it cannot.
    """

    level: str
    ops: Ops = LEAN
    compiled: CompiledBlocks | None = None
    lot: ParkingLot | None = None
    turn: Turn | None = None

    def __call__(self, block: Block, *inputs: Any) -> Tensor:
        if self.turn is None:
            return self.run(block, *inputs)
        self.turn.forward()
        return self.turn.left(self.run(block, *inputs))

    def run(self, block: Block, *inputs: Any) -> Tensor:
        if self.lot is not None:
            self.lot.leave()
        if torch.is_grad_enabled() and (y := self.in_graph(block, inputs)) is not None:
            return y
        if self.level == "keep" or not torch.is_grad_enabled():
            return block(*inputs, ops=self.ops)
        if self.level == "cheap":
            return cheaply(lambda recorded: block(*inputs, ops=recorded), self.ops)
        return Again(self.ops, self.level == "attention", self.lot if self.level == "offload" else None).first(block, inputs)

    def in_graph(self, block: Block, inputs: Sequence[Any]) -> Tensor | None:
        """Run the compiled block, if there is one."""
        return self.compiled(self.level, self.ops, block, inputs) if self.compiled is not None and self.resident else None

    @property
    def resident(self) -> bool:
        """Tell whether nothing of the block comes from host memory, which a graph could not ask for."""
        return self.turn is None and self.level != "offload"


def apply_levels(model: AnimaTransformer, levels: Sequence[str], transfer: Transfer | None = None) -> None:
    """Let each block keep what its level says, in the functions that it has. The numbers of a step do not depend on it.

    transfer: what moves the inputs of blocks that are offloaded; None for the device's own.
    """
    for former in {level_form(form).lot for form in model.forms} - {None}:
        former.arrived()  # type: ignore[union-attr]  # what it holds may still be written to
    lot = ParkingLot(transfer or transfer_on(model.device)) if "offload" in levels else None
    model.forms = [replace(level_form(form), level=level, lot=lot) for level, form in zip(levels, model.forms)]


def level_form(form: Form) -> LevelForm:
    return form if isinstance(form, LevelForm) else LevelForm("keep", PLAIN)


def apply_away(model: AnimaTransformer, streaming: Streaming, away: Away) -> None:
    """Let some of a model's weights lie in host memory, see `speed.stream`; the model's blocks have their forms already."""
    if away == streaming.away:
        return
    if away.adaln and not streaming.away.adaln:
        model.modulations = modulations  # what stands here may hold the weights
    streaming.place(away)
    model.forms = [replace(level_form(form), turn=turn) for turn, form in zip(streaming.turns(), model.forms)]
    if away.adaln:
        model.modulations = streaming.modulations
    elif model.modulations == streaming.modulations:
        model.modulations = modulations


def ops_of(form: Form) -> Ops:
    return level_form(form).ops


def use_attention(model: AnimaTransformer, attention: Callable[..., Tensor]) -> None:
    """Let the blocks of a model that runs in lean functions compute attention so."""
    model.forms = [replace(f, ops=replace(f.ops, attention=attention)) if isinstance(f, LevelForm) else f for f in model.forms]


def levels_of(model: nn.Module) -> list[str]:
    assert isinstance(model, AnimaTransformer)
    return [level_form(form).level for form in model.forms]


def recomputes_blocks(model: nn.Module) -> bool:
    """Tell whether any block runs again in the backward pass: gradient checkpointing, as others call it."""
    return bool(set(LEVELS[2:]) & set(levels_of(model)))


def make_lean(model: AnimaTransformer, levels: Sequence[str] = (), ops: Ops = LEAN) -> None:
    """Let a model that has its adapters run in lean functions, keeping all unless levels say otherwise."""
    model.forms = [replace(level_form(form), ops=ops) for form in model.forms]
    apply_levels(model, levels or ["keep"] * len(model.blocks))
    if can_stack(model):
        model.modulations = ModulationTable(list(model.blocks))  # type: ignore[arg-type]


def make_plain(model: AnimaTransformer) -> None:
    """Put the slow obvious functions back."""
    model.forms, model.modulations = [plain] * len(model.blocks), modulations

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
from .recompute import Again, cheaply

# What a block keeps for its backward pass, from most to least; what it does not keep is made again.
LEVELS = ("keep", "cheap", "attention", "checkpoint")


@dataclass(frozen=True)
class LevelForm:
    """How a block is run that keeps what its level says.

    keep: whatever autograd saves. cheap: no outputs of norms, rotations, modulation and GELU. attention: its input and its
    attention's outputs. checkpoint: its input. compiled: runs it while training where it can.
    """

    level: str
    ops: Ops = LEAN
    compiled: CompiledBlocks | None = None

    def __call__(self, block: Block, *inputs: Any) -> Tensor:
        if self.compiled and torch.is_grad_enabled() and (y := self.compiled(self.level, self.ops, block, inputs)) is not None:
            return y
        if self.level == "keep" or not torch.is_grad_enabled():
            return block(*inputs, ops=self.ops)
        if self.level == "cheap":
            return cheaply(lambda recorded: block(*inputs, ops=recorded), self.ops)
        return Again(self.ops, keep_attention=self.level == "attention").first(block, inputs)


def apply_levels(model: AnimaTransformer, levels: Sequence[str]) -> None:
    """Let each block keep what its level says, in the functions that it has. The numbers of a step do not depend on it."""
    model.forms = [replace(level_form(form), level=level) for level, form in zip(levels, model.forms)]


def level_form(form: Form) -> LevelForm:
    return form if isinstance(form, LevelForm) else LevelForm("keep", PLAIN)


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
    return bool({"attention", "checkpoint"} & set(levels_of(model)))


def make_lean(model: AnimaTransformer, levels: Sequence[str] = (), ops: Ops = LEAN) -> None:
    """Let a model that has its adapters run in lean functions, keeping all unless levels say otherwise."""
    model.forms = [LevelForm(level, ops) for level in levels or ["keep"] * len(model.blocks)]
    if can_stack(model):
        model.modulations = ModulationTable(list(model.blocks))  # type: ignore[arg-type]


def make_plain(model: AnimaTransformer) -> None:
    """Put the slow obvious functions back."""
    model.forms, model.modulations = [plain] * len(model.blocks), modulations

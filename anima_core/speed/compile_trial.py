"""Compiled blocks prove themselves before the first step: one real block, forward and backward, in both ways.

Outputs and gradients must agree, and the graph must be the faster of the two.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ..adapters.network import AdapterNetwork
from ..models.transformer import PATCH, AnimaTransformer, Block
from .compiled import CompiledBlocks, no_compiler, said, trained
from .costs import Shape
from .counting import tensors_in
from .forms import LevelForm, level_form
from .probe import TOLERANCE, apart
from .race import seconds_of

Tell = Callable[[str, str], Any]  # (kind of event, text)


def compile_blocks(
    model: AnimaTransformer, network: AdapterNetwork, shape: Shape, tell: Tell, before: bool | None = None
) -> bool:
    """Let a model's blocks run as graphs if that is possible, right, and faster for micro-batches of a shape; say which.

    The model has its adapters, and its blocks their forms. before: what the run that goes on had found, if it had: numbers
    differ in the last digits between the two ways. Returns whether they run as graphs.
    """
    if before is False:
        tell("note", "blocks are not compiled, as before")
        return False
    if reason := left_out(model, network):
        tell("note", f"blocks are not compiled: {reason}")
        return False
    tell("note", "blocks are being compiled; the first time takes minutes, later runs find it in the cache")
    compiled = CompiledBlocks(
        model,
        lambda why: tell("warning", f"compiled blocks: {why}; from here on they run without"),
    )
    try:
        plain, fast, error = trial(model, network, compiled, shape)
    except Exception as failure:  # in the backward pass, where no block can be run again without
        compiled.stop(f"failed ({said(failure)})")
    if compiled.stopped:
        return False
    times = f"one takes {1e3 * fast:.3g} ms, and {1e3 * plain:.3g} ms without"
    if error > TOLERANCE[model.dtype]:
        tell("warning", f"blocks are not compiled: their numbers differ by {error:.1e} from those without")
        return False
    if fast >= plain and not before:
        tell("note", f"blocks are not compiled: {times}")
        return False
    model.forms = [replace(level_form(form), compiled=compiled) for form in model.forms]
    tell("note", f"blocks are compiled{', as before' if before else ''}: {times}")
    return True


def left_out(model: AnimaTransformer, network: AdapterNetwork) -> str:
    """Return why blocks are not to be compiled at all; empty where they may be."""
    if network.dropouts.active:
        return "dropout draws from generators of its own, which no graph can hold"
    if not all(module.adapter.in_graphs for module in network.linears):
        return "the plain form of these adapters makes whole weights, or masks by noise, which a graph would keep"
    if not any(map(trained, model.blocks)):
        return "none of them is trained"
    if first_of(model) is None:
        return "the weights or inputs of all are in host memory"
    return no_compiler(model.device)


def first_of(model: AnimaTransformer) -> int | None:
    """Return the number of the first block that is trained, and of which nothing is in host memory."""
    numbered = enumerate(zip(model.blocks, model.forms))
    return next((i for i, (block, form) in numbered if trained(block) and level_form(form).resident), None)


def trial(
    model: AnimaTransformer, network: AdapterNetwork, compiled: CompiledBlocks, shape: Shape
) -> tuple[float, float, float]:
    """Return the seconds of a block without and with a graph, forward and backward, and how far results are apart.

    The block is the first that is trained and resident, at its own level, with numbers in its adapters that let all gradients
    differ from 0.
    """
    index = first_of(model)
    assert index is not None
    block, form = model.blocks[index], level_form(model.forms[index])
    assert isinstance(block, Block)
    inputs, forms = inputs_of(model, shape), (form, replace(form, compiled=compiled))
    network.train()  # as in a step: graphs know the difference
    with moved(block):
        error = apart(*(results(each, block, network, inputs) for each in forms))
        plain, fast = (seconds(each, block, network, inputs) for each in forms)
    return plain, fast, error


def inputs_of(model: AnimaTransformer, shape: Shape) -> tuple[Any, ...]:
    """Return what a model gives its blocks for random pictures and texts of a shape; x needs a gradient."""
    caught: list[tuple[Any, ...]] = []

    def catch(block: Block, x: Tensor, *others: Any) -> Tensor:
        caught.append((x.detach().requires_grad_(True), *others))
        return x

    generator = torch.Generator().manual_seed(0)

    def random(*size: int) -> Tensor:
        return torch.randn(shape.pictures, *size, generator=generator).to(model.device)

    latents = random(model.config.in_channels, PATCH * shape.height, PATCH * shape.width)
    lengths = torch.full((shape.pictures,), shape.text, device=model.device) if shape.mixed else None
    forms, model.forms = model.forms, [catch] * len(model.blocks)
    try:
        model(latents, random().sigmoid(), random(shape.text, model.config.context_dim), lengths)
    finally:
        model.forms = forms
    return caught[0]


@contextmanager
def moved(block: Block) -> Iterator[None]:
    """Let a block's trained numbers be random, inside: adapters begin with factors of zeros, whose gradients hide errors."""
    parameters, generator = trained(block), torch.Generator().manual_seed(0)
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        with torch.no_grad():
            for parameter in parameters:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / (2 * parameter.shape[-1] ** 0.5))
        yield
    finally:
        with torch.no_grad():
            for parameter, kept in zip(parameters, before):
                parameter.copy_(kept)


def fresh(value: Any) -> Any:
    return value.detach().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def step(form: LevelForm, block: Block, inputs: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
    """Run a block forward and backward; return its output and the inputs' gradients. Parameters get theirs."""
    own = tree_map(fresh, tuple(inputs))
    y = form(block, *own)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y))
    return y.detach(), [value.grad for value in tensors_in(own) if value.grad is not None]


def results(form: LevelForm, block: Block, network: AdapterNetwork, inputs: Sequence[Any]) -> list[Tensor]:
    """Return a block's output, the gradients of its inputs, and those of its parameters, which are 0 afterwards as before."""
    with network.micro_batch(0):
        y, gradients = step(form, block, inputs)
    found = [y, *gradients, *(gradient.clone() for gradient in gradients_of(block))]
    clear(block)
    return found


def seconds(form: LevelForm, block: Block, network: AdapterNetwork, inputs: Sequence[Any]) -> float:
    """Return how long a block takes, forward and backward."""
    with network.micro_batch(0):
        found = seconds_of(partial(step, form, block, inputs), inputs[0].device)
    clear(block)
    return found


def gradients_of(block: Block) -> list[Tensor]:
    return [parameter.grad for parameter in trained(block) if parameter.grad is not None]


def clear(block: Block) -> None:
    for gradient in gradients_of(block):
        gradient.zero_()

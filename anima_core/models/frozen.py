"""Frozen weights that are not plain tensors where they are used: in fewer bytes, or elsewhere until their turn comes.

A layer asks its weight for its numbers when it multiplies by them, in the forward pass and again in the backward one, and
keeps none of them: what they are written into is the next layer's in a moment.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from copy import copy
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable


class Scratch:
    """Room for one weight at a time, in the dtype and on the device where a model computes. It grows to the largest."""

    def __init__(self, dtype: torch.dtype, device: torch.device | str) -> None:
        self.room = torch.empty(0, dtype=dtype, device=device)

    def of(self, shape: torch.Size) -> Tensor:
        """Return a tensor of a shape, whose numbers are those that were written last."""
        if self.room.numel() < shape.numel():
            with torch.inference_mode(False):  # a preview may be first to ask, and training must be able to use it
                self.room = self.room.new_empty(shape.numel())
        return self.room[: shape.numel()].view(shape)


class FrozenWeight(nn.Module):
    """How a weight [out, in] that is never trained is stored. Its buffers are all that it consists of.

    kind: its word in notes. shape: of its numbers.
    """

    kind: str
    shape: torch.Size

    @abstractmethod
    def write(self, into: Tensor) -> None:
        """Write the numbers into a tensor [out, in], in that one's dtype and on the buffers' device."""

    def tensor(self, scratch: Scratch) -> Tensor:
        """Return the numbers, [out, in] in the scratch's dtype: good until the scratch is next written into."""
        into = scratch.of(self.shape)
        with torch.no_grad():
            self.write(into)
        return into

    def numbers(self, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Return the numbers as a tensor of their own, written where it is to be: the weight itself moves there."""
        into = torch.empty(self.shape, dtype=dtype, device=device)
        with torch.no_grad():
            self.to(device).write(into)
        return into

    @property
    def is_meta(self) -> bool:
        return all(buffer.is_meta for buffer in self.buffers())

    @property
    def bytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers())

    def on_meta(self) -> "FrozenWeight":
        """Return what stands for it where only bytes are counted."""
        return self.twin(lambda buffer: buffer.to("meta"))

    def twin(self, change: Callable[[Tensor], Tensor]) -> "FrozenWeight":
        """Return the same weight on other buffers, which `change` makes of its own."""
        twin = copy(self)
        twin._buffers = {name: change(buffer) for name, buffer in self.named_buffers()}
        return twin

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FrozenWeight":
        """Follow a model to another device, but not into another dtype: that is how it is stored, not how it computes."""
        for name, buffer in self.named_buffers():
            self._buffers[name] = buffer.to(fn(buffer).device)
        return self


class FloatWeight(FrozenWeight):
    """A weight that is stored as it is used."""

    kind = "float"
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.shape = value.shape
        self.register_buffer("value", value.detach())

    def write(self, into: Tensor) -> None:
        into.copy_(self.value)

    def tensor(self, scratch: Scratch) -> Tensor:
        return self.value

    def numbers(self, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        return self.value.to(device=device, dtype=dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FloatWeight":
        self.value = fn(self.value)
        return self


class FrozenLinear(nn.Linear):
    """A linear layer of a frozen weight: y = x Wᵀ + b. x [..., in] -> y [..., out].

    number: by which a graph of `torch.compile` calls it, see `number_layers`.
    """

    number: Tensor | None = None

    def __init__(self, stored: FrozenWeight, scratch: Scratch, bias: Tensor | None = None) -> None:
        nn.Module.__init__(self)  # not nn.Linear's: its weight would be a parameter
        self.out_features, self.in_features = stored.shape
        self.stored, self.scratch = stored, scratch
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=False))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The numbers, good until the next layer of the model asks for its own."""
        return self.stored.tensor(self.scratch)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return called_product(x, self.number, self.out_features)
        return FrozenProduct.apply(x, self)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.stored.kind}"


class FrozenProduct(Function):
    """y = x Wᵀ + b, which keeps nothing for its backward pass: that asks the layer for W again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FrozenLinear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.weight, layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None]:
        return (g @ ctx.layer.weight if ctx.needs_input_grad[0] else None), None


def home(layer: nn.Linear) -> Tensor:
    """Return a tensor of the dtype and on the device in which a layer computes: its weight may be elsewhere, or not floats."""
    return layer.scratch.room if isinstance(layer, FrozenLinear) else layer.weight


@torch.no_grad()
def numbers_at_home(layer: nn.Linear) -> Tensor:
    """Return the weight of a layer where it computes, whatever it is stored as and wherever that is: to be read once."""
    if not isinstance(layer, FrozenLinear):
        return layer.weight
    numbers = torch.empty(layer.stored.shape, dtype=home(layer).dtype, device=next(layer.stored.buffers()).device)
    layer.stored.write(numbers)
    return numbers.to(home(layer).device)


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of a name. `nn.Module.set_submodule` does so, which older versions of torch lack."""
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    if isinstance(holder, nn.Sequential):
        holder[int(leaf)] = module
    else:
        setattr(holder, leaf, module)


def frozen_linears(model: nn.Module) -> Iterator[tuple[str, FrozenLinear]]:
    """Yield the layers of a model whose weights are stored in another way than as a parameter, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, FrozenLinear))


# Graphs of torch.compile do not look into these layers: how a weight is stored, and where, is not theirs to know, and what
# they keep of it, and when they make it again, is as without them. A layer is known there by a number, which is an input of
# the graph: so that all blocks of a model share one.
_numbers = count()
_numbered: WeakValueDictionary[int, FrozenLinear] = WeakValueDictionary()


def number_layers(model: nn.Module) -> None:
    """Let graphs of `torch.compile` call the layers of a model whose weights are stored in another way."""
    for _, layer in frozen_linears(model):
        number = next(_numbers)
        _numbered[number], layer.number = layer, torch.tensor(number)  # on the CPU: to read it waits for no device


@torch.library.custom_op("anima_trainer::frozen_product", mutates_args=())
def called_product(x: Tensor, number: Tensor, outputs: int) -> Tensor:
    """Compute what `FrozenProduct` does, for the layer of a number: x [..., in] -> [..., outputs]."""
    layer = _numbered[int(number)]
    return F.linear(x, layer.weight, layer.bias)


@torch.library.custom_op("anima_trainer::frozen_product_backward", mutates_args=())
def called_product_backward(g: Tensor, number: Tensor, inputs: int) -> Tensor:
    """Compute the gradient of x of `called_product`: g [..., out] -> [..., inputs]."""
    return g @ _numbered[int(number)].weight


@called_product.register_fake
def _(x: Tensor, number: Tensor, outputs: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], outputs)


@called_product_backward.register_fake
def _(g: Tensor, number: Tensor, inputs: int) -> Tensor:
    return g.new_empty(*g.shape[:-1], inputs)


def keep_number(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    x, number, _ = inputs
    ctx.save_for_backward(number)
    ctx.inputs = x.shape[-1]


def gradient_of_x(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
    (number,) = ctx.saved_tensors
    return called_product_backward(g, number, ctx.inputs), None, None


called_product.register_autograd(gradient_of_x, setup_context=keep_number)

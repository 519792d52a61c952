"""DoRA: any type of adapter turns the columns of a weight, and one number a column sets their length (arXiv 2402.09353).

W' = m ∘ (W + D) / ‖W + D‖, W [out, in], D the adapter's, m and the norm one number an input, [1, in]: the norm is over the
outputs, as in the paper. A file's `dora_scale` may also be [out, 1], one number an output, which LyCORIS trains unless told
otherwise; ComfyUI divides that by the norm of W alone, another model than the one that was trained. So it is not trained here.

The norm gets no gradient, as in the paper's section 4.3 and in PEFT; LyCORIS gives it one. With it the gradient of each factor
needs one more product with all of W + D.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from .adapter_type import Adapter
from .functions import deliver_as_is, flat_rows
from .layers import AdaptedLinear

SCALE = "dora_scale"  # the parameter, and what it is called in a file
Delta = Callable[[Mapping[str, Tensor], Tensor], Tensor]  # see `AdapterType`
EPS = torch.finfo(torch.float32).eps  # ComfyUI adds it to the norm of an fp32 weight


@torch.no_grad()
def lengths(weight: Tensor) -> Tensor:
    """Return the norm of each column of a weight [out, in], fp32 [in], with ComfyUI's small addition."""
    return torch.linalg.vector_norm(weight, dim=0, dtype=torch.float32) + EPS


def of_files(plain: Delta) -> Delta:
    """Return a type's `delta` that also knows the files whose columns, or rows, have lengths of their own.

    Those of rows, [out, 1] or PEFT's [out], are taken as they were trained, which ComfyUI does not.
    """

    def delta(tensors: Mapping[str, Tensor], base: Tensor) -> Tensor:
        added = plain(tensors, base)
        if SCALE not in tensors:
            return added
        whole, magnitude = base + added, tensors[SCALE].float()
        if magnitude.shape[0] == 1:
            return whole * (magnitude / lengths(whole)) - base
        return whole * (magnitude.view(-1, 1) / lengths(whole.T)[:, None]) - base

    return delta


def decompose(adapter: Adapter, base: nn.Linear) -> None:
    """Give an adapter the lengths of the columns, as a parameter that leaves the base layer as it is: fp32 [1, in]."""
    adapter.in_graphs = False
    device = next(adapter.parameters()).device  # the weight may wait elsewhere
    adapter.register_parameter(SCALE, nn.Parameter(lengths(base.weight)[None].to(device)))


class DoRALinear(AdaptedLinear):
    """base and adapter on x ∘ m / ‖W + D‖: the same as on columns that have been given their lengths."""

    def forward(self, x: Tensor) -> Tensor:
        if self.multiplier == 0:
            return self.base(x)
        magnitude = self.adapter.get_parameter(SCALE)
        if (fast := self.fast(x)) is not None:
            into = None if self.adapter.casts is None else magnitude.grad  # in fp32, also where those of factors are gathered
            return DoRAFunction.apply(x, magnitude, self.norm(), into, fast.function, *fast.inputs)
        x_scaled = (x * (magnitude[0] / self.lengths(self.base.weight.float()))).to(x.dtype)
        y = self.base(x_scaled)
        y = y + self.adapter(x_scaled, y)
        return y if self.multiplier == 1 else torch.lerp(self.base(x), y, self.multiplier)  # as ComfyUI's strength

    def norm(self) -> Tensor:
        """Return ‖W + D‖ of each column, fp32 [in], the sum made in the model's dtype, and once in a micro-batch."""
        adapter = self.adapter
        norm = self.lengths(self.base.weight) if adapter.norm is None else adapter.norm
        adapter.norm = None if adapter.casts is None else norm
        return norm

    @torch.no_grad()
    def lengths(self, weight: Tensor) -> Tensor:
        """Return ‖W + D‖ of each column, fp32 [in], the sum made in W's dtype. No operation of it is recorded."""
        return lengths(self.adapter.merged(weight))


class Within:
    """Stands for the context of a function that is called within another one's, which keeps its own input instead."""

    given: tuple[Tensor, ...] = ()
    needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, x: Tensor) -> None:
        """Keep nothing."""

    @property
    def saved_tensors(self) -> tuple[Tensor, ...]:
        """Hand out what was given for the backward pass, once: only who takes it keeps it."""
        given, self.given = self.given, ()
        return given


class DoRAFunction(Function):
    """The fast form of any type on x ∘ c, c = m / n. x [..., in], m [1, in], n fp32 [in]. Saved is x: x ∘ c is made again.

    function, inputs: the fast form, see `Fast`. into: what the gradient of m is added to; None where autograd is to take it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, magnitude: Tensor, norm: Tensor, into: Tensor | None, function: Any, *inputs: Any
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.magnitude, ctx.norm, ctx.into, ctx.function, ctx.within = magnitude, norm, into, function, Within()
        ctx.columns = magnitude.detach()[0] / norm
        return function.forward(ctx.within, scaled(x, ctx.columns), *inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Compute, with d the gradient of x ∘ c: dx = d ∘ c, dm = sum of d ∘ x over rows, by n."""
        (x,) = ctx.saved_tensors
        needs_x, needs_magnitude, _, _, _, *needs = ctx.needs_input_grad
        ctx.within.needs_input_grad = (needs_x or needs_magnitude, *needs)
        ctx.within.given = (scaled(x, ctx.columns),)
        d, *gradients = ctx.function.backward(ctx.within, g)
        dm = None
        if needs_magnitude:
            total = (flat_rows(d) * flat_rows(x)).sum(0, dtype=torch.float32)
            dm = deliver_as_is((total / ctx.norm)[None], ctx.magnitude, ctx.into)
        dx = d.mul_(ctx.columns) if needs_x else None
        return dx, dm, None, None, None, *gradients


def scaled(x: Tensor, columns: Tensor) -> Tensor:
    """Return x ∘ c in x's dtype. c [in] stays fp32: bf16 holds no number between 1 and 1.008."""
    return torch.mul(x, columns, out=torch.empty_like(x))

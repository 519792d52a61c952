"""The bare floor of a training step: its matrix products and attention, nothing else, and no autograd around the products.

Shapes are those of the real step, frozen weights get no gradient, the first block's input and the text none either. Norms,
rotary positions, GELU, modulation, the loss, clipping and the optimizer are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from anima_core.adapters.types.lokr import factorization
from anima_core.models.checkpoint import DTYPES
from anima_core.models.llm_adapter import MIN_TEXT_ROWS

from .training_step import Case

Maker = Callable[..., Tensor]


@dataclass
class Product:
    """One linear layer. inner: whether its input needs a gradient."""

    rows: int
    inputs: int
    outputs: int
    inner: bool = True


class LoRA:
    def __init__(self, p: Product, rank: int, make: Maker) -> None:
        self.down, self.up = make(rank, p.inputs), make(p.outputs, rank)

    def forward(self, x: Tensor, y: Tensor) -> None:
        self.hidden = x @ self.down.T
        y.addmm_(self.hidden, self.up.T)

    def backward(self, x: Tensor, dy: Tensor, dx: Tensor | None) -> None:
        d_hidden = dy @ self.up
        dy.T @ self.hidden
        d_hidden.T @ x
        if dx is not None:
            dx.addmm_(d_hidden, self.down)


class LoKr:
    """With a low-rank large factor: merged into the weight forward and for the input's gradient; only its own are work."""

    def __init__(self, p: Product, rank: int, make: Maker) -> None:
        (self.l, self.k), (self.m, self.n) = factorization(p.outputs, 8), factorization(p.inputs, 8)
        self.w1, self.a, self.b = make(self.l, self.m), make(self.k, rank), make(rank, self.n)

    def forward(self, x: Tensor, y: Tensor) -> None:
        pass

    def backward(self, x: Tensor, dy: Tensor, dx: Tensor | None) -> None:
        x, dy, rank = x.view(-1, self.n), dy.view(-1, self.k), len(self.b)
        hidden, d_mixed = (self.b @ x.T).view(-1, self.m), (self.a.T @ dy.T).view(-1, self.l)
        d_mixed.T @ hidden
        dy.T @ (hidden @ self.w1.T).view(rank, -1).T
        (d_mixed @ self.w1).view(rank, -1) @ x


class WholeLoKr:
    """With whole factors, merged in the same way."""

    def __init__(self, p: Product, rank: int, make: Maker) -> None:
        (self.l, self.k), (self.m, self.n) = factorization(p.outputs, 8), factorization(p.inputs, 8)
        self.w1, self.w2 = make(self.l, self.m), make(self.k, self.n)

    def forward(self, x: Tensor, y: Tensor) -> None:
        pass

    def backward(self, x: Tensor, dy: Tensor, dx: Tensor | None) -> None:
        x, dy = x.view(-1, self.n), dy.view(-1, self.l, self.k)
        torch.einsum("nlk,nmk->lm", dy, (x @ self.w2.T).view(-1, self.m, self.k))
        torch.matmul(self.w1.T, dy).view(-1, self.k).T @ x


ADAPTERS = {"lora": LoRA, "lokr": LoKr, "lokr_full": WholeLoKr}


def floor_of(case: Case) -> str:
    """Name the adapter that a case is held against: its own, else a LoRA of its rank."""
    return case.network if case.network in ADAPTERS else "lora"


class Floor:
    """One call does the products of one step. All blocks share the weights of one, which no cache holds at real size."""

    name = "bare floor"

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, dtype = case, DTYPES[case.dtype]
        self.make: Maker = lambda *shape: torch.randn(shape, device=device, dtype=dtype) / shape[-1] ** 0.5
        self.products = products(case)
        self.weights = [self.make(p.outputs, p.inputs) for p in self.products]
        self.adapters = [ADAPTERS[floor_of(case)](p, case.rank, self.make) for p in self.products]
        self.inputs = {(p.rows, p.inputs): self.make(p.rows, p.inputs) for p in self.products}
        self.gradients = {(p.rows, p.outputs): self.make(p.rows, p.outputs) for p in self.products}
        image, text = self.heads(case.tokens), self.heads(MIN_TEXT_ROWS)
        self.attentions = [(image, image, image), (image, text, text)]

    def tensors(self) -> list[Tensor]:
        """Its inputs, and all that a call keeps from one product for another."""
        own = [tensor for adapter in self.adapters for tensor in vars(adapter).values() if isinstance(tensor, Tensor)]
        return [*self.weights, *self.inputs.values(), *self.gradients.values(), *own]

    def heads(self, rows: int) -> Tensor:
        """[B, H, rows, d], strided as the model's."""
        sizes = self.case.sizes
        flat = self.make(self.case.batch, rows, sizes.width // sizes.head_dim, sizes.head_dim)
        return flat.transpose(1, 2)

    def __call__(self) -> None:
        for block in range(self.case.blocks):
            for q, k, v in self.attentions:
                attend(q, k, v)
            for index, (product, weight, adapter) in enumerate(zip(self.products, self.weights, self.adapters)):
                x = self.inputs[product.rows, product.inputs]
                dy = self.gradients[product.rows, product.outputs]
                adapter.forward(x, x @ weight.T)
                needed = product.inner and not (block == 0 and index < 3)  # what comes from the picture is not trained
                adapter.backward(x, dy, dy @ weight if needed else None)


def attend(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Attention forward and backward, by the kernel that torch chooses."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = F.scaled_dot_product_attention(*leaves)
    torch.autograd.grad(out, leaves, q.detach())


def products(case: Case) -> list[Product]:
    """The linear layers of one block, self-attention's q, k, v first."""
    rows, text, sizes = case.batch * case.tokens, case.batch * MIN_TEXT_ROWS, case.sizes
    wide = Product(rows, sizes.width, sizes.width)
    context = Product(text, sizes.context_dim, sizes.width, inner=False)
    mlp = [Product(rows, sizes.width, sizes.mlp_dim), Product(rows, sizes.mlp_dim, sizes.width)]
    return [wide] * 6 + [context] * 2 + mlp


def analytic_flops(case: Case) -> float:
    """FLOPs of the floor from the sizes alone; see docs/model.md §10.1 for LoRA's."""
    total = 0.0
    for index, p in enumerate(products(case)):
        dense = 2.0 * p.rows * p.inputs * p.outputs
        inner = case.blocks * p.inner - (index < 3)
        total += dense * (case.blocks + inner)
        total += adapter_flops(case, p) * case.blocks - last_product(case, p) * (case.blocks - inner)
    n, rows = case.tokens, MIN_TEXT_ROWS
    return total + case.blocks * case.batch * 3.5 * 4 * n * (n + rows) * case.sizes.width


def adapter_flops(case: Case, p: Product) -> float:
    """Forward and backward of one layer's adapter, with a gradient for its input."""
    if floor_of(case) == "lora":
        return 3 * 2.0 * case.rank * p.rows * (p.inputs + p.outputs)
    (l, k), (m, n) = factorization(p.outputs, 8), factorization(p.inputs, 8)  # noqa: E741, the formula's names
    if floor_of(case) == "lokr":
        return 2.0 * case.rank * p.rows * (2 * (p.inputs + p.outputs) + 3 * l * m)
    return 2.0 * p.rows * k * (m * n + m * l + l * m + m * n)


def last_product(case: Case, p: Product) -> float:
    """What an adapter saves where its input needs no gradient: the product that would give it."""
    return 2.0 * case.rank * p.rows * p.inputs if floor_of(case) == "lora" else 0.0

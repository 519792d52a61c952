"""What a layer of an adapter adds to its weight, in the form in which it is smallest: measured without making it whole.

Each form says its singular values, the largest of them with their vectors, and its inner product with another of its kind;
any form can be made whole, which is the slow way that all can go, and the reference of the fast ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .adapter_type import AdapterType

SPARE, POWERS = 16, 4  # of a sketch: columns more than are asked for; how often it is multiplied again


class Svd(NamedTuple):
    """left diag(values) right: left [out, k] and right [k, in] orthonormal, the largest of the values [k] first; fp32."""

    left: Tensor
    values: Tensor
    right: Tensor

    def first(self, count: int) -> "Svd":
        return Svd(self.left[:, :count], self.values[:count], self.right[:count])


class Delta(ABC):
    """A matrix [out, in], fp32."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]: ...

    @abstractmethod
    def whole(self) -> Tensor:
        """Return the matrix itself, [out, in]."""

    @abstractmethod
    def singular_values(self) -> Tensor:
        """Return its singular values, the largest first; those that are zero by its form are left out."""

    def largest(self, count: int) -> Svd:
        """Return so many of its largest singular values with their vectors; fewer where its form has fewer."""
        matrix = self.whole()
        if 2 * (2 * count + SPARE) < min(self.shape):
            return sketched(matrix, 2 * count + SPARE).first(count)
        return Svd(*torch.linalg.svd(matrix, full_matrices=False)).first(count)

    @abstractmethod
    def times(self, factor: float) -> "Delta":
        """Return its numbers times a factor."""

    def inner(self, other: "Delta") -> float:
        """Return the sum of the products of both matrices' numbers. Raises ValueError for other shapes."""
        if self.shape != other.shape:
            raise ValueError(f"shapes {self.shape} and {other.shape}")
        return float((self.whole() * other.whole()).sum())


class Whole(Delta):
    """Any matrix."""

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2:
            raise ValueError(f"a factor {list(matrix.shape)}")
        self.matrix = matrix.float()

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], self.matrix.shape[1]

    def whole(self) -> Tensor:
        return self.matrix

    def times(self, factor: float) -> Delta:
        return Whole(factor * self.matrix)

    def singular_values(self) -> Tensor:
        """By the eigenvalues of the smaller of M Mᵀ and Mᵀ M: a decomposition of M itself takes minutes for all layers."""
        wide = self.matrix if self.shape[0] <= self.shape[1] else self.matrix.T
        return torch.linalg.eigvalsh(wide @ wide.T).clamp(min=0).sqrt().flip(0)


class Low(Delta):
    """left right, left [out, r], right [r, in]."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
            raise ValueError(f"factors {list(left.shape)} and {list(right.shape)}")
        self.left, self.right = left.float(), right.float()

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    def whole(self) -> Tensor:
        return self.left @ self.right

    def singular_values(self) -> Tensor:
        """With left = Q R and rightᵀ = P S these are those of R Sᵀ, which is r by r: Q and P keep lengths."""
        return torch.linalg.svdvals(torch.linalg.qr(self.left).R @ torch.linalg.qr(self.right.T).R.T)

    def largest(self, count: int) -> Svd:
        """From the singular vectors of R Sᵀ, which Q and P turn into those of the whole."""
        q, r = torch.linalg.qr(self.left)
        p, s = torch.linalg.qr(self.right.T)
        left, values, right = Svd(*torch.linalg.svd(r @ s.T, full_matrices=False)).first(count)
        return Svd(q @ left, values, right @ p.T)

    def times(self, factor: float) -> "Low":
        return Low(factor * self.left, self.right)

    def inner(self, other: Delta) -> float:
        """By tr((L R)ᵀ L' R') = the sum of (Lᵀ L') * (R R'ᵀ), both r by r'."""
        if not isinstance(other, Low) or self.shape != other.shape:
            return super().inner(other)
        return float(((self.left.T @ other.left) * (self.right @ other.right.T)).sum())


class Kron(Delta):
    """kron(first, second)."""

    def __init__(self, first: Delta, second: Delta) -> None:
        self.first, self.second = first, second

    @property
    def shape(self) -> tuple[int, int]:
        return self.first.shape[0] * self.second.shape[0], self.first.shape[1] * self.second.shape[1]

    def whole(self) -> Tensor:
        return torch.kron(self.first.whole(), self.second.whole())

    def singular_values(self) -> Tensor:
        """All products of one of the first's with one of the second's."""
        products = torch.outer(self.first.singular_values(), self.second.singular_values())
        return products.flatten().sort(descending=True).values

    def largest(self, count: int) -> Svd:
        """Take the largest products of two values; their vectors are the Kronecker products of both values'."""
        first, second = (side.largest(min(side.shape)) for side in (self.first, self.second))
        products = torch.outer(first.values, second.values).flatten()
        values, places = products.topk(min(count, len(products)))
        i, j = places // len(second.values), places % len(second.values)
        left = (first.left[:, None, i] * second.left[None, :, j]).flatten(0, 1)
        right = (first.right[i, :, None] * second.right[j, None, :]).flatten(1)
        return Svd(left, values, right)

    def times(self, factor: float) -> Delta:
        return Kron(self.first.times(factor), self.second)

    def inner(self, other: Delta) -> float:
        """By <a ⊗ b, c ⊗ d> = <a, c> <b, d>, where both are split alike."""
        if not isinstance(other, Kron) or self.first.shape != other.first.shape or self.shape != other.shape:
            return super().inner(other)
        return self.first.inner(other.first) * self.second.inner(other.second)


def sketched(matrix: Tensor, count: int) -> Svd:
    """Return the largest singular values and vectors by powers of a random sketch, always the same one.

    Halko, Martinsson, Tropp 2011, algorithm 4.4: exact for a matrix of that rank, else the values are a little too small.
    """
    sketch = torch.randn(matrix.shape[1], count, generator=torch.Generator().manual_seed(0)).to(matrix)
    basis = torch.linalg.qr(matrix @ sketch).Q
    for _ in range(POWERS):
        basis = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.T @ basis).Q).Q
    left, values, right = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return Svd(basis @ left, values, right)


def total(deltas: Sequence[Delta]) -> Delta:
    """Return the sum of deltas of one shape: low ranks side by side, anything else whole. Raises ValueError for others."""
    if len({delta.shape for delta in deltas}) > 1:
        raise ValueError(f"shapes {', '.join(str(list(delta.shape)) for delta in deltas)}")
    low = [delta for delta in deltas if isinstance(delta, Low)]
    if len(low) == len(deltas):
        return Low(torch.cat([delta.left for delta in low], 1), torch.cat([delta.right for delta in low], 0))
    return Whole(torch.stack([delta.whole() for delta in deltas]).sum(0)) if len(deltas) > 1 else deltas[0]


def of_lora(tensors: Mapping[str, Tensor], scale: float) -> Delta:
    return Low(scale * tensors["lora_up.weight"].float(), tensors["lora_down.weight"])


def of_lokr(tensors: Mapping[str, Tensor], scale: float) -> Delta:
    return Kron(factor(tensors, "lokr_w1", scale), factor(tensors, "lokr_w2", 1.0))


def of_loha(tensors: Mapping[str, Tensor], scale: float) -> Delta:
    """Write (a1 b1) * (a2 b2) as one product of rank r²: its left has every column of a1 times every one of a2."""
    a1, b1, a2, b2 = (tensors[f"hada_{name}"].float() for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    left, right = (a1[:, :, None] * a2[:, None, :]).flatten(1), (b1[:, None, :] * b2[None, :, :]).flatten(0, 1)
    return Low(scale * left, right)


def factor(tensors: Mapping[str, Tensor], name: str, scale: float) -> Delta:
    if name in tensors:
        return Whole(scale * tensors[name].float())
    return Low(scale * tensors[f"{name}_a"].float(), tensors[f"{name}_b"])


# Tensors of a layer -> its small form; what stands in none is made whole by its type
FORMS: tuple[tuple[frozenset[str], Callable[[Mapping[str, Tensor], float], Delta]], ...] = (
    (frozenset({"lora_down.weight", "lora_up.weight"}), of_lora),
    (frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}), of_loha),
    (frozenset({"lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"}), of_lokr),
)


def delta_of(kind: AdapterType, tensors: Mapping[str, Tensor], weight: Tensor) -> Delta:
    """Return what a layer of a file adds to its weight. weight: the base's, [out, in], for types that look at it."""
    names = tensors.keys() - {"alpha"}
    form = next((form for known, form in FORMS if names <= known), None)
    if form is None:
        return Whole(kind.delta(tensors, weight.float()))
    rank, alpha = kind.read([tensors]).sizes[0]
    return form(tensors, 1.0 if rank is None or alpha is None else alpha / rank)

"""What a layer of an adapter adds to its weight, in the form in which it is smallest: measured without making it whole.

Each form says its singular values and its inner product with another of its kind; any form can be made whole, which is the
slow way that all can go, and the reference of the fast ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .adapter_type import AdapterType


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

    def inner(self, other: Delta) -> float:
        """By <a ⊗ b, c ⊗ d> = <a, c> <b, d>, where both are split alike."""
        if not isinstance(other, Kron) or self.first.shape != other.first.shape or self.shape != other.shape:
            return super().inner(other)
        return self.first.inner(other.first) * self.second.inner(other.second)


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

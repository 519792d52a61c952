"""ConvRot: weights whose inputs were rotated in groups before they were rounded, so that none stands out."""

from abc import abstractmethod

import torch
from torch import Tensor

from .fp8 import per_output
from .pieces import InPieces
from .stored import Settings

GROUP = 256  # inputs that are rotated together, where a file does not say


class Rotated(InPieces):
    """W [out, in] times a scale for each output, in fp32, then turned back and rounded once.

    The regular Hadamard matrix of a group of inputs is held as two small ones whose Kronecker product it is.
    """

    scale: Tensor
    left: Tensor
    right: Tensor

    def __init__(self, data: Tensor, scale: Tensor, shape: torch.Size, group: int) -> None:
        """Take the parts. Raises ValueError for groups that are no power of 4, or do not divide a weight's inputs."""
        super().__init__()
        if group < 4 or group & (group - 1) or group.bit_length() % 2 == 0:
            raise ValueError(f"groups of {group} are rotated, which is no power of 4")
        if len(shape) != 2 or shape[1] % group:
            raise ValueError(f"groups of {group} do not divide a weight of {list(shape)}")
        self.shape, power = shape, group.bit_length() // 2
        self.register_buffer("data", data)
        self.register_buffer("scale", per_output(scale, shape).float().expand(shape[0], 1).contiguous())
        self.register_buffer("left", hadamard(power - power // 2, data.device))
        self.register_buffer("right", hadamard(power // 2, data.device))

    @abstractmethod
    def integers(self, some: slice) -> Tensor:
        """Return the integers of some rows, [rows, in]."""

    def rows(self, some: slice, dtype: torch.dtype) -> Tensor:
        numbers = self.integers(some) * self.scale[some]
        matrix = torch.kron(self.left, self.right)  # its own inverse
        return torch.matmul(numbers.view(len(numbers), -1, len(matrix)), matrix.T).view(numbers.shape)


def hadamard(power: int, device: torch.device) -> Tensor:
    """Return [4^power, 4^power], fp32, symmetric and orthogonal, of plus and minus 2^-power."""
    four = (torch.ones(4, 4, device=device) - 2 * torch.eye(4, device=device).flip(0)) / 2
    whole = torch.ones(1, 1, device=device)
    for _ in range(power):
        whole = torch.kron(whole, four)
    return whole


def all_said(settings: Settings) -> Settings:
    """Return a layer's settings, of which some may stand in a `params` of theirs."""
    inner = settings.get("params")
    return {**inner, **settings} if isinstance(inner, dict) else settings


def group_size(settings: Settings) -> int:
    """Return how many inputs a layer's settings rotate together. Raises ValueError for what is no number."""
    said = all_said(settings).get("convrot_groupsize", GROUP)
    try:
        return int(said)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"`convrot_groupsize`={str(said)[:40]} is no number") from None

"""Parameters that lie in one tensor: what treats every number alike reads and writes all of them at once."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

ALIGNED = 8  # numbers: 16 bytes of a bf16 copy, which vector loads and the fast matrix kernels ask for


class Flat:
    """Parameters that follow one another in a single tensor. Each stays the object it was; its numbers are a view.

    whole: all numbers, [n], which an optimizer may take in place of the parameters: a change of either is one of both.
    parameters: in their order. Each begins at a multiple of ALIGNED numbers; what lies between them is zero, and its gradient
    too.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = tuple(parameters)
        self._lengths = [-(-p.numel() // ALIGNED) * ALIGNED for p in parameters]
        self.whole = nn.Parameter(self.join([p.detach() for p in parameters]))
        for parameter, view in zip(self.parameters, self.split(self.whole.detach())):
            parameter.data = view

    def split(self, whole: Tensor) -> list[Tensor]:
        """Return views of a tensor [n] that is laid out as `whole`, one in the shape of each parameter."""
        return [piece[: p.numel()].view_as(p) for p, piece in zip(self.parameters, whole.split(self._lengths))]

    def join(self, pieces: Sequence[Tensor]) -> Tensor:
        """Return a new tensor [n], laid out as `whole`, of one tensor for each parameter, in its shape."""
        whole = torch.zeros(sum(self._lengths), dtype=pieces[0].dtype, device=pieces[0].device)
        for view, piece in zip(self.split(whole), pieces, strict=True):
            view.copy_(piece)
        return whole

    def share_gradient(self) -> None:
        """Let the parameters' gradients be views of `whole.grad`."""
        assert self.whole.grad is not None
        for parameter, view in zip(self.parameters, self.split(self.whole.grad)):
            parameter.grad = view

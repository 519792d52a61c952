"""Tensors on their way to a device."""

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor, without waiting for the copy where that is safe: from page-locked memory.

    From other memory CUDA copies aside first, but MPS and XPU read it later, when it may hold something else.
    """
    return tensor.to(device, non_blocking=tensor.is_pinned())

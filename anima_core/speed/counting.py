"""What a piece of work costs, read from the operations it calls: launches, bytes moved, FLOPs, bytes alive.

Nothing need be computed for it: on the meta device a step of the real model is counted in seconds, without a byte of it.
"""

import math
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C import Argument
from torch.library import _scoped_library
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

# Not marked as views, but they only make, name or read memory: no kernel runs.
WITHOUT_KERNEL = (
    "aten::empty",
    "aten::new_empty",
    "aten::_unsafe_view",
    "aten::set_",
    "aten::is_same_size",
    "aten::_local_scalar_dense",
    "aten::record_stream",
    "profiler::",
)
ONLY_WRITTEN = ("copy_", "zero_", "fill_", "normal_", "uniform_", "random_", "bernoulli_")  # their `self` is not read

# The library has formulas for CUDA's attention and for products that make a new tensor. They hold for these too, whose
# arguments begin in the same way.
SAME_AS = {
    "addmm_": "addmm",
    "baddbmm_": "baddbmm",
    "_scaled_dot_product_flash_attention_for_cpu": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_flash_attention_for_cpu_backward": "_scaled_dot_product_flash_attention_backward",
    "_scaled_dot_product_fused_attention_overrideable": "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_fused_attention_overrideable_backward": "_scaled_dot_product_flash_attention_backward",
}
FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    **{getattr(aten, name): flop_registry[getattr(aten, formula)] for name, formula in SAME_AS.items() if hasattr(aten, name)},
}


@dataclass(frozen=True)
class Work:
    """launches: operations that run a kernel; bytes: what they read and write, each operand once; flops: of products."""

    launches: int
    bytes: int
    flops: int

    def __sub__(self, other: "Work") -> "Work":
        return Work(self.launches - other.launches, self.bytes - other.bytes, self.flops - other.flops)


class Meter(TorchDispatchMode):
    """Counts what is called inside it, forward, backward and recomputed, on any device.

    flops: of matrix products, convolutions and attention, whose backward pass is 2.5 times its forward (5 products for 2).
    live, peak: bytes of the storages made inside it, and of those it was told to `watch`. What a kernel takes for itself
    is not seen. ops: launches by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.bytes = self.flops = self.live = self.peak = 0
        self._sizes: dict[int, int] = {}  # of living storages

    @property
    def launches(self) -> int:
        return sum(self.ops.values())

    @property
    def work(self) -> Work:
        """Return what was counted until now; the difference of two is what lies between."""
        return Work(self.launches, self.bytes, self.flops)

    def watch(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of tensors that were there before."""
        for tensor in tensors:
            self._see(tensor)

    def reset_peak(self) -> None:
        self.peak = self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        new = list(made(func, result))
        if not (func.is_view or func._schema.name.startswith(WITHOUT_KERNEL)):
            self.ops[func._schema.name.removeprefix("aten::")] += 1
            self.bytes += sum(map(tensor_bytes, new)) + operand_bytes(func, args, kwargs)
            if (formula := FLOPS.get(func.overloadpacket)) is not None:
                self.flops += formula(*args, **kwargs, out_val=result)
        self.watch(new)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:
            weakref.finalize(storage, self._forget, key).atexit = False
        self.live += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.live)

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)


def tensors_in(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


def made(func: Any, result: Any) -> Iterator[Tensor]:
    """Yield the results of an operation that are new tensors: neither views nor what was changed in place."""
    returns = func._schema.returns
    for kind, value in zip(returns, [result] if len(returns) == 1 else result or ()):
        if kind.alias_info is None and func.overloadpacket is not aten._unsafe_view:
            yield from tensors_in(value)


def operand_bytes(func: Any, args: Any, kwargs: Any) -> int:
    """Return the bytes that an operation reads, and writes where it changes an operand in place, each operand once."""
    total = 0
    for place, argument in enumerate(func._schema.arguments):
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        size = sum(map(tensor_bytes, tensors_in(value)))
        total += size * (reads(func, place, argument) + writes(argument))
    return total


def reads(func: Any, place: int, argument: Argument) -> bool:
    written_over = place == 0 and func.overloadpacket.__name__ in ONLY_WRITTEN
    return not (argument.is_out or written_over)


def writes(argument: Argument) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def tensor_bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor's numbers, those that an expanded one repeats once."""
    return tensor.element_size() * math.prod(n for n, stride in zip(tensor.shape, tensor.stride()) if stride or not n)


@contextmanager
def cuda_kernels() -> Iterator[None]:
    """Let the meta device call what CUDA calls inside: attention and RMS norm as one kernel each, not as their parts.

    For counting alone, in the whole process. LayerNorm without a bias stands for RMS norm, which has no such kernel on meta:
    it reads and keeps the same, and 4 bytes a row more.
    """
    with _scoped_library("aten", "IMPL") as library:
        library.impl("scaled_dot_product_attention", flash, "AutogradMeta")
        library.impl("rms_norm", one_kernel_norm, "AutogradMeta")
        library.impl("_fused_rms_norm", one_kernel_norm_and_scale, "AutogradMeta")
        yield


def flash(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Call flash attention, or the memory-efficient one where there is a mask, as CUDA does. q, k, v [B, H, S, d].

    Where all but the math form is switched off, as `torch.nn.attention.sdpa_kernel` does, that one.
    """
    kernels = torch.backends.cuda
    if not (kernels.flash_sdp_enabled() or kernels.mem_efficient_sdp_enabled() or kernels.cudnn_sdp_enabled()):
        return aten._scaled_dot_product_attention_math(q, k, v, attn_mask)[0]
    if attn_mask is None:
        return aten._scaled_dot_product_flash_attention(q, k, v)[0]
    bias = torch.zeros_like(attn_mask, dtype=q.dtype).expand(*q.shape[:3], k.shape[2])
    return aten._scaled_dot_product_efficient_attention(q, k, v, bias, compute_log_sumexp=True)[0]


def one_kernel_norm(x: Tensor, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    return F.layer_norm(x, normalized_shape, weight, None, eps or torch.finfo(x.dtype).eps)


def one_kernel_norm_and_scale(x: Tensor, shape: Any, weight: Tensor | None, eps: float | None) -> tuple[Tensor, Tensor]:
    y, _, inverse = torch.native_layer_norm(x, shape, weight, None, eps or torch.finfo(x.dtype).eps)
    return y, inverse

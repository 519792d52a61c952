"""The ways to compute attention, and which of them is right and fastest on a device, for each size that a run has."""

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import SettingError
from ..models.llm_adapter import MIN_TEXT_ROWS
from ..models.ops import PLAIN
from ..settings.train import ATTENTION_PACKAGES
from .chunked import ROWS, Chunked
from .probe import verdict_on
from .race import Candidate, Tried, race
from .trim import KERNELS, Trimmed

T = TypeVar("T")
Attend = Callable[..., Tensor]  # as `models.ops.attention`

HEADS = 2  # on which a candidate is compared with fp32
NUMBERS = 2**24  # of a tensor on which it is timed, at most: 32 MB in bf16


def sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, zeros: int = 0) -> Tensor:
    """Let torch choose: the reference, and what computes where nothing else was chosen."""
    kernels = KERNELS.get(("sdpa", q.device.type))
    if kernels and zeros and mask is None:
        return Trimmed.apply(q, k, v, zeros, kernels)
    return PLAIN.attention(q, k, v, mask, zeros)


def one_backend(
    name: str, kernel: SDPBackend, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, zeros: int = 0
) -> Tensor:
    """Let torch use one backend; it raises RuntimeError where that is missing."""
    if zeros and mask is None and (kernels := KERNELS.get((name, q.device.type))):
        return Trimmed.apply(q, k, v, zeros, kernels)
    with sdpa_kernel(kernel):
        return PLAIN.attention(q, k, v, mask, zeros)


def chunked(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, zeros: int = 0) -> Tensor:
    if mask is not None and zeros:
        return PLAIN.attention(q, k, v, mask, zeros)
    return Chunked.apply(q, k, v, mask, zeros)


def of_package(name: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, zeros: int = 0) -> Tensor:
    """Call an installed package's attention, all of which take [B, S, H, d], and masks each in a way of its own: none here."""
    if q.is_meta:  # which stands for a card, where costs are counted
        return PLAIN.attention(q, k, v, mask, zeros)
    if mask is not None or zeros:
        raise RuntimeError("takes no mask here")
    return package_function(name)(q, k, v).flatten(2)


@cache
def package_function(name: str) -> Attend:
    """Import a package's attention. Raises ImportError."""
    if name == "flash_attn":
        return import_module("flash_attn").flash_attn_func
    if name == "xformers":
        return import_module("xformers.ops").memory_efficient_attention
    return partial(import_module("sageattention").sageattn, tensor_layout="NHD")


CANDIDATES: dict[str, Attend] = {
    "sdpa": sdpa,
    "cudnn": partial(one_backend, "cudnn", SDPBackend.CUDNN_ATTENTION),
    "flash": partial(one_backend, "flash", SDPBackend.FLASH_ATTENTION),
    "efficient": partial(one_backend, "efficient", SDPBackend.EFFICIENT_ATTENTION),
    "chunked": chunked,
    "math": partial(one_backend, "math", SDPBackend.MATH),
    **{name: partial(of_package, name) for name in ATTENTION_PACKAGES},
}
BY_ITSELF = ("sdpa", "cudnn", "flash", "efficient", "chunked")  # math's memory grows with the square of the pixels


@dataclass(frozen=True, order=True)
class Size:
    """What attention is computed of: queries and keys of a picture, whether a mask hides some, whether zeros are left out."""

    queries: int
    keys: int
    masked: bool = False
    trimmed: bool = False

    def __str__(self) -> str:
        return f"{self.queries}x{self.keys}{' masked' if self.masked else ''}{' trimmed' if self.trimmed else ''}"

    def distance(self, other: "Size") -> float:
        """Return how unlike two sizes are; inf where one has a mask, or lacks zeros, and the other not."""
        if (self.masked, self.trimmed) != (other.masked, other.trimmed):
            return math.inf
        return abs(math.log(self.queries / other.queries)) + abs(math.log(self.keys / other.keys))


class Chosen:
    """Attention, each size in the way that was chosen for it; one that was not tried in that of the nearest.

    A graph of torch.compile serves all sizes: there it is what was chosen for all of them alike, or else torch's own choice.
    """

    def __init__(self, names: Mapping[Size, str], otherwise: str = "sdpa") -> None:
        self.names, self.otherwise = dict(names), otherwise
        self.near: dict[Size, str] = {}
        self.in_graphs = [[self.everywhere(masked, trimmed) for trimmed in (False, True)] for masked in (False, True)]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, zeros: int = 0) -> Tensor:
        masked, trimmed = mask is not None, 1 if zeros else 0
        if torch.compiler.is_compiling():
            return CANDIDATES[self.in_graphs[masked][trimmed]](q, k, v, mask, zeros)
        size = Size(q.shape[1], k.shape[1], masked, bool(trimmed))
        name = self.near.get(size) or self.near.setdefault(size, self.name(size))
        return CANDIDATES[name](q, k, v, mask, zeros)

    def name(self, size: Size) -> str:
        nearest = min(self.names, key=size.distance, default=None)
        return self.otherwise if nearest is None or size.distance(nearest) == math.inf else self.names[nearest]

    def everywhere(self, masked: bool, trimmed: bool) -> str:
        """Return what was chosen for all sizes with a mask or without, and with rows of zeros left out or not."""
        found = {name for size, name in self.names.items() if (size.masked, size.trimmed) == (masked, trimmed)}
        return found.pop() if len(found) == 1 else self.otherwise


def with_gradients(function: Callable[..., T]) -> Callable[..., T]:
    """Let a function have gradients wherever it is called: ComfyUI runs nodes in inference mode."""

    @wraps(function)
    def called(*inputs: Any) -> T:
        with torch.inference_mode(False), torch.enable_grad():
            return function(*inputs)

    return called


class Trial:
    """Tries candidates at one size, on random numbers as a model's normalised heads have them.

    pictures: at once; heads, head_dim: the model's. What is wrong is as wrong on two heads of one picture: those are compared
    with fp32, and all are timed.
    """

    def __init__(
        self, size: Size, device: torch.device, dtype: torch.dtype, head_dim: int, heads: int = HEADS, pictures: int = 1
    ) -> None:
        self.size, self.device, self.dtype = size, device, dtype
        self.shape = (min(HEADS, heads), head_dim)  # of what is compared
        fit = NUMBERS // (size.queries * heads * head_dim)
        self.times = (max(1, min(pictures, fit)), heads // self.shape[0])  # as much is timed: pictures, heads

    @with_gradients
    def race(self, names: Iterable[str]) -> list[Tried]:
        return race(map(self.candidate, names), self.truth, self.dtype, self.device)

    @with_gradients
    def verdict(self, name: str) -> str:
        """Return why one is not right; empty where it is."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return verdict_on(self.candidate(name).results, self.truth, self.dtype)

    def candidate(self, name: str) -> Candidate:
        def results() -> Sequence[Tensor]:
            return passes(CANDIDATES[name], self.inputs, self.mask, self.zeros)

        return Candidate(name, results, lambda: passes(CANDIDATES[name], self.timed, self.mask, self.zeros))

    @property
    def zeros(self) -> int:
        return max(1, MIN_TEXT_ROWS - self.size.keys) if self.size.trimmed else 0

    @cached_property
    def inputs(self) -> list[Tensor]:
        """q, k, v [1, S, H, d], and the output's gradient [1, S, H * d]."""
        generator, size = torch.Generator().manual_seed(0), self.size
        rows = (size.queries, size.keys, size.keys, size.queries)
        *qkv, g = (torch.randn(1, n, *self.shape, generator=generator).to(self.device, self.dtype) for n in rows)
        return [*qkv, g.flatten(2)]

    @cached_property
    def timed(self) -> list[Tensor]:
        """The same for as many pictures, and for all heads."""
        pictures, heads = self.times
        *qkv, g = self.inputs
        more = [x.repeat(pictures, 1, heads, 1) for x in (*qkv, g.unflatten(2, self.shape))]
        return [*more[:3], more[3].flatten(2)]

    @cached_property
    def mask(self) -> Tensor | None:
        """What hides that which a caption of 512 rows has not of the longest one's."""
        own = min(MIN_TEXT_ROWS, self.size.keys - 1)
        return (torch.arange(self.size.keys, device=self.device) < own)[None, None, None] if self.size.masked else None

    @cached_property
    def truth(self) -> Sequence[Tensor]:
        """The output, and the gradients of q, k and v, in fp32 by the math form, in pieces of the queries."""
        wide = torch.promote_types(self.dtype, torch.float32)
        *qkv, g = (x.to(wide, copy=True) for x in self.inputs)
        q, k, v = (x.requires_grad_(True) for x in qkv)
        outputs = []
        for rows in (slice(first, first + ROWS) for first in range(0, q.shape[1], ROWS)):
            with sdpa_kernel(SDPBackend.MATH):
                out = PLAIN.attention(q[:, rows], k, v, self.mask, self.zeros)
            out.backward(g[:, rows])
            outputs.append(out.detach())
        return torch.cat(outputs, dim=1), *(x.grad for x in (q, k, v) if x.grad is not None)


def passes(attend: Attend, inputs: Sequence[Tensor], mask: Tensor | None, zeros: int) -> Sequence[Tensor]:
    """Compute the output, and the gradients of q, k and v. Raises RuntimeError where there are none."""
    *qkv, g = inputs
    own = [x.detach().requires_grad_(True) for x in qkv]
    out = attend(*own, mask, zeros)
    if not out.requires_grad:
        raise RuntimeError("it has no backward pass: it can draw, and not train")
    return out.detach(), *torch.autograd.grad(out, own, g)


def missing(name: str) -> str:
    """Say which package a candidate needs that is not installed; empty when there is none."""
    package = ATTENTION_PACKAGES.get(name, "")
    return f"the package {package} is not installed" if package and find_spec(package) is None else ""


def unusable(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Return why a candidate cannot be used on a device at all; empty where it can."""
    return missing(name) or Trial(Size(128, 128), device, dtype, head_dim).verdict(name)


def check_usable(name: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Refuse a `train.attention` that a device has not. Raises SettingError, which names those that it has."""
    if name in ("auto", "sdpa") or not (why := unusable(name, device, dtype, head_dim)):
        return
    there = ", ".join(["auto", *usable(device, dtype, head_dim)])
    raise SettingError(f"`train.attention`={name}: cannot be used on {device}: {why}; use one of {there}")


def usable(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """List the candidates that work on a device."""
    return [name for name in CANDIDATES if not unusable(name, device, dtype, head_dim)]

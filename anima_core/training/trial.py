"""A few steps of an optimizer on small tensors of the CPU, before anything loads: what it refuses, reads back and forgets."""

import contextlib
import io
import json
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from ..speed.counting import tensors_in
from .optimizer_state import flatten_optimizer, load_exactly, unflatten_optimizer

# What asks the device for a number, or for how large a result is, or whether a factorisation came out.
READS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "_linalg_check_errors", "_unique2")
PAIR = ((8, 16), (16, 8))  # shapes of a layer's two factors, of which the second starts at zero
NORM = (16,)  # shape of what a norm learns, which starts at zero too
BEFORE, AFTER = 3, 12  # steps before and after a checkpoint: some do more in every tenth
OF_THE_CPU = ("cpu", "cuda", "triton", "device")  # in an error: it is about where the step was tried, not about the optimizer

Build = Callable[[list[nn.Parameter]], Optimizer]


@dataclass(frozen=True)
class Trial:
    """What was seen. once, each: numbers that a step reads back from the device, and those for each tensor on top.

    exact: from a checkpoint it goes on to the bit. draws: it draws random numbers. untried: why no step was possible.
    """

    once: int = 0
    each: int = 0
    exact: bool = True
    draws: bool = False
    untried: str = ""


class Reads(TorchDispatchMode):
    """Counts the operations for which a device would have to be waited for.

    A tensor of more than one number is taken to be on the device, and whatever is computed from it. So a counter is not, which
    torch's own optimizers keep on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._there: set[int] = set()  # storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = any(tensor.ndim or key(tensor) in self._there for tensor in tensors_in((args, kwargs)))
        self.count += there and func.overloadpacket.__name__ in READS
        result = func(*args, **kwargs)
        for tensor in tensors_in((result, args[:1])) if there else ():
            if key(tensor) not in self._there:
                self._there.add(key(tensor))
                weakref.finalize(tensor.untyped_storage(), self._there.discard, key(tensor)).atexit = False
        return result


def key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def try_out(build: Build, norms: bool = False) -> Trial:
    """Take steps, write what a checkpoint holds, and go on from it and without it.

    norms: also on what norms learn, of one dimension, which some optimizers cannot. Raises TypeError for a state that no
    checkpoint can hold, and whatever a step raises that is not for want of a device.
    """
    with quiet():
        try:
            return look_at(build, (*PAIR, NORM) if norms else PAIR)
        except (NotImplementedError, RuntimeError, AttributeError, ImportError) as error:
            if isinstance(error, NotImplementedError) or any(word in str(error).lower() for word in OF_THE_CPU):
                return Trial(untried=brief(error))
            raise


def brief(error: Exception) -> str:
    """Return what an error of other people's code says, in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def look_at(build: Build, shapes: tuple[tuple[int, ...], ...]) -> Trial:
    parameters = small_tensors(shapes, 1)
    optimizer = build(parameters)
    take_steps(optimizer, 0, BEFORE)
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]
    resumed = build(copies)
    load_exactly(resumed, through_a_file(optimizer.state_dict()))
    before = torch.get_rng_state()
    take_steps(optimizer, BEFORE, AFTER)
    draws = not torch.equal(before, torch.get_rng_state())
    torch.set_rng_state(before)
    take_steps(resumed, BEFORE, AFTER)
    exact = all(torch.equal(a, b) for a, b in zip(parameters, copies))
    few, many = (reads_of(build(small_tensors(shapes, layers))) for layers in (1, 2))
    each = (many - few) / len(shapes)
    return Trial(math.ceil(few - len(shapes) * each), math.ceil(each), exact, draws)


def reads_of(optimizer: Optimizer) -> float:
    """Return how many numbers a step reads back from the device, on average of those after the first ones."""
    with Reads() as reads:
        take_steps(optimizer, 0, BEFORE)
        at_first = reads.count
        take_steps(optimizer, BEFORE, AFTER)
    return (reads.count - at_first) / AFTER


def small_tensors(shapes: tuple[tuple[int, ...], ...], layers: int) -> list[nn.Parameter]:
    """Return what a few layers learn, as it is before the first step."""
    generator = torch.Generator().manual_seed(0)
    first, *others = shapes
    of_layers = [(0.1 * torch.randn(first, generator=generator), *map(torch.zeros, others)) for _ in range(layers)]
    return [nn.Parameter(tensor) for tensors in of_layers for tensor in tensors]


def take_steps(optimizer: Optimizer, first: int, count: int) -> None:
    """Take steps whose gradients follow from their numbers."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number in range(first, first + count):
        generator = torch.Generator().manual_seed(number)
        for parameter in parameters:
            parameter.grad = 0.01 * torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict as a checkpoint gives it back."""
    tensors, scalars = flatten_optimizer(state)
    stored: dict[str, Tensor] = safetensors.torch.load(safetensors.torch.save({k: v.contiguous() for k, v in tensors.items()}))
    return unflatten_optimizer(
        {key.removeprefix("optimizer."): tensor for key, tensor in stored.items()}, json.loads(json.dumps(scalars))
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Train whatever the caller's modes are, with random numbers of its own, and let nothing be printed."""
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.random.fork_rng(devices=[]),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        torch.manual_seed(0)
        yield

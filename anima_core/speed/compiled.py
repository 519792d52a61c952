"""A model's blocks as graphs of torch.compile: the numbers of the plain forms, up to the order of sums, in fewer passes.

One graph at each level serves all blocks that have the same trained layers, and pictures of all sizes: parameters are inputs
of it, and every size that may change is a symbol. It is made of the slow obvious functions, `models.ops.PLAIN` and the
adapters' own `forward`: to fuse them is the compiler's work. What a level keeps is said within the graph, as checkpointing
with a choice of what is saved: so each keeps what the planner counted for it, and the second pass makes only what is needed.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ..errors import is_out_of_memory
from ..models.frozen import number_layers
from ..models.ops import PLAIN, Ops
from ..models.transformer import AnimaTransformer, Block

BACKEND = "inductor"

# CUDA graphs keep their memory in pools of their own, which ComfyUI's allocator, cudaMallocAsync, cannot (ComfyUI #6831). The
# other guards that the rows are fewer, or more, than 4096 for all pictures where a norm's weight is trained.
OFF = ("triton.cudagraphs", "triton.cudagraph_trees", "triton.mix_order_reduction")

# What is set while a run lasts: a symbol for each size, also where two are equal by chance, as 512 tokens and 512 rows of
# text; but none for an adapter's scale, which would be a tensor, and what it is multiplied by would be kept; backward graphs
# are compiled with their forward graphs, in the run's own thread, for settings are a thread's own; and graphs for all kinds of
# blocks and levels. Older versions of torch lack some of it.
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("torch.fx.experimental._config", {"use_duck_shape": False}),
    ("torch._functorch.config", {"force_non_lazy_backward_lowering": True}),
    ("torch._dynamo.config", {"specialize_float": True, "recompile_limit": 64, "suppress_errors": False}),
)
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

# What may be kept of a block, by parts of the operations' names; all else is made again. Beside products and attention it is
# the sum of a layer's product and its adapter's, and the views between: so that only the sum need be kept.
ATTENTION = ("attention", "attn")
CHEAP = ("mm", "frozen_product", "view", "aten.add.Tensor", *ATTENTION)


def choose(kept: Sequence[str], ctx: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Tell whether the output of an operation may be kept, which the compiler then does if it is the least that it can keep."""
    may = any(name in str(operation) for name in kept)
    return CheckpointPolicy.PREFER_SAVE if may else CheckpointPolicy.PREFER_RECOMPUTE


CHOICES: dict[str, dict[str, Any]] = {  # what levels are beside `keep`, which leaves all to the compiler
    "cheap": {"context_fn": partial(create_selective_checkpoint_contexts, partial(choose, CHEAP))},
    "attention": {"context_fn": partial(create_selective_checkpoint_contexts, partial(choose, ATTENTION))},
    "checkpoint": {},
}


def run_block(level: str, ops: Ops, block: Block, *inputs: Any) -> Tensor:
    """Run a block so that it keeps what a level says: what graphs are made of."""
    if level == "keep":
        return block(*inputs, ops=ops)
    options = CHOICES[level]
    return checkpoint(block, *inputs, ops=ops, use_reentrant=False, preserve_rng_state=False, **options)


class CompiledBlocks:
    """Runs blocks as graphs, until one fails: then they run without for the rest of the run, and `tell` hears why, once.

    Of the functions that a block has they take its attention, which was chosen for the device.
    """

    def __init__(self, model: AnimaTransformer, tell: Callable[[str], None]) -> None:
        number_layers(model)
        self.tell, self.stopped = tell, False
        self.ops: dict[Callable[..., Tensor], Ops] = {}  # by attention: one that is made anew would be a graph anew
        self.graph = torch.compile(run_block, backend=BACKEND, dynamic=True, fullgraph=True, options=options())

    def __call__(self, level: str, ops: Ops, block: Block, inputs: Sequence[Any]) -> Tensor | None:
        """Return what a block makes of its inputs; None where it is to be run without a graph."""
        if self.stopped or level not in ("keep", *CHOICES):
            return None
        try:
            if ops.attention not in self.ops:
                self.ops[ops.attention] = replace(PLAIN, attention=partial(attend, ops.attention))
            return self.graph(level, self.ops[ops.attention], block, *with_gradient(block, inputs))
        except Exception as error:  # the compiler leans on much of the system, and no run shall end of it
            if isinstance(error, RuntimeError) and is_out_of_memory(error):
                raise
            self.stop(f"failed ({said(error)})")
            return None

    def stop(self, why: str) -> None:
        self.stopped = True
        self.tell(why)


def attend(
    attention: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, zeros: int = 0
) -> Tensor:
    """Compute attention as it was chosen; with rows of zeros in the plain form, which is one graph for any number of them."""
    return PLAIN.attention(q, k, v, mask, zeros) if zeros else attention(q, k, v, mask)


def said(error: Exception) -> str:
    """Return the beginning of what an error says, in one line, and its kind. The compiler's give the cause in the second."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def with_gradient(block: Block, inputs: Sequence[Any]) -> Sequence[Any]:
    """Let the first block's x need a gradient as those of the others do.

    It is three small products more in a step, and a graph less, which takes the better part of a minute to compile.
    """
    x, *others = inputs
    if x.requires_grad or not trained(block):
        return inputs
    return x.detach().requires_grad_(True), *others


def trained(block: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in block.parameters() if parameter.requires_grad]


def options() -> dict[str, Any] | None:
    """Return what the compiler is to do otherwise than by itself, as far as it knows of it."""
    if BACKEND != "inductor":
        return None
    known = set(torch._inductor.list_options())
    return {name: False for name in OFF if name in known}


def no_compiler(device: torch.device) -> str:
    """Return what is missing to compile for a device; empty where nothing is."""
    if BACKEND != "inductor":
        return ""
    if device.type == "cpu":
        try:
            import_module("torch._inductor.cpp_builder").get_cpp_compiler()
        except Exception as error:  # each system's search fails in its own way
            return f"there is no C++ compiler ({said(error)})"
        return ""
    if device.type not in ("cuda", "xpu"):
        return f"there is no compiler for {device.type}"
    return "" if find_spec("triton") else "the package triton is not installed (on Windows: triton-windows)"


@contextmanager
def compiling(cache: Path) -> Iterator[None]:
    """Prepare this thread for compiling, and put everything back after: ComfyUI's other nodes may compile as well.

    cache: the folder in which what was compiled is kept for later runs, where the user has named none.
    """
    with ExitStack() as stack:
        for name, wanted in SETTINGS:
            module = import_module(name)
            stack.enter_context(module.patch({key: value for key, value in wanted.items() if hasattr(module, key)}))
        stack.enter_context(cached_in(cache))
        stack.enter_context(quiet("torch._higher_order_ops.wrap"))
        stack.callback(forget)
        yield


@contextmanager
def cached_in(folder: Path) -> Iterator[None]:
    """Let the compiler keep its work in a folder, unless the user has named another; put the environment back after.

    torch itself sets the variable when it first compiles, in this process or for another node: that is not the user's word.
    """
    before = {name: os.environ.get(name) for name in CACHES}
    if Path(before[CACHES[0]] or "torchinductor_").name.startswith("torchinductor_"):
        os.environ[CACHES[0]] = str(folder.absolute())
        os.environ.pop(CACHES[1], None)  # it is made from the other
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Let a logger say only errors: of checkpointing it warns, whatever is in it, that nothing may be changed in place."""
    log = logging.getLogger(name)
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def forget() -> None:
    """Let go of all graphs: they are kept with the code of the function that they were made of."""
    import_module("torch._C._dynamo.eval_frame").reset_code(run_block.__code__)

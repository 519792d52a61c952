"""The device for the length of a run: current, within its memory, with training's arithmetic. All is put back after."""

import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch

from ..speed.cards import CONTEXT, GB, SPARE

# What programs switch on for speed in the whole process, ComfyUI with `--fast`: sums in fp16 lose gradients, and trying
# every convolution algorithm pays only where all pictures have one size.
OFF_WHILE_TRAINING: tuple[tuple[Any, str], ...] = (
    (torch.backends.cuda.matmul, "allow_fp16_accumulation"),
    (torch.backends.cudnn, "benchmark"),
)


@contextmanager
def at_work(device: torch.device, memory_gb: float = 0.0) -> Iterator[None]:
    """Prepare a device for a run, and put everything back as it was. memory_gb: see `train.memory_gb`."""
    with current(device), within_its_memory(device, memory_gb), exact_arithmetic():
        yield


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a device this thread's current one, to which streams, events and page-locked memory belong."""
    backend = {"cuda": torch.cuda, "xpu": torch.xpu}.get(device.type)
    return nullcontext() if backend is None else backend.device(device)


@contextmanager
def within_its_memory(device: torch.device, memory_gb: float = 0.0) -> Iterator[None]:
    """Let torch run out of memory at a run's budget, and where the system would rather move it to the host's.

    Then every step would take minutes. Caching, which then takes less at once, and previews are held to the budget too.
    """
    if device.type != "cuda" or not (spills() or memory_gb):
        yield
        return
    before = getattr(torch.cuda, "get_per_process_memory_fraction", lambda device: 1.0)(device)  # torch 2.8 and newer
    free, total = torch.cuda.mem_get_info(device)
    most = min(free - SPARE, memory_gb * GB - CONTEXT if memory_gb else free)
    share = (torch.cuda.memory_reserved(device) + most) / total
    torch.cuda.set_per_process_memory_fraction(min(max(share, 0.0), 1.0), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(before, device)


def spills() -> bool:
    """Tell whether the graphics driver is Windows', also below Linux in WSL: it gives out shared memory as the card's."""
    return sys.platform == "win32" or "microsoft" in platform.release().lower()


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Switch off what trades exactness for speed; older versions of torch lack some of it."""
    before = [(owner, name, getattr(owner, name)) for owner, name in OFF_WHILE_TRAINING if hasattr(owner, name)]
    for owner, name, _ in before:
        setattr(owner, name, False)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)

"""Candidates for attention that fail in every way, and clocks that say what they are told."""

import dataclasses
import math

import torch

from anima_core.models.ops import PLAIN
from anima_core.speed import race as race_module
from anima_core.speed.attention import CANDIDATES, package_function


class Broken(torch.autograd.Function):
    """Attention whose gradients are multiplied by a number of its caller's."""

    @staticmethod
    def forward(ctx, out, factor):
        ctx.factor = factor
        return out.clone()

    @staticmethod
    def backward(ctx, g):
        return g * ctx.factor(), None


def breaks(factor):
    """A candidate whose output is right, and whose gradients are `factor()` times what they should be."""
    return lambda *inputs: Broken.apply(PLAIN.attention(*inputs), factor)


def raises(*_):
    raise RuntimeError("No available kernel. Aborting execution.\nmore")


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.")


FAKES = {
    "raises": (raises, "No available kernel"),
    "is missing": (lambda *_: package_function("flash_attn"), "No module named 'flash_attn'"),
    "takes too much": (out_of_memory, "CUDA out of memory"),
    "is wrong": (lambda *inputs: 1.01 * PLAIN.attention(*inputs), "differs by 1.0e-02 from its plain form"),
    "has wrong gradients": (breaks(lambda: 2.0), "differs by 1.0e+00 from its plain form"),
    "has broken gradients": (breaks(lambda: math.nan), "its output or a gradient is not finite"),
    "has none": (lambda *inputs: PLAIN.attention(*inputs).detach(), "it has no backward pass: it can draw, and not train"),
}


def put(monkeypatch, **more):
    """Put candidates beside those that there are, or in their place."""
    for name, attend in more.items():
        monkeypatch.setitem(CANDIDATES, name, attend)


def clocked(monkeypatch, **seconds):
    """Say how long each candidate takes that is right; others take a second."""
    tried = race_module.tried

    def known(candidate, *others):
        found = tried(candidate, *others)
        return found if found.reason else dataclasses.replace(found, seconds=seconds.get(candidate.name, 1.0))

    monkeypatch.setattr(race_module, "tried", known)
    monkeypatch.setattr(race_module, "seconds_of", lambda work, device: 1.0)

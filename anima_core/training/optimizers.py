"""Optimizers by name. What needs a package of its own is found when it is installed, and says so when it is not."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..config import SCHEDULE_FREE, OptimizerConfig
from ..errors import SettingError

# name -> (module, class, package to install)
SOURCES = {
    "AdamW": ("torch.optim", "AdamW", "torch"),
    "Adafactor": ("torch.optim", "Adafactor", "torch"),
    "AdamW8bit": ("bitsandbytes.optim", "AdamW8bit", "bitsandbytes"),
    "Lion": ("lion_pytorch", "Lion", "lion-pytorch"),
    "Prodigy": ("prodigyopt", "Prodigy", "prodigyopt"),
    **{name: ("schedulefree", name, "schedulefree") for name in SCHEDULE_FREE},
}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """Raises SettingError, with the package to install, when it is missing."""
    module, attribute, package = SOURCES[name]
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError:
        way_out = f"pip install {package}, or choose AdamW"
        raise SettingError(f"optimizer={name} needs the package {package}: {way_out}") from None


def preflight(config: OptimizerConfig) -> list[str]:
    """Check package and arguments before anything is loaded. Returns warnings."""
    optimizer_arguments(config, optimizer_class(config.type))
    if config.type == "Prodigy" and config.learning_rate <= 0.1:
        return [f"optimizer=Prodigy finds its own step size: learning_rate={config.learning_rate} scales it, 1.0 is usual"]
    return []


def optimizer_arguments(config: OptimizerConfig, cls: type) -> dict[str, Any]:
    """Our settings and the user's own `name=value`, as far as the class takes them."""
    known = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.type == "Adafactor":
        pass  # torch's Adafactor keeps no first moment and takes eps as a pair: its own defaults serve
    elif config.type == "SGDScheduleFree":
        arguments["momentum"] = config.betas[0]
    else:
        arguments["betas"] = tuple(config.betas)
        if "eps" in known:
            arguments["eps"] = config.eps
    for item in config.args:
        name, equals, text = item.partition("=")
        if name not in known or not equals:
            names = ", ".join(n for n in known if n not in ("params", "self"))
            raise SettingError(f"optimizer_args {item!r}: {config.type} takes name=value with {names}")
        arguments[name] = literal(text)
    return arguments


def literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """groups: {"params", "lr", …} of the network. AdamW is fused: one kernel for all parameters."""
    cls = optimizer_class(config.type)
    arguments = optimizer_arguments(config, cls)
    if config.type == "AdamW":
        device = groups[0]["params"][0].device.type
        arguments.setdefault("fused", device in ("cpu", "cuda", "xpu", "mps"))
    groups = [{k: v for k, v in group.items() if k != "name"} for group in groups]
    optimizer = cls(groups, **arguments)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if config.type in SCHEDULE_FREE:
        optimizer.train()
    return optimizer


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Around saving and sampling: ScheduleFree's parameters become their averages. The exact training values return."""
    if not hasattr(optimizer, "eval"):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]  # the switch there and back rounds; training must not notice
    optimizer.eval()
    try:
        yield
    finally:
        optimizer.train()
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)

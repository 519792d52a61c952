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
    """Check package and arguments, on one number, before anything is loaded. Returns warnings; raises SettingError."""
    build_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": config.learning_rate}], config)
    if config.type == "Prodigy" and config.learning_rate <= 0.1:
        return [f"optimizer=Prodigy finds its own step size: learning_rate={config.learning_rate} scales it, 1.0 is usual"]
    return []


def optimizer_arguments(config: OptimizerConfig, cls: type) -> dict[str, Any]:
    """Our settings and the user's own `name=value`. Raises SettingError for a name that the class does not take."""
    known = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    if config.type == "Adafactor":
        # torch's scales lr by max(eps[1], rms of the parameter): 0.001 would hardly move a factor that starts at zero.
        # 1 makes lr absolute, which others call relative_step=False scale_parameter=False. It has no betas.
        arguments["eps"] = (None, 1.0)
    elif config.type == "SGDScheduleFree":
        arguments["momentum"] = config.betas[0]
    else:
        arguments["betas"] = tuple(config.betas)
        if "eps" in known:
            arguments["eps"] = config.eps
    free = [name for name in known if name not in ("params", "lr", "weight_decay")]  # those stand in every group
    for item in config.args:
        name, equals, text = (part.strip() for part in item.partition("="))
        if name in ("lr", "weight_decay"):
            raise SettingError(f"optimizer_args {item!r}: use the setting {name.replace('lr', 'learning_rate')} instead")
        if name not in free or not equals:
            raise SettingError(f"optimizer_args {item!r}: {config.type} takes name=value with {', '.join(free)}")
        arguments[name] = literal(text)
    return arguments


def literal(text: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """groups: {"params", "lr", …} of the network. AdamW is fused: one kernel for all parameters.

    Raises SettingError for a package that is missing and for arguments that the optimizer refuses.
    """
    if config.type == "Prodigy" and len({group["lr"] for group in groups}) > 1:
        raise SettingError(
            "optimizer=Prodigy takes one learning rate: leave network learning_rates and loraplus_lr_ratio unset"
        )
    cls = optimizer_class(config.type)
    arguments = optimizer_arguments(config, cls)
    if config.type == "AdamW":
        device = groups[0]["params"][0].device.type
        arguments.setdefault("fused", device in ("cpu", "cuda", "xpu", "mps"))
    groups = [{k: v for k, v in group.items() if k != "name"} for group in groups]
    try:
        optimizer = cls(groups, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingError(f"optimizer={config.type}: {error}; check optimizer_args and betas") from None
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if config.type in SCHEDULE_FREE:
        optimizer.train()
    return optimizer


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Around saving and sampling: ScheduleFree's parameters become their averages. The exact training values return.

    Others have no such mode and are left alone; so is one that is in evaluation already.
    """
    if not optimizer.param_groups[0].get("train_mode"):
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

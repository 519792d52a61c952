"""Building an optimizer from its entry in the table. Its package is imported when it is asked for, and named when missing."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import SettingError
from ..settings import OptimizerConfig
from ..settings.optimizer import OPTIMIZERS, OptimizerType
from .ema import EMA
from .memory import once_more

DEFAULT_TENSORS = 560  # two factors in each of 280 layers


def optimizer_class(kind: OptimizerType) -> type[torch.optim.Optimizer]:
    """Import an optimizer. Raises SettingError, with the package to install, when it is missing."""
    try:
        return getattr(importlib.import_module(kind.module), kind.name)
    except ImportError:
        way_out = f"pip install {kind.package}, or choose AdamW"
        raise SettingError(f"`optimizer.type`={kind.name} needs the package {kind.package}: {way_out}") from None


def preflight(config: OptimizerConfig, device: torch.device | None = None) -> list[str]:
    """Check package and arguments, on one number, before anything is loaded. Return warnings. Raises SettingError.

    device: that the run will use.
    """
    build_optimizer([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": config.learning_rate}], config)
    warnings = []
    waits = OPTIMIZERS[config.type].waits
    if waits and not takes_flat(config) and device is not None and device.type != "cpu":
        times = "once" if waits == 1 else "twice"
        slow = f"waits for the device {times} for each trained tensor in every step, {waits * DEFAULT_TENSORS} times by default"
        warnings.append(f"`optimizer.type`={config.type} {slow}; AdamW and the ScheduleFree ones do not")
    if config.type == "Prodigy" and config.learning_rate <= 0.1:
        rate = f"`optimizer.learning_rate`={config.learning_rate} scales it, 1.0 is usual"
        warnings.append(f"`optimizer.type`=Prodigy finds its own step size: {rate}")
    return warnings


def takes_flat(config: OptimizerConfig) -> bool:
    """Tell whether the optimizer may be given one tensor in place of all that are in it."""
    kind, given = OPTIMIZERS[config.type], {item.partition("=")[0].strip() for item in config.args}
    return kind.element_wise and given.isdisjoint(kind.by_tensor)


def optimizer_arguments(config: OptimizerConfig, kind: OptimizerType, cls: type) -> dict[str, Any]:
    """Gather the arguments: the table's defaults, our settings that the class takes, then the user's own `name=value`.

    Raises SettingError for a name that the class does not take.
    """
    ours = {"betas": tuple(config.betas), "beta1": config.betas[0], "eps": config.eps}
    arguments: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay, **kind.defaults}
    arguments |= {name: ours[setting] for setting, name in kind.takes.items()}
    free = [name for name in inspect.signature(cls).parameters if name not in ("params", "lr", "weight_decay")]
    for item in config.args:
        name, equals, text = (part.strip() for part in item.partition("="))
        if name in ("lr", "weight_decay"):
            instead = {"lr": "learning_rate"}.get(name, name)
            raise SettingError(f"`optimizer.args` {item!r}: use the setting `optimizer.{instead}` instead")
        if name not in free or not equals:
            raise SettingError(f"`optimizer.args` {item!r}: {kind.name} takes name=value with {', '.join(free)}")
        arguments[name] = literal(text)
    return arguments


def literal(text: str) -> Any:
    """Read a Python literal, else return the text itself."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False}.get(text.lower(), text)


def build_optimizer(groups: list[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build an optimizer for the network's groups {"params", "lr", …}. AdamW is fused: one kernel for all parameters.

    Raises SettingError for a package that is missing and for arguments that the optimizer refuses.
    """
    kind = OPTIMIZERS[config.type]
    if kind.one_rate and len({group["lr"] for group in groups}) > 1:
        unset = "leave `network.learning_rates` and `network.loraplus_lr_ratio` unset"
        raise SettingError(f"`optimizer.type`={kind.name} takes one learning rate: {unset}")
    cls = optimizer_class(kind)
    arguments = optimizer_arguments(config, kind, cls)
    if kind.name == "AdamW":
        device = groups[0]["params"][0].device.type
        arguments.setdefault("fused", device in ("cpu", "cuda", "xpu", "mps"))
    groups = [{k: v for k, v in group.items() if k != "name"} for group in groups]
    try:
        optimizer = cls(groups, **arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        way_out = "check `optimizer.args` and `optimizer.betas`"
        raise SettingError(f"`optimizer.type`={kind.name}: {error}; {way_out}") from None
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if kind.schedule_free:
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def make_state(optimizer: torch.optim.Optimizer) -> None:
    """Let an optimizer that takes flat tensors make its moments now, as its class does: in a step of rate 0 on zero gradients.

    In the first step of the run they would come after the activations, and lie between them for good. Neither a weight nor
    a counter moves.
    """
    before = [dict(group) for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group.update(lr=0.0, weight_decay=0.0)
    type(optimizer).step(optimizer)
    for group, numbers in zip(optimizer.param_groups, before):
        group.clear()
        group.update(numbers)
    for entries in optimizer.state.values():
        if "step" in entries:
            entries["step"] = entries["step"] * 0


def step_if_finite(optimizer: torch.optim.Optimizer, ema: EMA | None, grad_norm: Tensor) -> None:
    """Take a step, the average's too, unless the gradient is not finite: then neither weight, moment nor counter moves.

    Fused AdamW decides that on the device. Others, and the average, count in Python: there the host waits for the norm. So it
    does on MPS, whose kernel takes the flag and does not look at it (pytorch, aten/src/ATen/native/mps/operations/
    FusedAdamWKernelImpl.mm).
    """
    finite = once_more(grad_norm.isfinite)
    decides = getattr(optimizer, "_step_supports_amp_scaling", False)  # what torch's own GradScaler asks
    if ema is None and decides and grad_norm.device.type in ("cpu", "cuda", "xpu"):
        broken = once_more(torch.where, finite, 0.0, 1.0)
        optimizer.grad_scale, optimizer.found_inf = None, broken  # type: ignore[attr-defined]
        optimizer.step()
    elif finite:
        optimizer.step()
        if ema is not None:
            ema.update()


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let ScheduleFree's parameters be their averages inside, for saving and sampling. The exact training values return.

    Others have no such mode and are left alone; so is one that is in evaluation already.
    """
    if not optimizer.param_groups[0].get("train_mode"):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]  # the switch there and back rounds; training must not notice
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)

"""Building an optimizer from its entry in the table. Its package is imported when it is asked for, and named when missing."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from ..errors import SettingError
from ..settings import OptimizerConfig
from ..settings.optimizer import OPTIMIZERS, OptimizerType
from .ema import EMA
from .memory import once_more
from .packages import version_of
from .trial import Trial, brief, try_out

DEFAULT_TENSORS = 560  # two factors in each of 280 layers
CAME_BETA3 = 0.9999  # of the update's residuals, CAME's own default
AVERAGING: WeakSet[torch.optim.Optimizer] = WeakSet()  # those that show their averages now


def optimizer_class(kind: OptimizerType) -> type[torch.optim.Optimizer]:
    """Import an optimizer. Raises SettingError: with the package to install when it is missing, and for what is none."""
    way_out = f"pip install {kind.package}, or choose AdamW"
    if kind.own and not version_of(kind):
        check = "check its spelling, install the package that it is in, or choose AdamW"
        raise SettingError(f"`optimizer.type`={kind.name}: no package that is installed has {kind.top}; {check}")
    try:
        found = getattr(importlib.import_module(kind.module), kind.class_in_module)
    except ImportError:
        raise SettingError(f"`optimizer.type`={kind.name} needs the package {kind.package}: {way_out}") from None
    except AttributeError:
        where = version_of(kind) or kind.module
        raise SettingError(f"`optimizer.type`={kind.name}: {where} has no {kind.class_in_module}; check its spelling") from None
    except Exception as error:  # whatever the code of others raises
        raise SettingError(
            f"`optimizer.type`={kind.name} cannot be imported ({brief(error)}); repair {kind.package}, or choose AdamW"
        ) from None
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise SettingError(f"`optimizer.type`={kind.name}: is no torch.optim.Optimizer; name the class of one")
    return found


def preflight(config: OptimizerConfig, device: torch.device | None = None, norms: bool = False) -> list[str]:
    """Check package and arguments, on small tensors, before anything is loaded. Return warnings. Raises SettingError.

    device: that the run will use. norms: it trains norms too.
    """
    kind = OPTIMIZERS[config.type]
    trial = tried(kind, config, norms)
    warnings = [*(said_of(trial, kind, config) if kind.own else ()), *unsuited(kind, config)]
    each, once = kind.waits + trial.each, trial.once
    if (each or once) and not takes_flat(config) and device is not None and device.type != "cpu":
        warnings.append(slow(kind, each, once))
    return warnings


def slow(kind: OptimizerType, each: int, once: int) -> str:
    """Say how often a step waits for the device: for each tensor, and once."""
    if not each:
        numbers = "1 number" if once == 1 else f"{once} numbers"
        return f"`optimizer.type`={kind.name} reads {numbers} back from the device in each step, which waits for it"
    times = {1: "once", 2: "twice"}.get(each, f"{each} times")
    total = each * DEFAULT_TENSORS + once
    waits = f"waits for the device {times} for each trained tensor in every step, {total} times by default"
    return f"`optimizer.type`={kind.name} {waits}; AdamW and the ScheduleFree ones do not"


def tried(kind: OptimizerType, config: OptimizerConfig, norms: bool = False) -> Trial:
    """Take a few steps on small tensors. Raises SettingError for an optimizer that cannot, or that cannot be resumed."""
    try:
        return try_out(lambda params: build_optimizer([{"params": params, "lr": config.learning_rate}], config), norms)
    except SettingError:
        raise
    except Exception as error:  # whatever the code of others says
        problem = f"does not train two small tensors ({brief(error)}); check `optimizer.args`, or choose another"
        raise SettingError(f"`optimizer.type`={kind.name} {problem}") from None


def said_of(trial: Trial, kind: OptimizerType, config: OptimizerConfig) -> list[str]:
    """Warn of what a user's own optimizer does otherwise than those of the table."""
    name = f"`optimizer.type`={kind.name}"
    parameters = inspect.signature(optimizer_class(kind)).parameters
    unknown = [item for item in config.args if item.partition("=")[0].strip() not in parameters]
    found = [f"`optimizer.args` {item!r}: {kind.name} does not name it; it may have no effect" for item in unknown]
    if config.weight_decay and "weight_decay" not in parameters:
        found.append(f"`optimizer.weight_decay`={config.weight_decay} has no effect: {kind.name} has none")
    for setting in ("betas", "eps"):
        if (value := getattr(config, setting)) != getattr(OptimizerConfig, setting):
            found.append(f"`optimizer.{setting}`={value} has no effect: {kind.name} takes its own, among `optimizer.args`")
    if trial.untried:
        found.append(f"{name} takes no step on the CPU ({trial.untried}): whether it trains and resumes shows in the run")
    if trial.draws:
        found.append(f"{name} draws random numbers in its steps: neither a second run nor a resumed one gives the same")
    if not trial.exact:
        found.append(f"{name} does not go on exactly from a checkpoint: its state_dict lacks a part of what it remembers")
    return found


def unsuited(kind: OptimizerType, config: OptimizerConfig) -> list[str]:
    """Warn of settings that an optimizer which finds its own step size does not read, or is hampered by."""
    found, rate = [], f"`optimizer.learning_rate`={config.learning_rate}"
    if kind.finds_rate == "scaled" and config.learning_rate <= 0.1:
        found.append(f"`optimizer.type`={kind.name} finds its own step size: {rate} scales it, 1.0 is usual")
    if kind.finds_rate == "alone":
        found.append(f"{rate} has no effect: `optimizer.type`={kind.name} finds its own step size")
    if kind.clips and config.max_grad_norm:
        found.append(f"`optimizer.max_grad_norm`={config.max_grad_norm} hampers {kind.name}, which clips by itself; 0 is usual")
    return found


def takes_flat(config: OptimizerConfig) -> bool:
    """Tell whether the optimizer may be given one tensor in place of all that are in it."""
    kind, given = OPTIMIZERS[config.type], {item.partition("=")[0].strip() for item in config.args}
    return kind.element_wise and given.isdisjoint(kind.by_tensor)


def optimizer_arguments(config: OptimizerConfig, kind: OptimizerType, cls: type) -> dict[str, Any]:
    """Gather the arguments: the table's defaults, our settings that the class takes, then the user's own `name=value`.

    Raises SettingError for a name that the class does not take.
    """
    ours = {"betas": tuple(config.betas), "beta1": config.betas[0], "eps": config.eps}
    ours["three_betas"] = (*config.betas, CAME_BETA3)
    parameters = inspect.signature(cls).parameters
    rate = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
    arguments: dict[str, Any] = {name: value for name, value in rate.items() if name in parameters} | dict(kind.defaults)
    arguments |= {name: ours[setting] for setting, name in kind.takes.items()}
    free = [name for name in parameters if name not in ("params", "lr", "weight_decay")]
    open_to_all = kind.own and any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for item in config.args:
        name, equals, text = (part.strip() for part in item.partition("="))
        if name in ("lr", "weight_decay"):
            instead = {"lr": "learning_rate"}.get(name, name)
            raise SettingError(f"`optimizer.args` {item!r}: use the setting `optimizer.{instead}` instead")
        if not equals or not (name in free or open_to_all):
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
    except Exception as error:  # whatever the code of others raises
        way_out = "check `optimizer.args` and `optimizer.betas`"
        raise SettingError(f"`optimizer.type`={kind.name}: {brief(error)}; {way_out}") from None
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    if has_averages(optimizer):
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


def has_averages(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer has two modes, as the ScheduleFree ones: weights to train, and their averages."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


@contextmanager
def evaluating(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let ScheduleFree's parameters be their averages inside, for saving and sampling. The exact training values return.

    Others have no such mode and are left alone; so is one that is in evaluation already.
    """
    if optimizer in AVERAGING or not has_averages(optimizer):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    before = [p.detach().clone() for p in parameters]  # the switch there and back rounds; training must not notice
    AVERAGING.add(optimizer)
    optimizer.eval()  # type: ignore[attr-defined]
    try:
        yield
    finally:
        AVERAGING.discard(optimizer)
        optimizer.train()  # type: ignore[attr-defined]
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)

"""Settings of the optimizer, and the table of the optimizers there are."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ..errors import SettingError
from .registry import Registry
from .setting import check, require, setting

PLAIN_SCHEDULES = (  # which need no number of their own, or one that the graph asks for
    "constant",
    "constant_with_warmup",
    "linear",
    "cosine",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "polynomial",
)
SCHEDULES = (*PLAIN_SCHEDULES, "inverse_sqrt", "warmup_stable_decay", "piecewise_constant")
READ_BY = {  # a setting -> the only schedules that read it
    "num_cycles": ("cosine_with_restarts", "cosine_with_min_lr", "warmup_stable_decay"),
    "power": ("polynomial",),
    "min_lr_ratio": ("cosine_with_min_lr", "warmup_stable_decay"),
    "decay_steps": ("warmup_stable_decay",),
    "decay_ratio": ("warmup_stable_decay",),
    "timescale": ("inverse_sqrt",),
    "step_rules": ("piecewise_constant",),
}

ADAM = MappingProxyType({"betas": "betas", "eps": "eps"})
LONG = MappingProxyType({"betas": (0.9, 0.999)})  # torch's and bitsandbytes' AdamW
UNDECAYED = MappingProxyType({"betas": (0.9, 0.999), "weight_decay": 0.0})


@dataclass(frozen=True)
class OptimizerType:
    """An optimizer, found in its package when it is first asked for.

    takes: our settings that it has, and what its class calls them ("beta1" is the first of `optimizer.betas`, "three_betas"
    these and CAME's third). in_args: settings that stand among `optimizer.args` instead, in a form of its class' own.
    defaults: arguments that are not left at the class' own default. library: what our settings are in its package, where
    that is not what they are here. schedule_free: it averages, which takes a schedule's place. finds_rate: its step size is its
    own; "scaled" by the learning rate, 1.0 being usual, or "alone": it reads neither that nor a schedule. one_rate: all its
    parameters share one learning rate. waits: how often a step waits for the device for each tensor, unseen on the CPU.
    element_wise: it treats every number alike, whatever tensor it is in, unless one of the arguments `by_tensor` is given.
    clips: it limits its steps itself. versioned: a run goes on with the version of its package that it began with.
    own: a user named it as `module.Class`, and what it is shows when it is tried.
    """

    name: str  # also the class', where `class_name` is empty
    module: str
    package: str  # what pip installs
    class_name: str = ""
    takes: Mapping[str, str] = field(default_factory=lambda: ADAM)
    in_args: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    library: Mapping[str, Any] = field(default_factory=lambda: UNDECAYED)
    schedule_free: bool = False
    finds_rate: str = ""
    one_rate: bool = False
    waits: int = 0
    element_wise: bool = False
    by_tensor: tuple[str, ...] = ()
    clips: bool = False
    versioned: bool = False
    own: bool = False

    @property
    def class_in_module(self) -> str:
        return self.class_name or self.name

    @property
    def top(self) -> str:
        """Return the module that its package installs."""
        return self.module.partition(".")[0]


# No part begins with "_": importing a package's __main__ would run it.
DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)+", re.ASCII)


class Optimizers(Registry[OptimizerType]):
    """Those of the table, and any other class of a package that is installed, by its `module.Class`."""

    def __getitem__(self, name: str) -> OptimizerType:
        """Raise SettingError for a name that no entry has and that is no `module.Class`."""
        if "." not in name:
            try:
                return super().__getitem__(name)
            except SettingError as error:
                raise SettingError(f"{error.text}, or module.Class of an installed package, as torch.optim.NAdam") from None
        if not DOTTED.fullmatch(name):
            way_out = "write module.Class of an installed package, as torch.optim.NAdam"
            raise SettingError(f"`{self.setting}`={name!r}: is no class' name; {way_out}")
        module, _, class_name = name.rpartition(".")
        known = (kind for kind in self if (kind.top, kind.class_in_module) == (module.partition(".")[0], class_name))
        return next(known, None) or named_by_user(module, class_name)


def named_by_user(module: str, class_name: str) -> OptimizerType:
    """Describe an optimizer of which only its name is known. Its arguments are its own, but for rate and weight decay."""
    top = module.partition(".")[0]
    return OptimizerType(
        name=f"{module}.{class_name}",
        module=module,
        package=top.replace("_", "-"),
        class_name=class_name,
        takes={},
        in_args=("betas", "eps"),
        library={"weight_decay": 0.0},
        schedule_free="schedulefree" in class_name.lower(),
        waits=int(top == "bitsandbytes"),  # `Optimizer8bit.step` synchronises
        versioned=top != "torch",
        own=True,
    )


OPTIMIZERS = Optimizers(
    "optimizer.type",
    [
        OptimizerType("AdamW", "torch.optim", "torch", library=LONG, element_wise=True),
        OptimizerType("AdamW8bit", "bitsandbytes.optim", "bitsandbytes", library=LONG, waits=1),
        OptimizerType(
            "Lion",
            "lion_pytorch",
            "lion-pytorch",
            takes={"betas": "betas"},
            library={"weight_decay": 0.0},
            element_wise=True,
            by_tensor=("cautious_factor",),  # of some versions
        ),
        # torch's Adafactor scales lr by max(eps[1], rms of the parameter): its 0.001 would hardly move a factor that starts
        # at zero. 1 makes lr absolute, which others call relative_step=False scale_parameter=False.
        OptimizerType(
            "Adafactor",
            "torch.optim",
            "torch",
            takes={},
            defaults={"eps": (None, 1.0)},
            library={"weight_decay": 0.0},
        ),
        # sd-scripts' Adafactor with relative_step=True: its rate is min(0.01, 1 / sqrt(step)) times the parameter's size.
        OptimizerType(
            "AdafactorRelative",
            "transformers.optimization",
            "transformers",
            class_name="Adafactor",
            takes={},
            in_args=("eps",),
            defaults={"lr": None, "relative_step": True},
            library={"weight_decay": 0.0},
            finds_rate="alone",
            one_rate=True,
        ),
        OptimizerType(
            "CAME",
            "pytorch_optimizer",
            "pytorch-optimizer",
            takes={"three_betas": "betas"},
            in_args=("betas",),
            versioned=True,
        ),
        OptimizerType(
            "Prodigy",
            "prodigyopt",
            "prodigyopt",
            finds_rate="scaled",
            one_rate=True,
            element_wise=True,  # its step size comes from sums over all
            by_tensor=("slice_p",),
        ),
        OptimizerType(
            "ProdigyPlusScheduleFree",
            "prodigyplus",
            "prodigy-plus-schedule-free",
            library={"betas": (0.9, 0.99), "weight_decay": 0.0},
            schedule_free=True,
            finds_rate="scaled",
            clips=True,
            versioned=True,
        ),
        OptimizerType("RAdamScheduleFree", "schedulefree", "schedulefree", schedule_free=True, element_wise=True),
        OptimizerType("AdamWScheduleFree", "schedulefree", "schedulefree", schedule_free=True, element_wise=True),
        OptimizerType(
            "SGDScheduleFree",
            "schedulefree",
            "schedulefree",
            takes={"beta1": "momentum"},
            library={"weight_decay": 0.0},
            schedule_free=True,
            element_wise=True,
        ),
    ],
)


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and learning-rate schedule. One step is one optimizer step."""

    type: str = setting(
        "AdamW",
        "Optimizer. AdamW is the safe choice; ScheduleFree ones need no schedule (constant, no warm-up). AdamW8bit, CAME, "
        "Lion, Prodigy and ProdigyPlusScheduleFree need their package; any other is module.Class of an installed one.",
        resume="fixed",
    )
    learning_rate: float = setting(
        1e-4, "Learning rate: 1e-4 for LoRA with AdamW; 2e-5 to 5e-5 for large sets; 1.0 for Prodigy.", above=0
    )
    weight_decay: float = setting(0.01, "Weight decay: how strongly the adapter is pulled towards zero.", low=0)
    betas: tuple[float, float] = setting((0.9, 0.99), "Betas: how long the gradient and its square are remembered.")
    eps: float = setting(1e-8, "Epsilon, which keeps the optimizer from dividing by zero.", above=0)
    args: tuple[str, ...] = setting((), "Further arguments of the optimizer, name=value each.")
    max_grad_norm: float = setting(
        1.0, "Gradient clipping: the longest gradient that is let through; 0 turns clipping off.", low=0
    )
    scheduler: str = setting("constant", "How the learning rate changes over the run.", choices=SCHEDULES)
    warmup_steps: int = setting(0, "Warm-up: steps over which the learning rate rises from 0.", low=0)
    warmup_ratio: float = setting(0.0, "Warm-up as a share of all steps, where `optimizer.warmup_steps` is 0.", low=0, below=1)
    num_cycles: float = setting(
        1.0,
        "How often cosine_with_restarts falls; for cosine_with_min_lr the number of half waves, 1 being one fall.",
        above=0,
    )
    power: float = setting(1.0, "Exponent of the polynomial schedule.", above=0)
    min_lr_ratio: float = setting(0.0, "Floor of cosine_with_min_lr, relative to the learning rate.", low=0, high=1)
    decay_steps: int = setting(0, "Steps at the end over which warmup_stable_decay falls, along a cosine.", low=0)
    decay_ratio: float = setting(
        0.0, "The fall of warmup_stable_decay as a share of all steps, where `optimizer.decay_steps` is 0.", low=0, below=1
    )
    timescale: int = setting(
        0, "Steps after which inverse_sqrt has fallen to 0.7; 0: as many as the warm-up has, 10000 without one.", low=0
    )
    step_rules: str = setting(
        "", "Factors of piecewise_constant and the steps at which they end: 1:500,0.1:900,0.01 falls at step 500 and 900."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "type", OPTIMIZERS[self.type].name)
        check(self)
        betas_ok = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        require(betas_ok, "optimizer.betas", self.betas, "must be two numbers that are at least 0 and below 1")
        if self.scheduler == "piecewise_constant":
            pieces(self.step_rules)
        if OPTIMIZERS[self.type].schedule_free or OPTIMIZERS[self.type].finds_rate == "alone":
            self._check_no_schedule()

    def _check_no_schedule(self) -> None:
        """Refuse schedules in the words of sd-scripts-anima, which people search for."""
        if self.scheduler != "constant":
            raise SettingError(f"optimizer={self.type} requires lr_scheduler=constant")
        if self.warmup_steps > 0:
            raise SettingError(f"optimizer={self.type} requires lr_warmup_steps=0")
        if self.warmup_ratio > 0:
            raise SettingError(f"optimizer={self.type} requires lr_warmup_ratio=0")


def pieces(rules: str) -> tuple[list[tuple[int, float]], float]:
    """Read "1:500,0.1:900,0.01", diffusers' way to write it: where each factor ends, in order, and the last factor."""
    *ends, last = rules.split(",")
    try:
        read = [(int(step), float(factor)) for factor, _, step in (end.partition(":") for end in ends)]
        numbers = [float(last), *(factor for _, factor in read)]
    except ValueError:
        numbers = [-1.0]
    written = "write factor:step,…,factor, such as 1:500,0.1:900,0.01"
    require(all(0 <= number < math.inf for number in numbers), "optimizer.step_rules", repr(rules), written)
    return sorted(read), float(last)

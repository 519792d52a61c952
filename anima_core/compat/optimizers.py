"""The optimizer's flags -> OptimizerConfig, by the rules of sd-scripts."""

import inspect
import math
from typing import Any

from ..errors import SettingError
from ..settings import OptimizerConfig
from ..settings.optimizer import OPTIMIZERS, READ_BY, OptimizerType
from ..settings.registry import plain
from ..settings.setting import name_of
from .flags import ADAFACTOR, setting_words
from .mapped import settings_for
from .named_values import boolean, key_values

Values = dict[str, Any]

NESTEROV = {"nesterov": "True", "momentum": "0.9"}
WORDS: dict[str, tuple[str, dict[str, str]]] = {  # sd-scripts' words -> our type, and the arguments that it adds
    **{word: (f"bitsandbytes.optim.{word}", {}) for word in ("PagedAdamW", "PagedAdamW8bit", "PagedAdamW32bit")},
    **{word: (f"bitsandbytes.optim.{word}", {}) for word in ("Lion8bit", "PagedLion8bit")},
    **{word: (f"dadaptation.{word}", {}) for word in ("DAdaptAdaGrad", "DAdaptAdam", "DAdaptAdan", "DAdaptLion", "DAdaptSGD")},
    "DAdaptation": ("dadaptation.experimental.DAdaptAdamPreprint", {}),
    "DAdaptAdanIP": ("dadaptation.experimental.DAdaptAdanIP", {}),
    **{word: (f"torch.optim.{word}", {}) for word in ("Adadelta", "Adagrad", "Adam", "Adamax", "ASGD", "Muon", "NAdam")},
    **{word: (f"torch.optim.{word}", {}) for word in ("RAdam", "RMSprop", "Rprop", "SGD")},
    "SGDNesterov": ("torch.optim.SGD", NESTEROV),
    "SGDNesterov8bit": ("bitsandbytes.optim.SGD8bit", NESTEROV),
}
BY_WORD = {plain(word): found for word, found in WORDS.items()}

PRODIGY = {  # a key of files -> name within --optimizer_args, where Prodigy is the optimizer
    "prodigy_d0": "d0",
    "prodigy_d_coef": "d_coef",
    "prodigy_decouple": "decouple",
    "prodigy_use_bias_correction": "use_bias_correction",
    "prodigy_safeguard_warmup": "safeguard_warmup",
}
CAME = {f"came_{name}": name for name in ("weight_decouple", "fixed_decay", "clip_threshold", "ams_bound", "eps1", "eps2")}
OF_BOTH = ("d0", "d_coef", "use_bias_correction")  # of Prodigy's arguments
KEYS = {  # a class -> the keys of files that are arguments of it
    "Prodigy": PRODIGY,
    "ProdigyPlusScheduleFree": {key: name for key, name in PRODIGY.items() if name in OF_BOTH},
    "CAME": CAME,
}


def keys_of(optimizer_type: Any) -> dict[str, str]:
    """Return the keys of files that an optimizer reads -> name within --optimizer_args."""
    word = plain(str(optimizer_type).rpartition(".")[2])
    return next((keys for name, keys in KEYS.items() if plain(name) == word), {})


def optimizer_config(values: Values, notes: list[str]) -> OptimizerConfig:
    """Read the optimizer's flags: weight_decay, eps and betas stand among --optimizer_args, else they are its library's."""
    own = key_values(values["optimizer_args"], "optimizer_args")
    found = settings_for(OptimizerConfig, values)
    kind, added = optimizer_type(values, own)
    own = added | own
    found |= {"type": kind.name} | library(kind)
    found |= numbers_of_the_optimizer(own, kind)
    found |= schedule_lengths(values) | schedule_arguments(values, notes)
    if kind.finds_rate == "alone":
        found |= no_schedule(found, notes)
    found["learning_rate"] = values["unet_lr"] or found["learning_rate"]
    found["args"] = tuple(f"{k}={v}" for k, v in own.items())
    notes += not_read_by_the_schedule(config := OptimizerConfig(**found))
    return config


def optimizer_type(values: Values, own: dict[str, str]) -> tuple[OptimizerType, dict[str, str]]:
    """Return the optimizer that the flags mean, and the arguments that its word adds. Raises SettingError."""
    lion_or_any = "Lion" if values["use_lion_optimizer"] else values["optimizer_type"]
    word = "AdamW8bit" if values["use_8bit_adam"] else lion_or_any
    name, added = BY_WORD.get(plain(word), (word, {}))
    kind = OPTIMIZERS[name]
    if kind.name in ("Adafactor", "AdafactorRelative"):
        return adafactor(kind, values, own), added
    if values["lr_scheduler"] == ADAFACTOR:
        instead = "choose --optimizer_type Adafactor with it, or another schedule"
        raise SettingError(f"lr_scheduler={ADAFACTOR} belongs to a step size that Adafactor finds itself: {instead}")
    return kind, added


def adafactor(kind: OptimizerType, values: Values, own: dict[str, str]) -> OptimizerType:
    """Return which Adafactor sd-scripts' switches mean. Its step is learning_rate unless they ask for relative steps.

    The absolute one has none of these switches: False is taken out, True is refused.
    """
    asked = values["lr_scheduler"] == ADAFACTOR
    relative = boolean(own.pop("relative_step", str(asked or kind.finds_rate == "alone")), "relative_step")
    if relative:
        return OPTIMIZERS["AdafactorRelative"]
    if asked:
        instead = "leave out relative_step=False, or use constant or constant_with_warmup"
        raise SettingError(f"lr_scheduler={ADAFACTOR} belongs to a step size that Adafactor finds itself: {instead}")
    for name in ("scale_parameter", "warmup_init"):
        if name in own and boolean(own.pop(name), name):
            instead = f"use {name}=False, or relative_step=True"
            raise SettingError(f"optimizer_args {name}=True: Adafactor's step is learning_rate here; {instead}")
    return OPTIMIZERS["Adafactor"]


def library(kind: OptimizerType) -> Values:
    """Return what an optimizer's own package sets where --optimizer_args do not. Raises SettingError when it is not there."""
    if not kind.own:
        return dict(kind.library)
    from ..training.optimizers import optimizer_class  # loads torch

    decay = inspect.signature(optimizer_class(kind)).parameters.get("weight_decay")
    return {"weight_decay": float(decay.default) if decay and isinstance(decay.default, int | float) else 0.0}


def no_schedule(found: Values, notes: list[str]) -> Values:
    """Leave out a schedule and a warm-up for an optimizer that reads neither, as sd-scripts does, and say so."""
    none = {"scheduler": "constant", "warmup_steps": 0, "warmup_ratio": 0.0}
    words = setting_words()
    for name, value in none.items():
        if found[name] not in (value, ADAFACTOR):
            told = words[name_of(OptimizerConfig, name)]
            notes.append(f"{told} {found[name]} has no effect: {found['type']} finds its own step size")
    return none


def not_read_by_the_schedule(config: OptimizerConfig) -> list[str]:
    """Name the numbers of other schedules that were given; front ends write each with its default."""
    asked = [name for name, schedules in READ_BY.items() if config.scheduler not in schedules]
    return [
        f"{setting_words()[name_of(OptimizerConfig, name)]} has no effect with lr_scheduler={config.scheduler}: "
        f"{', '.join(READ_BY[name])} {'reads' if len(READ_BY[name]) == 1 else 'read'} it"
        for name in asked
        if getattr(config, name) != getattr(OptimizerConfig, name)
    ]


def numbers_of_the_optimizer(own: dict[str, str], kind: OptimizerType) -> Values:
    """Take out the --optimizer_args that are settings of ours. Raises SettingError that names the argument."""
    found: Values = {}
    pair = "three_betas" in kind.takes and own.get("betas", "").count(",") == 1
    stay = {*kind.in_args} - ({"betas"} if pair else set())
    for name in [name for name in ("weight_decay", "eps", "betas") if name in own and name not in stay]:
        text = own.pop(name)
        try:
            numbers = tuple(float(part) for part in text.strip("()[] ").split(","))
            found[name] = numbers if name == "betas" else float(text)
        except ValueError:
            way_out = "write two numbers, such as 0.9,0.99" if name == "betas" else "write a number, such as 0.01 or 1e-8"
            raise SettingError(f"optimizer_args: {name}={text}: {way_out}") from None
    return found


def schedule_lengths(values: Values) -> Values:
    """Read lr_warmup_steps and lr_decay_steps: below 1 they are a share of all steps."""
    found: Values = {}
    for flag, name in (("lr_warmup_steps", "warmup"), ("lr_decay_steps", "decay")):
        if not math.isfinite(values[flag]):
            raise SettingError(f"{flag}={values[flag]}: must be a number of steps, or a share of all below 1")
        share = 0 < values[flag] < 1
        found[f"{name}_steps"] = 0 if share else int(values[flag])
        found[f"{name}_ratio"] = values[flag] if share else 0.0
    found["warmup_ratio"] = values["lr_warmup_ratio"] or found["warmup_ratio"]
    return found


def schedule_arguments(values: Values, notes: list[str]) -> Values:
    """Read --lr_scheduler_args: sd-scripts hands them to the schedule's function; only one has no flag of its own."""
    own = key_values(values["lr_scheduler_args"], "lr_scheduler_args")
    rules = own.pop("step_rules", "").strip("'\"")
    notes += [f"lr_scheduler_args {name} has no effect: the schedule's own flags set it" for name in own]
    return {"step_rules": rules}

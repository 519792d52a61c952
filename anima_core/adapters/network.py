"""The adapter network: put into a model, taken out again, grouped for the optimizer."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..config import FULL_MATRIX_RANK, NetworkConfig
from .layers import AdaptedLinear, AdaptedNorm, Dropouts, init_generator
from .lokr import LoKr
from .lora import LoRA
from .targets import learning_rate_of, linear_names, matching, pattern_value, select_targets

Adapted = AdaptedLinear | AdaptedNorm


class AdapterNetwork(nn.Module):
    """All adapters of one model. Its parameters are registered here, fp32; the base model stays frozen and unchanged."""

    def __init__(self, model: nn.Module, config: NetworkConfig, adapted: dict[str, Adapted], dropouts: Dropouts) -> None:
        super().__init__()
        self._model = [model]  # in a list: the model's parameters are not this module's
        self.config = config
        self.adapted = adapted
        self.dropouts = dropouts
        trained = {name: m.adapter if isinstance(m, AdaptedLinear) else NormHolder(m) for name, m in adapted.items()}
        self.adapters = nn.ModuleDict({name.replace(".", "/"): module for name, module in trained.items()})

    @classmethod
    def inject(cls, model: nn.Module, config: NetworkConfig, seed: int) -> "AdapterNetwork":
        """Wrap the chosen layers of `model`. Raises SettingError for patterns that match nothing."""
        targets = select_targets(model, config)
        matching(tuple(pattern_value(item)[0] for item in config.learning_rates), linear_names(model), "learning_rates")
        norms = norm_names(model, targets) if config.train_norm else []
        dropouts = Dropouts(seed, config.dropout, config.rank_dropout, config.module_dropout)
        adapted: dict[str, Adapted] = {}
        for layer, (name, rank) in enumerate(targets.items()):
            base = model.get_submodule(name)
            adapter = build_adapter(name, base, rank, config, dropouts, layer, seed)
            adapted[name] = AdaptedLinear(base, adapter.to(base.weight.device))
        for name in norms:
            adapted[name] = AdaptedNorm(model.get_submodule(name))
        for name, module in adapted.items():
            replace_module(model, name, module)
        return cls(model, config, adapted, dropouts)

    def eject(self) -> nn.Module:
        """Put the untouched base layers back; returns the model."""
        for name, module in self.adapted.items():
            replace_module(self._model[0], name, module.base)
        return self._model[0]

    @property
    def multiplier(self) -> float:
        return next(iter(self.adapted.values())).multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        for module in self.adapted.values():
            module.multiplier = value

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base model alone, inside."""
        before, self.multiplier = self.multiplier, 0.0
        try:
            yield
        finally:
            self.multiplier = before

    def begin_step(self, draw: int) -> None:
        """Number of the micro-batch: dropout masks follow from it."""
        self.dropouts.draw = draw

    def parameter_groups(self, base_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Optimizer groups by learning rate. A rate of 0 freezes its layers and leaves them out."""
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, module in self.trained():
            lr = learning_rate_of(name, self.config, base_lr)
            for key, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(lr > 0)
                ratio = self.config.loraplus_lr_ratio if key == getattr(module, "zero_init", "") else 1.0
                if lr > 0:
                    groups[lr * ratio].append(parameter)
        return [{"name": f"lr {lr:g}", "params": p, "lr": lr, "weight_decay": weight_decay} for lr, p in groups.items()]

    def trained(self) -> Iterator[tuple[str, nn.Module]]:
        """(layer name, module that holds the trained parameters)."""
        for name, module in self.adapted.items():
            yield name, module.adapter if isinstance(module, AdaptedLinear) else module

    def zero_init_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The factors that start at zero and must not stay there."""
        found = []
        for name, module in self.trained():
            key = getattr(module, "zero_init", "w_norm")
            parameter = getattr(module, key)
            if parameter.requires_grad:
                found.append((f"{name}.{key}", parameter))
        return found

    def describe(self) -> str:
        numbers = sum(p.numel() for p in self.parameters())
        linears = sum(isinstance(m, AdaptedLinear) for m in self.adapted.values())
        norms = f" and {len(self.adapted) - linears} norms" if len(self.adapted) > linears else ""
        return f"{self.config.type}: {linears} layers{norms}, {numbers:,} parameters, {numbers * 2 / 1e6:.1f} MB as bf16"


class NormHolder(nn.Module):
    """Registers a norm's difference without its base."""

    def __init__(self, norm: AdaptedNorm) -> None:
        super().__init__()
        self.w_norm = norm.w_norm


def build_adapter(
    name: str, base: nn.Linear, rank: int, config: NetworkConfig, dropouts: Dropouts, layer: int, seed: int
) -> LoRA | LoKr:
    common = dict(dropouts=dropouts, layer=layer, generator=init_generator(seed, name))
    if config.type == "lora":
        return LoRA(base.in_features, base.out_features, rank, config.alpha, **common)
    full = config.full_matrix or rank >= FULL_MATRIX_RANK
    kind = dict(factor=config.factor, full_matrix=full, decompose_both=config.decompose_both)
    return LoKr(base.in_features, base.out_features, rank, config.alpha, **kind, **common)


def norm_names(model: nn.Module, targets: dict[str, int]) -> list[str]:
    """The transformer's norms, and the LLM adapter's when any of its layers is trained."""
    with_adapter = any(name.startswith("llm_adapter.") for name in targets)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.RMSNorm)]
    return [name for name in norms if with_adapter or not name.startswith("llm_adapter.")]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    holder = model.get_submodule(parent)
    if isinstance(holder, nn.Sequential):
        holder[int(leaf)] = module
    else:
        setattr(holder, leaf, module)

"""The adapter network: put into a model, taken out again, grouped for the optimizer."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .. import seeds
from ..models.frozen import home, replace_module
from ..settings import NetworkConfig
from . import dora
from .adapter_type import Adapter, Layer
from .casts import Casts
from .dropouts import Dropouts, Part
from .flat import Flat
from .layers import AdaptedLinear, AdaptedNorm
from .noise_ranks import NoiseRanks
from .targets import alpha_of, learning_rate_of, linear_names, matching, pattern_value, select_targets
from .types import ADAPTER_TYPES

Adapted = AdaptedLinear | AdaptedNorm


class AdapterNetwork(nn.Module):
    """All adapters of one model. Its parameters are registered here, fp32; the base model stays frozen and unchanged."""

    def __init__(
        self,
        model: nn.Module,
        config: NetworkConfig,
        adapted: dict[str, Adapted],
        dropouts: Dropouts,
        noise_ranks: NoiseRanks | None = None,
    ) -> None:
        super().__init__()
        self._model = [model]  # in a list: the model's parameters are not this module's
        self.config = config
        self.kind = ADAPTER_TYPES[config.type]
        self.adapted = adapted
        self.dropouts, self.noise_ranks = dropouts, noise_ranks
        self.flat: tuple[Flat, ...] = ()  # of the groups, see `flatten`
        self.holds_casts = True  # else each layer makes its own where it computes: less memory, and more launches
        self._casts: Casts | None = None
        trained = {name: m.adapter if isinstance(m, AdaptedLinear) else NormHolder(m) for name, m in adapted.items()}
        self.adapters = nn.ModuleDict({name.replace(".", "/"): module for name, module in trained.items()})

    @classmethod
    def inject(cls, model: nn.Module, config: NetworkConfig, seed: int) -> "AdapterNetwork":
        """Wrap the chosen layers of `model`. Raises SettingError for patterns that match nothing."""
        targets = select_targets(model, config)
        for setting in ("alphas", "learning_rates"):
            patterns = tuple(pattern_value(item)[0] for item in getattr(config, setting))
            matching(patterns, linear_names(model), f"network.{setting}")
        norms = norm_names(model, targets) if config.train_norm else []
        kind, dropouts = ADAPTER_TYPES[config.type], Dropouts.of(config, seed)
        ranks = NoiseRanks(config) if config.tlora_min_rank else None
        adapted: dict[str, Adapted] = {}
        for number, (name, rank) in enumerate(targets.items()):
            base, generator = linear(model, name), seeds.generator(seed, "init", name)
            layer = Layer(base.in_features, base.out_features, rank, number, dropouts, generator, ranks)
            own = dataclasses.replace(config, alpha=alpha_of(name, config)) if config.alphas else config
            adapter = kind.build(layer, own).to(home(base).device)
            if config.dora:
                dora.decompose(adapter, base)
            adapted[name] = (dora.DoRALinear if config.dora else AdaptedLinear)(base, adapter)
        for name in norms:
            norm = model.get_submodule(name)
            assert isinstance(norm, nn.RMSNorm)
            adapted[name] = AdaptedNorm(norm)
        for name, module in adapted.items():
            replace_module(model, name, module)
        return cls(model, config, adapted, dropouts, ranks)

    @property
    def model(self) -> nn.Module:
        return self._model[0]

    def eject(self) -> nn.Module:
        """Put the untouched base layers back; return the model."""
        for name, module in self.adapted.items():
            replace_module(self.model, name, module.base)
        return self.model

    @property
    def multiplier(self) -> float:
        return next(iter(self.adapted.values())).multiplier

    @multiplier.setter
    def multiplier(self, value: float) -> None:
        for module in self.adapted.values():
            module.multiplier = value

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Leave the base model alone, inside: what it computes there is what it computes without a network, to the bit.

        It may be entered in a micro-batch, before its forward pass; what is made inside takes no gradient to the adapters.
        """
        before, self.multiplier = self.multiplier, 0.0
        try:
            yield
        finally:
            self.multiplier = before

    @property
    def linears(self) -> list[AdaptedLinear]:
        return [module for module in self.adapted.values() if isinstance(module, AdaptedLinear)]

    @property
    def fused(self) -> bool:
        """Whether linears take their fast form, where they have one; see `AdaptedLinear`."""
        return all(module.fused for module in self.linears)

    @fused.setter
    def fused(self, value: bool) -> None:
        for module in self.linears:
            module.fused = value

    @contextmanager
    def micro_batch(self, number: int, part: Part | None = None, t: Tensor | None = None) -> Iterator[None]:
        """Run forward and backward of one micro-batch, or of a part of it, inside. Dropout masks follow from its number.

        t: the noise of its pictures, [B], which a T-LoRA's ranks follow.

        No parameter may change inside: fused layers compute with casts that were made on entry, and add gradients straight to
        the `.grad` of parameters that have one.
        """
        self.dropouts.micro_batch, self.dropouts.part = number, part
        with self.casts.in_use(), self.noise_ranks.of_pictures(t) if self.noise_ranks else nullcontext():
            yield

    @property
    def casts(self) -> Casts:
        """The factors in the model's dtype, for fused layers: laid out when they are first asked for, and kept."""
        if self._casts is None:
            linears, flats = (self.linears, self.flat) if self.holds_casts else ([], ())
            dtype = home(linears[0].base).dtype if linears else torch.float32
            self._casts = Casts([module.adapter for module in linears], flats, dtype)
        return self._casts

    def parameter_groups(self, base_lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return optimizer groups by learning rate. A rate of 0 freezes its layers and leaves them out."""
        groups: dict[float, list[nn.Parameter]] = defaultdict(list)
        for name, module in self.trained():
            lr = learning_rate_of(name, self.config, base_lr)
            for key, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(lr > 0)
                ratio = self.config.loraplus_lr_ratio if key == getattr(module, "zero_init", "") else 1.0
                if lr > 0:
                    groups[lr * ratio].append(parameter)
        return [{"name": f"lr {lr:g}", "params": p, "lr": lr, "weight_decay": weight_decay} for lr, p in groups.items()]

    def flatten(self, groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Lay the parameters of each group into one tensor, see `Flat`. Return the groups with these as their parameters."""
        self.flat, self._casts = tuple(Flat(group["params"]) for group in groups), None
        return [group | {"params": [flat.whole]} for group, flat in zip(groups, self.flat)]

    def wholes(self) -> list[nn.Parameter]:
        """Return what holds all parameters: the flat tensors, and those that lie in none."""
        inside = {id(p) for flat in self.flat for p in flat.parameters}
        return [*(flat.whole for flat in self.flat), *(p for p in self.parameters() if id(p) not in inside)]

    def copied(self, copy: Callable[[Tensor], Tensor]) -> dict[nn.Parameter, Tensor]:
        """Return what `copy` makes of every parameter, in its shape; it is called once for each flat tensor."""
        copies = {whole: copy(whole.detach()) for whole in self.wholes()}
        for flat in self.flat:
            copies |= zip(flat.parameters, flat.split(copies[flat.whole]))
        return copies

    def host_state(self) -> dict[str, Tensor]:
        """Return a copy of the state dict on the CPU."""
        copies = self.copied(lambda tensor: tensor.to("cpu", copy=True))
        return {name: copies[parameter] for name, parameter in self.state_dict(keep_vars=True).items()}

    def trained(self) -> Iterator[tuple[str, Adapter | AdaptedNorm]]:
        """Yield (layer name, module that holds the trained parameters)."""
        for name, module in self.adapted.items():
            yield name, module.adapter if isinstance(module, AdaptedLinear) else module

    def tensors(self, module: Adapter | AdaptedNorm) -> dict[str, nn.Parameter]:
        """Return the parameters of one layer under the names of the file format, fp32, without alpha."""
        named = dict(module.named_parameters(recurse=False))
        return {f"{name}.weight" if f"{name}.weight" in self.kind.tensors else name: p for name, p in named.items()}

    def zero_init_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Return the factors that start at zero and must not stay there."""
        found = []
        for name, module in self.trained():
            key = getattr(module, "zero_init", "w_norm")
            parameter = getattr(module, key)
            if parameter.requires_grad:
                found.append((f"{name}.{key}", parameter))
        return found

    def describe(self) -> str:
        numbers = sum(p.numel() for p in self.parameters())
        linears = len(self.linears)
        norms = f" and {len(self.adapted) - linears} norms" if len(self.adapted) > linears else ""
        kind = f"{self.kind.name}{' as DoRA' if self.config.dora else ' as T-LoRA' if self.config.tlora_min_rank else ''}"
        return f"{kind}: {linears} layers{norms}, {numbers:,} parameters, {numbers * 2 / 1e6:.1f} MB as bf16"


@torch.no_grad()
def merge(network: AdapterNetwork, strength: float = 1.0) -> nn.Module:
    """Eject the network and add its corrections to the base weights, as patching a file in ComfyUI does."""
    deltas = [(module.base, layer_delta(network, module)) for module in network.adapted.values()]
    model = network.eject()
    for base, delta in deltas:
        base.weight.copy_((base.weight.float() + strength * delta).to(base.weight.dtype))
    return model


def layer_delta(network: AdapterNetwork, module: Adapted) -> Tensor:
    """Return what a layer adds to its base weight, fp32: [out, in], or [D] of a norm."""
    if isinstance(module, AdaptedNorm):
        return module.w_norm
    tensors = network.tensors(module.adapter)
    return network.kind.delta(tensors | {"alpha": torch.tensor(module.adapter.alpha)}, module.weight.float())


class NormHolder(nn.Module):
    """Registers a norm's difference without its base."""

    def __init__(self, norm: AdaptedNorm) -> None:
        super().__init__()
        self.w_norm = norm.w_norm


def linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, nn.Linear), name
    return module


def norm_names(model: nn.Module, targets: dict[str, int]) -> list[str]:
    """Return the transformer's norms, and the LLM adapter's when any of its layers is trained."""
    with_llm_adapter = any(name.startswith("llm_adapter.") for name in targets)
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.RMSNorm)]
    return [name for name in norms if with_llm_adapter or not name.startswith("llm_adapter.")]

"""How others take the same step, on the same weights and batch: ComfyUI's class, and the way of the sd-scripts family.

Their adapters are written here after their formulas, in the model's dtype at each call, over fp32 parameters. Both train with
fused AdamW over one tensor a factor, as torch offers it, and clip by `clip_grad_norm_`.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from anima_core.adapters.targets import select_targets
from anima_core.adapters.types.lokr import factorization
from anima_core.models.frozen import replace_module
from anima_core.settings import FlowConfig
from anima_core.training import flow
from anima_core.training.feed import Batch
from anima_core.training.optimizers import make_state

from .comfyui_class import ANIMA
from .machine import start_comfyui
from .training_step import MAX_NORM, Case, Weights, model_of

FACTOR = 8


class PlainLoRA(nn.Module):
    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, base.in_features) / base.in_features**0.5)
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = 1.0

    def zero(self) -> nn.Parameter:
        return self.up

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype)) * self.scale


class PlainLoKr(nn.Module):
    """By the large factor first, then the small one, as ComfyUI's bypass; or `by_delta`, as sd-scripts."""

    def __init__(self, base: nn.Linear, rank: int, whole: bool, by_delta: bool) -> None:
        super().__init__()
        (l, k), (m, n) = factorization(base.out_features, FACTOR), factorization(base.in_features, FACTOR)  # noqa: E741
        self.m, self.by_delta = m, by_delta
        self.w1 = nn.Parameter(torch.randn(l, m) / m**0.5)
        sizes = [(k, n)] if whole else [(k, rank), (rank, n)]
        self.w2 = nn.ParameterList(nn.Parameter(torch.randn(size) / size[1] ** 0.5) for size in sizes)
        nn.init.zeros_(self.zero())

    def zero(self) -> nn.Parameter:
        return self.w2[-1]

    def forward(self, x: Tensor) -> Tensor:
        w1, (first, *rest) = self.w1, self.w2
        w2 = first @ rest[0] if rest else first
        if self.by_delta:
            return F.linear(x, torch.kron(w1, w2).to(x.dtype))
        z = F.linear(x.unflatten(-1, (self.m, -1)), w2.to(x.dtype))
        return F.linear(z.transpose(-1, -2), w1.to(x.dtype)).transpose(-1, -2).flatten(-2)


def plain_adapter(case: Case, base: nn.Linear, by_delta: bool) -> PlainLoRA | PlainLoKr:
    if case.network == "lora":
        return PlainLoRA(base, case.rank)
    return PlainLoKr(base, case.rank, case.network == "lokr_full", by_delta)


class Wrapped(nn.Module):
    def __init__(self, base: nn.Linear, adapter: nn.Module) -> None:
        super().__init__()
        self.base, self.adapter = base, adapter

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.adapter(x)


class PeerStep(ABC):
    """One call is one step of training. A subclass says how the model answers."""

    name: str

    def __init__(self, model: nn.Module, adapters: list[PlainLoRA | PlainLoKr], batch: Batch, device: torch.device) -> None:
        self.model, self.adapters, self.batch, self.device = model, adapters, batch, device
        self.parameters = [p for adapter in adapters for p in adapter.to(device).parameters()]
        self.after_forward: Callable[[], None] = lambda: None
        kind = {"foreach": True} if device.type == "meta" else {"fused": True}
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, weight_decay=0.01, **kind)
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        make_state(self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    @abstractmethod
    def velocity(self, noisy: Tensor, batch: Batch) -> Tensor:
        """Let the model answer."""

    def forward(self) -> Tensor:
        batch = self.batch.to(self.device)
        prediction = self.velocity(flow.interpolate(batch.latents, batch.noise, batch.t), batch)
        return flow.flow_loss(prediction, flow.velocity_target(batch.latents, batch.noise), batch.t, FlowConfig()).mean()

    def __call__(self) -> None:
        loss = self.forward()
        self.after_forward()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def zeros(self) -> list[nn.Parameter]:
        return [adapter.zero() for adapter in self.adapters]

    def tensors(self) -> Iterator[Tensor]:
        yield from self.model.parameters()
        yield from self.parameters
        yield from (value for state in self.optimizer.state.values() for value in state.values() if isinstance(value, Tensor))


class SdScriptsStep(PeerStep):
    """The way of sd-scripts: each linear's forward is replaced by one that adds the adapter, every block is recomputed."""

    name = "sd-scripts' way"

    def __init__(self, case: Case, weights: Weights, batch: Batch, device: torch.device) -> None:
        model, adapters = model_of(case, weights), []
        for name in select_targets(model, case.adapter):
            base = model.get_submodule(name)
            adapters.append(plain_adapter(case, base, by_delta=True))
            base.forward = functools.partial(added, base.forward, adapters[-1])
        for block in model.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
        super().__init__(model, adapters, batch, device)

    def velocity(self, noisy: Tensor, batch: Batch) -> Tensor:
        return self.model(noisy, batch.t, batch.text["embeds"])


def added(forward: Callable[[Tensor], Tensor], adapter: nn.Module, x: Tensor) -> Tensor:
    return forward(x) + adapter(x)


class ComfyStep(PeerStep):
    """ComfyUI's own Anima class, its linears wrapped. It keeps all activations.

    ComfyUI calls a kernel of norm and rotary positions that has no backward pass; here its library's plain form of the same
    is called, which torch can differentiate. No more is changed. Its attention is torch's, for which it has an option.
    """

    name = "ComfyUI's class"

    def __init__(self, case: Case, weights: Weights, batch: Batch, device: torch.device) -> None:
        model = comfy_model(case)
        missing, unexpected = model.load_state_dict(weights, strict=False, assign=True)
        assert not unexpected and all("pos_embedder" in name for name in missing), (missing, unexpected)
        model.to(device).requires_grad_(False)
        adapters = []
        for name in select_targets(model, case.adapter):
            base = model.get_submodule(name)
            adapters.append(plain_adapter(case, base, by_delta=False))
            replace_module(model, name, Wrapped(base, adapters[-1]))
        super().__init__(model, adapters, batch, device)
        self.dtype = next(iter(weights.values())).dtype

    def velocity(self, noisy: Tensor, batch: Batch) -> Tensor:
        return self.model(noisy.to(self.dtype).unsqueeze(2), batch.t, batch.text["embeds"]).squeeze(2)


def prepare_comfyui(checkout: Path, device: torch.device) -> None:
    start_comfyui(checkout, device, "--use-pytorch-cross-attention")
    import comfy.quant_ops
    from comfy_kitchen.backends.eager import rope

    comfy.quant_ops.ck.rms_rope_split_half = rope.rms_rope_split_half


def comfy_model(case: Case) -> nn.Module:
    """Its weights are memory that nobody touches: the caller assigns those of the case."""
    import comfy.ops
    from comfy.ldm.anima.model import Anima

    sizes = case.sizes
    model = Anima(
        model_channels=sizes.width,
        num_blocks=case.blocks,
        num_heads=sizes.width // sizes.head_dim,
        mlp_ratio=sizes.mlp_dim / sizes.width,
        crossattn_emb_channels=sizes.context_dim,
        adaln_lora_dim=sizes.adaln_dim,
        **ANIMA,
        operations=comfy.ops.disable_weight_init,
    )
    model.llm_adapter = nn.Identity()
    return model

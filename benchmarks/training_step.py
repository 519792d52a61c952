"""Our training step on a model of random weights: what `step` and `peers` time and count.

It is the step of a run whose captions are cached: the LLM adapter is not there, `Run.accumulate` takes the gradient.
"""

import time
import types
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.random_transformer import REAL
from anima_core.models.checkpoint import DTYPES
from anima_core.models.frozen import FloatWeight, Scratch
from anima_core.models.kept import store_for
from anima_core.models.llm_adapter import MIN_TEXT_ROWS
from anima_core.models.loading import with_frozen
from anima_core.models.transformer import PATCH, AnimaTransformer, TransformerConfig
from anima_core.models.vae import SCALE
from anima_core.settings import FlowConfig, NetworkConfig, OptimizerConfig
from anima_core.speed.counting import Meter, cuda_kernels
from anima_core.speed.forms import apply_away, apply_levels, make_lean
from anima_core.speed.stream import NOWHERE, Away, Streaming
from anima_core.speed.transfer import transfer_on
from anima_core.training import flow, optimizers
from anima_core.training.budget import tensors_of
from anima_core.training.events import Events
from anima_core.training.feed import Batch
from anima_core.training.loop import Run
from anima_core.training.ranks import Ranks
from anima_core.training.state import fresh_state

NETWORKS: dict[str, Callable[[int], NetworkConfig]] = {
    "lora": lambda rank: NetworkConfig(rank=rank, alpha=rank),
    "lokr": lambda rank: NetworkConfig(type="lokr", rank=rank, alpha=rank),
    "lokr_full": lambda rank: NetworkConfig(type="lokr", full_matrix=True),
    "loha": lambda rank: NetworkConfig(type="loha", rank=rank, alpha=rank),
    "dora": lambda rank: NetworkConfig(rank=rank, alpha=rank, dora=True),
    "tlora": lambda rank: NetworkConfig(rank=rank, alpha=rank, tlora_min_rank=1),
}
META = torch.device("meta")
MAX_NORM = 1.0

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """What is trained. level: of every block; plain: in the slow obvious forms; blocks: of the model; sizes: its others.

    int8: whether the blocks' large layers are stored so, but for the outer two. away: the weights that are streamed.
    """

    network: str = "lora"
    rank: int = 32
    px: int = 1024
    batch: int = 1
    level: str = "keep"
    blocks: int = REAL.blocks
    dtype: str = "bf16"
    plain: bool = False
    int8: bool = False
    away: Away = NOWHERE
    sizes: TransformerConfig = REAL

    @property
    def config(self) -> TransformerConfig:
        return replace(self.sizes, blocks=self.blocks)

    @property
    def adapter(self) -> NetworkConfig:
        return NETWORKS[self.network](self.rank)

    @property
    def tokens(self) -> int:
        """Of one picture."""
        return (self.px // (SCALE * PATCH)) ** 2

    def facts(self) -> dict:
        named = asdict(self)
        return {**{k: v for k, v in named.items() if k != "sizes"}, "width": self.sizes.width}


def random_weights(case: Case, device: torch.device) -> Weights:
    """Weights of the transformer without its LLM adapter, in the case's dtype: N(0, 1 / fan_in), norms 1."""
    with META:
        shapes = {name: tensor.shape for name, tensor in bare_model(case.config).state_dict().items()}
    where = {"device": device, "dtype": DTYPES[case.dtype]}
    return {n: torch.ones(s, **where) if len(s) == 1 else torch.randn(s, **where) / s[1] ** 0.5 for n, s in shapes.items()}


def bare_model(config: TransformerConfig) -> AnimaTransformer:
    model = AnimaTransformer(config)
    model.llm_adapter = nn.Identity()  # type: ignore[assignment]
    return model


def model_of(case: Case, weights: Weights) -> AnimaTransformer:
    """A model on these very weights: several forms of a step share them."""
    with META:
        model = bare_model(case.config)
    model.load_state_dict(weights, assign=True)
    return (in_8_bits(model) if case.int8 else model).requires_grad_(False)


def in_8_bits(model: AnimaTransformer) -> AnimaTransformer:
    """Put a model's own weights into 8 bits, as loading with int8 does; it may be without a byte of them."""
    store = store_for("int8", model.config.blocks, model.device)
    kept = {name: store(name, FloatWeight(p.data)) for name, p in model.named_parameters()}
    weights = {name: weight for name, weight in kept.items() if weight is not None}
    return with_frozen(model, weights, Scratch(model.dtype, model.device))


def batch_of(case: Case, device: torch.device) -> Batch:
    """A micro-batch as the feed hands it out: on the CPU, page-locked where CUDA takes it."""
    generator = torch.Generator().manual_seed(0)
    side = case.px // SCALE
    latents = torch.randn(case.batch, 16, side, side, generator=generator)
    text = torch.randn(case.batch, MIN_TEXT_ROWS, case.sizes.context_dim, generator=generator).to(DTYPES[case.dtype])
    batch = Batch(
        number=0,
        latents=latents,
        noise=flow.noise_like(latents, generator),
        input_noise=None,
        t=flow.sample_timesteps(case.batch, FlowConfig(), generator, tokens=case.tokens),
        mask=None,
        weight=torch.ones(case.batch),
        text={"embeds": text},
        names=[],
        divisor=1.0,
        step_batches=1,
        ends_step=True,
        next_position={},
    )
    return batch.pinned() if device.type == "cuda" else batch


class OurStep:
    """One call is one step of training: forward, loss, backward, clipping, AdamW, zeroing."""

    name = "ours"

    def __init__(self, case: Case, weights: Weights, batch: Batch) -> None:
        self.case, self.batch = case, batch
        model = model_of(case, weights)
        network = AdapterNetwork.inject(model, case.adapter, 0).train()
        network.holds_casts = case.level != "offload"  # as in a run of the least memory
        self.run = run_of(model, network, case.plain)
        levels = [case.level] * case.blocks
        if case.plain:
            apply_levels(model, levels)
        else:
            make_lean(model, levels)
        self.streaming = Streaming(model, transfer_on(model.device))
        apply_away(model, self.streaming, case.away)
        self.after_forward: Callable[[], None] = lambda: None
        self.run.forward = self.forward  # type: ignore[method-assign]

    def __call__(self) -> None:
        state = self.run.state
        self.run.accumulate(iter([self.batch]), [])  # type: ignore[arg-type]
        norm = state.gradient.finish(MAX_NORM)
        if norm.is_meta:
            state.optimizer.step()
        else:
            optimizers.step_if_finite(state.optimizer, state.ema, norm)
        state.gradient.zero()

    def forward(self, batch: Batch | None = None) -> Tensor:
        loss = Run.forward(self.run, batch or self.batch)
        self.after_forward()
        return loss

    def zeros(self) -> list[nn.Parameter]:
        return [parameter for _, parameter in self.run.state.network.zero_init_parameters()]

    def tensors(self) -> Iterator[Tensor]:
        """All that is there between two steps."""
        yield from tensors_of(self.run.model, self.run.state)
        yield from self.streaming.tensors


def leave_zero(parameters: list[nn.Parameter]) -> None:
    """Move what starts at zero off it: products with zeros take less power, and with that less time."""
    for parameter in parameters:
        nn.init.normal_(parameter, std=0.02)


def run_of(model: AnimaTransformer, network: AdapterNetwork, plain: bool) -> Run:
    """As much of a run as a step touches."""
    # Fused AdamW knows no meta device; its multi-tensor form has about as many launches.
    config = OptimizerConfig(args=("foreach=True",) if model.device == META else ())
    run = object.__new__(Run)
    run.plan = types.SimpleNamespace(config=types.SimpleNamespace(flow=FlowConfig()))  # type: ignore[assignment]
    run.data = types.SimpleNamespace(embeddings=OnDevice(model))  # type: ignore[assignment]
    run.fit = types.SimpleNamespace(split=lambda batch: [batch])  # type: ignore[assignment]  # levels are the case's
    run.held_out = types.SimpleNamespace(command=None)  # type: ignore[assignment]
    run.prior = types.SimpleNamespace(terms=lambda batches: batches)  # type: ignore[assignment]
    run.model, run.ranks, run.events = model, Ranks(), Events(None)
    run.state = fresh_state(network, config, model.dtype == torch.float16, flat=not plain)
    network.fused = not plain
    return run


class OnDevice:
    """Stands for the cached text embeddings: those of the batch, of equal lengths."""

    def __init__(self, model: AnimaTransformer) -> None:
        self.model = model

    def place(self, text: dict[str, Tensor]) -> tuple[Tensor, None, int]:
        return text["embeds"].to(self.model.device, non_blocking=True), None, 0


def count(step: Any) -> dict:
    """Launches, bytes moved, FLOPs, peak bytes of a step on the meta device; what is alive only for its backward pass."""
    kept: list[int] = []
    resident = list(step.tensors())
    with cuda_kernels(), Meter() as meter:
        meter.watch(resident)
        before = meter.live
        step.after_forward = lambda: kept.append(meter.live - before)
        step()
    found = {"launches": meter.launches, "moved": meter.bytes, "flops": meter.flops, "peak": meter.peak}
    return found | ({"kept": kept[0]} if kept else {})


def first_step(case: Case, device: torch.device) -> tuple[OurStep, float, float]:
    """Make all that a step needs and take one; return seconds of both."""
    begin = time.perf_counter()
    step = OurStep(case, random_weights(case, device), batch_of(case, device))
    leave_zero(step.zeros())
    built = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return step, built - begin, time.perf_counter() - built

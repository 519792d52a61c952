"""What a run would take on a card, from the headers of its files and a look at its pictures: no model is loaded."""

import math

import torch

from ..data.batches import Batches, build_items
from ..models.checkpoint import DTYPES
from ..models.kept import store_for
from ..models.qwen import check_qwen
from ..models.transformer import meta_transformer
from ..settings import TrainConfig
from ..speed.cards import CONTEXT, FRAGMENTS, GB, SPARE, Card, find_card
from ..speed.costs import Shape
from ..speed.plan import Budget, Levels, choose, summary
from .budget import ALLOWED, TOKEN, Counter, bytes_on, largest_shapes
from .events import Listener
from .memory import card_of, free_bytes, pick_device, pick_dtype
from .preflight import cache_folder, check_data, check_models, check_network, text_rows
from .prepare import encodes_in_every_step


def forecast(config: TrainConfig, card: Card | None, on_event: Listener | None = None) -> list[str]:
    """Return lines that say how a run would fit. card: None for this machine's device. Raises SettingError, FileError."""
    sizes = check_models(config)
    check_network(config, sizes)
    pictures, _ = check_data(config, cache_folder(config), on_event)
    batches = Batches(build_items(config.datasets, pictures), config.datasets, config.seed)
    shapes = largest_shapes(batches, text_rows(config, pictures))

    def counted(dtype: torch.dtype, card: Card | None) -> Counter:
        store = store_for(config.model.dtype, sizes.blocks, "meta")
        return Counter(lambda: meta_transformer(config.model.transformer, dtype, store), config, shapes, card)

    if card is not None:
        counter = counted(DTYPES.get(config.model.dtype, torch.bfloat16), card)
        return lines(str(card), *forecast_on(counter, card.usable), shapes)
    device = pick_device(config.device)
    name, total = card_of(device)
    counter = counted(pick_dtype(config.model.dtype, device), find_card(name, total))
    on_card = device.type != "cpu"
    return lines(name, *forecast_on(counter, free_bytes(device) - SPARE if on_card else math.inf, on_card), shapes)


def forecast_on(counter: Counter, usable: float, on_card: bool = True) -> tuple[Budget, Levels]:
    """Return the memory of a run and the plan that it would make. usable: bytes that it may take, its weights included."""
    config = counter.config
    if config.memory_gb:
        usable = min(usable, config.memory_gb * GB - CONTEXT * on_card)
    held, temporary = counter.optimizer
    resident = weights(counter, on_card) + counter.trained * (held + 4 * (config.ema_decay > 0))
    least, per_step = temporary * counter.trained, config.gradient_accumulation_steps
    budget = Budget(counter.worst, resident, (usable - resident) / FRAGMENTS, least, counter.card, per_step)
    return budget, choose(budget.costs, budget.room, ALLOWED[config.memory])


def weights(counter: Counter, on_card: bool) -> int:
    """Return the bytes of everything that stays there: the model, its adapters, their gradients; Qwen where it stays.

    The LLM adapter goes to the CPU once its outputs are cached, see `prepare.with_embeddings`.
    """
    model, network = counter.empty
    gradients = [p.grad for p in network.parameters() if p.grad is not None]
    total = bytes_on(model.device, [*model.parameters(), *model.buffers(), *gradients, *network.casts.tensors])
    if encodes_in_every_step(counter.config):
        shapes = check_qwen(counter.config.model.qwen).shapes().values()
        return total + sum(math.prod(shape) for shape in shapes) * counter.empty[0].dtype.itemsize
    if any(p.requires_grad for p in model.llm_adapter.parameters()) or not on_card:
        return total
    return total - bytes_on(model.device, model.llm_adapter.parameters())


def lines(name: str, budget: Budget, levels: Levels, shapes: list[Shape]) -> list[str]:
    said = [f"{name}: {summary(levels)}"] if math.isinf(budget.room) else [f"{name}: {budget.said(levels)}"]
    if not budget.fits(levels):
        said.append("this does not fit: use a smaller `dataset.batch_size`, `dataset.resolutions` or `network.rank`")
    for shape in shapes:
        pictures = "1 picture" if shape.pictures == 1 else f"{shape.pictures} pictures"
        said.append(f"largest batch: {pictures} of {shape.width * TOKEN}x{shape.height * TOKEN}, {shape.text} rows of text")
    return said

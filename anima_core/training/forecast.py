"""What a run would take on a card, from the headers of its files and a look at its pictures: no model is loaded."""

import math
from dataclasses import replace

import torch

from ..data.batches import Batches, build_items
from ..errors import SettingError
from ..models.checkpoint import DTYPES
from ..models.described import described_qwen, described_transformer, described_vae
from ..models.kept import store_for
from ..models.qwen import check_qwen
from ..models.transformer import meta_transformer
from ..settings import ModelConfig, TrainConfig
from ..speed.cards import CONTEXT, FRAGMENTS, GB, SPARE, Card, find_card
from ..speed.costs import Shape
from ..speed.plan import Budget, Levels, best, summary
from ..speed.stream import NOWHERE, Away
from .budget import ALLOWED, TOKEN, Counter, bytes_on, largest_shapes
from .events import Listener
from .memory import card_of, free_bytes, pick_device, pick_dtype
from .model_files import in_their_folders
from .preflight import Pictures, Plan, cache_folder, check_data, check_models, check_network, text_rows
from .prepare import encodes_in_every_step

TIGHT = 0.8  # of what a run may have: where what stays there is less, its model is loaded before it is planned


def forecast(config: TrainConfig, card: Card | None, on_event: Listener | None = None) -> list[str]:
    """Return lines that say how a run would fit. card: None for this machine's device. Raises SettingError, FileError."""
    config = in_their_folders(config)
    sizes = check_models(config)
    models = models_said(config.model)
    check_network(config, sizes)
    pictures, _, _ = check_data(config, cache_folder(config), on_event)
    shapes = shapes_for(config, pictures, text_rows(config, pictures))
    if card is not None:
        counter = counter_for(config, DTYPES.get(config.model.dtype, torch.bfloat16), sizes.blocks, shapes, card)
        return lines(str(card), *forecast_on(counter, card.usable), shapes) + models
    device = pick_device(config.device)
    name, total = card_of(device)
    counter = counter_for(config, pick_dtype(config.model.dtype, device), sizes.blocks, shapes, find_card(name, total))
    return lines(name, *forecast_on(counter, usable_on(device), device.type != "cpu"), shapes) + models


def models_said(model: ModelConfig) -> list[str]:
    """Return a line for each of the model files: what it is. Raises FileError."""
    transformer = described_transformer(model.transformer, model.llm_adapter)
    return [f"transformer: {transformer}", f"VAE: {described_vae(model.vae)}", f"text encoder: {described_qwen(model.qwen)}"]


def weights_to_stream(plan: Plan) -> Away:
    """Return which weights of a run are not to be loaded onto its device, since there would not be room for the rest.

    What is streamed for other reasons is decided once the model is there, see `fit`. Raises SettingError, with the least that
    would do, where a run cannot fit.
    """
    config, device, blocks = plan.config, plan.device, plan.transformer.blocks
    on_card, wished = device.type != "cpu", Away(min(config.blocks_to_swap, plan.transformer.blocks))
    if not (on_card or config.memory_gb):
        return wished
    shapes = shapes_for(config, plan.pictures, plan.text_rows)
    counter = counter_for(config, plan.dtype, blocks, shapes, find_card(*card_of(device)))
    try:
        usable = within(config, usable_on(device), on_card)
        if resident_bytes(counter, on_card) < TIGHT * usable and not wished.blocks:
            return NOWHERE
        budget, levels = forecast_on(counter, usable_on(device), on_card)
        smallest = smallest_peak(counter, budget)
    except SettingError:
        raise
    except Exception:  # it leans on much of torch, whose versions differ: `fit` says why nothing is counted
        return wished
    if not budget.fits(levels) and budget.resident + smallest > usable:
        raise SettingError(too_little(config, device, usable, budget.resident + FRAGMENTS * smallest))
    return budget.away


def smallest_peak(counter: Counter, budget: Budget) -> float:
    """Return the bytes of the tensors of a step that is split into single pictures, and keeps the least that is allowed."""
    levels = ALLOWED[counter.config.memory][-1:] * len(budget.costs.blocks)
    single = max(counter.costs(replace(shape, pictures=1, mixed=False)).peak(levels) for shape in counter.shapes)
    return max(single, budget.least)


def too_little(config: TrainConfig, device: torch.device, usable: float, least: float) -> str:
    """Say what the least memory is that a run could have."""
    ways = ["a smaller `dataset.resolutions` or `network.rank`"]
    ways += [f"`train.memory`=auto instead of {config.memory}"] * (config.memory != "auto")
    ways += ["`model.dtype`=int8"] * (config.model.dtype != "int8")
    advice = ", or ".join(ways)
    if config.memory_gb:
        least = math.ceil(100 * (least + CONTEXT * (device.type != "cpu")) / GB) / 100
        return f"`train.memory_gb`={config.memory_gb:g}: the least that this run fits into is {least:g}; use that, {advice}"
    free = f"{card_of(device)[0]} has {usable / GB:.1f} GB for it"
    return f"`train.device`={device}: {free}, and the least that this run fits into is {least / GB:.1f}; use {advice}"


def shapes_for(config: TrainConfig, pictures: Pictures, rows: int) -> list[Shape]:
    return largest_shapes(Batches(build_items(config.datasets, pictures), config.datasets, config.seed), rows)


def counter_for(config: TrainConfig, dtype: torch.dtype, blocks: int, shapes: list[Shape], card: Card | None) -> Counter:
    """Return a counter of a run whose model is read off its file. blocks: of the model."""
    store = store_for(config.model.dtype, blocks, "meta")
    paths = config.model
    return Counter(lambda: meta_transformer(paths.transformer, dtype, store, paths.llm_adapter), config, shapes, card)


def usable_on(device: torch.device) -> float:
    """Return the bytes that a run can have on this machine's device; nothing limits the CPU."""
    return free_bytes(device) - SPARE if device.type != "cpu" else math.inf


def within(config: TrainConfig, usable: float, on_card: bool) -> float:
    """Return the bytes that a run may take of those that it could."""
    return min(usable, config.memory_gb * GB - CONTEXT * on_card) if config.memory_gb else usable


def resident_bytes(counter: Counter, on_card: bool) -> float:
    """Return the bytes of all that is there between steps, with nothing streamed."""
    return weights(counter, on_card) + counter.trained * (counter.optimizer[0] + 4 * (counter.config.ema_decay > 0))


def forecast_on(counter: Counter, usable: float, on_card: bool = True) -> tuple[Budget, Levels]:
    """Return the memory of a run and the plan that it would make. usable: bytes that it could take, its weights included."""
    config = counter.config
    usable, resident = within(config, usable, on_card), resident_bytes(counter, on_card)
    least, per_step = counter.optimizer[1] * counter.trained, config.gradient_accumulation_steps
    budget = Budget(counter.worst, resident, (usable - resident) / FRAGMENTS, least, counter.card, per_step)
    return best(budget, ALLOWED[config.memory], config.blocks_to_swap)


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
    said = [f"{name}: {summary(levels, budget.away)}"] if math.isinf(budget.room) else [f"{name}: {budget.said(levels)}"]
    if not budget.fits(levels):
        said.append("this does not fit: use a smaller `dataset.batch_size`, `dataset.resolutions` or `network.rank`")
    for shape in shapes:
        pictures = "1 picture" if shape.pictures == 1 else f"{shape.pictures} pictures"
        said.append(f"largest batch: {pictures} of {shape.width * TOKEN}x{shape.height * TOKEN}, {shape.text} rows of text")
    return said

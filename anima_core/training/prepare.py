"""What a run trains on: VAE latents and text are cached first, each model only in memory while it is needed."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from .. import files, seeds
from ..data.batches import Batches, Draw, Item, build_items
from ..data.cache import TensorCache, encoded_at_once, everything
from ..data.check import steps_per_epoch
from ..data.class_captions import class_caption
from ..data.crops import Crops
from ..data.drawn_captions import caption_variant, drawn_caption
from ..data.embeddings import CachedEmbeddings, LiveEmbeddings, TextEmbeddings, taken
from ..data.latents import LatentStore, has_mask
from ..data.measured import measured_caption, measured_items
from ..data.metadata import data_metadata
from ..data.text import TextStore
from ..models.loading import shards
from ..models.qwen import AnimaQwen, load_qwen
from ..models.tokenizers import load_t5_tokenizer, t5_tokenizer_dir
from ..models.transformer import AnimaTransformer
from ..models.vae import AnimaVAE, load_vae
from ..settings import FlowConfig, TrainConfig
from . import flow
from .budget import TOKEN
from .events import Events
from .memory import free_memory, vae_tile
from .preflight import Plan
from .previews import preview_texts
from .ranks import Ranks

MANY = 10_000  # draws of t, that tell how many train smaller


@dataclass(frozen=True)
class CachedData:
    """What can be made before the transformer is in memory."""

    items: list[Item]
    held_out: list[Item]
    batches: Batches
    latents: LatentStore
    texts: TextStore


class TrainingData:
    """Everything a batch is made of."""

    def __init__(self, plan: Plan, cached: CachedData, embeddings: TextEmbeddings) -> None:
        self.config = plan.config
        self.items, self.held_out = cached.items, cached.held_out
        self.batches = cached.batches
        self.latents = cached.latents
        self.embeddings = embeddings
        self.batches_per_epoch = cached.batches.len_epoch()
        self.epoch_steps = steps_per_epoch(self.batches_per_epoch, plan.batches_per_step)
        self.steps = total_steps(plan.config, self.epoch_steps)
        self.epochs = epochs(plan, cached.batches)

    def caption(self, draw: Draw) -> str:
        return drawn_caption(draw, self.config.seed, self.config.caption_variants)

    @property
    def masked(self) -> bool:
        """Tell whether masks weigh the loss of any picture."""
        return any(has_mask(item.picture) for item in self.items)

    def metadata(self) -> dict[str, str]:
        return data_metadata(self.items, self.config.metadata.tag_frequency) | {
            "ss_num_batches_per_epoch": str(self.batches_per_epoch),
            "ss_num_epochs": str(self.epochs),
        }

    def take_notes(self) -> list[str]:
        """Return what was found damaged and made again since the last call."""
        return taken(self.latents.notes) + self.embeddings.take_notes()


def cache_data(plan: Plan, events: Events, ranks: Ranks) -> CachedData:
    """Cache latents and text of everything that the run will meet."""
    items = build_items(plan.config.datasets, plan.pictures)
    held_out = measured_items(plan.held_out, plan.config.held_out)
    batches = Batches(items, plan.config.datasets, plan.config.seed)
    latents = cache_latents(plan, items, held_out, events, ranks, crops_of(plan, batches))
    return CachedData(items, held_out, batches, latents, cache_text(plan, items, held_out, batches, events, ranks))


def with_embeddings(plan: Plan, cached: CachedData, model: AnimaTransformer, events: Events, ranks: Ranks) -> TrainingData:
    """Add the LLM adapter, whose outputs are cached too, unless it is trained or captions are new in every epoch."""
    trained = any(p.requires_grad for p in model.llm_adapter.parameters())
    if trained or cached.texts.resident is not None:
        return TrainingData(plan, cached, LiveEmbeddings(cached.texts, model, plan.config.trim_text))
    embeddings = CachedEmbeddings(cached.texts, model, plan.config.trim_text)
    captions = [*preview_texts(plan.config.samples), *map(measured_caption, cached.held_out)]
    captions += all_captions(cached.items, plan.config, epochs(plan, cached.batches))
    progress = events.progress("text embeddings")
    in_shares(ranks, cached.texts.cache, lambda mine: embeddings.fill(captions, progress, mine))
    embeddings.release()
    free_memory()
    return TrainingData(plan, cached, embeddings)


def in_shares(ranks: Ranks, cache: TensorCache, fill: Callable[[Callable[[str], bool]], object]) -> None:
    """Let each process make its share of what is missing on disk, then whatever is missing still.

    A cache in memory is each process' own.
    """
    if ranks.world > 1 and cache.folder is not None:
        fill(ranks.share)
        ranks.wait()
    fill(everything)


def epochs(plan: Plan, batches: Batches) -> int:
    """Count the epochs that the run will touch."""
    epoch_steps = steps_per_epoch(batches.len_epoch(), plan.batches_per_step)
    return math.ceil(total_steps(plan.config, epoch_steps) / epoch_steps)


def total_steps(config: TrainConfig, epoch_steps: int) -> int:
    """Return the optimizer steps of the run: of `max_train_epochs` when set, else `max_train_steps`."""
    return config.max_train_epochs * epoch_steps or config.max_train_steps


def crops_of(plan: Plan, batches: Batches) -> Crops:
    return Crops(plan.config.seed, plan.config.crop_variants, epochs(plan, batches))


def cache_latents(
    plan: Plan, items: list[Item], held_out: list[Item], events: Events, ranks: Ranks, crops: Crops
) -> LatentStore:
    config = plan.config
    tile = vae_tile(plan.device, config.vae_tile)
    if tile != config.vae_tile:
        events.emit("note", text=f"`train.vae_tile`={config.vae_tile}: {plan.device.type} takes tiles of {tile} px at most")

    def vae(device: torch.device | str) -> AnimaVAE:
        # fp32: the VAE is small, and what is cached once is looked at in every epoch
        return load_vae(config.model.vae, dtype=torch.float32, device=device)

    loaded = None if is_known(config.model.vae) else vae(plan.device)
    cache = tensor_cache(plan, "latents", config.cache_latents)
    # while training the device is the transformer's
    store = LatentStore(cache, files.identity(config.model.vae), tile, reload=lambda: vae("cpu"), crops=crops)
    for text in more_latents(items, crops, config.flow):
        events.emit("note", text=text)
    smaller = [item.smaller(config.flow.lowres_scale) for item in items] if config.flow.lowres_scale < 1 else []
    items = [*items, *smaller, *held_out]
    batch_size = encoded_at_once(plan.device, config.vae_batch_size)
    encoding, masking = events.progress("latents"), events.progress("masks")
    in_shares(ranks, cache, lambda mine: store.fill(items, lambda: loaded or vae(plan.device), batch_size, encoding, mine))
    loaded = None
    in_shares(ranks, cache, lambda mine: store.fill_masks(items, masking, mine))
    free_memory()
    return store


def more_latents(items: Sequence[Item], crops: Crops, config: FlowConfig) -> Iterator[str]:
    """Say where a picture has more latents than one: those of its crops, and of a smaller size for noisy draws."""
    cropped = {item.picture.path: item for item in items if item.picture.subset.random_crop}.values()
    if cropped:
        count = sum(len(crops.corners(item)) for item in cropped)
        yield f"`subset.random_crop`: {count} crops of {len(cropped)} pictures are cached"
    if config.lowres_scale < 1:
        size, small = items[0].bucket, items[0].smaller(config.lowres_scale).bucket
        subsets = [items[number % len(items)].picture.subset for number in range(MANY)]
        t = flow.draw_timesteps(subsets, config, seeds.generator(0, "share"), size[0] * size[1] // TOKEN**2)
        share = flow.trains_smaller(t, config).float().mean().item()
        said = f"about {share:.0%} of the draws train smaller, at {small[0]}x{small[1]} instead of {size[0]}x{size[1]}"
        yield f"`flow.lowres_scale`={config.lowres_scale:g}: {said}; every picture is cached at both sizes"


def cache_text(
    plan: Plan, items: list[Item], held_out: list[Item], batches: Batches, events: Events, ranks: Ranks
) -> TextStore:
    config, in_every_step = plan.config, encodes_in_every_step(plan.config)
    t5_folder = t5_tokenizer_dir(config.model.t5_tokenizer_dir)

    def qwen(device: torch.device | str) -> AnimaQwen:
        # ComfyUI computes Qwen in fp32; where it stays beside the transformer it takes half the room instead
        dtype = plan.dtype if in_every_step else torch.float32
        tokenizer = config.model.qwen_tokenizer_dir
        return load_qwen(config.model.qwen, tokenizer_dir=tokenizer, dtype=dtype, device=device)

    loaded = None if is_known(config.model.qwen) and not in_every_step else qwen(plan.device)
    store = TextStore(
        cache=tensor_cache(plan, "text", config.cache_text),
        t5=load_t5_tokenizer(t5_folder),
        qwen_identity=files.identity(config.model.qwen),
        t5_identity=files.identity(t5_folder),
        dtype=plan.dtype,
        resident=loaded if in_every_step else None,
        reload=lambda: qwen("cpu"),
    )
    captions = ["", *preview_texts(config.samples), *map(measured_caption, held_out)]
    if not in_every_step:
        captions += all_captions(items, config, epochs(plan, batches))
    progress = events.progress("captions")
    in_shares(ranks, store.cache, lambda mine: store.fill(captions, lambda: loaded or qwen(plan.device), progress, mine))
    loaded = None
    free_memory()
    return store


def is_known(path: str) -> bool:
    """Tell whether the digest of a model is known, which the keys of its cache need. Else it is loaded first: that tells it.

    So its bytes are read once, and for nothing only where all is cached by a file that has been renamed or moved.
    """
    return all(files.known(file) is not None for file in shards(path))


def tensor_cache(plan: Plan, kind: str, on_disk: bool) -> TensorCache:
    return TensorCache(plan.cache_dir / kind if on_disk else None)


def encodes_in_every_step(config: TrainConfig) -> bool:
    varied = any(subset.varies for dataset in config.datasets for subset in dataset.subsets)
    return varied and config.caption_variants == 0


def all_captions(items: Iterable[Item], config: TrainConfig, epochs: int) -> list[str]:
    """List every caption that the run can meet, each once, and the empty one."""
    variants = min(epochs, config.caption_variants or epochs)
    found = {"": None}
    for item in items:
        for variant in range(variants if item.picture.subset.varies else 1):
            caption = caption_variant(item, variant, config.seed, config.caption_variants)
            found[caption] = None
            if (of_class := class_caption(caption, config.prior)) is not None:
                found[of_class] = None
    return list(found)

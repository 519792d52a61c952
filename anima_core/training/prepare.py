"""The data stage of a run: VAE latents and text are cached, each model only in memory while it is needed."""

import functools
from collections.abc import Iterable

import torch
from torch import Tensor

from ..conditioning import Conditioner
from ..config import TrainConfig
from ..data.batches import Batches, Draw, Item, build_items
from ..data.cache import encoded_at_once
from ..data.captions import process_caption
from ..data.latents import LatentStore
from ..models.checkpoint import file_identity
from ..models.qwen import AnimaQwen, load_qwen
from ..models.tokenizers import load_t5_tokenizer, t5_tokenizer_dir
from ..models.transformer import AnimaTransformer
from ..models.vae import AnimaVAE, load_vae
from .events import Events
from .memory import free_memory
from .preflight import Plan, tensor_cache
from .previews import preview_texts
from .state import draw_generator


class Data:
    """Everything a batch is made of."""

    def __init__(self, plan: Plan, items: list[Item], latent_store: LatentStore, conditioner: Conditioner) -> None:
        self.config = plan.config
        self.world = plan.world
        self.items = items
        self.latent_store = latent_store
        self.conditioner = conditioner
        self.batches = Batches(items, plan.config.datasets, plan.config.seed)
        self.batches_per_epoch = self.batches.len_epoch()

    def latents(self, draw: Draw) -> Tensor:
        return self.latent_store.latents(draw)

    def mask(self, draw: Draw) -> Tensor | None:
        return self.latent_store.mask(draw)

    def caption(self, draw: Draw) -> str:
        """The caption of this draw: dropped as a whole, or one of the picture's variants."""
        subset = draw.item.picture.subset
        if subset.caption_dropout_rate > 0:
            chance = torch.rand((), generator=draw_generator(draw.caption_seed, "drop"))
            if chance < subset.caption_dropout_rate:
                return ""
        return caption_variant(draw.item, draw.epoch, self.config)

    def embed_text(self, model: AnimaTransformer, events: Events) -> None:
        """Run the LLM adapter over every caption once, unless it is trained or captions are new in every epoch."""
        if self.conditioner.qwen is not None or any(p.requires_grad for p in model.llm_adapter.parameters()):
            return
        captions = [*preview_texts(self.config.samples), *all_captions(self.items, self.config, self.epochs())]
        self.conditioner.embed(captions, model, events.progress("text embeddings"))

    def epochs(self) -> int:
        """Epochs that the run will touch."""
        config = self.config
        if config.max_train_epochs:
            return config.max_train_epochs
        batches = config.max_train_steps * config.gradient_accumulation_steps * self.world
        return batches // max(1, self.batches_per_epoch) + 1

    def metadata(self) -> dict[str, str]:
        pictures = {item.picture.path for item in self.items}
        return {
            "ss_num_train_images": str(len(self.items)),
            "ss_num_pictures": str(len(pictures)),
            "ss_num_batches_per_epoch": str(self.batches_per_epoch),
            "ss_num_epochs": str(self.epochs()),
        }

    def take_notes(self) -> list[str]:
        """What was found damaged and made again since the last call."""
        found = []
        for notes in (self.latent_store.notes, self.conditioner.notes):
            while notes:
                found.append(notes.pop(0))
        return found

    def close(self) -> None:
        self.conditioner.qwen = self.conditioner.rescue = None


def prepare_data(plan: Plan, events: Events) -> Data:
    items = build_items(plan.config.datasets, plan.pictures)
    latent_store = cache_latents(plan, items, events)
    conditioner = cache_text(plan, items, events)
    return Data(plan, items, latent_store, conditioner)


def cache_latents(plan: Plan, items: list[Item], events: Events) -> LatentStore:
    config = plan.config
    cache = tensor_cache(plan, "latents", config.cache_latents)

    def on_cpu() -> AnimaVAE:  # the device is the transformer's by then
        return load_vae(config.model.vae, dtype=torch.float32, device="cpu")

    store = LatentStore(cache, file_identity(config.model.vae), rescue=on_cpu)
    # fp32: the VAE is small, and what is cached once is looked at in every epoch
    store.fill(
        items,
        vae=lambda: load_vae(config.model.vae, dtype=torch.float32, device=plan.device),
        batch_size=encoded_at_once(plan.device, config.vae_batch_size),
        tile=config.vae_tile,
        progress=events.progress("latents"),
    )
    store.fill_masks(items, events.progress("masks"))
    free_memory()
    return store


def cache_text(plan: Plan, items: list[Item], events: Events) -> Conditioner:
    config = plan.config
    t5_folder = t5_tokenizer_dir(config.model.t5_tokenizer_dir)
    conditioner = Conditioner(
        cache=tensor_cache(plan, "text", config.cache_text),
        t5=load_t5_tokenizer(t5_folder),
        qwen_identity=file_identity(config.model.qwen),
        t5_identity=file_identity(t5_folder),
        dtype=plan.dtype,
    )

    def qwen(device: torch.device | str = plan.device) -> AnimaQwen:
        # ComfyUI computes Qwen in fp32; where it stays beside the transformer it takes half the room instead
        dtype = plan.dtype if encodes_on_the_fly(config) else torch.float32
        tokenizer = config.model.qwen_tokenizer_dir
        return load_qwen(config.model.qwen, tokenizer_dir=tokenizer, dtype=dtype, device=device)

    captions = ["", *preview_texts(config.samples)]
    if encodes_on_the_fly(config):
        conditioner.qwen = qwen()
    else:
        epochs = Data(plan, items, None, conditioner).epochs()
        captions += all_captions(items, config, epochs)
    conditioner.encode(captions, qwen, events.progress("captions"))
    conditioner.rescue = functools.cache(lambda: qwen("cpu"))
    free_memory()
    return conditioner


def encodes_on_the_fly(config: TrainConfig) -> bool:
    varied = any(subset.varies for dataset in config.datasets for subset in dataset.subsets)
    return varied and config.caption_variants == 0


def caption_variant(item: Item, epoch: int, config: TrainConfig) -> str:
    """The caption of an item in an epoch; with `caption_variants` = n, epochs repeat after n."""
    subset = item.picture.subset
    variant = epoch % config.caption_variants if config.caption_variants else epoch
    generator = draw_generator(config.seed, "caption", item.number, variant if subset.varies else 0)
    return process_caption(item.picture.caption, subset, generator, drop=False)


def all_captions(items: Iterable[Item], config: TrainConfig, epochs: int) -> list[str]:
    """Every caption that the run can meet, each once, and the empty one."""
    variants = min(epochs, config.caption_variants or epochs)
    found = {"": None}
    for item in items:
        for variant in range(variants if item.picture.subset.varies else 1):
            found[caption_variant(item, variant, config)] = None
    return list(found)

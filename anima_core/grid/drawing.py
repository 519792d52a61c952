"""The pictures of a grid: models are loaded once, and one adapter after another put in and taken out."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from ..adapters.formats import check_adapter, check_blocks, load_into
from ..adapters.from_file import network_of
from ..adapters.network import AdapterNetwork
from ..data.cache import TensorCache
from ..data.embeddings import LiveEmbeddings
from ..data.text import TextStore
from ..errors import SettingError
from ..files import identity
from ..models.kept import store_for
from ..models.qwen import check_qwen, load_qwen
from ..models.tokenizers import load_t5_tokenizer, t5_tokenizer_dir
from ..models.transformer import AnimaTransformer, check_transformer, load_transformer
from ..models.vae import AnimaVAE, check_vae, load_vae
from ..settings import ModelConfig, NetworkConfig, SampleConfig
from ..training.memory import free_memory, pick_device, pick_dtype, vae_tile
from ..training.previews import check_samples, draw_preview, preview_texts

Progress = Callable[[int, int], None]  # steps done, of all
VAE_TILE = 1536  # px
MOST_CELLS = 500  # pictures; more are a mistake

Cell = tuple[int, int, float]  # numbers of the adapter and of the prompt, strength


@dataclass(frozen=True)
class Named:
    """An adapter file and what it is called in the grid."""

    label: str
    path: Path


@dataclass(frozen=True)
class Grid:
    """What is drawn. Strength 0 is the base model, which is drawn once for all adapters."""

    models: ModelConfig
    adapters: Sequence[Named]
    samples: SampleConfig
    strengths: Sequence[float] = (1.0,)
    device: str = "auto"

    def check(self) -> None:
        """Look at every file before any is loaded. Raises SettingError, FileError."""
        if not self.adapters:
            raise SettingError("there is no adapter to draw with; name adapter files, or a run that has saved some")
        if not self.samples.prompts:
            raise SettingError("`sample.prompts`: there is none to draw; give one a line")
        if not self.strengths:
            raise SettingError("strengths: there is none; give numbers such as 0.5 1")
        if not all(map(math.isfinite, self.strengths)):
            raise SettingError(f"strengths: {', '.join(map(str, self.strengths))}; give numbers such as 0.5 1")
        if (count := len(self.cells())) > MOST_CELLS:
            raise SettingError(f"grid: {count:,} pictures; at most {MOST_CELLS} are drawn, so name fewer strengths or prompts")
        check_samples(self.samples)
        sizes = check_transformer(self.models.transformer, self.models.llm_adapter)
        check_vae(self.models.vae)
        check_qwen(self.models.qwen)
        for adapter in self.adapters:
            check_adapter(adapter.path)
            check_blocks(adapter.path, sizes.blocks)
            network_of(adapter.path, sizes.blocks)

    def cells(self) -> list[Cell]:
        """List what is to be drawn, adapter by adapter; of strength 0 only what the first one has."""
        adapters, prompts = range(len(self.adapters)), range(len(self.samples.prompts))
        places = [(a, p, s) for a in adapters for s in dict.fromkeys(self.strengths) for p in prompts]
        return [place for place in places if place[2] != 0 or place[0] == 0]


@torch.no_grad()
def draw(grid: Grid, progress: Progress = lambda done, total: None) -> dict[Cell, Image.Image]:
    """Draw every cell of a grid, which has passed its `check`, as previews are drawn. Raises what progress raises.

    Every model is let go of afterwards, also after an error.
    """
    try:
        return drawn(grid, progress)
    finally:
        free_memory()


def drawn(grid: Grid, progress: Progress) -> dict[Cell, Image.Image]:
    device = pick_device(grid.device)
    dtype = pick_dtype(grid.models.dtype, device)
    texts = encoded(grid, device, dtype)
    blocks = check_transformer(grid.models.transformer, grid.models.llm_adapter).blocks
    store = store_for(grid.models.dtype, blocks, device)
    model = load_transformer(grid.models.transformer, dtype, device, store, llm_adapter=grid.models.llm_adapter)
    vae = load_vae(grid.models.vae, device=device)
    found: dict[Cell, Image.Image] = {}
    for number, adapter in enumerate(grid.adapters):
        cells = [cell for cell in grid.cells() if cell[0] == number]
        for cell, picture in with_adapter(grid, adapter, cells, (model, vae, texts), told(grid, len(found), progress)):
            found[cell] = picture
    return found | of_the_base(grid, found)


def encoded(grid: Grid, device: torch.device, dtype: torch.dtype) -> TextStore:
    """Encode the prompts with Qwen, which is not needed after."""
    models, t5_folder = grid.models, t5_tokenizer_dir(grid.models.t5_tokenizer_dir)
    store = TextStore(TensorCache(None), load_t5_tokenizer(t5_folder), identity(models.qwen), identity(t5_folder), dtype)
    tokenizer = models.qwen_tokenizer_dir
    store.fill(preview_texts(grid.samples), lambda: load_qwen(models.qwen, tokenizer_dir=tokenizer, device=device))
    free_memory()
    return store


def with_adapter(
    grid: Grid,
    adapter: Named,
    cells: Sequence[Cell],
    models: tuple[AnimaTransformer, AnimaVAE, TextStore],
    on_step: Callable[[int, int], None],
) -> Iterator[tuple[Cell, Image.Image]]:
    """Yield the pictures of one adapter, which scales its correction by each strength as ComfyUI does."""
    model, vae, texts = models
    settings = NetworkConfig(**network_of(adapter.path, len(model.blocks)))
    network = AdapterNetwork.inject(model, settings, seed=0)
    try:
        load_into(network, adapter.path)
        network.eval()
        network.fused = False  # one form for every strength
        requests, tile = grid.samples.requests(), vae_tile(model.device, VAE_TILE)
        embeddings = LiveEmbeddings(texts, model)  # not kept: an adapter may have layers of the LLM adapter
        for number, cell in enumerate(cells):
            network.multiplier = cell[2]
            progress = lambda done, total, number=number: on_step(number, done)  # noqa: E731
            yield cell, draw_preview(model, vae, embeddings, requests[cell[1]], tile, progress)
    finally:
        network.eject()


def told(grid: Grid, before: int, progress: Progress) -> Callable[[int, int], None]:
    """Return what tells the steps of pictures that follow so many others."""
    steps = max(request.steps for request in grid.samples.requests())
    total = steps * len(grid.cells())
    return lambda number, done: progress(min(total, steps * (before + number) + done), total)


def of_the_base(grid: Grid, found: dict[Cell, Image.Image]) -> dict[Cell, Image.Image]:
    """Return the cells of strength 0 of all adapters but the first, which are the first one's."""
    base = {cell: picture for cell, picture in found.items() if cell[2] == 0}
    others = range(1, len(grid.adapters))
    return {(number, prompt, strength): picture for number in others for (_, prompt, strength), picture in base.items()}

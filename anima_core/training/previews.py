"""Preview pictures while training. They draw from their own generators and never end a run."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..adapters.network import AdapterNetwork
from ..data.batches import Item
from ..data.embeddings import TextEmbeddings
from ..data.held_out import HeldOut
from ..data.measured import measured_caption
from ..data.picture_files import open_picture
from ..data.pictures import fit
from ..errors import Interrupted, SettingError
from ..files import write_whole
from ..models.transformer import AnimaTransformer
from ..models.vae import AnimaVAE, load_vae
from ..sampling import noise_for, preview_image, sample
from ..sampling.samplers import missing_package
from ..sampling.schedules import sigmas_of
from ..settings import SampleConfig
from ..settings.samples import PreviewRequest
from .events import Events
from .memory import free_memory

SAMPLES = "samples"  # the folder of previews in that of the run
NAME = re.compile(r"step-(\d{8})-(\d+)\.png")


def original_name(index: int) -> str:
    """Name the picture that the previews of a held-out caption are compared with; index: as theirs."""
    return f"original-{index}.png"


def newest(folder: Path, step: int) -> Path | None:
    """Return the first preview of the last step at which any was drawn, no later than a step; None without previews."""
    found = [(int(name[1]), -int(name[2]), path) for path in folder.glob("step-*.png") if (name := NAME.fullmatch(path.name))]
    return max((entry for entry in found if entry[0] <= step), default=(0, 0, None))[2]


class Previews:
    """Draws the prompts of a run into a folder. tile: px, see `AnimaVAE.decode`."""

    def __init__(
        self,
        config: SampleConfig,
        vae_path: str,
        tile: int,
        folder: Path,
        embeddings: TextEmbeddings,
        held_out: Sequence[Item] = (),
    ) -> None:
        self.config = config
        self.vae_path = vae_path
        self.tile = tile
        self.folder = folder
        self.embeddings = embeddings
        self.originals = firsts(held_out, config.held_out)
        self._written: set[int] = set()

    def due(self, step: int, total: int, epoch_steps: int) -> bool:
        config = self.config
        if not config.draws:
            return False
        if step == 0:
            return config.at_first
        by_step = config.every_n_steps > 0 and step % config.every_n_steps == 0
        by_epoch = config.every_n_epochs > 0 and step % (config.every_n_epochs * epoch_steps) == 0
        return by_step or by_epoch or (config.at_end and step == total)

    def requests(self) -> list[PreviewRequest]:
        """Return what is drawn: the prompts, then the captions of held-out pictures."""
        captions = (self.config.of_caption(measured_caption(item), item.bucket) for item in self.originals)
        return [*self.config.requests(), *captions]

    def _write_originals(self) -> None:
        """Write each held-out picture, cut as its bucket has it, beside its previews: once, and again if it is gone."""
        for index, item in enumerate(self.originals, start=len(self.config.prompts)):
            path = self.folder / original_name(index)
            if index not in self._written or not path.is_file():
                save_png(fit(open_picture(item.picture.path, item.picture.digest), item.bucket, flip=False), path)
                self._written.add(index)

    def make(self, model: AnimaTransformer, network: AdapterNetwork, step: int, events: Events) -> None:
        """Draw every prompt with the adapter as it is now. A failure is a warning; a cancel leaves the rest undrawn."""
        training = network.training
        network.eval()
        vae: AnimaVAE | None = None
        try:
            vae = load_vae(self.vae_path, device=model.device)
            requests = self.requests()
            for index, request in enumerate(requests):
                path = self.folder / f"step-{step:08d}-{index}.png"
                progress = events.progress("preview", picture=index + 1, pictures=len(requests))
                picture = draw_preview(model, vae, self.embeddings, request, self.tile, progress)
                save_png(picture, path)
                events.emit("sample", step=step, path=str(path), prompt=request.prompt)
            self._write_originals()
        except Interrupted:  # the loop sees it next
            pass
        except Exception as error:
            events.emit("warning", text=f"step {step}: the preview failed and was left out ({error})")
        finally:
            network.train(training)
            vae = None
            free_memory()


@torch.no_grad()
def draw_preview(
    model: AnimaTransformer,
    vae: AnimaVAE,
    embeddings: TextEmbeddings,
    request: PreviewRequest,
    tile: int,
    progress: Callable[[int, int], None],
) -> Image.Image:
    """Draw one picture with the model as it is. tile: px, see `AnimaVAE.decode`; progress(steps done, of all)."""
    sigmas = sigmas_of(request.scheduler, request.steps, request.shift)
    latents = sample(
        model,
        prompt_embeds(embeddings, request.prompt),
        noise_for(request.seed, request.width, request.height).to(model.device),
        sigmas,
        negative=prompt_embeds(embeddings, request.negative) if request.cfg != 1 else None,
        cfg=request.cfg,
        sampler=request.sampler,
        shift=request.shift,
        seed=request.seed,
        on_step=lambda done: progress(done, len(sigmas) - 1),
    )
    return preview_image(latents, vae, tile=tile)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all."""
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG"), durable=False)


def prompt_embeds(embeddings: TextEmbeddings, prompt: str) -> Tensor:
    embeds, _, zeros = embeddings.place(embeddings.fetch([prompt]))
    return F.pad(embeds, (0, 0, 0, zeros))  # as ComfyUI has it, also where training does without


def preview_texts(config: SampleConfig) -> list[str]:
    """List every text that previews will ask for."""
    own = [text for request in config.requests() for text in (request.prompt, request.negative)]
    return [*own, config.negative] if config.held_out else own


def firsts(items: Sequence[Item], count: int) -> list[Item]:
    """Return the first pictures that are held out, each at the first resolution that it is measured at."""
    unique = {item.picture.digest: item for item in reversed(items)}
    return [item for item in items if unique[item.picture.digest] is item][:count]


def check_samples(config: SampleConfig) -> list[str]:
    """Refuse a sampler whose package is not there (SettingError); return what was asked for and is not drawn."""
    for name in dict.fromkeys(request.sampler for request in config.requests()):
        if package := missing_package(name):
            raise SettingError(f"`sample.sampler`={name}: needs the package {package}: pip install {package}, or use er_sde")
    return config.warnings()


def too_few(config: SampleConfig, held_out: HeldOut) -> list[str]:
    """Say when fewer pictures are held out than are to be drawn."""
    there = len({picture.digest for group in held_out.pictures for picture in group})
    if config.held_out <= there:
        return []
    return [f"`sample.held_out`={config.held_out}: {there} pictures are held out; hold more out with `held_out.share`"]

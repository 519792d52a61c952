"""Preview pictures while training. They draw from their own generators and never end a run."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..adapters.network import AdapterNetwork
from ..data.embeddings import TextEmbeddings
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


def newest(folder: Path, step: int) -> Path | None:
    """Return the first preview of the last step at which any was drawn, no later than a step; None without previews."""
    found = [(int(name[1]), -int(name[2]), path) for path in folder.glob("step-*.png") if (name := NAME.fullmatch(path.name))]
    return max((entry for entry in found if entry[0] <= step), default=(0, 0, None))[2]


class Previews:
    """Draws the prompts of a run into a folder. tile: px, see `AnimaVAE.decode`."""

    def __init__(self, config: SampleConfig, vae_path: str, tile: int, folder: Path, embeddings: TextEmbeddings) -> None:
        self.config = config
        self.vae_path = vae_path
        self.tile = tile
        self.folder = folder
        self.embeddings = embeddings

    def due(self, step: int, total: int, epoch_steps: int) -> bool:
        config = self.config
        if not config.prompts:
            return False
        if step == 0:
            return config.at_first
        by_step = config.every_n_steps > 0 and step % config.every_n_steps == 0
        by_epoch = config.every_n_epochs > 0 and step % (config.every_n_epochs * epoch_steps) == 0
        return by_step or by_epoch or (config.at_end and step == total)

    def make(self, model: AnimaTransformer, network: AdapterNetwork, step: int, events: Events) -> None:
        """Draw every prompt with the adapter as it is now. A failure is a warning; a cancel leaves the rest undrawn."""
        training = network.training
        network.eval()
        vae: AnimaVAE | None = None
        try:
            vae = load_vae(self.vae_path, device=model.device)
            requests = self.config.requests()
            for index, request in enumerate(requests):
                path = self.folder / f"step-{step:08d}-{index}.png"
                progress = events.progress("preview", picture=index + 1, pictures=len(requests))
                picture = draw_preview(model, vae, self.embeddings, request, self.tile, progress)
                save_png(picture, path)
                events.emit("sample", step=step, path=str(path), prompt=request.prompt)
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
    return [text for request in config.requests() for text in (request.prompt, request.negative)]


def check_samples(config: SampleConfig) -> list[str]:
    """Refuse a sampler whose package is not there (SettingError); return what was asked for and is not drawn."""
    for name in dict.fromkeys(request.sampler for request in config.requests()):
        if package := missing_package(name):
            raise SettingError(f"`sample.sampler`={name}: needs the package {package}: pip install {package}, or use er_sde")
    return config.warnings()

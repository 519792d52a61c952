"""A preview: drawn from noise with a model and a sampler, and decoded, so that it is what KSampler would draw."""

from collections import deque
from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from ..errors import SettingError
from ..models.transformer import AnimaTransformer
from ..models.vae import SCALE, AnimaVAE
from .samplers import KEPT, Step, sampler_of
from .schedules import shifted

NEARLY_NOISE = 1 - 1e-4  # where ComfyUI begins instead of t = 1, for samplers that divide by the picture's share


@torch.no_grad()
def sample(
    model: AnimaTransformer,
    text_embeds: Tensor,
    noise: Tensor,
    sigmas: Tensor,
    *,
    negative: Tensor | None = None,
    cfg: float = 1.0,
    sampler: str = "euler",
    shift: float = 3.0,
    seed: int = 0,
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw pictures: text_embeds [B, L, 1024], noise [B, 16, h, w] ~ N(0, 1) -> normalised latents [B, 16, h, w], fp32.

    negative [B, L', 1024] with cfg: x0 = negative + cfg (positive - negative); cfg 1 leaves it out. Embeddings of one
    prompt ([1, L, 1024]) serve every picture. model(x, t [B], text_embeds) -> velocity; on_step(steps done).
    sampler: one of `samplers.SAMPLERS`. shift: of the schedule, for samplers that cannot begin at noise alone; seed: of what
    stochastic ones draw. Raises SettingError for a sampler it does not have, and for cfg without a negative.
    """
    chosen = sampler_of(sampler)
    if cfg != 1 and negative is None:
        raise SettingError(f"cfg={cfg}: needs the negative prompt's text embeddings, or cfg=1")
    text_embeds = text_embeds.expand(len(noise), -1, -1)
    if negative is not None:
        negative = None if cfg == 1 else negative.expand(len(noise), -1, -1)
    x = noise.float() * sigmas[0].to(noise.device)
    draw = chosen.noise(x, sigmas.tolist(), seed)
    levels = (begun_below_noise(sigmas, shift) if chosen.below_noise else sigmas).tolist()
    x0s: deque[Tensor] = deque(maxlen=KEPT)
    for done, sigma in enumerate(levels[:-1], start=1):
        velocity = guided_velocity(model, x, sigma, text_embeds, negative, cfg)
        x0s.append(x - sigma * velocity)
        x = chosen.step(Step(x, velocity, levels[: done + 1], x0s, draw))
        if on_step is not None:
            on_step(done)
    return x


def begun_below_noise(sigmas: Tensor, shift: float) -> Tensor:
    """Return a schedule whose first level, where it is 1, is the one that ComfyUI takes instead."""
    if sigmas[0] < 1:
        return sigmas
    first = shifted(torch.tensor(NEARLY_NOISE, dtype=torch.float64), shift)
    return torch.cat([first.to(sigmas)[None], sigmas[1:]])


def guided_velocity(
    model: AnimaTransformer, x: Tensor, sigma: float, positive: Tensor, negative: Tensor | None, cfg: float
) -> Tensor:
    """Return the velocity under guidance: on x0 = x - sigma v it is the same as on v."""
    t = x.new_full((len(x),), sigma)
    if negative is None:
        return model(x, t, positive).float()
    if positive.shape == negative.shape:
        wanted, avoided = model(x.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([positive, negative])).float().chunk(2)
    else:  # captions over 512 tokens have embeddings of their own length
        wanted, avoided = model(x, t, positive).float(), model(x, t, negative).float()
    return avoided + cfg * (wanted - avoided)


def noise_for(seed: int, width: int, height: int) -> Tensor:
    """Draw the noise that ComfyUI draws for this seed and one picture of width x height px: [1, 16, h/8, w/8], on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 16, height // SCALE, width // SCALE, generator=generator, dtype=torch.float32, device="cpu")


def preview_image(latents: Tensor, vae: AnimaVAE, tile: int = 1536) -> Image.Image:
    """Decode the first of normalised latents [B, 16, h, w] into a picture."""
    # cut, not rounded, to 8 bits: so does ComfyUI when it saves a picture
    pixels = vae.decode(latents[:1], tile=tile)[0].add(1).mul(0.5).clamp(0, 1).mul(255)
    return Image.fromarray(pixels.to(torch.uint8).permute(1, 2, 0).cpu().numpy())

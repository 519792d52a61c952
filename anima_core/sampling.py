"""The preview sampler: Euler on ComfyUI's "simple" schedule, so that a preview is what KSampler would draw."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor

from .errors import SettingError
from .models.transformer import AnimaTransformer
from .models.vae import SCALE, AnimaVAE

TABLE_SIZE = 1000  # sigmas that ComfyUI's discrete flow sampling tabulates


def simple_sigmas(steps: int, shift: float = 3.0) -> Tensor:
    """Return ComfyUI's "simple" schedule for a flow model: [steps + 1] fp32, falling, the last 0.

    The table is s(i / 1000), i = 1 … 1000, with s(t) = shift t / (1 + (shift - 1) t); "simple" takes entries evenly from
    its end. Raises SettingError for no steps.
    """
    if steps < 1:
        raise SettingError(f"sample steps={steps}: must be at least 1")
    t = torch.arange(1, TABLE_SIZE + 1, dtype=torch.float32) / TABLE_SIZE
    table = shift * t / (1 + (shift - 1) * t)
    stride = TABLE_SIZE / steps  # divide first: i * TABLE_SIZE / steps rounds to another entry at 38 steps
    return torch.stack([*(table[-(1 + int(i * stride))] for i in range(steps)), table.new_zeros(())])


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
    on_step: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw pictures: text_embeds [B, L, 1024], noise [B, 16, h, w] ~ N(0, 1) -> normalised latents [B, 16, h, w], fp32.

    negative [B, L', 1024] with cfg: x0 = negative + cfg (positive - negative); cfg 1 leaves it out. Embeddings of one
    prompt ([1, L, 1024]) serve every picture. model(x, t [B], text_embeds) -> velocity; on_step(steps done).
    Raises SettingError for a sampler it does not have, and for cfg without a negative.
    """
    if sampler != "euler":
        raise SettingError(f"sampler={sampler}: only euler is available")
    if cfg != 1 and negative is None:
        raise SettingError(f"cfg={cfg}: needs the negative prompt's text embeddings, or cfg=1")
    text_embeds = text_embeds.expand(len(noise), -1, -1)
    if negative is not None:
        negative = None if cfg == 1 else negative.expand(len(noise), -1, -1)
    x = noise.float() * sigmas[0].to(noise.device)
    for i, (sigma, following) in enumerate(zip(sigmas[:-1].tolist(), sigmas[1:].tolist())):
        velocity = guided_velocity(model, x, sigma, text_embeds, negative, cfg)
        x = x + velocity * (following - sigma)
        if on_step is not None:
            on_step(i + 1)
    return x


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

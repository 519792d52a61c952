"""The Qwen-Image VAE (Wan 2.1 layout) for single pictures.

It was made for video: its convolutions are 3-D and causal in time. A single frame is preceded by zeros only, so each
kernel meets it with its last temporal slice alone, and a 2-D convolution with that slice gives the same numbers. The
`time_conv` layers only act from the second frame on and are left out by name.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileError, RunError, SettingError, is_out_of_memory
from .checkpoint import strip_prefix
from .diffusers_names import vae_name
from .loading import Layout, Sources, all_by_name, check_fits, load_strict, shapes_of, sources, wrong_kind
from .tiling import tiled

log = logging.getLogger(__name__)

SCALE = 8  # picture pixels per latent pixel
PREFIXES = ("first_stage_model.", "vae.")
DEFINING = ("decoder.head.0.gamma", "conv2.weight", "encoder.downsamples.0.residual.2.weight")  # that every file of it holds
MIN_TILE = 256  # px
MAX_OVERLAP = 256  # px

# Per-channel statistics of the latents: ComfyUI's Wan21 latent format, docs/model.md §5.3.
LATENT_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
               0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
LATENT_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
              3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """dim: channels of the first level, from the file. The rest is fixed by the family."""

    dim: int = 96
    z_dim: int = 16
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    res_blocks: int = 2


class RMSNorm(nn.Module):
    """x / ||x|| * sqrt(C) * gamma over the channels of [B, C, H, W]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1).mul_(self.gamma * math.sqrt(x.shape[1]))


def conv3(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


class ResBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(inputs),
            nn.SiLU(inplace=True),
            conv3(inputs, outputs),
            RMSNorm(outputs),
            nn.SiLU(inplace=True),
            nn.Identity(),  # the file numbers a dropout here
            conv3(outputs, outputs),
        )
        self.shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x).add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention over all pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj(y.squeeze(1).transpose(1, 2).reshape(b, c, h, w))


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest-exact"), conv3(channels, channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.resample(x)


def middle(channels: int) -> nn.Sequential:
    return nn.Sequential(ResBlock(channels, channels), AttentionBlock(channels), ResBlock(channels, channels))


def head(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(RMSNorm(channels), nn.SiLU(inplace=True), conv3(channels, outputs))


class Encoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = [config.dim * m for m in (1, *config.multipliers)]
        self.conv1 = conv3(3, widths[0])
        layers: list[nn.Module] = []
        for level, (inputs, outputs) in enumerate(pairwise(widths)):
            layers += [ResBlock(inputs if i == 0 else outputs, outputs) for i in range(config.res_blocks)]
            if level < len(widths) - 2:
                layers.append(Downsample(outputs))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(widths[-1])
        self.head = head(widths[-1], 2 * config.z_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.downsamples(self.conv1(x))))


class Decoder(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        reverse = config.multipliers[::-1]
        widths = [config.dim * m for m in (reverse[0], *reverse)]
        self.conv1 = conv3(config.z_dim, widths[0])
        self.middle = middle(widths[0])
        layers: list[nn.Module] = []
        for level, (inputs, outputs) in enumerate(pairwise(widths)):
            inputs = inputs // 2 if level > 0 else inputs  # each upsampling halves the channels
            layers += [ResBlock(inputs if i == 0 else outputs, outputs) for i in range(config.res_blocks + 1)]
            if level < len(widths) - 2:
                layers.append(Upsample(outputs))
        self.upsamples = nn.Sequential(*layers)
        self.head = head(widths[-1], 3)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.upsamples(self.middle(self.conv1(z))))


class AnimaVAE(nn.Module):
    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.conv1 = nn.Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.conv2 = nn.Conv2d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv1.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv1.weight.device

    @torch.no_grad()
    def encode(self, images: Tensor, tile: int = 1536) -> Tensor:
        """Encode [B, 3, H, W] in [-1, 1] -> normalised latents [B, 16, H/8, W/8], fp32: the posterior's mean.

        tile: pictures with a longer side (px) are encoded in overlapping tiles, others whole; 0 never.
        Out of memory halves the batch, which changes no number, then the tile, and logs a warning.
        Raises SettingError for sides that are not multiples of 8, RunError when tiles of 256 px do not fit either.
        """
        h, w = images.shape[-2:]
        if h % SCALE or w % SCALE:
            raise SettingError(f"picture of {w}x{h}: sides must be multiples of {SCALE}")
        mean, std = self._statistics()
        return (self._run(self._encode, images, tile, 1 / SCALE) - mean) / std

    @torch.no_grad()
    def decode(self, latents: Tensor, tile: int = 1536) -> Tensor:
        """Decode normalised latents [B, 16, h, w] -> [B, 3, 8 h, 8 w] in [-1, 1], fp32. tile as in `encode`, in picture px."""
        mean, std = self._statistics()
        z = latents.to(self.device, torch.float32) * std + mean
        return self._run(self._decode, z, tile, SCALE).clamp_(-1, 1)

    def _encode(self, images: Tensor) -> Tensor:
        return self.conv1(self.encoder(self._place(images)))[:, : self.conv2.in_channels].float()

    def _decode(self, z: Tensor) -> Tensor:
        return self.decoder(self.conv2(self._place(z))).float()

    def _place(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.dtype, memory_format=torch.channels_last)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(v, device=self.device).view(1, -1, 1, 1) for v in (LATENT_MEAN, LATENT_STD))
        return mean, std

    def _run(self, function: Callable[[Tensor], Tensor], x: Tensor, tile: int, scale: float) -> Tensor:
        """Run `function` on x, whole or in tiles of `tile` picture px, and on ever less at once while memory runs out."""
        if tile and tile < MIN_TILE:
            raise SettingError(f"`train.vae_tile`={tile}: must be at least {MIN_TILE} px, or 0 for never")
        unit = SCALE if scale > 1 else 1  # picture px per px of x
        longest = max(x.shape[-2:]) * unit
        tile, count = min(tile or longest, longest), len(x)
        while True:
            try:
                parts = [self._fit(function, part, tile, scale, unit) for part in x.split(count)]
                return parts[0] if len(parts) == 1 else torch.cat(parts)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if count == 1 and tile <= MIN_TILE:
                    raise RunError(f"VAE: out of memory on {self.device} even at {tile} px; free memory there") from None
            if count > 1:
                count //= 2
            else:
                tile = max(MIN_TILE, tile // 2)
            log.warning("VAE: out of memory; going on with %d at once, in tiles of %d px", count, tile)

    def _fit(self, function: Callable[[Tensor], Tensor], x: Tensor, tile: int, scale: float, unit: int) -> Tensor:
        if max(x.shape[-2:]) * unit <= tile:
            return function(x)
        size, overlap = (px // SCALE * SCALE // unit for px in (tile, min(MAX_OVERLAP, tile // 4)))
        return tiled(function, x, size, overlap, scale)


def vae_config(path: str | Path, files: Sources) -> VAEConfig:
    """Read the sizes from the header. Raises FileError when it is not this family's VAE."""
    shapes = {name: stored.shape for name, stored in all_by_name(files, LAYOUT).items()}
    missing = next((name for name in DEFINING if not shapes.get(name)), None)
    if missing is not None:
        raise wrong_kind(path, "a Qwen-Image VAE", missing, files)
    (dim, *_), (channels, *_), *_ = (shapes[name] for name in DEFINING)
    if channels != len(LATENT_MEAN):
        raise FileError(
            f"{path}: a VAE with {channels} latent channels; Anima needs {len(LATENT_MEAN)}: qwen_image_vae.safetensors"
        )
    return VAEConfig(dim=dim)


def check_vae(path: str | Path) -> None:
    """Check by its header that a file or folder is a whole Qwen-Image VAE. Raises FileError."""
    check_fits(shapes_of(meta_vae(path)), sources(path, LAYOUT), LAYOUT)


def load_vae(path: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> AnimaVAE:
    """Load a VAE: a file with Wan's or diffusers' names, an all-in-one checkpoint, or a folder in diffusers' layout.

    Raises FileError that names the file and what is wrong.
    """
    model = load_strict(meta_vae(path), sources(path, LAYOUT), LAYOUT, dtype=dtype, device=device)
    return model.to(memory_format=torch.channels_last).eval()  # type: ignore[call-overload]  # torch's stub lacks it


def meta_vae(path: str | Path) -> AnimaVAE:
    """Build the VAE that a file holds on the meta device. Raises FileError when it is not one."""
    with torch.device("meta"):
        return AnimaVAE(vae_config(path, sources(path, LAYOUT)))


def _rename(name: str) -> str | None:
    return None if ".time_conv." in name else vae_name(strip_prefix(name, PREFIXES))


def _last_slice(name: str, tensor: Tensor) -> Tensor:
    """Map [O, I, t, h, w] -> its last temporal slice; gammas of [C, 1, 1, 1] -> [C, 1, 1]."""
    if tensor.ndim == 5:
        return tensor[:, :, -1].contiguous()  # a view would keep the others in memory
    return tensor.reshape(-1, 1, 1) if name.endswith("gamma") else tensor


LAYOUT = Layout("VAE", _rename, _last_slice, part="VAE", folder="vae")

"""VAE files without training, in the real key layout: random weights for tests, and a "linear" one for the demo.

The linear VAE's latents are the colours of 8 x 8 px squares and its decoder smooths them back into a picture, so that a
demo without any download has pictures to show.
"""

import math

import torch
from torch import Tensor

from ..models.vae import LATENT_MEAN, LATENT_STD, AnimaVAE, VAEConfig

TIME_CONVS = {
    "encoder.downsamples.5": (1, 2),
    "encoder.downsamples.8": (1, 4),
    "decoder.upsamples.3": (2, 4),
    "decoder.upsamples.7": (2, 4),
}


def file_shapes(dim: int) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a VAE file of this width, 5-D convolutions and time convolutions included."""
    with torch.device("meta"):
        state = AnimaVAE(VAEConfig(dim=dim)).state_dict()
    shapes = {name: file_shape(name, tensor.shape) for name, tensor in state.items()}
    for place, (growth, multiplier) in TIME_CONVS.items():
        channels = dim * multiplier
        shapes[f"{place}.time_conv.weight"] = (growth * channels, channels, 3, 1, 1)
        shapes[f"{place}.time_conv.bias"] = (growth * channels,)
    return shapes


def file_shape(name: str, shape: torch.Size) -> tuple[int, ...]:
    """Return a tensor's shape in the file, where 2-D convolutions are causal 3-D ones, but for resampling and attention."""
    if name.endswith("gamma"):
        return tuple(shape) if ".norm." in name else (*shape, 1)
    flat = ".resample." in name or ".to_qkv." in name or ".proj." in name
    if len(shape) == 4 and not flat:
        return (*shape[:2], shape[2], *shape[2:])
    return tuple(shape)


def random_vae_state(dim: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Draw random weights, fp32, scaled so that activations keep their size and normalised latents have one near 1."""
    state = {name: _random(name, shape, generator) for name, shape in file_shapes(dim).items()}
    state["conv1.weight"] *= 3  # measured: without it normalised latents have a standard deviation of 0.4 to 0.5
    return state


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("gamma"):
        return 1 + 0.1 * noise
    if len(shape) == 1:
        return 0.05 * noise
    return noise / math.sqrt(shape[1] * shape[-1] * shape[-2])


CONSTANT = 64.0  # a channel much larger than the colours: it fixes the norms, which then only scale
COLOUR_GAIN = 1.4  # colours in [-1, 1] have a standard deviation near 0.7


def linear_vae_state(dim: int = 16) -> dict[str, Tensor]:
    """Set the weights by hand. Channels 0-2 carry a picture's colours through every layer, channel 3 the constant.

    A norm followed by SiLU passes x as silu(x) - silu(-x) = x, so heads read channels 4-6, which hold the negated colours.
    """
    state = {name: torch.zeros(shape) for name, shape in file_shapes(dim).items()}
    for name, tensor in state.items():
        if name.endswith("gamma"):
            tensor.fill_(1.0)
        elif name.endswith("shortcut.weight"):
            _copy_channels(tensor)
        elif name.startswith("encoder") and name.endswith("resample.1.weight"):
            _copy_channels(tensor, 0, 2, 0, 2, weight=0.25)
        elif name.startswith("decoder") and name.endswith("resample.1.weight"):
            _smooth_channels(tensor)
    for row in range(3):
        _centre(state["encoder.conv1.weight"])[row, row] = 1.0
        _centre(state["encoder.conv1.weight"])[4 + row, row] = -1.0
    state["encoder.conv1.bias"][3] = CONSTANT
    _encoder_head(state, dim * 4)
    _decoder_ends(state, dim)
    return state


def _centre(kernel: Tensor) -> Tensor:
    """Return the middle of the last temporal slice, which is what a single frame meets."""
    frame = kernel[:, :, -1] if kernel.ndim == 5 else kernel
    return frame[:, :, frame.shape[2] // 2, frame.shape[3] // 2]


def _copy_channels(kernel: Tensor, top: int = 0, bottom: int = 1, left: int = 0, right: int = 1, weight: float = 1.0) -> None:
    frame = kernel[:, :, -1] if kernel.ndim == 5 else kernel
    for channel in range(7):
        frame[channel, channel, top:bottom, left:right] = weight


def _smooth_channels(kernel: Tensor) -> None:
    """Set a 3 x 3 kernel that makes a picture doubled by repetition piecewise linear."""
    line = torch.tensor([0.25, 0.5, 0.25])
    for channel in range(7):
        kernel[channel, channel] = line[:, None] * line


def _norm_scale(channels: int) -> float:
    """Return what an RMS norm multiplies by when the constant dominates: sqrt(C) / CONSTANT."""
    return math.sqrt(channels) / CONSTANT


def _encoder_head(state: dict[str, Tensor], channels: int) -> None:
    kernel, bias = _centre(state["encoder.head.2.weight"]), state["encoder.head.2.bias"]
    identity = state["conv1.weight"]
    for index in range(16):
        gain = COLOUR_GAIN * LATENT_STD[index] / _norm_scale(channels)
        kernel[index, index % 3], kernel[index, 4 + index % 3] = gain, -gain
        bias[index] = LATENT_MEAN[index]
    for index in range(identity.shape[0]):
        _centre(identity)[index, index] = 1.0


def _decoder_ends(state: dict[str, Tensor], dim: int) -> None:
    for index in range(16):
        _centre(state["conv2.weight"])[index, index] = 1.0
    kernel, bias = _centre(state["decoder.conv1.weight"]), state["decoder.conv1.bias"]
    for index in range(16):
        copies = len(range(index % 3, 16, 3))
        gain = 1 / (copies * COLOUR_GAIN * LATENT_STD[index])
        kernel[index % 3, index], kernel[4 + index % 3, index] = gain, -gain
        bias[index % 3] -= gain * LATENT_MEAN[index]
        bias[4 + index % 3] += gain * LATENT_MEAN[index]
    bias[3] = CONSTANT
    out = _centre(state["decoder.head.2.weight"])
    for colour in range(3):
        out[colour, colour], out[colour, 4 + colour] = 1 / _norm_scale(dim), -1 / _norm_scale(dim)

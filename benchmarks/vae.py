"""What the VAE costs, against ComfyUI's WanVAE class in the same process, from the same file of random weights.

Run it with ComfyUI's interpreter (it needs torch and safetensors only):
    <ComfyUI>/.venv/bin/python benchmarks/vae.py [--device cuda --dtype bf16 --cases 1x512 4x512 1x1024 4x1024]
ComfyUI is looked for in $COMFYUI_PATH, else in comfy-cli's default place. Repeats alternate between the two sides.
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from anima_core.demo.random_vae import random_vae_state  # noqa: E402
from anima_core.models.checkpoint import DTYPES  # noqa: E402
from anima_core.models.vae import LATENT_MEAN, LATENT_STD, AnimaVAE, AttentionBlock, load_vae  # noqa: E402
from benchmarks.machine import RESULTS, environment, find_checkout, peaks_of, seconds_of, start_comfyui, write_report  # noqa: E402


@dataclass(frozen=True)
class Work:
    """flops: multiplies and adds of convolutions and attention. bytes: each convolution's input, output and weights once."""

    flops: int
    bytes: int


class ComfyVAE:
    """ComfyUI's class with its latent format around it, so that both sides answer the same question."""

    def __init__(self, checkout: Path, file: Path, dim: int, dtype: torch.dtype, device: torch.device) -> None:
        start_comfyui(checkout, device)
        from comfy.ldm.wan.vae import WanVAE

        self.model = WanVAE(dim=dim, z_dim=16, temperal_downsample=[False, True, True])
        self.model.load_state_dict(load_file(file), strict=True)
        self.model.to(device, dtype).eval().requires_grad_(False)
        self.attention = self.model.encoder.middle[1].optimized_attention.__name__
        self.dtype = dtype
        self.mean, self.std = (torch.tensor(v, device=device).view(1, -1, 1, 1) for v in (LATENT_MEAN, LATENT_STD))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return (self.model.encode(images.to(self.dtype).unsqueeze(2)).squeeze(2).float() - self.mean) / self.std

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        z = (latents * self.std + self.mean).to(self.dtype)
        return self.model.decode(z.unsqueeze(2)).squeeze(2).float().clamp_(-1, 1)


def count_work(model: AnimaVAE, function: Callable[[Tensor], Tensor], x: Tensor) -> Work:
    """By formula, from the shapes that one call meets."""
    flops, moved, hooks = 0, 0, []

    def conv(layer: nn.Conv2d, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal flops, moved
        flops += 2 * output.numel() * layer.weight[0].numel()
        moved += sum(t.numel() * t.element_size() for t in (inputs[0], output, layer.weight))

    def attention(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        nonlocal flops
        b, c, h, w = output.shape
        flops += 4 * b * c * (h * w) ** 2

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            hooks.append(layer.register_forward_hook(conv))
        elif isinstance(layer, AttentionBlock):
            hooks.append(layer.register_forward_hook(attention))
    function(x)
    for hook in hooks:
        hook.remove()
    return Work(flops, moved)


def run_once(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[float, int | None]:
    """Seconds, and on CUDA the peak bytes above what was allocated before."""
    seconds: list[float] = []
    peaks = peaks_of(lambda: seconds.append(seconds_of(lambda: function(x), x.device)), x.device)
    return seconds[0], peaks.get("above")


def compare(ours: AnimaVAE, theirs: ComfyVAE, name: str, x: Tensor, repeats: int) -> dict:
    """Alternating repeats after one warm-up each; which side goes first alternates too."""
    sides = {"ours": lambda x: getattr(ours, name)(x, tile=0), "comfyui": getattr(theirs, name)}
    work = count_work(ours, sides["ours"], x)
    mine, other = (side(x).double() for side in sides.values())
    runs: dict[str, list] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in list(sides)[:: 1 if repeat % 2 == 0 else -1]:
            runs[side].append(run_once(sides[side], x))
    result = {"flops": work.flops, "conv_bytes": work.bytes, "relative_error": ((mine - other).norm() / other.norm()).item()}
    for side, measured in runs.items():
        seconds = [run[0] for run in measured]
        result[side] = {
            "min_s": min(seconds),
            "median_s": statistics.median(seconds),
            "seconds": seconds,
            "gflops_per_s": work.flops / min(seconds) / 1e9,
            "peak_bytes": max(run[1] for run in measured) if measured[0][1] is not None else None,
        }
    for key in ("min_s", "median_s"):
        result[f"speedup_{key[:-2]}"] = result["comfyui"][key] / result["ours"][key]
    return result


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp32")
    parser.add_argument("--dim", type=int, default=96, help="channels of the first level; the real file has 96")
    parser.add_argument("--cases", nargs="+", default=["1x256", "4x256", "1x512"], help="batch x side in px")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON; default benchmarks/results/vae_<device>.json")
    return parser.parse_args()


def load_both(args: argparse.Namespace, checkout: Path, device: torch.device) -> tuple[AnimaVAE, ComfyVAE]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vae.safetensors"
        save_file(random_vae_state(args.dim, torch.Generator().manual_seed(0)), file)
        ours = load_vae(file, dtype=DTYPES[args.dtype], device=device)
        return ours, ComfyVAE(checkout, file, args.dim, DTYPES[args.dtype], device)


def main() -> None:
    args, device = (parsed := arguments()), torch.device(parsed.device)
    checkout = find_checkout()
    ours, theirs = load_both(args, checkout, device)
    generator = torch.Generator().manual_seed(1)
    where = {**environment(device, checkout), "comfyui_attention": theirs.attention}
    report = {"environment": where, "dtype": args.dtype, "dim": args.dim, "cases": []}
    print(f"{'':>14} {'TFLOP':>7} {'conv GB':>8} {'ours s':>15} {'ComfyUI s':>15} {'speed-up':>15}   (min, median)")
    for case in args.cases:
        batch, side = map(int, case.split("x"))
        images = torch.rand(batch, 3, side, side, generator=generator).to(device) * 2 - 1
        for name, x in (("encode", images), ("decode", ours.encode(images, tile=0))):
            row = compare(ours, theirs, name, x, args.repeats)
            report["cases"].append({"what": name, "batch": batch, "side": side, **row})
            print(line(name, case, row), flush=True)
    write_report(report, args.out or RESULTS / f"vae_{device.type}.json")


def line(name: str, case: str, row: dict) -> str:
    times = [f"{row[side]['min_s']:7.3f} {row[side]['median_s']:7.3f}" for side in ("ours", "comfyui")]
    ratios = f"{row['speedup_min']:6.2f}x {row['speedup_median']:6.2f}x"
    peaks = [row[side]["peak_bytes"] for side in ("ours", "comfyui")]
    memory = f"   peak {peaks[0] / 2**30:.2f} / {peaks[1] / 2**30:.2f} GiB" if peaks[0] is not None else ""
    work = f"{row['flops'] / 1e12:7.3f} {row['conv_bytes'] / 1e9:8.2f}"
    return f"{name} {case:>7} {work} {times[0]:>15} {times[1]:>15} {ratios:>15}   error {row['relative_error']:.0e}{memory}"


if __name__ == "__main__":
    main()

"""What the time before the first step costs: pictures to latents, and a model file to weights: `python -m benchmarks.startup`.

Pictures are decoded and resized while they are encoded, in three forms: each when it is needed, one ahead, as far ahead as
today. The VAE is a small one on the CPU, which takes the cores that the threads need; and a stand-in for one on an
accelerator, which takes time and no core. A model file is hashed and loaded in three forms. Repeats alternate. Writes JSON.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from anima_core import files
from anima_core.data import ahead
from anima_core.data.batches import Item, build_items
from anima_core.data.cache import TensorCache
from anima_core.data.folder import scan
from anima_core.data.latents import LatentStore
from anima_core.demo.random_vae import random_vae_state
from anima_core.models.checkpoint import load_tensors
from anima_core.models.vae import AnimaVAE, load_vae
from anima_core.settings import DatasetConfig, SubsetConfig

FORMS = {"when needed": (0, 1), "one ahead": (ahead.WORKERS, 1), "now": (ahead.WORKERS, ahead.JOBS_AHEAD)}  # threads, ahead


class StandIn:
    """A VAE that is busy for so many seconds a picture and leaves the CPU alone, as one on an accelerator does."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def encode(self, images: Tensor, tile: int) -> Tensor:
        time.sleep(self.seconds * len(images))
        return torch.zeros(len(images), 16, images.shape[2] // 8, images.shape[3] // 8)


def write_pictures(folder: Path, count: int, side: int) -> list[Item]:
    """Draw JPEGs of side x 3/4 side with captions, and scan them."""
    colours = np.random.default_rng(0).integers(0, 256, (count, 48, 64, 3), np.uint8)
    folder.mkdir()
    for number, ground in enumerate(colours):
        path = folder / f"{number:04d}.jpg"
        Image.fromarray(ground).resize((side, side * 3 // 4), Image.Resampling.BICUBIC).save(path, quality=92)
        path.with_suffix(".txt").write_text(f"number {number}", encoding="utf-8")
    dataset = DatasetConfig((SubsetConfig(str(folder)),), resolutions=((256, 256),))
    return build_items((dataset,), (scan(dataset)[0],))


def fill(items: list[Item], vae: AnimaVAE | StandIn, form: str) -> None:
    workers, ahead.JOBS_AHEAD = FORMS[form]
    LatentStore(TensorCache(None), "vae", 0).fill(items, lambda: vae, 1, lambda done, total: None, workers=workers)


def seconds_of(forms: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time each form so many times, in turn, after one warm-up of each."""
    found: dict[str, list[float]] = {name: [] for name in forms}
    for repeat in range(repeats + 1):
        for name, function in forms.items():
            begin = time.perf_counter()
            function()
            if repeat:
                found[name].append(time.perf_counter() - begin)
    return found


def pictures_per_second(items: list[Item], vae: AnimaVAE | StandIn, repeats: int) -> dict[str, float]:
    found = seconds_of({form: lambda form=form: fill(items, vae, form) for form in FORMS}, repeats)
    return {form: len(items) / statistics.median(times) for form, times in found.items()}


def model_file(path: Path, repeats: int) -> dict[str, float]:
    """Seconds from a file that the system has in memory to weights of other memory, and its digest."""

    def whole(tensors: dict[str, Tensor]) -> None:
        for tensor in tensors.values():
            tensor.to(torch.float32)

    def mapped() -> None:
        files.digest(path)
        whole(load_file(path))

    def on_the_way() -> None:
        files._digests.clear()
        whole(load_tensors(path))

    forms = {"hashed, then loaded through a mapping": mapped, "hashed on the way": on_the_way}
    forms["its digest known"] = lambda: whole(load_tensors(path))  # after the form before: known
    return {form: statistics.median(times) for form, times in seconds_of(forms, repeats).items()}


def measure(args: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_file(random_vae_state(8, torch.Generator().manual_seed(0)), folder / "vae.safetensors")
        items = write_pictures(folder / "pictures", args.pictures, args.side)
        vaes = {"small VAE on the CPU": load_vae(folder / "vae.safetensors")}
        vaes |= {f"stand-in of {ms} ms a picture": StandIn(ms / 1000) for ms in args.device_ms}
        rates = {name: pictures_per_second(items, vae, args.repeats) for name, vae in vaes.items()}
        weights = {f"{n}": torch.randn(2048, 2048).bfloat16() for n in range(args.megabytes // 8)}
        save_file(weights, folder / "model.safetensors")
        seconds = model_file(folder / "model.safetensors", args.repeats)
    return {"pictures_per_second": rates, "model_file_seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--side", type=int, default=1536, help="px of the pictures' longer side")
    parser.add_argument("--device-ms", type=int, nargs="+", default=[100], help="of the stand-in, for each picture")
    parser.add_argument("--megabytes", type=int, default=256, help="of the model file")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, python {platform.python_version()}"
    asked = {name: value for name, value in vars(args).items() if name != "output"}
    text = json.dumps({"machine": machine, "asked": asked, **measure(args)}, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

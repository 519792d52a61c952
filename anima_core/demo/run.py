"""The demo: tiny models, drawn pictures, the training that a command line would start, and two pictures of what it did.

`python -m anima_core demo` needs no download, no GPU and about two minutes.
"""

import time
from pathlib import Path

from ..compat.arguments import config_of
from ..progress_bar import ProgressBar
from ..training.loop import train
from .charts import draw_grid, draw_loss_curve, losses_of
from .models import write_models
from .pictures import caption_of, write_pictures

STEPS = 1200
PICTURES = 36
PROMPTS = (
    caption_of("red", "circle", "white"),
    caption_of("blue", "square", "pink"),
    caption_of("yellow", "triangle", "dark"),
    caption_of("green", "circle", "pink"),
)

FLAGS = {
    "output_name": "demo",
    "network_module": "networks.lora_anima",
    "network_dim": "32",
    "network_alpha": "32",
    "network_args": "targets=all",
    "resolution": "128",
    "min_bucket_reso": "64",
    "bucket_reso_steps": "32",
    "train_batch_size": "8",
    "learning_rate": "4e-3",
    "lr_scheduler": "cosine",
    "save_precision": "fp32",
    "sample_size": "128",
    "sample_steps": "20",
    "sample_cfg": "2",
}
SWITCHES = ("--sample_at_first",)


def run(folder: Path, steps: int = 0) -> Path:
    """Write everything into `folder`; return the adapter file."""
    steps = steps or STEPS
    started = time.perf_counter()
    pictures = folder / "pictures"
    corpus = write_pictures(pictures, PICTURES)
    models = write_models(folder / "models", corpus)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    print(f"drew {len(corpus)} pictures and wrote four tiny models in {time.perf_counter() - started:.1f} s: {folder}")
    flags = command(models, pictures, prompts, folder, steps)
    print("python -m anima_core train " + " ".join(flags))
    with ProgressBar() as bar:
        result = train(config_of(flags), bar.on_event)
    draw_loss_curve(losses_of(result.run_dir / "log.jsonl"), folder / "loss.png")
    draw_grid(result.run_dir / "samples", steps, PROMPTS, folder / "before_after.png")
    print(f"loss curve: {folder / 'loss.png'}\nbefore and after: {folder / 'before_after.png'}")
    print(f"done in {time.perf_counter() - started:.0f} s")
    return result.adapter_path


def command(models: dict[str, Path], pictures: Path, prompts: Path, folder: Path, steps: int) -> list[str]:
    """Return the flags of the training, as a user would type them."""
    places = {"train_data_dir": str(pictures), "output_dir": str(folder), "sample_prompts": str(prompts)}
    lengths = {"max_train_steps": str(steps), "sample_every_n_steps": str(steps)}
    flags = {name: str(path) for name, path in models.items()} | places | FLAGS | lengths
    pairs = [text for name, value in flags.items() for text in (f"--{name}", value)]
    return [*pairs, *SWITCHES]

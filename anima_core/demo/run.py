"""The demo: tiny models, drawn pictures, the training that a command line would start, and two pictures of what it did.

`python -m anima_core demo` needs no download, no GPU and about two minutes.
"""

import time
from pathlib import Path

from ..compat.arguments import config_of
from ..progress_bar import ProgressBar
from ..training.loop import train
from .charts import draw_grid, draw_loss_curve, losses_of
from .files import BUCKET_STEP, MIN_SIDE, PICTURES, SIDE, DemoFiles, write_demo
from .pictures import caption_of

STEPS = 1200
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
    "resolution": str(SIDE),
    "min_bucket_reso": str(MIN_SIDE),
    "bucket_reso_steps": str(BUCKET_STEP),
    "train_batch_size": "8",
    "learning_rate": "4e-3",
    "lr_scheduler": "cosine",
    "save_precision": "fp32",
    "sample_size": str(SIDE),
    "sample_steps": "20",
    "sample_cfg": "2",
}
SWITCHES = ("--sample_at_first",)


def run(folder: Path, steps: int = 0) -> Path:
    """Write everything into `folder`; return the adapter file."""
    steps = steps or STEPS
    started = time.perf_counter()
    files = write_demo(folder)
    prompts = folder / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    print(f"drew {PICTURES} pictures and wrote four tiny models in {time.perf_counter() - started:.1f} s: {folder}")
    flags = command(files, prompts, folder, steps)
    print("python -m anima_core train " + " ".join(flags))
    with ProgressBar() as bar:
        result = train(config_of(flags), bar.on_event)
    draw_loss_curve(losses_of(result.run_dir / "log.jsonl"), folder / "loss.png")
    draw_grid(result.run_dir / "samples", steps, PROMPTS, folder / "before_after.png")
    print(f"loss curve: {folder / 'loss.png'}\nbefore and after: {folder / 'before_after.png'}")
    print(f"done in {time.perf_counter() - started:.0f} s")
    return result.adapter_path


def command(files: DemoFiles, prompts: Path, folder: Path, steps: int) -> list[str]:
    """Return the flags of the training, as a user would type them."""
    places = {"train_data_dir": str(files.pictures), "output_dir": str(folder), "sample_prompts": str(prompts)}
    lengths = {"max_train_steps": str(steps), "sample_every_n_steps": str(steps)}
    flags = {name: str(path) for name, path in files.models.items()} | places | FLAGS | lengths
    pairs = [text for name, value in flags.items() for text in (f"--{name}", value)]
    return [*pairs, *SWITCHES]

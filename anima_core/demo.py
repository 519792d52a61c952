"""The embedded default: tiny models as real files, drawn pictures, a real training, and two pictures of what it did.

`python -m anima_core demo` needs no download, no GPU and about two minutes.
"""

import json
import time
from pathlib import Path

from PIL import Image, ImageDraw
from safetensors.torch import save_file

from .demo_pictures import caption_of, write_pictures
from .models.random_text import write_t5_tokenizer, write_tiny_qwen
from .models.random_transformer import TINY, write_random_transformer
from .models.random_vae import linear_vae_state

STEPS = 1200
PICTURES = 36
PROMPTS = (
    caption_of("red", "circle", "white"),
    caption_of("blue", "square", "pink"),
    caption_of("yellow", "triangle", "dark"),
    caption_of("green", "circle", "pink"),
)


def write_models(folder: Path, corpus: list[str], seed: int = 0) -> dict[str, Path]:
    """Tiny random model files in the layouts of the real ones -> their paths by command-line flag."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"anima_transformer": folder / "anima_tiny.safetensors", "vae": folder / "vae_tiny.safetensors"}
    write_random_transformer(paths["anima_transformer"], TINY, seed=seed)
    save_file(linear_vae_state(), paths["vae"])
    paths["qwen"] = write_tiny_qwen(folder / "qwen", corpus, hidden=TINY.adapter.source_dim, seed=seed)
    paths["t5_tokenizer_dir"] = write_t5_tokenizer(folder / "t5_tokenizer", corpus)
    return paths


def run(folder: Path, steps: int = 0) -> Path:
    """Everything into `folder`; returns the adapter file."""
    from .cli import main

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
    status = main(["train", *flags])
    if status:
        raise SystemExit(status)
    draw_loss_curve(losses_of(folder / "demo-run" / "log.jsonl"), folder / "loss.png")
    draw_grid(folder / "demo-run" / "samples", steps, folder / "before_after.png")
    print(f"loss curve: {folder / 'loss.png'}\nbefore and after: {folder / 'before_after.png'}")
    print(f"done in {time.perf_counter() - started:.0f} s")
    return folder / "demo.safetensors"


def command(models: dict[str, Path], pictures: Path, prompts: Path, folder: Path, steps: int) -> list[str]:
    """The flags of the training, as a user would type them."""
    flags = {name: str(path) for name, path in models.items()} | {
        "train_data_dir": str(pictures),
        "output_dir": str(folder),
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
        "max_train_steps": str(steps),
        "save_precision": "fp32",
        "sample_prompts": str(prompts),
        "sample_every_n_steps": str(steps),
        "sample_size": "128",
        "sample_steps": "20",
        "sample_cfg": "2",
    }
    pairs = [text for name, value in flags.items() for text in (f"--{name}", value)]
    return [*pairs, "--sample_at_first", "--no-gradient_checkpointing"]


def losses_of(log: Path) -> list[float]:
    events = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return [e["loss"] for e in events if e["event"] == "step" and e["loss"] is not None]


def draw_loss_curve(losses: list[float], path: Path, size: tuple[int, int] = (640, 320)) -> None:
    """Each step's loss in grey, a running mean in blue."""
    width, height = size
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = 56, 16, width - 16, height - 28
    high = max(losses) or 1.0
    means = running_mean(losses, 0.97)

    def point(i: int, value: float) -> tuple[float, float]:
        return left + (right - left) * i / max(1, len(losses) - 1), bottom - (bottom - top) * value / high

    for part in range(5):
        value = high * part / 4
        y = point(0, value)[1]
        pen.line([(left, y), (right, y)], fill=(228, 228, 228))
        pen.text((8, y - 6), f"{value:.2f}", fill=(90, 90, 90))
    for values, colour, line in ((losses, (190, 190, 190), 1), (means, (40, 90, 200), 3)):
        pen.line([point(i, v) for i, v in enumerate(values)], fill=colour, width=line)
    pen.text((left, bottom + 8), f"loss over {len(losses)} steps", fill=(90, 90, 90))
    image.save(path)


def running_mean(values: list[float], memory: float) -> list[float]:
    """Exponential, without a start-up bias."""
    means, total = [], 0.0
    for n, value in enumerate(values, start=1):
        total = memory * total + (1 - memory) * value
        means.append(total / (1 - memory**n))
    return means


def draw_grid(samples: Path, steps: int, path: Path, side: int = 192) -> None:
    """Columns are prompts; the upper row is the base model, the lower one the trained adapter, from the same noise."""
    label = 20
    grid = Image.new("RGB", (side * len(PROMPTS), 2 * (side + label)), "white")
    pen = ImageDraw.Draw(grid)
    for row, (step, name) in enumerate(((0, "before"), (steps, "after"))):
        for column, prompt in enumerate(PROMPTS):
            picture = Image.open(samples / f"step-{step:08d}-{column}.png").resize((side, side), Image.Resampling.BICUBIC)
            y = row * (side + label)
            grid.paste(picture, (column * side, y + label))
            pen.text((column * side + 4, y + 4), f"{name}: {prompt.split(',')[0]}", fill="black")
    grid.save(path)

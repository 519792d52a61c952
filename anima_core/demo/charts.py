"""The demo's two pictures: the loss over the run, and what the base model and the adapter draw."""

import json
from pathlib import Path

from PIL import Image, ImageDraw


def losses_of(log: Path) -> list[float]:
    """Read the loss of every step from a run's log."""
    events = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return [e["loss"] for e in events if e["event"] == "step" and e["loss"] is not None]


def draw_loss_curve(losses: list[float], path: Path, size: tuple[int, int] = (640, 320)) -> None:
    """Draw each step's loss in grey and a running mean in blue."""
    width, height = size
    image = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(image)
    left, top, right, bottom = 56, 16, width - 16, height - 28
    high = max(losses) or 1.0

    def point(i: int, value: float) -> tuple[float, float]:
        return left + (right - left) * i / max(1, len(losses) - 1), bottom - (bottom - top) * value / high

    for part in range(5):
        value = high * part / 4
        y = point(0, value)[1]
        pen.line([(left, y), (right, y)], fill=(228, 228, 228))
        pen.text((8, y - 6), f"{value:.2f}", fill=(90, 90, 90))
    for values, colour, line in ((losses, (190, 190, 190), 1), (running_mean(losses, 0.97), (40, 90, 200), 3)):
        pen.line([point(i, v) for i, v in enumerate(values)], fill=colour, width=line)
    pen.text((left, bottom + 8), f"loss over {len(losses)} steps", fill=(90, 90, 90))
    image.save(path)


def running_mean(values: list[float], memory: float) -> list[float]:
    """Return the exponential mean after each value, without a start-up bias."""
    means, total = [], 0.0
    for n, value in enumerate(values, start=1):
        total = memory * total + (1 - memory) * value
        means.append(total / (1 - memory**n))
    return means


def draw_grid(samples: Path, steps: int, prompts: tuple[str, ...], path: Path, side: int = 192) -> None:
    """Draw a column for each prompt: the base model above, the trained adapter below, from the same noise."""
    label = 20
    grid = Image.new("RGB", (side * len(prompts), 2 * (side + label)), "white")
    pen = ImageDraw.Draw(grid)
    for row, (step, name) in enumerate(((0, "before"), (steps, "after"))):
        for column, prompt in enumerate(prompts):
            picture = Image.open(samples / f"step-{step:08d}-{column}.png").resize((side, side), Image.Resampling.BICUBIC)
            y = row * (side + label)
            grid.paste(picture, (column * side, y + label))
            pen.text((column * side + 4, y + 4), f"{name}: {prompt.split(',')[0]}", fill="black")
    grid.save(path)

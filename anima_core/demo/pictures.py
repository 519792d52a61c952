"""The demo's data set: coloured shapes on coloured grounds, drawn here, with captions that say what is on them."""

import random
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {"red": (214, 60, 52), "green": (70, 160, 84), "blue": (58, 96, 196), "yellow": (240, 200, 64)}
GROUNDS = {"white": (244, 242, 236), "dark": (38, 40, 52), "pink": (240, 176, 190)}
SHAPES = ("circle", "square", "triangle")
SIZES = ((128, 128), (160, 96), (96, 160))
SCALE = 4  # drawn larger, then reduced: smooth edges


def caption_of(colour: str, shape: str, ground: str) -> str:
    return f"{colour} {shape}, {ground} background, drawing"


def draw(colour: str, shape: str, ground: str, size: tuple[int, int], offset: tuple[float, float]) -> Image.Image:
    """Draw one picture; offset: the shape's centre relative to the middle, in parts of the free room."""
    width, height = (side * SCALE for side in size)
    image = Image.new("RGB", (width, height), GROUNDS[ground])
    pen = ImageDraw.Draw(image)
    radius = min(width, height) * 0.3
    x = width / 2 + offset[0] * (width / 2 - radius)
    y = height / 2 + offset[1] * (height / 2 - radius)
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "circle":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "square":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=COLOURS[colour])
    return image.resize(size, Image.Resampling.LANCZOS)


def write_pictures(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Draw `count` pictures with caption files beside them; returns the captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    kinds = [(c, s, g) for c in COLOURS for s in SHAPES for g in GROUNDS]
    rng.shuffle(kinds)
    captions = []
    for number in range(count):
        colour, shape, ground = kinds[number % len(kinds)]
        offset = (rng.uniform(-0.5, 0.5), rng.uniform(-0.5, 0.5))
        path = folder / f"{number:03d}_{colour}_{shape}.png"
        draw(colour, shape, ground, SIZES[number % len(SIZES)], offset).save(path)
        captions.append(caption_of(colour, shape, ground))
        path.with_suffix(".txt").write_text(captions[-1], encoding="utf-8")
    return captions

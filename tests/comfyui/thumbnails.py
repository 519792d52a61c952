"""Draws the templates' pictures in the browser of templates, square as its frames: `python -m tests.comfyui.thumbnails`."""

import random
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from anima_core.demo.pictures import draw as draw_shape
from tests.comfyui.make_workflows import FOLDER

SIDE = 480  # px
LARGE = 2  # drawn larger, then reduced: smooth edges
Colour = tuple[int, int, int]
DUSK = ((255, 178, 122), (214, 92, 120), (92, 62, 130), (44, 36, 84))  # sky below, sky above, hills, nearer hills
DAWN = ((250, 236, 196), (150, 200, 214), (86, 150, 140), (36, 88, 92))
INK: Colour = (34, 32, 48)
HAIR: Colour = (214, 84, 122)
SKIN: Colour = (252, 224, 204)


def scene(side: int, colours: tuple[Colour, ...], seed: int) -> Image.Image:
    """Draw hills below a sun: the same colours are a style, whatever the seed puts where."""
    rng = random.Random(seed)
    below, above, *hills = (np.array(colour) for colour in colours)
    share = np.linspace(0, 1, side)[:, None, None]
    sky = np.broadcast_to(above * (1 - share) + below * share, (side, side, 3))
    image = Image.fromarray(sky.astype(np.uint8))
    pen = ImageDraw.Draw(image)
    x, y, radius = rng.uniform(0.2, 0.8) * side, rng.uniform(0.25, 0.45) * side, side * 0.12
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(255, 244, 214))
    for number, colour in enumerate(hills):
        base, phase = side * (0.62 + 0.18 * number), rng.uniform(0, 6)
        tops = [(i, base + side * 0.08 * np.sin(phase + 7 * i / side)) for i in range(0, side + 1, 4)]
        pen.polygon([(0, side), *tops, (side, side)], fill=tuple(int(part) for part in colour))
    return image


def face(side: int, ground: Colour, smile: float, tilt: float) -> Image.Image:
    """Draw a portrait; the same hair and eyes are a character, whatever ground and mood."""
    image = Image.new("RGB", (side, side), ground)
    pen = ImageDraw.Draw(image)

    def oval(x: float, y: float, w: float, h: float, fill: Colour) -> None:
        pen.ellipse([side * part for part in (x - w, y - h, x + w, y + h)], fill=fill)

    oval(0.5, 0.52, 0.36, 0.4, HAIR)
    pen.rectangle([side * part for part in (0.14, 0.52, 0.86, 0.92)], fill=HAIR)
    oval(0.5, 0.56, 0.26, 0.3, SKIN)
    pen.pieslice([side * part for part in (0.2, 0.16, 0.8, 0.74)], 180, 360, fill=HAIR)
    for x in (0.39, 0.61):
        oval(x, 0.57, 0.055, 0.085, INK)
        oval(x + 0.015, 0.54, 0.02, 0.03, (255, 255, 255))
        oval(x + (0.05 if x > 0.5 else -0.05), 0.68, 0.045, 0.022, (246, 168, 160))
    pen.arc([side * part for part in (0.43, 0.66 - smile, 0.57, 0.7 + smile)], 20, 160, fill=INK, width=max(2, side // 60))
    oval(0.78, 0.26, 0.07, 0.05, (250, 206, 84))
    oval(0.88, 0.2, 0.07, 0.05, (250, 206, 84))
    return image.rotate(tilt, Image.Resampling.BICUBIC, fillcolor=ground)


def tiles(pictures: list[Image.Image], columns: int, side: int) -> Image.Image:
    """Put square pictures beside and below each other, with a thin gap."""
    step = side // columns
    canvas = Image.new("RGB", (side, side), INK)
    for number, picture in enumerate(pictures):
        canvas.paste(picture.resize((step - 8, step - 8)), (number % columns * step + 4, number // columns * step + 4))
    return canvas


def try_it(side: int) -> Image.Image:
    rng = np.random.default_rng(0)
    kinds = [
        ("red", "circle", "white"),
        ("blue", "square", "pink"),
        ("yellow", "triangle", "dark"),
        ("green", "circle", "pink"),
    ]
    shown = []
    for colour, shape, ground in kinds:
        clear = np.asarray(draw_shape(colour, shape, ground, (240, 240), (0, 0)), dtype=np.float32)
        noise = rng.normal(128, 70, (30, 30, 3)).repeat(8, 0).repeat(8, 1)
        for step in range(4):
            share = (step / 3) ** 0.7
            shown.append(Image.fromarray((noise * (1 - share) + clear * share).clip(0, 255).astype(np.uint8)))
    return tiles(shown, 4, side)


def style(side: int) -> Image.Image:
    return tiles([scene(side // 5, DUSK, seed) for seed in range(25)], 5, side)


def character(side: int) -> Image.Image:
    grounds = [(150, 200, 226), (250, 220, 150), (180, 214, 160), (226, 190, 226)]
    moods = [(0.02, 0), (0.05, 7), (0.0, -6), (0.035, 3)]
    return tiles([face(side // 2, ground, *mood) for ground, mood in zip(grounds, moods)], 2, side)


def train_and_draw(side: int) -> Image.Image:
    """Draw small pictures that lead into a curve, and that into a large picture."""
    image = Image.new("RGB", (side, side), (30, 33, 40))
    pen = ImageDraw.Draw(image)
    for number in range(4):
        small = scene(side * 2 // 15, DUSK, number)
        image.paste(small, (int(side * 0.04), int(side * (0.04 + 0.165 * number))))
    pen.rounded_rectangle([side * part for part in (0.23, 0.2, 0.45, 0.54)], side // 40, fill=(58, 64, 76))
    share = np.linspace(0, 1, 40)
    pen.line([*zip(side * (0.25 + 0.18 * share), side * (0.48 - 0.23 * np.exp(-4 * share)))], (120, 214, 160), side // 90)
    for begin in (0.185, 0.46):
        pen.line([side * part for part in (begin, 0.37, begin + 0.035, 0.37)], fill=(100, 181, 246), width=side // 60)
    image.paste(scene(int(side * 0.46), DUSK, 11), (int(side * 0.51), int(side * 0.14)))
    return image


def lokr(side: int) -> Image.Image:
    """Draw a Kronecker product: one small pattern in each cell of another."""
    small = np.array([[1.0, 0.35, 0.6, 0.2], [0.3, 0.9, 0.15, 0.7], [0.55, 0.1, 1.0, 0.4], [0.2, 0.65, 0.35, 0.85]])
    both = np.kron(small, small)[..., None]
    colours = np.array([44, 36, 84]) * (1 - both) + np.array([255, 196, 110]) * both
    return Image.fromarray(colours.astype(np.uint8)).resize((side, side), Image.Resampling.NEAREST)


def graph(side: int) -> Image.Image:
    """Draw pictures whose lines lead into one node."""
    image = Image.new("RGB", (side, side), (30, 33, 40))
    pen = ImageDraw.Draw(image)
    cards = [scene(side // 4, DUSK, 3), face(side // 4, (150, 200, 226), 0.03, 0), scene(side // 4, DAWN, 8)]
    ends = [(side * 0.62, side * (0.3 + 0.1 * number)) for number in range(3)]
    for number, (card, end) in enumerate(zip(cards, ends)):
        top = int(side * (0.03 + 0.255 * number))
        begin = (side * 0.36, top + side / 8)
        share = np.linspace(0, 1, 60)
        curve = begin[1] + (end[1] - begin[1]) * (3 * share**2 - 2 * share**3)
        pen.line([*zip(begin[0] + (end[0] - begin[0]) * share, curve)], fill=(100, 181, 246), width=side // 80)
        image.paste(card, (int(side * 0.1), top))
    pen.rounded_rectangle([side * part for part in (0.62, 0.18, 0.94, 0.62)], side // 40, fill=(58, 64, 76))
    for end in ends:
        radius = side / 50
        pen.ellipse((end[0] - radius, end[1] - radius, end[0] + radius, end[1] + radius), fill=(100, 181, 246))
        pen.rounded_rectangle([side * 0.68, end[1] - radius, side * 0.9, end[1] + radius], radius, fill=(96, 104, 120))
    return image


def compare(side: int) -> Image.Image:
    """Draw one scene twice: what two adapters make of the same noise."""
    image = scene(side, DUSK, 4)
    image.paste(scene(side, DAWN, 4).crop((side // 2, 0, side, side)), (side // 2, 0))
    pen = ImageDraw.Draw(image)
    pen.line((side // 2, 0, side // 2, side), fill=(255, 255, 255), width=side // 60)
    font = ImageFont.load_default(side // 5)
    for x, letter in ((0.25, "A"), (0.75, "B")):
        pen.text((side * x, side * 0.13), letter, (255, 255, 255), font, anchor="mm")
    return image


def toml(side: int) -> Image.Image:
    """Draw a sheet with the words of a training file."""
    image = scene(side, DAWN, 2).filter(ImageFilter.GaussianBlur(side / 60))
    pen = ImageDraw.Draw(image)
    pen.rounded_rectangle([side * part for part in (0.14, 0.06, 0.86, 0.9)], side // 40, fill=(252, 250, 244))
    font = ImageFont.load_default(side // 17)
    lines = ["[network]", "rank = 16", "alpha = 1", "", "[training]", "steps = 1200", "rate = 1e-4"]
    for number, line in enumerate(lines):
        colour = (168, 84, 60) if line.startswith("[") else INK
        pen.text((side * 0.2, side * (0.11 + 0.085 * number)), line, colour, font)
    return image


def titled(image: Image.Image, word: str, below: str) -> Image.Image:
    """Write a large word and a line below it on a dark band at the bottom."""
    side = image.width
    band = Image.new("RGBA", image.size, (0, 0, 0, 0))
    pen = ImageDraw.Draw(band)
    pen.rectangle((0, side * 0.72, side, side), fill=(20, 20, 28, 225))
    pen.text((side * 0.06, side * 0.82), word, (255, 255, 255), ImageFont.load_default(side // 8), anchor="lm")
    pen.text((side * 0.06, side * 0.935), below, (214, 214, 226), ImageFont.load_default(side // 17), anchor="lm")
    return Image.alpha_composite(image.convert("RGBA"), band).convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)


PICTURES: dict[str, tuple[Callable[[int], Image.Image], str, str]] = {  # first word of a template's name -> picture, words
    "Try": (try_it, "Try it", "a minute, no download"),
    "Train and": (train_and_draw, "Train and draw", "straight into KSampler"),
    "Style": (style, "Style", "from 20 pictures"),
    "A character": (character, "Character", "a LoRA of 12 to 20 pictures"),
    "A LoKr": (lokr, "LoKr", "a product of two factors"),
    "Pictures": (graph, "Pictures", "straight from the graph"),
    "Compare": (compare, "Compare two", "same noise, same pictures"),
    "From": (toml, "TOML", "a run from a file"),
}


def main() -> None:
    for path in sorted(FOLDER.glob("*.json")):
        draw, word, below = next(found for start, found in PICTURES.items() if path.stem.startswith(start))
        titled(draw(SIDE * LARGE), word, below).save(path.with_suffix(".jpg"), quality=86, optimize=True)


if __name__ == "__main__":
    main()

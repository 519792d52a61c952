"""The caption that an item is trained with, which (seed, epoch, item) alone decide; and such captions to look at."""

from collections.abc import Sequence

import torch

from .. import seeds
from ..models.tokenizers import T5Tokenizer
from ..settings import DatasetConfig
from .batches import Draw, Item, build_items, draw_of
from .captions import process_caption
from .folder import Picture

EPOCHS_SHOWN = 4


def drawn_caption(draw: Draw, seed: int, variants: int) -> str:
    """Choose the caption of a draw: dropped as a whole, or one of the picture's variants."""
    subset = draw.item.picture.subset
    if subset.caption_dropout_rate > 0:
        chance = torch.rand((), generator=seeds.generator(draw.caption_seed, "drop"))
        if chance < subset.caption_dropout_rate:
            return ""
    return caption_variant(draw.item, draw.epoch, seed, variants)


def caption_variant(item: Item, epoch: int, seed: int, variants: int) -> str:
    """Return the caption of an item in an epoch; with `caption_variants` = n, epochs repeat after n."""
    picture = item.picture
    variant = (epoch % variants if variants else epoch) if picture.subset.varies else 0
    generator = seeds.generator(seed, "caption", item.number, variant)
    return process_caption(picture.caption, picture.subset, generator, drop=False, sources=picture.sources)


def example_lines(
    datasets: Sequence[DatasetConfig],
    pictures: Sequence[Sequence[Picture]],
    count: int,
    seed: int,
    variants: int,
    t5: T5Tokenizer | None,
) -> list[str]:
    """Show `count` pictures' captions as the first epochs train them, with their T5 tokens where there is a tokenizer.

    pictures: of each dataset. The pictures are spread over all of them; one whose caption never changes has one line.
    """
    items = list({item.picture.path: item for item in reversed(build_items(datasets, pictures))}.values())[::-1]
    shown = items[:: max(1, len(items) // count)][:count] if count else []
    lines = [f"captions as they are trained with seed {seed}:"] if shown else []
    for item in shown:
        drawn = [drawn_caption(draw_of(item, epoch, seed), seed, variants) for epoch in range(EPOCHS_SHOWN)]
        lines.append(f"  {item.picture.name}")
        times = [f"epoch {number}" for number in range(1, EPOCHS_SHOWN + 1)] if len(set(drawn)) > 1 else ["always"]
        lines += [f"    {time}, {caption_line(text, t5)}" for time, text in zip(times, drawn)]
    return lines


def caption_line(text: str, t5: T5Tokenizer | None) -> str:
    tokens = f"{len(t5.encode([text])[0])} tokens: " if t5 else ""
    return tokens + (text.replace("\n", " / ") or "(no caption)")

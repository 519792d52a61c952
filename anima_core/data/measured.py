"""Held-out pictures as they are measured. Apart from how they are drawn, which a check of a folder does without torch."""

from .. import seeds
from ..settings import HeldOutConfig
from .batches import Item, build_items
from .captions import process_caption
from .held_out import HeldOut, score


def measured_items(held_out: HeldOut, config: HeldOutConfig) -> list[Item]:
    """List what is measured: every picture at each resolution of its dataset, of the first `most` in the draw's order."""
    digests = sorted({p.digest for group in held_out.pictures for p in group}, key=lambda digest: score(config.seed, digest))
    chosen = set(digests[: config.most or None])
    return build_items(held_out.datasets, [[p for p in group if p.digest in chosen] for group in held_out.pictures])


def measured_caption(item: Item) -> str:
    """Return the one caption that a held-out picture is measured with; a wildcard is drawn by the picture's content."""
    picture = item.picture
    generator = seeds.generator(0, "held-out caption", picture.digest)
    return process_caption(picture.caption, picture.subset, generator, drop=False, sources=picture.sources)

"""What the planner makes of cards: `python -m benchmarks.plans`. Computed on tensors without bytes, nothing is measured.

For the released sizes, and for 40 blocks of them, one picture in a batch, AdamW: how much longer a step takes than one that
keeps everything in bf16, its peak, and how many blocks' weights are streamed. The usable part of a card is `Card.usable`; its
rates are those of a card of the middle, on 16 lanes of PCIe 4.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from anima_core.demo.random_transformer import REAL
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import DatasetConfig, ModelConfig, NetworkConfig, SubsetConfig, TrainConfig
from anima_core.speed.cards import GB, Card
from anima_core.speed.costs import Shape, empty
from anima_core.speed.forms import LEVELS
from anima_core.training.budget import TOKEN, Counter
from anima_core.training.forecast import forecast_on

from .training_step import in_8_bits

CARDS, SIDES = (4, 6, 8, 10, 12, 16, 24), (512, 768, 1024)
LORA, LOKR = NetworkConfig(rank=32, alpha=32), NetworkConfig(type="lokr", factor=8, full_matrix=True)


@dataclass(frozen=True)
class Table:
    """network: what is trained; int8: whether on a model in 8 bits; blocks: of the model."""

    network: NetworkConfig
    int8: bool = False
    blocks: int = REAL.blocks

    def counter(self, side: int) -> Counter:
        return counter(self, side)


TABLES = {
    "LoRA, rank 32": Table(LORA),
    "LoRA, rank 32, int8": Table(LORA, int8=True),
    "LoKr, whole factors": Table(LOKR),
    "LoKr, whole factors, int8": Table(LOKR, int8=True),
    "LoRA, rank 32, 40 blocks": Table(LORA, blocks=40),
    "LoRA, rank 32, 40 blocks, int8": Table(LORA, int8=True, blocks=40),
}


@cache
def counter(table: Table, side: int) -> Counter:
    data = DatasetConfig((SubsetConfig("pictures"),))
    config = TrainConfig(ModelConfig("", "", "", ""), (data,), network=table.network)
    return Counter(lambda: model_of(table), config, [Shape(1, side // TOKEN, side // TOKEN, 512)], None)


def model_of(table: Table) -> AnimaTransformer:
    """Build a model without a byte of it."""
    model = empty(replace(REAL, blocks=table.blocks), torch.bfloat16)
    return in_8_bits(model) if table.int8 else model


def cell(table: Table, side: int, card: Card) -> str:
    """Return how much longer a step takes than with all kept in bf16, its peak, and how many blocks are streamed."""
    budget, levels = forecast_on(table.counter(side), card.usable)
    if not budget.fits(levels):
        return "–"
    kept = replace(table, int8=False).counter(side).worst.seconds(LEVELS[:1] * table.blocks)
    said = f"+{100 * (budget.seconds(levels) / kept - 1):.0f} %, {budget.peak(levels) / GB:.1f} GB"
    return f"{said}, {budget.away.blocks} streamed" if budget.away.blocks else said


def rows(cards: Sequence[int], table: Table, sides: Sequence[int] = SIDES) -> Iterator[str]:
    """Yield a line of a Markdown table for each card."""
    for gib in cards:
        card = Card("card", gib, 0, 0)
        cells = " | ".join(cell(table, side, card) for side in sides)
        yield f"| {gib} GB, {card.usable / GB:.1f} usable | {cells} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", nargs="*", type=int, default=CARDS, help="GB of memory")
    parser.add_argument("--sides", nargs="*", type=int, default=SIDES, help="px")
    args = parser.parse_args()
    for name, table in TABLES.items():
        print(f"| {name} | " + " | ".join(f"{side} px" for side in args.sides) + " |\n|---|" + "---|" * len(args.sides))
        print("\n".join(rows(args.cards, table, args.sides)) + "\n")

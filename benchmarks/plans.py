"""What the planner makes of cards: `python -m benchmarks.plans`. Computed on tensors without bytes, nothing is measured.

For the released sizes in bf16, one picture in a batch, AdamW: how much longer a step takes than one that keeps everything,
and its peak. The usable part of a card is `Card.usable`.
"""

import argparse
from collections.abc import Iterator, Sequence

import torch

from anima_core.demo.random_transformer import REAL
from anima_core.settings import DatasetConfig, ModelConfig, NetworkConfig, SubsetConfig, TrainConfig
from anima_core.speed.cards import FRAGMENTS, GB, Card
from anima_core.speed.costs import Shape, empty
from anima_core.speed.forms import LEVELS
from anima_core.training.budget import TOKEN, Counter
from anima_core.training.forecast import forecast_on

CARDS, SIDES = (6, 8, 10, 12, 16, 24), (512, 768, 1024)
NETWORKS = {
    "LoRA, rank 32": NetworkConfig(rank=32, alpha=32),
    "LoKr, whole factors": NetworkConfig(type="lokr", factor=8, full_matrix=True),
}


def counter(network: NetworkConfig, side: int) -> Counter:
    config = TrainConfig(ModelConfig("", "", "", ""), (DatasetConfig((SubsetConfig("pictures"),)),), network=network)
    return Counter(lambda: empty(REAL, torch.bfloat16), config, [Shape(1, side // TOKEN, side // TOKEN, 512)], None)


def cell(counted: Counter, card: Card) -> str:
    """Return how much longer a step takes than with all kept, and its peak."""
    budget, levels = forecast_on(counted, card.usable)
    if not budget.fits(levels):
        return "–"
    longer = budget.costs.seconds(levels) / budget.costs.seconds(LEVELS[:1] * len(levels)) - 1
    return f"+{100 * longer:.0f} %, {(budget.resident + FRAGMENTS * budget.taken(levels)) / GB:.1f} GB"


def rows(cards: Sequence[int], counters: Sequence[Counter]) -> Iterator[str]:
    """Yield a line of a Markdown table for each card."""
    for gib in cards:
        card = Card("card", gib, 0, 0)
        cells = " | ".join(cell(each, card) for each in counters)
        yield f"| {gib} GB, {card.usable / GB:.1f} usable | {cells} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cards", nargs="*", type=int, default=CARDS, help="GB of memory")
    parser.add_argument("--sides", nargs="*", type=int, default=SIDES, help="px")
    args = parser.parse_args()
    for name, network in NETWORKS.items():
        print(f"| {name} | " + " | ".join(f"{side} px" for side in args.sides) + " |\n|---|" + "---|" * len(args.sides))
        print("\n".join(rows(args.cards, [counter(network, side) for side in args.sides])) + "\n")

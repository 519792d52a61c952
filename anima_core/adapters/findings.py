"""What an analysis of an adapter says in words: means by kind and block as a table, and one sentence on what stands out."""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from statistics import fmean, median
from typing import TypeVar

from .analysis import ENERGY, Analysis, Fact

BAR = 30  # characters of the longest bar

K = TypeVar("K", str, int)
Measure = Callable[[Fact], float | None]


def table(found: Analysis) -> list[str]:
    """Return lines: a row for each kind of layer, and one for each block with a bar."""
    counts = Counter(fact.kind for fact in found.facts)
    measures = [means(found.facts, kind_of, of) for of in (strength_of, lambda f: f.used, lambda f: f.rank, lambda f: f.like)]
    width = max(map(len, counts))
    title = "of its weight" if found.relative else "size (rms)"
    lines = [f"{'kind of layer':<{width}}  layers  {title:>13}  ranks used{'  alike' if found.other else ''}"]
    for kind, count in counts.items():
        strength, used, rank, like = (measure.get(kind, math.nan) for measure in measures)
        ranks = f"{used:.0f} of {rank:.0f}"
        alike = f"  {cosine_text(like):>5}" if found.other else ""
        lines.append(f"{kind:<{width}}  {count:6}  {shown(strength, found.relative):>13}  {ranks:>10}{alike}")
    blocks = means(found.facts, block_of, strength_of)
    most = max(blocks.values(), default=0) or 1
    bars = [
        f"block {n:<2}  {shown(blocks[n], found.relative):>9}  {'#' * round(BAR * blocks[n] / most)}" for n in sorted(blocks)
    ]
    return [*lines, *bars]


def shown(strength: float, relative: bool) -> str:
    return f"{strength:.3%}" if relative else f"{strength:.3g}"


def cosine_text(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # never -0.00


def kind_of(fact: Fact) -> str:
    return fact.kind


def block_of(fact: Fact) -> int | None:
    """Return the number of a block of the transformer itself."""
    return None if fact.kind.startswith("llm_adapter.") else fact.block


def strength_of(fact: Fact) -> float:
    return fact.strength


def means(facts: Iterable[Fact], by: Callable[[Fact], K | None], of: Measure) -> dict[K, float]:
    """Return the mean of a measure by kind or block; what has neither, or is NaN, is left out."""
    groups: dict[K, list[float]] = defaultdict(list)
    for fact in facts:
        key, value = by(fact), of(fact)
        if key is not None and value is not None and not math.isnan(value):
            groups[key].append(value)
    return {key: fmean(values) for key, values in groups.items()}


def sentence(found: Analysis) -> str:
    """Say in one sentence what stands out most, and how like the other adapter it is."""
    first = next(filter(None, (rule(found) for rule in (broken, nothing, too_strong, one_block, one_kind, too_high_rank))), "")
    return f"{first or 'Nothing stands out: all blocks and kinds of layers are changed alike'}{likeness(found)}."


def broken(found: Analysis) -> str:
    names = [fact.name for fact in found.facts if math.isnan(fact.strength)]
    return f"{len(names)} layers hold NaN or infinity, first {names[0]}: the adapter is broken" if names else ""


def nothing(found: Analysis) -> str:
    count = sum(fact.strength == 0 for fact in found.facts)
    if count == len(found.facts):
        return "No layer changes anything: the adapter was never trained"
    return f"{count} of {len(found.facts)} layers change nothing" if count else ""


def too_strong(found: Analysis) -> str:
    """Tell of changes above a third of the weights, which is ten times what usual trainings do."""
    strong = [fact for fact in found.facts if fact.strength > 1 / 3]
    most = max(strong, key=lambda fact: fact.strength, default=None)
    if not found.relative or most is None:
        return ""
    return f"{len(strong)} layers change their weights by more than a third, most {most.name} by {most.strength:.0%}"


def one_block(found: Analysis) -> str:
    """Tell of a block that is changed more than twice as much as the middle one, each kind of layer by its own mean."""
    usual = means(found.facts, kind_of, strength_of)
    blocks = means(found.facts, block_of, lambda fact: fact.strength / max(usual.get(fact.kind, 0), 1e-30))
    return outstanding({f"block {number}": value for number, value in blocks.items()})


def one_kind(found: Analysis) -> str:
    return outstanding(means(found.facts, kind_of, strength_of))


def outstanding(values: dict[str, float]) -> str:
    if len(values) < 3 or not (middle := median(values.values())):
        return ""
    most, value = max(values.items(), key=lambda item: item[1])
    return f"{most} is changed most, {value / middle:.1f} times as much as the middle one" if value > 2 * middle else ""


def too_high_rank(found: Analysis) -> str:
    """Tell of an adapter whose effect lies in less than half of its ranks."""
    ranked = [fact for fact in found.facts if fact.rank and fact.used]
    rank, used = (fmean(values) if ranked else 0.0 for values in ([f.rank or 0 for f in ranked], [f.used or 0 for f in ranked]))
    return f"{ENERGY:.0%} of the effect lies in {used:.0f} of {rank:.0f} ranks" if used < rank / 2 else ""


def likeness(found: Analysis) -> str:
    if found.like is None:
        return f"; no layer is also in {found.other}" if found.other else ""
    names = ((0.9, "nearly the same as"), (0.3, "akin to"), (-0.3, "unrelated to"), (-2.0, "the opposite of"))
    words = next(words for bound, words in names if found.like >= bound)
    return f"; it is {words} {found.other} (cosine {cosine_text(found.like)})"

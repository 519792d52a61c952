"""How a run computes attention: in the way that is right and fastest on its device; in another where gradients break.

What is chosen is frozen in the run folder. All ways give the same numbers but for their rounding.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ..data.batches import Batches
from ..data.buckets import smaller
from ..models.llm_adapter import MIN_TEXT_ROWS
from ..models.transformer import AnimaTransformer
from ..speed.attention import BY_ITSELF, CANDIDATES, Chosen, Size, Trial
from ..speed.forms import use_attention
from ..speed.race import Tried
from .budget import TOKEN, largest_shapes
from .events import Events
from .fit import FILE, former_plan
from .memory import card_of, free_memory
from .preflight import Plan

TRIMMED_ROWS = MIN_TEXT_ROWS // 2  # of text, on which trimmed attention is tried
SUSPECTS = ("cudnn", "sdpa", "sage", "flash_attn", "xformers", "efficient", "flash")  # of NaN: the likeliest first
SAME = {"cudnn": "sdpa", "sdpa": "cudnn"}  # what torch chooses may be cuDNN's

Names = dict[Size, str]


class AttentionChoice:
    """Decides by what each size of attention that a run has is computed.

    frozen: what is written into the run folder. left_out: what gave broken gradients.
    """

    def __init__(self, plan: Plan, model: AnimaTransformer, batches: Batches, events: Events) -> None:
        self.plan, self.model, self.device, self.events = plan, model, model.device, events
        self.asked, self.card = plan.config.attention, card_of(model.device)[0]
        self.pictures = sizes_of(batches, plan.text_rows, plan.config.trim_text, plan.config.flow.lowres_scale)
        self.timed = {shape.height * shape.width for shape in largest_shapes(batches, plan.text_rows)}
        self.left_out: set[str] = set()
        self.frozen: dict[str, Any] = {}
        self.names: Names = {}

    def begin(self) -> None:
        """Choose, as the run that goes on did where that is still right, and tell. Where nothing is asked, nothing is tried."""
        if self.plan.config.plain:
            return
        wanted = [size for size in self.pictures if self.asked != "sdpa" or size.trimmed]
        names, why = self.former(wanted)
        said = f"{summary(names)}, as before"
        if wanted and not names:
            names, said = self.choose(wanted, BY_ITSELF if self.asked in ("auto", "sdpa") else (self.asked,))
        if names:
            self.use(names)
            self.events.emit("note", text=f"attention: {said}{why}")

    def again(self, freeze: Callable[[], None]) -> str:
        """Choose anew without what is likeliest to have broken a gradient. Return what to say of it; empty: nothing is left.

        freeze: writes down what was chosen.
        """
        used = {self.names.get(size, "sdpa") for size in self.pictures}
        culprit = next((name for name in SUSPECTS if name in used), "")
        if not culprit or self.plan.config.plain or (culprit == "sdpa" and self.device.type == "cpu"):
            return ""
        self.left_out |= {culprit, SAME.get(culprit, culprit)}
        names, said = self.choose([*self.pictures], BY_ITSELF)
        if self.left_out & set(names.values()):  # nothing else is right here
            return ""
        self.use(names)
        freeze()
        return f"attention is computed without {culprit} from here on: {said}"

    def use(self, names: Names) -> None:
        self.names = names
        only = {names.get(size, "sdpa") for size in self.pictures}
        use_attention(self.model, CANDIDATES[only.pop()] if len(only) == 1 else Chosen(names))
        self.frozen |= {"asked": self.asked, "card": self.card, "sizes": {str(size): name for size, name in names.items()}}

    def choose(self, sizes: Sequence[Size], names: Sequence[str]) -> tuple[Names, str]:
        """Race at the largest sizes; at each other one take the first that is right, in the order of the nearest race.

        Where none of the names is right, all others are tried. Return what was chosen, and what to say of it.
        """
        raced = {size: self.race(size, names) for size in sizes if size.queries in self.timed}
        found = {size: result[0].name for size, result in raced.items()}
        said = [
            f"{', '.join(str(one) for one in result if not one.reason)}: {found[size]} taken for {size}"
            for size, result in raced.items()
        ]
        for size in (size for size in sizes if size not in raced):
            order = raced[min(raced, key=size.distance)]
            found[size], wrong = self.first_right(size, order)
            said += [f"{found[size]} for {size} ({wrong})"] if wrong else []
        reasons = {one.name: one.reason for result in raced.values() for one in result if one.reason}
        said += [f"left out: {', '.join(f'{name} ({why})' for name, why in reasons.items())}"] if reasons else []
        free_memory()
        return dict(sorted(found.items())), "; ".join(said)

    def race(self, size: Size, names: Sequence[str]) -> list[Tried]:
        """Return what was tried at a size, what is to be taken first: sdpa, untried, where all else fails."""
        trial = self.trial(size)
        tried: list[Tried] = []
        for some in (names, BY_ITSELF):
            left = [name for name in some if name not in self.left_out and name not in {one.name for one in tried}]
            tried += trial.race(left)
            if right := [one for one in tried if not one.reason]:
                return right + [one for one in tried if one.reason]
        return [Tried("sdpa"), *tried]

    def first_right(self, size: Size, order: Iterable[Tried]) -> tuple[str, str]:
        """Return the first of those that were right elsewhere and are right here, and what is wrong with those before it."""
        trial = self.trial(size)
        wrong: list[str] = []
        for one in (one for one in order if not one.reason):
            if not (reason := trial.verdict(one.name)):
                return one.name, ", ".join(wrong)
            wrong.append(f"{one.name}: {reason}")
        return "sdpa", ", ".join(wrong)

    def trial(self, size: Size) -> Trial:
        config, model = self.model.config, self.model
        heads = config.width // config.head_dim
        return Trial(size, model.device, model.dtype, config.head_dim, heads, self.pictures[size])

    def former(self, wanted: list[Size]) -> tuple[Names, str]:
        """Return what the run that goes on had chosen, or nothing, and what there is to say about it."""
        found = former_plan(self.plan).get("attention")
        if not found:
            return {}, ""
        try:
            was = (found["asked"], found["card"])
            names = {size: str(found["sizes"][str(size)]) for size in self.pictures if str(size) in found["sizes"]}
        except (KeyError, TypeError):
            return {}, f"; chosen anew, {FILE} is damaged"
        if was != (self.asked, self.card):
            return {}, f"; chosen anew, before it was {was[0]} on {was[1]}"
        if not names.keys() >= set(wanted):
            return {}, "; chosen anew, for other sizes than before"
        for size, name in names.items():
            if why := "unknown" if name not in CANDIDATES else self.trial(size).verdict(name):
                return {}, f"; chosen anew, {name} of before is not right any more for {size} ({why})"
        return names, ""


def summary(names: Mapping[Size, str]) -> str:
    """Say what is used for which sizes: "flash for 4096x4096, cudnn for 4096x512"."""
    return ", ".join(f"{name} for {size}" for size, name in names.items())


def sizes_of(batches: Batches, text_rows: int, trim: bool, scale: float = 1.0) -> dict[Size, int]:
    """Return each size of attention that a run has, of pictures among themselves and with text, and the most pictures of it.

    scale: of the sides that noisy draws train at.
    """
    found: dict[Size, int] = {}
    whole = batches.sizes()
    for count, (width, height) in sorted(whole | {(count, smaller(size, scale)) for count, size in whole}):
        n = (width // TOKEN) * (height // TOKEN)
        sizes = [Size(n, n), Size(n, MIN_TEXT_ROWS)]
        sizes += [Size(n, TRIMMED_ROWS, trimmed=True)] if trim else []
        sizes += [Size(n, text_rows, masked=count > 1)] if text_rows > MIN_TEXT_ROWS else []
        found |= {size: max(count, found.get(size, 0)) for size in sizes}
    return dict(sorted(found.items()))

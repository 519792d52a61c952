"""A run's fit into its memory: planned before the first step, corrected by what that took, lowered when memory runs out.

What is decided is frozen in the run folder. It changes no number: blocks keep more or less, and make again what they do not;
weights lie here or there. Only modulation whose weights are streamed is made block by block: its sums have another order.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..data.batches import Batches
from ..errors import RunError
from ..files import write_whole
from ..models.transformer import AnimaTransformer
from ..models.vae import SCALE
from ..speed.cards import GB, find_card
from ..speed.costs import Shape, empty_twin
from ..speed.forms import LEVELS, apply_away, apply_levels, levels_of, ops_of
from ..speed.plan import Budget, Layout, Levels, best, choose, summary
from ..speed.stream import NOWHERE, Away, Streaming
from .budget import ALLOWED, Counter, budget_on, largest_shapes, shape_of
from .events import Events
from .feed import Batch
from .memory import card_of, free_memory, out_of_memory_advice, taken_since_reset
from .preflight import Plan
from .state import TrainState

FILE = "plan.json"
LESS = 0.75  # of what was too much for a step is tried next
TRIES = 3  # of a step; the last one with as little as there can be
BLIND = ("checkpoint",)  # of a block, where nothing is counted


def former_plan(plan: Plan) -> dict[str, Any]:
    """Return what the run that goes on had decided; empty where there is none, or it cannot be read."""
    if plan.resume_from is None:
        return {}
    try:
        return dict(json.loads((plan.resume_from.absolute().parents[1] / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


class Fit:
    """Decides what each block of a run's model keeps for its backward pass.

    also: what else was decided, by name, which is frozen with it. writes: whether this process writes the run folder. parts:
    that each micro-batch is split into. tries: of the step that is being taken. lowered: how often the plan was, all steps
    together. settled: no step corrects it any more. blind: why nothing could be counted.
    """

    def __init__(
        self,
        plan: Plan,
        model: AnimaTransformer,
        streaming: Streaming,
        state: TrainState,
        batches: Batches,
        events: Events,
        writes: bool = True,
        also: Mapping[str, Any] | None = None,
    ) -> None:
        self.plan, self.model, self.state, self.events, self.writes = plan, model, state, events, writes
        self.streaming, self.also = streaming, dict(also or {})
        self.device, self.card = model.device, card_of(model.device)
        shapes = largest_shapes(batches, plan.text_rows)
        ops, fused = ops_of(model.forms[0]), state.network.fused
        link = streaming.transfer.rate()
        self.counter = Counter(self.empty, plan.config, shapes, find_card(*self.card), ops, fused, link)
        self.parts, self.tries, self.lowered, self.settled, self.blind = 1, 0, 0, False, ""

    def begin(self) -> None:
        """Decide, as the run that goes on did where that is still right, and tell."""
        if self.limited:
            self.blind = self.uncounted()
            if self.blind:
                self.warn(f"memory: {self.blind}; every block is recomputed unless `train.memory` says otherwise")
        former, why = self.former()
        self.settled = former is not None
        usual = self.chosen()
        self.apply(former or usual)
        if self.counted and not self.budget.fits(self.levels):
            self.warn(f"memory: it may run out: {self.said()}{why}; use a smaller `network.rank` or `dataset.resolutions`")
        elif self.limited or self.parts > 1 or self.layout != Layout(NOWHERE, usual.levels):
            self.note(f"memory: {self.said()}{why}")

    def empty(self) -> AnimaTransformer:
        """Return the model without a byte of it, for the counter."""
        with self.streaming.seen():
            return empty_twin(self.model)

    def split(self, batch: Batch) -> list[Batch]:
        """Return the parts that a micro-batch is taken in: one, unless memory ran out with every block recomputed."""
        return batch.split(self.parts)

    def after(self, batches: list[Batch]) -> None:
        """Hear that a step's micro-batches fitted. What those of the first step took corrects the plan."""
        taken = taken_since_reset(self.device)
        if taken and not self.settled and not self.tries and not self.blind:
            self.correct(taken, max(self.counter.costs(shape).peak(self.levels) for shape in map(self.shape, batches)))
        self.settled, self.tries = True, 0

    @property
    def largest(self) -> Shape:
        """Return the shape of the micro-batch that has most tokens."""
        return max(self.counter.shapes, key=lambda shape: shape.pictures * shape.height * shape.width)

    def shape(self, batch: Batch) -> Shape:
        """Return the shape of a micro-batch, each text as long as the longest."""
        count, _, height, width = batch.latents.shape
        return shape_of(count, (width * SCALE, height * SCALE), self.plan.text_rows)

    def correct(self, taken: float, planned: float) -> None:
        better = self.chosen(taken / planned)
        if better != self.layout:
            self.apply(better)
            what = f"a step took {taken / GB:.1f} GB where {planned / GB:.1f} were planned"
            self.note(f"memory: {what}; from here on {self.said()}")

    def lower(self, step: int, batches: list[Batch], error: str) -> None:
        """Take less from here on, after a step ran out of memory. Raises RunError when there is nothing left to give up."""
        free_memory()
        self.tries += 1
        if less := self.less():
            self.apply(less)
        elif self.parts < max(len(batch.latents) for batch in batches):
            self.parts *= 2
            self.freeze()
        else:
            raise RunError(out_of_memory_advice(self.plan.config, [batch.latents.shape for batch in batches], error))
        self.lowered += 1
        self.warn(f"step {step}: out of memory; tried again, and from here on {self.said()}")

    def less(self) -> Layout | None:
        """Return what takes less than the present layout: less is kept, else more is streamed. None where there is no such."""
        away, levels = self.layout
        if self.blind:
            least = BLIND * len(levels)
            return Layout(away, least) if levels != least else None
        costs = self.counter.worst
        peak = costs.peak(levels)
        less = choose(costs, 0 if self.tries >= TRIES else LESS * peak)
        if costs.peak(less) < peak:
            return Layout(away, less)
        sizes, count = costs.sizes, len(levels)
        numbers = (count,) if self.tries >= TRIES else (away.blocks, (away.blocks + count) // 2, count)
        further = [Away(number, bool(sizes.adaln)) for number in numbers]
        return next((Layout(more, levels) for more in further if sizes.saved(more) > sizes.saved(away)), None)

    def uncounted(self) -> str:
        """Return why what this run takes cannot be counted; empty where it can."""
        if self.device.type == "mps":
            return "what attention keeps on mps is not known"
        try:
            self.counter.worst.peak(BLIND * len(self.model.blocks))
        except Exception as error:  # it leans on much of torch, whose versions differ: no run shall end of it
            said = str(error).partition("\n")[0][:120]
            return f"what this run takes could not be counted ({type(error).__name__}: {said})"
        return ""

    @property
    def levels(self) -> Levels:
        return tuple(levels_of(self.model))

    @property
    def layout(self) -> Layout:
        return Layout(self.streaming.away, self.levels)

    @property
    def budget(self) -> Budget:
        return budget_on(self.device, self.counter, self.state, self.model, self.streaming)

    @property
    def limited(self) -> bool:
        """Tell whether there is a limit: on the CPU only one that was set."""
        return self.plan.config.memory_gb > 0 or self.device.type != "cpu"

    @property
    def counted(self) -> bool:
        """Tell whether there is a limit that the plan can be held against: whole micro-batches are counted, their parts not."""
        return self.limited and not self.blind and self.parts == 1

    def chosen(self, times: float = 1.0) -> Layout:
        """Return the layout that this run's settings and its room give. times: how much more a step takes than was counted."""
        config, count = self.plan.config, len(self.model.blocks)
        allowed = ALLOWED[config.memory]
        if self.blind:
            allowed = BLIND if config.memory == "auto" else allowed
        if self.blind or not self.limited:
            return Layout(self.streaming.away, allowed[:1] * count)
        budget = self.budget
        found, levels = best(replace(budget, room=budget.room / times), allowed, config.blocks_to_swap)
        return Layout(found.away, levels)

    def said(self) -> str:
        said = self.budget.said(self.levels) if self.counted else summary(self.levels, self.streaming.away)
        return said if self.parts == 1 else f"{said}, each micro-batch in {self.parts} parts"

    def apply(self, layout: Layout) -> None:
        transfer = self.streaming.transfer
        pageable = transfer.pageable
        apply_away(self.model, self.streaming, layout.away)
        apply_levels(self.model, layout.levels, transfer)
        if transfer.pageable > pageable == 0:
            self.note(f"memory: the system locks no more host memory; {transfer.pageable / GB:.1f} GB are copied more slowly")
        if transfer.why and (layout.away != NOWHERE or "offload" in layout.levels):
            self.warn(f"memory: {self.device}: copies from host memory wait for one another ({transfer.why})")
        self.freeze()

    def former_choice(self, name: str) -> Any:
        """Return what the run that goes on had decided beside its plan, on such a card; None where it had not."""
        found = former_plan(self.plan)
        made_for = found.get("for")
        return found.get(name) if isinstance(made_for, dict) and made_for.get("card") == self.card[0] else None

    def freeze(self, **choices: Any) -> None:
        """Write the plan into the run folder, for a run that goes on from there. choices: made beside it, by name."""
        self.also |= choices
        if not self.writes:
            return
        layout = {"levels": self.levels, "away": vars(self.streaming.away), "parts": self.parts}
        text = json.dumps(layout | {"for": self.circumstances(), **self.also}, indent=1)
        try:
            write_whole(self.plan.run_dir / FILE, text)
        except OSError as error:
            self.warn(f"{self.plan.run_dir / FILE}: not written ({error.strerror}); a run that goes on from here plans anew")

    def circumstances(self) -> dict[str, Any]:
        """Return what a plan is made for."""
        config = self.plan.config
        asked = {"memory": config.memory, "memory_gb": config.memory_gb, "blocks_to_swap": config.blocks_to_swap}
        return {"card": self.card[0], **asked, "shapes": [list(vars(shape).values()) for shape in self.counter.shapes]}

    def former(self) -> tuple[Layout | None, str]:
        """Return the layout of the run that goes on, or none, and what there is to say about it."""
        found = former_plan(self.plan)
        try:
            levels, parts, made_for = tuple(found["levels"]), int(found["parts"]), dict(found["for"])
            away = Away(**found.get("away", {}))
        except (ValueError, KeyError, TypeError):
            return None, ""
        here = self.circumstances()
        changed = [f"{name} was {made_for.get(name)}, is {here[name]}" for name in here if made_for.get(name) != here[name]]
        if changed:
            return None, f"; planned anew, {changed[0]}"
        if len(levels) != len(self.model.blocks) or not set(levels) <= set(LEVELS) or not 0 <= away.blocks <= len(levels):
            return None, f"; planned anew, {FILE} is damaged"
        if self.limited and not self.blind and parts == 1 and not self.budget.streaming(away).fits(levels):
            return None, "; planned anew, what it did before does not fit now"
        self.parts = parts
        return Layout(away, levels), ", as before"

    def note(self, text: str) -> None:
        self.events.emit("note", text=text)

    def warn(self, text: str) -> None:
        self.events.emit("warning", text=text)

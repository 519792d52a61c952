"""The loss of pictures that no step sees, at fixed noise and fixed noise levels: a number that runs can be compared by.

The loss is the plain squared error of the velocity in fp32, whatever the run trains with, at the t below which its own draws
for a picture lie in 10 %, 20 %, … 90 % of all cases (`flow.timestep_quantiles`). Noise follows from (seed, picture, level), so
that neither batch sizes nor other pictures change it.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from .. import seeds
from ..data.batches import Draw, Item
from ..data.measured import measured_caption
from ..data.report import counted
from ..errors import Interrupted, is_out_of_memory
from ..models.transformer import AnimaTransformer
from . import flow
from .budget import TOKEN
from .evaluations import Record, saved_loss, verdict
from .events import Events
from .feed import stack_masks
from .optimizers import evaluating
from .preflight import Plan
from .prepare import TrainingData
from .ranks import Ranks
from .reporting import StepReporter
from .saving import Saver
from .state import TrainState

LEVELS = tuple(n / 10 for n in range(1, 10))
TIMES = 20  # measurements in a run that says nothing of how often
STAGE = "held-out"
STOPPED_EARLY = "stopped early"


class HeldOutLoss:
    """Measures the held-out pictures of a run when it is due, keeps the best adapter, and says when to stop."""

    def __init__(
        self,
        plan: Plan,
        ranks: Ranks,
        events: Events,
        data: TrainingData,
        model: AnimaTransformer,
        state: TrainState,
        reporter: StepReporter,
        saver: Saver | None,
    ) -> None:
        self.config, self.flow, self.datasets = plan.config.held_out, plan.config.flow, plan.held_out.datasets
        self.ranks, self.events, self.data, self.model, self.state = ranks, events, data, model, state
        self.reporter, self.saver = reporter, saver
        self.items = data.held_out
        self.batches = self._batches()
        if not self.items:
            return
        for text in (*plan.held_out.notes, self.describe()):
            events.emit("note", text=text)
        self._check_history()
        if saver and self.config.keep_best:
            saver.restore_best()

    def describe(self) -> str:
        config, every = self.config, []
        if config.every_n_steps or not config.every_n_epochs:
            every.append(f"every {counted(self.every, 'step')}")
        if config.every_n_epochs:
            every.append(f"every {counted(config.every_n_epochs, 'epoch')}")
        when = " and ".join(every).replace("every 1 ", "every ")
        return f"held-out loss: {counted(self.pictures, 'picture')} at {len(LEVELS)} noise levels, {when}"

    @property
    def pictures(self) -> int:
        return len({item.picture.digest for item in self.items})

    @property
    def every(self) -> int:
        """Steps between measurements, where it is not by epochs."""
        return self.config.every_n_steps or max(1, round(self.reporter.total / TIMES))

    @property
    def command(self) -> str | None:
        """What the measurements ask of the run: to stop early, or nothing. The same in all processes."""
        patience = self.config.patience
        return STOPPED_EARLY if patience > 0 and self.items and self._stale() >= patience else None

    def _stale(self) -> int:
        return self.state.held_out.without_gain if self.state.held_out.history else 0

    def begin(self) -> None:
        """Measure before the next step, unless that is done: at the start, and where a run was cut off before it could."""
        last = self.state.held_out.last_step
        if last < 0 or (last < self.state.step and self.due(self.state.step)):
            self.measure()
        elif self.command and self.state.step < self.reporter.total:
            self.events.emit("warning", text=self._why_stopped())

    def after_step(self) -> None:
        if self.due(self.state.step):
            self.measure()

    def due(self, step: int) -> bool:
        config, total = self.config, self.reporter.total
        by_epoch = config.every_n_epochs > 0 and step % (config.every_n_epochs * self.data.epoch_steps) == 0
        by_step = (config.every_n_steps > 0 or config.every_n_epochs == 0) and step % self.every == 0
        return by_epoch or by_step or step == total

    def measure(self) -> None:
        """Measure, tell, and keep the adapter if it is the best. A command leaves it out, and the loop sees it next."""
        done = self.state.held_out
        if not self.items or done.last_step >= self.state.step:
            return
        self.reporter.report(wait=True)  # steps are told before what follows from them, and their time is their own
        network = self.state.network
        training = network.training
        network.eval()
        try:
            record = self._record()
        except Interrupted:
            record = None
        finally:
            network.train(training)
        if record is not None:
            done.history.append(record)
            self._tell(record)
        self.reporter.restart_clock()

    def _record(self) -> Record | None:
        """Measure every kind of weights; None, and a warning, where a loss is not finite."""
        state, first = self.state, self.state.held_out.history[:1]
        kinds: dict[str, Callable[[], AbstractContextManager]] = {} if first else {"base": state.network.disabled}
        kinds["loss"] = lambda: evaluating(state.optimizer)
        kinds |= {"ema": state.saved_weights} if state.ema else {}
        progress = self._progress(len(kinds))
        found: dict[str, list[float]] = {}
        for kind, weights in kinds.items():
            with weights():
                losses = self.losses(progress)
            found[kind] = losses.double().mean(dim=1).tolist()
        if not all(math.isfinite(loss) for levels in found.values() for loss in levels):
            self.events.emit("warning", text=f"step {state.step}: the held-out loss is not finite, or had no memory; left out")
            return None
        base = found.get("base") or first[0]["base_levels"]
        return {
            "step": state.step,
            "loss": mean(found["loss"]),
            "levels": found["loss"],
            "t": self.noise_levels(),
            "base": mean(base),
            "base_levels": base,
            "ema": mean(found["ema"]) if "ema" in found else None,
            "ema_levels": found.get("ema"),
            "pictures": self.pictures,
        }

    def _tell(self, record: Record) -> None:
        done = self.state.held_out
        best = done.best
        kept = self.config.keep_best and best is record and record["step"] > 0
        if kept and self.saver:
            self.saver.save_best()
        told = {"best_step": best["step"], "best_loss": saved_loss(best), "text": verdict(done.history)}
        self.events.emit("held_out", **record, **told)
        if self.command and self.state.step < self.reporter.total:
            self.events.emit("note", text=self._why_stopped())

    def _why_stopped(self) -> str:
        gone = f"{counted(self._stale(), 'measurement')} brought no lower held-out loss"
        gone += f" than that of step {self.state.held_out.best['step']}"
        return f"step {self.state.step}: {gone}; training stops early; to go on, raise `held_out.patience`"

    # Losses

    def losses(self, progress: Callable[[], None] = lambda: None) -> Tensor:
        """Return the loss of every item at every level, [levels, items], fp32, on the CPU, the same in all processes."""
        found = torch.zeros(len(LEVELS), len(self.items), device=self.model.device)
        for numbers in self.batches[self.ranks.rank :: self.ranks.world]:
            found[:, numbers] = self.of_items([self.items[number] for number in numbers])
            progress()
        self.ranks.sum_(found)
        return found.cpu()

    def of_items(self, items: list[Item]) -> Tensor:
        """Return [levels, items] of one size; out of memory, half as many are tried, and one alone is not a number."""
        try:
            return self.compute(items)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        if len(items) == 1:  # outside of the handler, which would keep the failed tensors alive
            return torch.full((len(LEVELS), 1), math.nan, device=self.model.device)
        middle = len(items) // 2
        return torch.cat([self.of_items(items[:middle]), self.of_items(items[middle:])], dim=1)

    @torch.no_grad()
    def compute(self, items: list[Item]) -> Tensor:
        draws = [Draw(item, flip=False, epoch=0, caption_seed=0) for item in items]
        device, data = self.model.device, self.data
        latents = torch.stack([data.latents.latents(draw) for draw in draws])
        mask = stack_masks([data.latents.mask(draw) for draw in draws], latents)
        mask = None if mask is None else mask.to(device)
        clean, found = latents.to(device), []
        text = data.embeddings.place(data.embeddings.fetch([measured_caption(item) for item in items]))
        for level, t in enumerate(torch.stack([self.t_of(item) for item in items], dim=1)):
            noise = torch.stack([noise_of(item, level, self.config.seed, latents.shape[1:]) for item in items]).to(device)
            ts = t.to(device)
            velocity = self.model(flow.interpolate(clean, noise, ts), ts, *text)
            error = velocity.float() - flow.velocity_target(clean, noise)
            found.append(flow.masked_mean(error.square(), mask))
        return torch.stack(found)

    def t_of(self, item: Item) -> Tensor:
        """Return the t of all levels for a picture, of its size and its folder's range and offset, [levels]."""
        (width, height), subset = item.bucket, item.picture.subset
        where = subset.timestep_offset, subset.min_timestep, subset.max_timestep
        return flow.timestep_quantiles(LEVELS, self.flow, width * height // TOKEN**2, *where)

    def noise_levels(self) -> list[float]:
        """Return the t of each level, the mean over the pictures: a shift by resolution and folders let them differ."""
        return torch.stack([self.t_of(item) for item in self.items]).double().mean(dim=0).tolist()

    def _batches(self) -> list[list[int]]:
        """Return the numbers of the items that are measured together: of a dataset, of one size, as many as train together."""
        groups: dict[tuple[int, int, int], list[int]] = defaultdict(list)
        for number, item in enumerate(self.items):
            groups[(item.dataset, *item.bucket)].append(number)
        found = []
        for (dataset, *_), numbers in sorted(groups.items()):
            size = self.datasets[dataset].batch_size
            found += [numbers[i : i + size] for i in range(0, len(numbers), size)]
        return found

    def _progress(self, kinds: int) -> Callable[[], None]:
        """Return what is called after each batch. A single process ends at a command; several, which must agree, do not."""
        mine = len(self.batches[self.ranks.rank :: self.ranks.world])
        done, total = 0, kinds * mine

        def report() -> None:
            nonlocal done
            done += 1
            self.events.emit("progress", stage=STAGE, done=done, total=total)
            if self.ranks.world == 1 and self.events.command is not None:
                raise Interrupted(f"{STAGE}: left out")

        return report

    def _check_history(self) -> None:
        """Begin a new history where the one of the checkpoint is of other pictures, noise or levels."""
        what = [[item.picture.digest, *item.bucket, measured_caption(item), self.t_of(item).tolist()] for item in self.items]
        text = json.dumps([what, self.config.seed])
        of, done = hashlib.sha256(text.encode()).hexdigest(), self.state.held_out
        if done.history and done.of != of:
            self.events.emit("note", text="other held-out pictures, noise or noise levels: their loss begins a new history")
            done.history.clear()
            done.best_adapter.clear()
        done.of = of


def noise_of(item: Item, level: int, seed: int, shape: torch.Size) -> Tensor:
    """Draw the noise of a picture at a level, N(0, 1) of its latents' shape: the same whatever is measured beside it."""
    return torch.randn(shape, generator=seeds.generator(seed, "held-out noise", item.picture.digest, *item.bucket, level))


def mean(levels: list[float]) -> float:
    return sum(levels) / len(levels)

"""A training run, top to bottom: check, cache, load, train, save.

`train` is the entry; `run_steps` is the loop.
"""

import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from ..adapters.formats import adapter_state, load_into, save_adapter
from ..adapters.metadata import build_metadata
from ..adapters.network import AdapterNetwork
from ..config import TrainConfig
from ..data.doctor import epoch_line
from ..errors import AnimaError, FileError, Interrupted, RunError, is_out_of_memory
from ..models.checkpoint import DTYPES
from ..models.transformer import AnimaTransformer, load_transformer
from . import flow, optimizers, schedules
from .ema import EMA
from .events import Events, Listener
from .feed import Batch, Feed
from .gradient import FlatGradient
from .losses import DEAD_AFTER_STEPS, LossReader, StepRecord, Watchdog
from .memory import free_memory, out_of_memory_advice, peak_gb
from .preflight import Plan, preflight
from .prepare import prepare_data
from .previews import Previews
from .ranks import Ranks
from .resume import contents
from .rundir import freeze_config, locked, open_run_dir, prune, saved_on_the_way, unused
from .signals import signals_cancel
from .state import TrainState

KEEP_GOOD_EVERY = 100  # steps between copies of the adapter that a broken run falls back to


@dataclass(frozen=True)
class TrainResult:
    """adapter_path: the saved file; losses: one per optimizer step; stop_reason: finished, stopped."""

    adapter_path: Path
    steps: int
    losses: list[float]
    run_dir: Path
    stop_reason: str


def train(config: TrainConfig, on_event: Listener | None = None) -> TrainResult:
    """Train one adapter from pictures to file.

    on_event receives every event as a dict (see `events`) and may answer "stop" (end early, keep the adapter) or "cancel".
    Raises SettingError or FileError before a model is loaded where that can be known, RunError for a failure in the run,
    Interrupted after a cancel, Ctrl-C or SIGTERM; in the last two cases the state was saved first.
    """
    ranks = Ranks()
    with ranks.first_first():
        plan = preflight(config, ranks, on_event if ranks.first else None)
    with locked(plan) if ranks.first else nullcontext():
        return train_plan(plan, ranks, on_event)


def train_plan(plan: Plan, ranks: Ranks, on_event: Listener | None) -> TrainResult:
    """`train`, once the plan is made and the run's name is held."""
    kept = open_run_dir(plan) if ranks.first else []
    events = Events(plan.run_dir / "log.jsonl", on_event) if ranks.first else Events(None)
    try:
        for text in kept:
            events.emit("note", text=text)
        # ComfyUI runs nodes in inference mode and other packs switch gradients off: state what training needs.
        with torch.inference_mode(False), torch.enable_grad(), signals_cancel(events):
            return Run(plan, events, ranks).go()
    finally:
        events.close()
        free_memory()


class Run:
    """What `train` holds while it runs."""

    def __init__(self, plan: Plan, events: Events, ranks: Ranks) -> None:
        self.plan = plan
        self.ranks = ranks
        self.config = plan.config
        self.events = events
        self.config_text = freeze_config(plan) if ranks.first else ""
        self.started = time.time()
        self.saved_at = time.monotonic()  # the last checkpoint; the clock on the wall may jump
        self.reader = LossReader()
        self.within_step = False  # the weights are not those of any step: half an optimizer step may be done

    def go(self) -> TrainResult:
        self.report_start()
        with self.ranks.first_first():
            self.data = prepare_data(self.plan, self.events)
        batches_per_step = self.config.gradient_accumulation_steps * self.ranks.world
        self.total = total_steps(self.config, self.data.batches_per_epoch, batches_per_step)
        self.epoch_steps = max(1, self.data.batches_per_epoch // batches_per_step)
        self.model = self.load_model()
        self.network = AdapterNetwork.inject(self.model, self.config.network, self.config.seed)
        with self.ranks.first_first():
            self.data.embed_text(self.model, self.events)
        self.state = self.build_state()
        self.previews = self.build_previews()
        self.watchdog = Watchdog(self.network)
        try:
            reason = self.run_steps()
            path = self.finish(reason)
        except KeyboardInterrupt:  # a second signal: at once means at once, see `signals_cancel`
            raise
        except BaseException as error:
            self.rescue(error)
            if isinstance(error, Interrupted):
                self.ranks.wait()  # the launcher ends all processes when one has left, and the first one is saving
            if isinstance(error, FileError):  # in the middle of a run a full disk is no refused setting
                raise RunError(str(error)) from None
            raise
        finally:
            self.data.close()
        return TrainResult(path, self.state.step, self.state.losses, self.plan.run_dir, reason)

    def report_start(self) -> None:
        for text in self.plan.warnings:
            self.events.emit("warning", text=text)
        for report in self.plan.reports:
            for line in (report.head(), *report.notes()):
                self.events.emit("note", text=line)
            for line in report.warnings():
                self.events.emit("warning", text=line)
        per_step = self.config.gradient_accumulation_steps * self.ranks.world
        self.events.emit("note", text=epoch_line(self.plan.reports, per_step))
        device, dtype = str(self.plan.device), str(self.plan.dtype).removeprefix("torch.")
        self.events.emit("start", device=device, dtype=dtype, name=self.config.output.name)

    def load_model(self) -> AnimaTransformer:
        model = load_transformer(self.config.model.transformer, dtype=self.plan.dtype, device=self.plan.device)
        model.gradient_checkpointing = self.config.gradient_checkpointing
        return model

    def build_state(self) -> TrainState:
        """The adapter, its optimizer and their moment in time: new, or as a checkpoint left them."""
        config, network = self.config, self.network
        if config.network.weights:
            load_into(network, config.network.weights)
        groups = network.parameter_groups(config.optimizer.learning_rate, config.optimizer.weight_decay)
        parameters = [p for group in groups for p in group["params"]]
        state = TrainState(
            network=network,
            optimizer=optimizers.build_optimizer(groups, config.optimizer),
            gradient=FlatGradient(parameters, fp16=self.plan.dtype == torch.float16),
            ema=EMA(parameters, config.ema_decay) if config.ema_decay > 0 else None,
            content=contents(config, self.plan.pictures) if self.ranks.first else {},
        )
        if self.plan.resume_from:
            state.load(self.plan.resume_from)
            self.data.batches.load_state_dict(state.data)
            self.events.emit("note", text=f"resumed at step {state.step} from {self.plan.resume_from.name}")
        self.events.emit("note", text=network.describe())
        return state

    def build_previews(self) -> Previews:
        config = self.config
        folder = self.plan.run_dir / "samples"
        return Previews(config.samples, config.model.vae, config.vae_tile, folder, self.data.conditioner)

    def run_steps(self) -> str:
        """The loop. Returns why it ended."""
        config, state = self.config, self.state
        self.network.train()
        if state.step == 0 and self.previews.due(0, self.total, self.epoch_steps):
            self.preview()
        self.clock, command = time.perf_counter(), None
        with Feed(self.data, self.model, config, state.batch, self.ranks) as feed:
            while state.step < self.total and (command := self.command()) is None:
                factor = schedules.lr_factor(config.optimizer, state.step, self.total)
                schedules.apply_lr(state.optimizer, factor)
                batches = [next(feed) for _ in range(config.gradient_accumulation_steps)]
                loss = self.accumulate(batches)
                self.ranks.mean_(state.gradient.buffer)
                self.ranks.mean_(loss)
                grad_norm = state.gradient.finish(config.optimizer.max_grad_norm)
                self.within_step = True
                state.optimizer.step()
                state.gradient.zero()
                if state.ema is not None:
                    state.ema.update()
                state.batch, state.data = state.batch + len(batches) * self.ranks.world, batches[-1].data
                state.step += 1
                self.within_step = False

                lr = config.optimizer.learning_rate * factor
                names = [name for batch in batches for name in batch.names]
                self.reader.push(StepRecord(state.step, lr, names), loss, grad_norm)
                self.report(self.reader.ready())
                for text in self.data.take_notes():
                    self.events.emit("warning", text=text)
                self.every_so_often()
            self.report(self.reader.ready(wait=True))
        self.leave_if_cancelled(command)
        return "stopped" if command == "stop" else "finished"

    def leave_if_cancelled(self, command: str | None) -> None:
        if command == "cancel":
            raise Interrupted(f"cancelled at step {self.state.step} of {self.total}")

    def command(self) -> str | None:
        """What the listener or a signal asked for; all processes go by the first one's."""
        return self.ranks.agree(self.events.command, self.model.device)

    def accumulate(self, batches: list[Batch], last_try: bool = False) -> torch.Tensor:
        """Gradients of all micro-batches into the buffer; their mean loss. Out of memory is tried once more, with all freed."""
        loss = torch.zeros((), device=self.model.device)
        try:
            for batch in batches:
                if self.ranks.world == 1:  # of several processes none may leave within a step
                    self.leave_if_cancelled(self.events.command)
                self.network.begin_step(batch.number)
                micro_loss = self.forward(batch) / len(batches)
                self.state.gradient.backward(micro_loss)
                loss += micro_loss.detach()
            return loss
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if last_try:
                raise RunError(out_of_memory_advice(self.config, [batch.latents.shape for batch in batches], error)) from None
        self.state.gradient.zero()
        free_memory()
        self.events.emit("warning", text=f"step {self.state.step + 1}: out of memory; trying once more after freeing")
        return self.accumulate(batches, last_try=True)

    def forward(self, batch: Batch) -> torch.Tensor:
        """One micro-batch -> mean loss, fp32, on the device."""
        batch = batch.to(self.model.device)
        text, lengths = self.data.conditioner.place(batch.text, self.model)
        noisy = flow.interpolate(batch.latents, batch.noise, batch.t)
        velocity = self.model(noisy, batch.t, text, lengths)
        target = flow.velocity_target(batch.latents, batch.noise)
        losses = flow.flow_loss(velocity, target, batch.t, self.config.flow, mask=batch.mask, weight=batch.weight)
        return losses.mean()

    def report(self, records: list[StepRecord]) -> None:
        """Emit the steps whose losses have arrived, oldest first; the watchdog sees each."""
        if not records:
            return
        now = time.perf_counter()
        seconds, self.clock = (now - self.clock) / len(records), now
        for record in records:
            finite = math.isfinite(record.loss)
            self.state.losses.append(record.loss if finite else math.nan)
            self.events.emit(
                "step",
                step=record.step,
                total=self.total,
                loss=record.loss if finite else None,
                lr=record.lr,
                grad_norm=record.grad_norm if math.isfinite(record.grad_norm) else None,
                seconds=seconds,
                peak_gb=peak_gb(self.plan.device),
            )
            warning = self.watchdog.check(record)
            if warning:
                self.events.emit("warning", text=warning)

    def every_so_often(self) -> None:
        """What is due after this step: watchdogs, previews, saves."""
        step, output = self.state.step, self.config.output
        if step == DEAD_AFTER_STEPS:
            self.watchdog.check_moving()
        if step % KEEP_GOOD_EVERY == 0:
            self.watchdog.keep(step)
        if self.previews.due(step, self.total, self.epoch_steps):
            self.preview()
            self.clock = time.perf_counter()
        by_step = output.save_every_n_steps > 0 and step % output.save_every_n_steps == 0
        by_epoch = output.save_every_n_epochs > 0 and step % (output.save_every_n_epochs * self.epoch_steps) == 0
        if (by_step or by_epoch) and step < self.total:
            self.save_intermediate()
        by_count = output.checkpoint_every_n_steps > 0 and step % output.checkpoint_every_n_steps == 0
        by_clock = 0 < output.checkpoint_every_n_minutes * 60 <= time.monotonic() - self.saved_at
        if (by_count or by_clock) and step < self.total:
            self.save_checkpoint()

    def preview(self) -> None:
        if not self.ranks.first:
            return
        try:
            with self.saved_weights():
                self.previews.make(self.model, self.network, self.state.step, self.events)
        except RuntimeError as error:  # no room for a second copy of the weights
            if not is_out_of_memory(error):
                raise
            self.events.emit("warning", text=f"step {self.state.step}: the preview was left out ({error})")

    @contextmanager
    def saved_weights(self) -> Iterator[None]:
        """The weights that a user gets: ScheduleFree's averages, the EMA."""
        with optimizers.evaluating(self.state.optimizer):
            if self.state.ema is None:
                yield
            else:
                with self.state.ema.swapped():
                    yield

    def save_intermediate(self) -> None:
        if not self.ranks.first:
            return
        output, step = self.config.output, self.state.step
        folder = self.plan.adapter_path.parent
        self.save_adapter(folder / f"{output.name}-step{step:08d}.safetensors")
        prune(saved_on_the_way(folder, output.name), output.save_last_n)
        if output.save_state:
            self.save_checkpoint()

    def save_checkpoint(self, run_dir: Path | None = None) -> None:
        if not self.ranks.first:
            return
        self.report(self.reader.ready(wait=True))  # the loss history is part of the state
        self.watchdog.check_finite(self.state.step)  # else it would in time push out the last good one
        folder = (run_dir or self.plan.run_dir) / "checkpoints" / f"step-{self.state.step:08d}"
        self.state.save(folder, self.config_text)
        self.saved_at = time.monotonic()
        self.events.emit("checkpoint", step=self.state.step, path=str(folder))
        output = self.config.output
        keep = output.save_last_n if output.save_state else output.keep_checkpoints
        prune(sorted(folder.parent.glob("step-*")), keep)

    def save_adapter(self, path: Path) -> None:
        if not self.ranks.first:
            return
        output = self.config.output
        extra = self.data.metadata() | {
            "ss_steps": str(self.state.step),
            "ss_training_started_at": str(self.started),
            "ss_training_finished_at": str(time.time()),
        }
        with self.saved_weights():
            state = adapter_state(self.network, output.key_format, DTYPES[output.save_dtype])
            save_adapter(path, state, build_metadata(self.config, extra, state))
        self.events.emit("saved", step=self.state.step, path=str(path))

    def finish(self, reason: str) -> Path:
        good_step = self.watchdog.restore_if_broken()
        if good_step is not None:
            raise RunError(f"the adapter is not finite any more (it was at step {good_step}); lower the learning rate")
        path = self.plan.adapter_path
        self.save_adapter(path)
        self.save_checkpoint()  # a finished run may be given more steps
        self.events.emit("finish", step=self.state.step, reason=reason, path=str(path))
        return path

    def rescue(self, error: BaseException) -> None:
        """On the way out of a run that did not finish: keep what there is, and say where."""
        self.events.rescuing = True
        broken = self.watchdog.restore_if_broken()
        if broken is not None:
            self.events.emit("warning", text=f"the adapter was not finite any more: the one of step {broken} is kept")
        step = self.state.step if broken is None else broken
        if step == 0:
            return
        if self.within_step:
            self.events.emit("warning", text=f"failed within step {step + 1}: the checkpoint before is the last")
        whole = broken is None and not self.within_step
        elsewhere = unused(Path(tempfile.gettempdir()) / self.plan.run_dir.name)  # another disk may have room
        for folder in (self.plan.run_dir, elsewhere):
            try:
                path = self.rescue_into(folder, step, whole)
            except (AnimaError, OSError) as full:
                self.events.emit("warning", text=f"step {step} could not be saved in {folder}: {full}")
            else:
                if folder == elsewhere:
                    own = self.plan.run_dir / "checkpoints"
                    text = f"the state is saved in {elsewhere}: --resume {elsewhere}, or move its checkpoint into {own}"
                    self.events.emit("warning", text=text)
                self.events.emit("finish", step=step, reason=type(error).__name__, path=str(path))
                return

    def rescue_into(self, folder: Path, step: int, whole: bool) -> Path:
        name = self.config.output.name
        path = folder / f"{name}-step{step:08d}.safetensors"
        if whole:
            self.save_checkpoint(folder)
        self.save_adapter(path)
        prune(saved_on_the_way(folder, name), keep=1)  # of a run that is cancelled again and again
        return path


def total_steps(config: TrainConfig, batches_per_epoch: int, batches_per_step: int) -> int:
    """Optimizer steps of the run: `max_train_epochs` when set, else `max_train_steps`."""
    if config.max_train_epochs == 0:
        return config.max_train_steps
    return math.ceil(config.max_train_epochs * batches_per_epoch / batches_per_step)

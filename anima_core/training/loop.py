"""A training run, top to bottom: check, cache, load, train, save.

`train` is the entry; `Run.take_steps` is the loop.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from ..adapters.formats import load_into
from ..adapters.network import AdapterNetwork
from ..data.check import epoch_line
from ..errors import FileError, Interrupted, RunError, is_out_of_memory, let_go
from ..models.kept import all_plain, store_for
from ..models.transformer import AnimaTransformer, load_transformer
from ..settings import TrainConfig
from ..speed.compile_trial import compile_blocks
from ..speed.compiled import compiling
from ..speed.forms import apply_away, make_lean
from ..speed.probe import adapters_proven, proven, weights_proven
from ..speed.stream import Away, Streaming, stays_on_host
from ..speed.transfer import transfer_on
from . import flow, optimizers, schedules, storage
from .attending import AttentionChoice
from .budget import holds_casts
from .device import at_work
from .events import Events, Listener
from .feed import Batch, Feed
from .fit import Fit
from .forecast import weights_to_stream
from .held_out import HeldOutLoss
from .memory import free_memory, once_more, reset_peak, vae_tile
from .model_files import remember_digests
from .preflight import Plan, preflight
from .prepare import TrainingData, cache_data, with_embeddings
from .previews import SAMPLES, Previews
from .prior import Prior, with_kept
from .ranks import Ranks
from .reporting import StepRecord, StepReporter
from .resume import PACKAGE, contents
from .rundir import freeze_config, locked, open_run_dir
from .saving import Saver
from .signals import signals_cancel
from .state import TrainState, fresh_state, step_of
from .watchdog import Watchdog

KEEP_GOOD_EVERY = 100  # steps between copies of the adapter that a broken run falls back to


@dataclass(frozen=True)
class TrainResult:
    """losses: one per step; stop_reason: finished, stopped, stopped early (see `HeldOutLoss`); total: steps asked for."""

    adapter_path: Path
    steps: int
    losses: list[float]
    run_dir: Path
    stop_reason: str
    total: int


def train(config: TrainConfig, on_event: Listener | None = None) -> TrainResult:
    """Train one adapter from pictures to file.

    on_event receives every event as a dict (see `events`) and may answer "stop" (end early, keep the adapter) or "cancel".
    Raises SettingError or FileError before a model is loaded where that can be known, RunError for a failure in the run,
    Interrupted after a cancel, Ctrl-C or SIGTERM; in the last two cases the state was saved first.
    """
    with opened(config, on_event) as run:
        return run.go()


@contextmanager
def opened(config: TrainConfig, on_event: Listener | None = None) -> Iterator["Run"]:
    """Make a run ready for its first step, hold its name, and let go of everything afterwards. Raises as `train` does."""
    ranks = Ranks()
    with ranks.first_first():
        plan = preflight(config, ranks, on_event if ranks.first else None)
    run: Run | None = None
    with locked(plan) if ranks.first else nullcontext():
        kept = open_run_dir(plan) if ranks.first else []
        events = Events(plan.run_dir / "log.jsonl", on_event) if ranks.first else Events(None)
        try:
            # ComfyUI runs nodes in inference mode and other packs switch gradients off: state what training needs.
            with (
                at_work(plan.device, config.memory_gb),
                compiling(plan.cache_dir / "compiled") if config.compile else nullcontext(),
                torch.inference_mode(False),
                torch.enable_grad(),
                signals_cancel(events),
            ):
                report_start(plan, ranks, events, kept)
                run = build_run(plan, ranks, events)
                yield run
        except BaseException as error:
            let_go(error)
            if isinstance(error, RuntimeError) and is_out_of_memory(error):  # while loading, or in the optimizer
                said = str(error).partition("\n")[0][:120]
                way_out = f"free memory on {plan.device}" + (", or use a smaller `network.rank`" if run else "")
                raise RunError(f"out of memory ({said}); {way_out}") from None
            raise
        finally:
            if run is not None:
                vars(run).clear()  # whoever still holds it, a traceback say, shall not hold the model
            events.close()
            free_memory()


def report_start(plan: Plan, ranks: Ranks, events: Events, notes: list[str]) -> None:
    """Tell what was done to earlier runs, and what was found in the data."""
    for text in notes:
        events.emit("note", text=text)
    for text in plan.warnings:
        events.emit("warning", text=text)
    for report in plan.reports:
        for line in (report.head(), *report.notes()):
            events.emit("note", text=line)
        for line in report.warnings():
            events.emit("warning", text=line)
    events.emit("note", text=epoch_line(plan.reports, plan.batches_per_step))
    device, dtype = str(plan.device), str(plan.dtype).removeprefix("torch.")
    step, prompts = 0 if plan.resume_from is None else step_of(plan.resume_from), plan.config.samples.draws
    events.emit("start", device=device, dtype=dtype, name=plan.config.output.name, step=step, prompts=prompts)


def build_run(plan: Plan, ranks: Ranks, events: Events) -> "Run":
    """Cache the data, load the model, inject the adapter, restore a checkpoint."""
    config = plan.config
    config_text = freeze_config(plan) if ranks.first else ""
    away = weights_to_stream(plan)
    cached = cache_data(plan, events, ranks)
    model, streaming = load_model(plan, away, events)
    network = AdapterNetwork.inject(model, config.network, config.seed)
    data = with_embeddings(plan, cached, model, events, ranks)
    state = build_state(plan, network, content_of(plan) if ranks.first else {}, flat=not config.plain)
    network.fused, network.holds_casts = not config.plain, holds_casts(config)
    if not config.plain:
        speed_up(model, network, events)
    attention = AttentionChoice(plan, model, data.batches, events)
    attention.begin()
    fit = Fit(plan, model, streaming, state, data.batches, events, writes=ranks.first, also={"attention": attention.frozen})
    fit.begin()
    if config.compile:
        before = fit.former_choice("compiled")
        taken = compile_blocks(model, network, fit.largest, lambda event, text: events.emit(event, text=text), before)
        fit.freeze(compiled=taken)
    if plan.resume_from:
        data.batches.load_state_dict(state.data_position)
        events.emit("note", text=f"resumed at step {state.step} from {plan.resume_from.name}")
        if state.step >= data.steps:
            # a note: a run that was killed after its last step, and an adapter that is written again, are as they should be
            events.emit("note", text=f"`train.max_train_steps`={data.steps}: all are done, and no step is trained")
    events.emit("note", text=network.describe())
    if PACKAGE in state.content:
        events.emit("note", text=f"`optimizer.type`={config.optimizer.type}: of {state.content[PACKAGE]}")
    for text in schedules.warnings(config.optimizer, data.steps):
        events.emit("warning", text=text)
    watchdog = Watchdog(network, data.masked, state.step, remedy=lambda: attention.again(fit.freeze))
    reporter = StepReporter(events, watchdog, state.losses, data.steps, plan.device, world=ranks.world)
    saver = Saver(plan, events, state, reporter, watchdog, data.metadata(), config_text) if ranks.first else None
    tile = vae_tile(plan.device, config.vae_tile)
    previews = Previews(config.samples, config.model.vae, tile, plan.run_dir / SAMPLES, data.embeddings, data.held_out)
    held_out = HeldOutLoss(plan, ranks, events, data, model, state, reporter, saver)
    prior = Prior(config, model, network, data.embeddings)
    return Run(plan, ranks, events, data, model, state, fit, watchdog, reporter, saver, previews, held_out, prior)


def load_model(plan: Plan, away: Away, events: Events) -> tuple[AnimaTransformer, Streaming]:
    """Load the model onto its device, but for the weights that are to be streamed: these straight into host memory."""
    config, blocks = plan.config.model, plan.transformer.blocks
    store = store_for(config.dtype, blocks, plan.device)
    for text in storage.notes(config, store):
        events.emit("note", text=text)
    on_host = stays_on_host(away, blocks)
    model = load_transformer(config.transformer, plan.dtype, plan.device, store, on_host, config.llm_adapter)
    if wrong := weights_proven(model):
        events.emit("warning", text=f"{plan.device}: weights are made plain numbers, which takes more memory: {wrong}")
        model = load_transformer(config.transformer, plan.dtype, "cpu", all_plain, llm_adapter=config.llm_adapter).to(
            plan.device
        )
    elif config.dtype == "int8":
        events.emit("note", text=storage.in_8_bits(model))
    streaming = Streaming(model, transfer_on(plan.device))
    apply_away(model, streaming, away)
    return model, streaming


def speed_up(model: AnimaTransformer, network: AdapterNetwork, events: Events) -> None:
    """Let a model and its adapters run in their fast forms, if these prove themselves on its device."""
    ops, reason = proven(model.device, model.dtype)
    make_lean(model, ops=ops)
    if reason:
        events.emit("warning", text=f"{model.device}: the fast functions are left out: {reason}; steps take longer")
    if reason := adapters_proven(network):
        network.fused = False
        events.emit("warning", text=f"{model.device}: the fast form of adapters is left out: {reason}; steps take longer")


def content_of(plan: Plan) -> dict[str, str]:
    """Hash what the run is made from, and remember it of the model files: they were loaded, and hashed on the way."""
    content = contents(plan.config, plan.pictures, plan.held_out.pictures)
    remember_digests(plan.config, plan.cache_dir)
    return content


def build_state(plan: Plan, network: AdapterNetwork, content: dict[str, str], flat: bool = True) -> TrainState:
    """Make the adapter, its optimizer and their moment in time: new, or as a checkpoint left them. flat: see `fresh_state`."""
    config = plan.config
    if config.network.weights and plan.resume_from is None:
        load_into(network, config.network.weights)
    state = fresh_state(network, config.optimizer, plan.dtype == torch.float16, config.ema_decay, flat)
    state.content = content
    if plan.resume_from:
        state.load(plan.resume_from)
    return state


@dataclass
class Run:
    """A run that is ready for its next step."""

    plan: Plan
    ranks: Ranks
    events: Events
    data: TrainingData
    model: AnimaTransformer
    state: TrainState
    fit: Fit
    watchdog: Watchdog
    reporter: StepReporter
    saver: Saver | None  # in the process that writes
    previews: Previews
    held_out: HeldOutLoss
    prior: Prior

    def go(self) -> TrainResult:
        """Take the steps that are left, and save. On a failure the state is rescued first."""
        try:
            reason = self.take_steps()
            self.finish(reason)
        except KeyboardInterrupt:  # a second signal: at once means at once, see `signals_cancel`
            raise
        except BaseException as error:
            self.events.rescuing = True
            if self.saver:
                self.saver.rescue(error)
            if isinstance(error, Interrupted):
                self.ranks.wait()  # the launcher ends all processes when one has left, and the first one is saving
            if isinstance(error, FileError):  # in the middle of a run a full disk is no refused setting
                raise RunError(error.text) from None
            raise
        path, run_dir, total = self.plan.adapter_path, self.plan.run_dir, self.reporter.total
        return TrainResult(path, self.state.step, self.state.losses, run_dir, reason, total)

    def take_steps(self) -> str:
        """Train until the run's last step or a command. Return why it ended."""
        config, state, total = self.plan.config, self.state, self.reporter.total
        state.network.train()
        if state.step == 0 and self.previews.due(0, total, self.data.epoch_steps):
            self.preview()
        self.held_out.begin()
        reset_peak(self.model.device)
        self.reporter.restart_clock()
        command = None
        with Feed(self.data, self.plan, state.micro_batches, total - state.step, self.ranks) as feed:
            while state.step < total and (command := self.command()) is None:
                factor = schedules.lr_factor(config.optimizer, state.step, total)
                schedules.apply_lr(state.optimizer, factor)
                batches, loss = self.take_gradient(feed)
                once_more(self.ranks.mean_, state.gradient.buffer)
                told = once_more(self.ranks.tell, loss, self.events.command, self.fit.lowered)
                grad_norm = once_more(state.gradient.finish, config.optimizer.max_grad_norm)
                state.within_step = True
                optimizers.step_if_finite(state.optimizer, state.ema, grad_norm)
                state.gradient.zero()
                state.micro_batches += batches[-1].step_batches
                state.data_position = batches[-1].next_position
                state.step += 1
                state.within_step = False

                names = [name for batch in batches for name in batch.names]
                record = StepRecord(state.step, config.optimizer.learning_rate * factor, names)
                self.reporter.push(record, once_more(torch.stack, [*told, grad_norm, state.gradient.used_scale]))
                self.between_steps()
            self.reporter.report(wait=True)
        self.leave_if_cancelled(command)
        if command == "stop" and state.step == 0:
            raise Interrupted("stopped before the first step; there is nothing to keep")
        return "stopped" if command == "stop" else command or "finished"

    def command(self) -> str | None:
        """Return what the listener, a signal or the held-out loss asks for; several processes hear it at the same step."""
        asked = self.events.command if self.ranks.world == 1 else self.reporter.command(self.state.step)
        return asked or self.held_out.command

    def leave_if_cancelled(self, command: str | None) -> None:
        if command == "cancel":
            raise Interrupted(f"cancelled at step {self.state.step} of {self.reporter.total}")

    def take_gradient(self, feed: Feed) -> tuple[list[Batch], Tensor]:
        """Add the gradients of a step's micro-batches to the buffer; return these and their mean loss.

        Out of memory, the same is tried again with less kept, which stays so. Raises RunError, naming the setting that would
        fit, when that does not help.
        """
        batches = [next(feed)]  # first of all: when memory runs out, what else may fit is told from it
        while isinstance(found := self.attempt(feed, batches), str):
            self.state.gradient.zero()
            self.fit.lower(self.state.step + 1, batches, found)
        self.fit.after(batches)
        return batches, found

    def attempt(self, feed: Feed, batches: list[Batch]) -> Tensor | str:
        """Return what `accumulate` does, or what it said when memory ran out; nothing of that try is alive any more."""
        try:
            return self.accumulate(feed, batches)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return str(error)

    def accumulate(self, feed: Feed, batches: list[Batch]) -> Tensor:
        """Add the gradients of a step's micro-batches to the buffer; return their mean loss.

        batches: those that were fetched already; the others are added when their turn comes.
        """
        loss = torch.zeros((), device=self.model.device)
        for index in count():
            if self.ranks.world == 1:  # of several processes none may leave within a step
                self.leave_if_cancelled(self.command())
            if index == len(batches):
                batches.append(next(feed))
            for batch in self.prior.terms(self.fit.split(batches[index])):
                with self.state.network.micro_batch(batch.number, batch.part, batch.t):
                    part_loss = self.forward(batch) / batch.divisor
                    self.state.gradient.backward(part_loss)
                loss += part_loss.detach()
            if batches[index].ends_step:
                break
        return loss

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean loss of one micro-batch, fp32, on the device."""
        batch = batch.to(self.model.device)
        text, lengths, zeros = self.data.embeddings.place(batch.text)
        velocity = self.model(batch.noisy, batch.t, text, lengths, zeros)
        target = flow.velocity_target(batch.latents, batch.noise) if batch.target is None else batch.target
        config = self.plan.config.flow
        loss = flow.flow_loss(velocity, target, batch.t, config, mask=batch.mask, weight=batch.weight)
        return with_kept(loss, velocity, batch, self.plan.config).mean()

    def between_steps(self) -> None:
        """Do what is due or wished for after this step: notes, watchdogs, previews, saves."""
        step, wishes = self.state.step, self.events.take_wishes()
        for text in self.data.take_notes():
            self.events.emit("warning", text=text)
        if step % KEEP_GOOD_EVERY == 0:
            self.watchdog.keep(step)
        self.held_out.after_step()
        if "preview" in wishes or self.previews.due(step, self.reporter.total, self.data.epoch_steps):
            self.preview()
            self.reporter.restart_clock()
        if self.saver:
            self.saver.save_if_due(self.data.epoch_steps, wished="save" in wishes)

    def preview(self) -> None:
        """Draw the previews, in the process that writes. Without room for them they are left out, and without prompts."""
        if not self.ranks.first:
            return
        if not self.previews.config.draws:
            self.events.emit("note", text="`samples.prompts`: there are none, so there is no preview to draw")
            return
        try:
            with self.state.saved_weights():
                self.previews.make(self.model, self.state.network, self.state.step, self.events)
        except RuntimeError as error:  # no room for a second copy of the weights
            if not is_out_of_memory(error):
                raise
            self.events.emit("warning", text=f"step {self.state.step}: the preview was left out ({error})")

    def finish(self, reason: str) -> None:
        """Save a run that took its last step. Raises RunError when its adapter is not finite, or was never moved."""
        self.watchdog.check_finite(self.state.step)
        self.watchdog.check_trained()
        if self.saver:
            self.saver.finish(reason)

"""What a run leaves on disk: adapter files, checkpoints, and what is rescued when it fails."""

import contextlib
import json
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from ..adapters.formats import adapter_state, save_adapter
from ..adapters.metadata import build_metadata
from ..data.picture_files import data_url
from ..errors import AnimaError, FileError
from ..files import unused
from ..models.checkpoint import DTYPES, read_metadata
from ..settings import OutputConfig
from ..speed.forms import recomputes_blocks
from . import storage
from .evaluations import saved_loss
from .events import Events
from .preflight import Plan
from .previews import SAMPLES, newest
from .reporting import StepReporter
from .resume import PACKAGE
from .saves import AUTO, BEST, EPOCH, RESCUE, STEP, WISH, Keep, Saves, moved_into
from .state import TrainState
from .watchdog import Watchdog


@dataclass
class Saver:
    """Saves one run, in the process that writes."""

    plan: Plan
    events: Events
    state: TrainState
    reporter: StepReporter
    watchdog: Watchdog
    metadata: dict[str, str]  # for the adapter file: what only the data knows
    config_text: str
    started: float = field(default_factory=time.time)
    saved_at: float = field(default_factory=time.monotonic)  # of the last checkpoint; the clock on the wall may jump

    @property
    def output(self) -> OutputConfig:
        return self.plan.config.output

    def save_if_due(self, epoch_steps: int, wished: bool = False) -> None:
        """Save what is due after this step, by steps, epochs or minutes, or wished for; the end of the run saves by itself."""
        step, output = self.state.step, self.output
        if step >= self.reporter.total:
            return
        by_step = output.save_every_n_steps > 0 and step % output.save_every_n_steps == 0
        by_epoch = output.save_every_n_epochs > 0 and step % (output.save_every_n_epochs * epoch_steps) == 0
        if by_step or by_epoch or wished:
            self.save_intermediate(*[STEP] * by_step, *[EPOCH] * by_epoch, *[WISH] * wished)
        by_count = output.checkpoint_every_n_steps > 0 and step % output.checkpoint_every_n_steps == 0
        by_clock = 0 < output.checkpoint_every_n_minutes * 60 <= time.monotonic() - self.saved_at
        if by_count or by_clock or wished:
            self.save_checkpoint(self.plan.run_dir, AUTO)

    def save_intermediate(self, *by: str) -> None:
        """Save the adapter as it is after this step, beside where the last one will be. by: STEP, EPOCH, WISH."""
        output, step = self.output, self.state.step
        path = self.plan.adapter_path.parent / f"{output.name}-step{step:08d}.safetensors"
        self.watchdog.check_finite(step)  # else it would push out the last good one
        self.list_adapter(path, step, *by)
        self.save_adapter(path)
        self.warn(Saves(self.plan.run_dir, "adapters").prune(self.keep_adapters))
        if output.save_state:
            self.save_checkpoint(self.plan.run_dir, *by)

    def list_adapter(self, path: Path, step: int, *by: str) -> None:
        """List an adapter file that is about to be written beside the last one; what another run has there is set aside."""
        saves = Saves(self.plan.run_dir, "adapters")
        if path.exists() and not saves.has(path):
            aside = moved_into(self.plan.run_dir / "set_aside", path)
            self.events.emit("note", text=f"{path} is not of this run; it is kept as {aside}")
        saves.add(path, step, *by)

    @property
    def best_path(self) -> Path:
        return self.plan.adapter_path.with_name(f"{self.output.name}-best.safetensors")

    def save_best(self) -> None:
        """Save the adapter as it is after this step, which the held-out pictures like best, and keep it in the state."""
        with self.state.saved_weights():
            self.state.held_out.best_adapter = self.tensors()
        self.write_best()

    def write_best(self) -> None:
        done = self.state.held_out
        best = done.best
        self.list_adapter(self.best_path, best["step"], BEST)
        said = json.dumps({"loss": saved_loss(best), "step": best["step"], "base": best["base"], "pictures": best["pictures"]})
        self.write_adapter(self.best_path, done.best_adapter, best["step"], {"anima_trainer.held_out": said})

    def restore_best(self) -> None:
        """Write the best adapter of a run that goes on again where its file is gone or is of a later step."""
        done = self.state.held_out
        if not done.best_adapter:
            return
        try:
            said = json.loads(read_metadata(self.best_path).get("anima_trainer.held_out", "{}"))
        except FileError:
            said = {}
        if said.get("step") != done.best["step"]:
            self.write_best()

    def save_checkpoint(self, run_dir: Path, *by: str) -> None:
        self.reporter.report(wait=True)  # the loss history is part of the state
        self.watchdog.check_finite(self.state.step)  # else it would in time push out the last good one
        folder = run_dir / "checkpoints" / f"step-{self.state.step:08d}"
        saves, output = Saves(run_dir, "checkpoints"), self.output
        saves.add(folder, self.state.step, *by)
        self.state.save(folder, self.config_text)
        self.saved_at = time.monotonic()
        self.events.emit("checkpoint", step=self.state.step, path=str(folder))
        steps = output.save_last_n_steps_state or output.save_last_n_steps
        epochs = output.save_last_n_epochs_state or output.save_last_n_epochs
        self.warn(saves.prune(Keep(steps, epochs, output.save_last_n, output.keep_checkpoints)))

    @property
    def keep_adapters(self) -> Keep:
        """How long adapters last; of those that were rescued from an end that came early only the newest."""
        output = self.output
        return Keep(output.save_last_n_steps, output.save_last_n_epochs, output.save_last_n, auto=1)

    def warn(self, warnings: list[str]) -> None:
        for text in warnings:
            self.events.emit("warning", text=text)

    def save_adapter(self, path: Path, averaged: bool = True) -> None:
        """Write the adapter file. averaged: as a user gets it; else as the parameters are, the averages being broken."""
        with self.state.saved_weights() if averaged else contextlib.nullcontext():
            self.write_adapter(path, self.tensors(), self.state.step)

    def tensors(self) -> dict[str, Tensor]:
        """Return the adapter as it is now, as the file has it."""
        return adapter_state(self.state.network, self.output.key_format, DTYPES[self.output.save_dtype])

    def write_adapter(self, path: Path, tensors: dict[str, Tensor], step: int, more: dict[str, str] | None = None) -> None:
        """Write tensors as the adapter of a step. more: metadata."""
        extra = self.metadata | {
            "ss_steps": str(step),
            "ss_mixed_precision": str(self.plan.dtype).removeprefix("torch."),
            "ss_num_blocks": str(self.plan.transformer.blocks),
            "ss_gradient_checkpointing": str(recomputes_blocks(self.state.network.model)),
            **storage.metadata(self.state.network.model),
            "ss_training_started_at": str(self.started),
            "ss_training_finished_at": str(time.time()),
        }
        extra |= {"anima_trainer.optimizer": self.state.content[PACKAGE]} if PACKAGE in self.state.content else {}
        if picture := self.thumbnail():
            extra["modelspec.thumbnail"] = picture
        save_adapter(path, tensors, build_metadata(self.plan.config, extra | (more or {}), tensors))
        self.events.emit("saved", step=step, path=str(path))

    def thumbnail(self) -> str:
        """Return a small picture for the file's metadata: that of the settings, or the newest preview; empty without one."""
        config = self.plan.config.metadata
        path = Path(config.picture) if config.picture else newest(self.plan.run_dir / SAMPLES, self.state.step)
        if not config.thumbnail or path is None:
            return ""
        try:
            return data_url(path)
        except FileError as error:
            self.events.emit("warning", text=f"the adapter carries no thumbnail: {error}")
            return ""

    def finish(self, reason: str) -> None:
        """Save the run's adapter and its last checkpoint: a finished run may be given more steps."""
        path = self.plan.adapter_path
        self.save_adapter(path)
        self.save_checkpoint(self.plan.run_dir, AUTO)
        self.events.emit("finish", step=self.state.step, reason=reason, path=str(path))

    def rescue(self, error: BaseException) -> None:
        """Keep what there is of a run that did not finish, and say where.

        Of a run that gained nothing nothing is kept: a later start would take it for trained.
        """
        with contextlib.suppress(AnimaError):  # it is the error of this run already, or one more of its kind
            self.reporter.report(wait=True)
        broken = self.watchdog.restore_if_broken()
        if broken is not None:
            self.events.emit("warning", text=f"the adapter was not finite any more: the one of step {broken} is kept")
        step = self.state.step if broken is None else broken
        if step == 0 or not self.watchdog.has_gained:
            return
        if self.state.within_step:
            self.events.emit("warning", text=f"failed within step {step + 1}: the checkpoint before is the last")
        consistent = broken is None and not self.state.within_step
        elsewhere = unused(Path(tempfile.gettempdir()) / self.plan.run_dir.name)  # another disk may have room
        for folder in (self.plan.run_dir, elsewhere):
            try:
                path = self._rescue_into(folder, step, consistent)
            except (AnimaError, OSError) as full:
                self.events.emit("warning", text=f"step {step} could not be saved in {folder}: {full}")
            else:
                if folder == elsewhere:
                    own = self.plan.run_dir / "checkpoints"
                    way_out = f"set `output.resume={elsewhere}`, or move its checkpoint into {own}"
                    self.events.emit("warning", text=f"the state is saved in {elsewhere}: {way_out}")
                self.events.emit("finish", step=step, reason=type(error).__name__, path=str(path))
                return

    def _rescue_into(self, folder: Path, step: int, consistent: bool) -> Path:
        """Save the state, where it is one, and the adapter into a folder. Of several rescued adapters the newest stays."""
        path, saves = folder / f"{self.output.name}-step{step:08d}.safetensors", Saves(folder, "adapters")
        if consistent:
            self.save_checkpoint(folder, AUTO)
        saves.add(path, step, RESCUE)
        self.save_adapter(path, averaged=consistent)
        self.warn(saves.prune(self.keep_adapters))
        return path

"""Everything that a run is at a moment: the one object that a checkpoint stores and resume restores.

Random numbers need no state of their own (see `seeds`), so the step and the position in the data are enough to go on exactly.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from .. import files
from ..adapters.flat import Flat
from ..adapters.network import AdapterNetwork
from ..errors import CheckpointError, FileError
from ..models.checkpoint import load_tensors
from ..settings import OptimizerConfig
from . import optimizers
from .ema import EMA
from .evaluations import Evaluations
from .gradient import FlatGradient
from .optimizer_state import flatten_optimizer, load_exactly, unflatten_optimizer
from .optimizers import evaluating
from .per_layer import join_averages, join_optimizer, split_averages, split_optimizer

CHECKPOINT_VERSION = 3
CROSSED_EPOCHS = 2  # the version before: the same files, but a step went on into the next epoch
REPLACED = ".replaced"  # ends the hidden name of a checkpoint while the new one of its step takes its place
FILES = ("state.safetensors", "state.json", "config.toml")
FOREIGN_STATE = ("random_states_0.pkl", "optimizer.bin", "scheduler.bin", "train_state.json", "resume_snapshot.json")
DIGESTS = "sha256.json"  # SHA-256 of every other file; verified before loading


@dataclass
class TrainState:
    network: AdapterNetwork
    optimizer: torch.optim.Optimizer
    gradient: FlatGradient
    ema: EMA | None
    step: int = 0  # optimizer steps done
    micro_batches: int = 0  # done, of all processes together
    data_position: dict[str, int] = field(default_factory=dict)  # of the next batch, see `Batches.state_dict`
    losses: list[float] = field(default_factory=list)
    content: dict[str, str] = field(default_factory=dict)  # hashes of the data and the base model, see `resume.contents`
    held_out: Evaluations = field(default_factory=Evaluations)
    flats: tuple[Flat, ...] = ()  # that the optimizer's groups are; none where these are the parameters of layers
    within_step: bool = False  # True while optimizer.step() runs: weights are inconsistent, do not checkpoint

    @contextmanager
    def saved_weights(self) -> Iterator[None]:
        """Let the parameters be those that a user gets, inside: ScheduleFree's averages, the EMA."""
        with evaluating(self.optimizer):
            if self.ema is None:
                yield
            else:
                with self.ema.swapped():
                    yield

    def save(self, folder: Path, config_text: str) -> None:
        """Write a checkpoint; the folder appears whole or not at all. Raises FileError."""
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            self._write_files(temporary, config_text)
            replaced = folder.with_name(f".{folder.name}{REPLACED}")
            shutil.rmtree(replaced, ignore_errors=True)
            if folder.exists():  # a resumed run that is saved again at once; a kill in between still finds this one
                files.replace(folder, replaced)
            files.replace(temporary, folder)
            files.flush_to_disk(folder.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise FileError(
                f"{folder}: the checkpoint could not be written ({reason}); free some space or choose another folder"
            ) from None

    def _write_files(self, folder: Path, config_text: str) -> None:
        tensors, scalars = flatten_optimizer(split_optimizer(self.optimizer.state_dict(), self.flats))
        tensors |= {f"adapter.{k}": v for k, v in self.network.host_state().items()}
        tensors |= {"gradient.scale": self.gradient.scale, "gradient.good_steps": self.gradient.good_steps}
        if self.ema is not None:
            tensors |= {f"ema.{k}": v for k, v in split_averages(self.ema.state_dict(), self.network.flat).items()}
        tensors |= {f"best.{k}": v for k, v in self.held_out.best_adapter.items()}
        tensors_file, scalars_file, config_file = (folder / name for name in FILES)
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, tensors_file)
        scalars_file.write_text(json.dumps(self._plain(scalars)), encoding="utf-8")
        config_file.write_text(config_text, encoding="utf-8")
        digests = {name: files.digest(folder / name) for name in FILES}
        (folder / DIGESTS).write_text(json.dumps(digests), encoding="utf-8")
        for file in folder.iterdir():
            files.flush_to_disk(file)

    def _plain(self, optimizer_scalars: dict[str, Any]) -> dict[str, Any]:
        return {
            "version": CHECKPOINT_VERSION,
            "step": self.step,
            "batch": self.micro_batches,
            "data": self.data_position,
            "losses": self.losses,
            "content": self.content,
            "optimizer": optimizer_scalars,
        } | ({"held_out": self.held_out.plain()} if self.held_out.history else {})

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote into the freshly built objects of the same config. Raises FileError."""
        try:
            plain = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            tensors = load_tensors(folder / "state.safetensors")
        except Exception as error:
            raise FileError(f"{folder}: not a readable checkpoint ({error}); resume an earlier one") from None
        if plain["version"] not in (CROSSED_EPOCHS, CHECKPOINT_VERSION):
            found = f"checkpoint version {plain['version']}, this program reads {CHECKPOINT_VERSION}"
            raise CheckpointError(f"{folder}: {found}; start a new run, from its adapter file with `network.weights`")
        self.step, self.losses = plain["step"], plain["losses"]
        self.micro_batches, self.data_position = plain["batch"], plain["data"]
        self.held_out = Evaluations(best_adapter=_part(tensors, "best."), **plain.get("held_out", {}))
        self.network.load_state_dict(_part(tensors, "adapter."))
        self._load_optimizer(unflatten_optimizer(_part(tensors, "optimizer."), plain["optimizer"]))
        self.gradient.scale.copy_(tensors["gradient.scale"])
        self.gradient.good_steps.copy_(tensors["gradient.good_steps"])
        averages = _part(tensors, "ema.")
        if self.ema is not None and averages:
            self.ema.load_state_dict(join_averages(averages, self.network.flat))
        elif self.ema is not None:  # switched on since
            self.ema.restart()

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """Restore moments from the checkpoint, keep hyper-parameters from the config.

        Raises CheckpointError for other groups of layers.
        """
        try:
            load_exactly(self.optimizer, join_optimizer(state, self.flats))
        except ValueError:
            what = "now gives one rate to layers that had several in the checkpoint, or several to those that had one"
            way_out = "set the one before, or start a new run from its adapter file with `network.weights`"
            raise CheckpointError(f"`optimizer.learning_rate` {what}; {way_out}") from None


def fresh_state(
    network: AdapterNetwork, config: OptimizerConfig, fp16: bool, ema_decay: float = 0.0, flat: bool = True
) -> TrainState:
    """Make what a run holds beside the weights before its first step: gradients, moments, averages.

    flat: all of a rate group in one tensor, which the optimizer takes too where it can; else each layer by itself, which is
    slower and gives the same bits, or of Prodigy, whose step size is a sum over all, the same but for rounding.
    """
    layers = network.parameter_groups(config.learning_rate, config.weight_decay)
    groups = network.flatten(layers) if flat else layers
    parameters = [p for group in groups for p in group["params"]]
    gradient = FlatGradient(parameters, fp16)
    for whole in network.flat:
        whole.share_gradient()
    ema = EMA(parameters, ema_decay) if ema_decay > 0 else None
    if not optimizers.takes_flat(config):
        return TrainState(network, optimizers.build_optimizer(layers, config), gradient, ema)
    optimizer = optimizers.build_optimizer(groups, config)
    optimizers.make_state(optimizer)
    return TrainState(network, optimizer, gradient, ema, flats=network.flat)


def read_content(checkpoint: Path) -> dict[str, str]:
    """Return the hashes that a checkpoint was written with. Raises FileError."""
    return dict(read_plain(checkpoint)["content"])


def read_plain(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint holds beside tensors: at least `content` and `version`. Raises FileError."""
    try:
        plain = json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))
        return {**plain, "content": dict(plain["content"]), "version": int(plain["version"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{checkpoint}: not a checkpoint of this version; start a new run, from its adapter file with `network.weights`"
        ) from None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def find_checkpoint(resume: str, run_dir: Path) -> tuple[Path, list[str]]:
    """Find the newest whole checkpoint that `--resume` means, and warnings about those that are passed over.

    resume: a checkpoint folder, a run folder, or "latest" of this run. Raises FileError that says what is there instead.
    """
    folder = run_dir if resume == "latest" else Path(resume)
    if resume != "latest" and not (folder / DIGESTS).is_file() and (what := no_run(folder)):
        raise FileError(f"`output.resume`={resume}: {what}")
    single = (folder / DIGESTS).is_file()
    found = [folder] if single else checkpoints_in(folder)
    warnings: list[str] = []
    for checkpoint in found:
        damaged = damaged_file(checkpoint)
        if damaged is None:
            return checkpoint, warnings
        warnings.append(f"{checkpoint.name}: {damaged} is damaged or missing; this checkpoint is passed over")
    if warnings:
        raise FileError(f"`output.resume`={resume}: no whole checkpoint in {folder} ({warnings[0]}); start a new run")
    there = "" if folder.is_dir() else " (there is no such folder)"
    raise FileError(f"`output.resume`={resume}: no checkpoint in {folder}{there}; leave it off to start a new run")


def no_run(path: Path) -> str:
    """Say what a path is that no run of this program has written, with the way out; empty for one that may be a run's."""
    start = "`network.weights` starts from an adapter file"
    if path.suffix == ".safetensors" or path.is_file():
        return f"is a file, an adapter perhaps, and not a run's folder; {start}"
    if any((path / name).is_file() for name in FOREIGN_STATE):
        return f"is a state of sd-scripts or accelerate, which only they continue; {start}: give the one saved beside it"
    if path.is_dir() and not (path / "checkpoints").is_dir() and any(path.glob("*.safetensors")):
        return f"holds files and no checkpoint; name a run's folder (…-run), or {start}"
    return ""


def checkpoints_in(run_dir: Path) -> list[Path]:
    """List the checkpoints of a run folder, the newest first."""
    found = [path for path in (run_dir / "checkpoints").glob("*") if step_of(path) >= 0]
    return sorted(found, key=lambda path: (step_of(path), path.name.startswith("step-")), reverse=True)


def step_of(checkpoint: Path) -> int:
    """Read the step from a checkpoint's name, also of one that was being replaced; -1 for another name."""
    name = re.fullmatch(rf"step-(\d+)|\.step-(\d+){re.escape(REPLACED)}", checkpoint.name)
    return -1 if name is None else int(name[1] or name[2])


def damaged_file(checkpoint: Path) -> str | None:
    """Name the first file of a checkpoint that is not as it was written."""
    try:
        digests = json.loads((checkpoint / DIGESTS).read_text(encoding="utf-8"))
        return next((name for name in FILES if not is_whole(checkpoint / name, digests.get(name))), None)
    except (OSError, ValueError, AttributeError):
        return DIGESTS


def is_whole(path: Path, digest: str | None) -> bool:
    return path.is_file() and files.digest(path) == digest

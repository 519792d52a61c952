"""Everything that a run is at a moment: the one object that a checkpoint stores and resume restores.

Random numbers need no state of their own: every draw comes from a generator seeded by (seed, purpose, position), see
`draw_generator`, so the step and the position in the data are enough to go on exactly.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..adapters.network import AdapterNetwork
from ..data.cache import file_digest
from ..errors import FileError
from .ema import EMA
from .gradient import FlatGradient

CHECKPOINT_VERSION = 2
REPLACED = ".replaced"  # ends the hidden name of a checkpoint while the new one of its step takes its place
FILES = ("state.safetensors", "state.json", "config.toml")
SUMS = "sha256.json"  # of the checkpoint's other files: a damaged one is noticed before it is believed


def draw_generator(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A CPU generator that depends on nothing but its arguments: the same draws on every device, after every resume."""
    text = f"{seed}/{purpose}/{'/'.join(map(str, position))}"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1)


@dataclass
class TrainState:
    network: AdapterNetwork
    optimizer: torch.optim.Optimizer
    gradient: FlatGradient
    ema: EMA | None
    step: int = 0  # optimizer steps done
    batch: int = 0  # micro-batches done
    data: dict[str, int] = field(default_factory=dict)  # where the next batch stands in the data
    losses: list[float] = field(default_factory=list)
    content: dict[str, str] = field(default_factory=dict)  # hashes of the data and the base model, see `resume.contents`

    def save(self, folder: Path, config_text: str) -> None:
        """Write a checkpoint; the folder appears whole or not at all."""
        temporary = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True, exist_ok=True)
            tensors, scalars = flatten_optimizer(self.optimizer.state_dict())
            tensors |= {f"adapter.{k}": v for k, v in self.network.state_dict().items()}
            tensors |= {"gradient.scale": self.gradient.scale, "gradient.good_steps": self.gradient.good_steps}
            if self.ema is not None:
                tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
            tensors_file, scalars_file, config_file = (temporary / name for name in FILES)
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, tensors_file)
            self._write_json(scalars_file, scalars)
            config_file.write_text(config_text, encoding="utf-8")
            sums = {name: file_digest(temporary / name) for name in FILES}
            (temporary / SUMS).write_text(json.dumps(sums), encoding="utf-8")
            for file in temporary.iterdir():
                flush_to_disk(file)
            replaced = folder.with_name(f".{folder.name}{REPLACED}")
            shutil.rmtree(replaced, ignore_errors=True)
            if folder.exists():  # a resumed run that is saved again at once; a kill in between still finds this one
                os.replace(folder, replaced)
            os.replace(temporary, folder)
            flush_to_disk(folder.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            reason = getattr(error, "strerror", None) or error
            raise FileError(f"{folder}: the checkpoint could not be written ({reason}); free some space") from None

    def _write_json(self, path: Path, optimizer_scalars: dict[str, Any]) -> None:
        data = {
            "version": CHECKPOINT_VERSION,
            "step": self.step,
            "batch": self.batch,
            "data": self.data,
            "losses": self.losses,
            "content": self.content,
            "optimizer": optimizer_scalars,
        }
        path.write_text(json.dumps(data), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote into the freshly built objects of the same config."""
        try:
            data = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "state.safetensors")
        except Exception as error:
            raise FileError(f"{folder}: not a readable checkpoint ({error}); resume an earlier one") from None
        if data["version"] != CHECKPOINT_VERSION:
            raise FileError(f"{folder}: checkpoint version {data['version']}, this program reads {CHECKPOINT_VERSION}")
        self.step, self.batch, self.data, self.losses = (data[k] for k in ("step", "batch", "data", "losses"))
        self.network.load_state_dict(_part(tensors, "adapter."))
        self._load_optimizer(unflatten_optimizer(_part(tensors, "optimizer."), data["optimizer"]))
        self.gradient.scale.copy_(tensors["gradient.scale"])
        self.gradient.good_steps.copy_(tensors["gradient.good_steps"])
        if self.ema is not None:
            averages = _part(tensors, "ema.")
            self.ema.load_state_dict(averages) if averages else self.ema.restart()  # switched on since

    def _load_optimizer(self, state: dict[str, Any]) -> None:
        """What was accumulated is the checkpoint's; what is set is the config's: torch would bring back the old settings."""
        settings = [{k: group[k] for k in optimizer_settings(self.optimizer, group)} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, ours in zip(self.optimizer.param_groups, settings):
            group.update(ours)


def optimizer_settings(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> list[str]:
    """The keys of a parameter group that its class takes as arguments: the others are state, as ScheduleFree's."""
    known = {*inspect.signature(type(optimizer)).parameters, "initial_lr"}
    return [key for key in group if key in known and key != "params"]


def read_content(checkpoint: Path) -> dict[str, str]:
    """The hashes that a checkpoint was written with. Raises FileError."""
    try:
        return dict(json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))["content"])
    except (OSError, ValueError, KeyError, TypeError):
        raise FileError(f"{checkpoint}: not a checkpoint of this version; start a new run") from None


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def flatten_optimizer(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Any optimizer's state dict -> tensors `optimizer.<parameter>.<name>`, and the rest as plain JSON."""
    tensors, scalars = {}, {}
    for index, entries in state["state"].items():
        scalars[str(index)] = {}
        nested = [value for value in entries.values() if isinstance(value, dict)]  # bitsandbytes keeps its state in one
        for name, value in {k: v for part in (entries, *nested) for k, v in part.items() if not isinstance(v, dict)}.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
            else:
                scalars[str(index)][name] = value
    groups = [{k: v.item() if isinstance(v, Tensor) else v for k, v in group.items()} for group in state["param_groups"]]
    return tensors, {"state": scalars, "param_groups": groups}


def unflatten_optimizer(tensors: dict[str, Tensor], scalars: dict[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in scalars["state"].items()}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in scalars["param_groups"]]
    return {"state": state, "param_groups": groups}


def flush_to_disk(path: Path) -> None:
    """A power cut after this keeps the file, or the names in the folder, which Windows keeps by itself."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find_checkpoint(resume: str, run_dir: Path) -> tuple[Path, list[str]]:
    """`--resume`: a checkpoint folder, a run folder, or "latest" of this run -> the newest whole one, and warnings."""
    folder = run_dir if resume == "latest" else Path(resume)
    single = (folder / SUMS).is_file()
    found = [folder] if single else checkpoints_in(folder)
    warnings = []
    for checkpoint in found:
        damaged = damaged_file(checkpoint)
        if damaged is None:
            return checkpoint, warnings
        warnings.append(f"{checkpoint.name}: {damaged} is damaged or missing; this checkpoint is passed over")
    if warnings:
        raise FileError(f"resume={resume}: no whole checkpoint in {folder} ({warnings[0]}); start anew")
    raise FileError(f"resume={resume}: no checkpoint in {folder}; leave it off to start anew")


def checkpoints_in(run_dir: Path) -> list[Path]:
    """The newest first."""
    found = [path for path in (run_dir / "checkpoints").glob("*") if step_of(path) >= 0]
    return sorted(found, key=lambda path: (step_of(path), path.name.startswith("step-")), reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint's name says, also of one that was being replaced; -1 for what is none."""
    name = re.fullmatch(rf"step-(\d+)|\.step-(\d+){re.escape(REPLACED)}", checkpoint.name)
    return -1 if name is None else int(name[1] or name[2])


def damaged_file(checkpoint: Path) -> str | None:
    """The first file of a checkpoint that is not as it was written."""
    try:
        sums = json.loads((checkpoint / SUMS).read_text(encoding="utf-8"))
        return next((name for name in FILES if not is_whole(checkpoint / name, sums.get(name))), None)
    except (OSError, ValueError, AttributeError):
        return SUMS


def is_whole(path: Path, digest: str | None) -> bool:
    return path.is_file() and file_digest(path) == digest

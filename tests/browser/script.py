"""Trainings by a script: the run folder, the log and the events of one, without a model. What pages see of it is real."""

import contextlib
import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from anima_core import files
from anima_core.demo.pictures import COLOURS, GROUNDS, SHAPES, draw
from anima_core.run_store import FinishedRun, RunStore
from anima_core.settings import (
    DatasetConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    SampleConfig,
    SubsetConfig,
    TrainConfig,
    to_dict,
)
from anima_core.settings.toml_file import dump_toml
from anima_core.training.events import Events
from anima_core.training.reporting import RunningMean

from .stage import Stage

PROMPTS = ("red circle, white background, drawing", "blue triangle, pink background, drawing", "yellow square, dark background")
SIDE = 128  # px of a sample


class ScriptedRun:
    """A training on a stage that does what its test says, while its block is open.

    node: the id of the node that trains; workflow: the graph that is kept with the run.
    """

    def __init__(
        self, stage: Stage, name: str, total: int = 200, node: str = "1", workflow: dict | None = None, **network: Any
    ) -> None:
        self.stage, self.name, self.total, self.node, self.workflow = stage, name, total, node, workflow
        self.network: dict[str, Any] = {"rank": 16, "alpha": 16.0} | network
        self.step = 0
        self.rng = random.Random(name)
        self.mean = RunningMean()
        self.losses: list[float] = []
        self.best = (math.inf, 0)  # held-out loss, and its step

    @property
    def store(self) -> RunStore:
        return RunStore(self.stage.base / "output" / "anima_trainer")

    @property
    def folder(self) -> Path:
        return self.store.run_folder(self.name)

    @property
    def log(self) -> Path:
        return self.folder / "log.jsonl"

    @property
    def id(self) -> str:
        return self.listener.training.run

    @contextlib.contextmanager
    def training(self) -> Iterator["ScriptedRun"]:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "config.toml").write_text(dump_toml(to_dict(self.config())), encoding="utf-8")
        levels = ["keep"] * 15 + ["layers"] * 13
        (self.folder / "plan.json").write_text(json.dumps({"levels": levels, "parts": 1}), encoding="utf-8")
        self.listener = self.stage.module("bridge").NodeListener(self.node, workflow=self.workflow)
        self.events = Events(self.log, self.listener)
        try:
            with self.listener:
                self.events.emit("start", device="cpu", dtype="fp32", name=self.name, step=0, prompts=len(PROMPTS))
                yield self
        finally:
            self.events.close()

    def config(self) -> TrainConfig:
        return TrainConfig(
            model=ModelConfig("transformer.safetensors", "vae.safetensors", "qwen", "t5"),
            datasets=(DatasetConfig((SubsetConfig(image_dir="pictures"),)),),
            network=NetworkConfig(**self.network),
            optimizer=OptimizerConfig(learning_rate=1e-4),
            samples=SampleConfig(prompts=PROMPTS, every_n_steps=20),
            output=OutputConfig(dir=str(self.store.folder), name=self.name),
            max_train_steps=self.total,
        )

    def steps(self, count: int) -> None:
        """Take steps, whose loss falls with noise, and let pages hear of all of them."""
        for _ in range(count):
            self.events.emit("step", **self.next_step())
        self.listener.training.tell(at_once=True)

    def write_steps(self, count: int) -> None:
        """Take steps that only the log tells of: as while no page was open."""
        with open(self.log, "a", encoding="utf-8") as log:
            log.writelines(json.dumps({"event": "step", "time": 0.0, **self.next_step()}) + "\n" for _ in range(count))

    def next_step(self) -> dict[str, Any]:
        self.step += 1
        loss = 0.09 + 0.08 * math.exp(-self.step / (self.total / 4)) + self.rng.gauss(0, 0.02)
        self.mean.add(loss)
        self.losses.append(loss)
        return {
            "step": self.step,
            "total": self.total,
            "loss": loss,
            "mean_loss": self.mean.value,
            "lr": 1e-4 * min(1, self.step / 20),
            "grad_norm": abs(self.rng.gauss(0.5, 0.2)),
            "seconds": 1.31,
            "eta": (self.total - self.step) * 1.31,
            "pictures_per_second": 1.53,
            "peak_gb": 11.4,
        }

    def samples(self) -> None:
        """Draw the prompts; they get larger with the steps."""
        (self.folder / "samples").mkdir(exist_ok=True)
        for index, prompt in enumerate(PROMPTS):
            colour = next(name for name in COLOURS if name in prompt)
            shape = next(name for name in SHAPES if name in prompt)
            ground = next(name for name in GROUNDS if name in prompt)
            path = self.folder / "samples" / f"step-{self.step:08d}-{index}.png"
            away = 1 - self.step / self.total
            draw(colour, shape, ground, (SIDE, SIDE), (self.rng.uniform(-away, away), self.rng.uniform(-away, away))).save(path)
            self.events.emit("sample", step=self.step, path=str(path), prompt=prompt)

    def held_out(self) -> None:
        """Tell the loss of pictures that are not trained on: it falls for a quarter of the steps, and then rises."""
        away = self.step / self.total - 1 / 4
        base_levels = [0.3 - 0.025 * level for level in range(1, 10)]
        levels = [base * (0.85 + away * away + 0.02 * (index - 4) * away) for index, base in enumerate(base_levels)]
        loss = sum(levels) / len(levels)
        self.best = min(self.best, (loss, self.step))
        self.events.emit(
            "held_out",
            **{"step": self.step, "loss": loss, "levels": levels, "t": [level / 10 for level in range(1, 10)]},
            **{"base": sum(base_levels) / len(base_levels), "base_levels": base_levels},
            **{"ema": 1.01 * loss, "ema_levels": [1.01 * level for level in levels]},
            **{"best_step": self.best[1], "best_loss": self.best[0], "pictures": 4},
            text=f"held-out loss rises since step {self.step}, best at {self.best[1]}: use the adapter of step {self.best[1]}",
        )

    def checkpoint(self) -> None:
        folder = self.folder / "checkpoints" / f"step-{self.step:08d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text("{}", encoding="utf-8")
        record = {"name": self.name, "result_version": 3}
        self.store.write(self.store.unfinished_record(f"key-{self.name}"), record)
        self.events.emit("checkpoint", step=self.step, path=str(folder))

    def finish(self, outcome: str = "done") -> None:
        """Keep the adapter, as at the end or after a stop."""
        adapter = Path(self.stage.module("store").loras_folder()) / f"{self.name}.safetensors"
        adapter.write_bytes(b"no adapter: " + self.name.encode())
        run = FinishedRun(str(adapter), files.identity(adapter), str(self.folder), self.losses, self.step, [], total=self.total)
        self.store.remember(f"key-{self.name}", run)
        self.store.forget(self.name)
        self.listener.ends(outcome, f"{outcome}: models/loras/{adapter.name}, {self.step} steps")

    def wished(self) -> set[str]:
        """Return what pages have asked for since this was asked last."""
        return self.events.take_wishes() | ({self.events.command} if self.events.command else set())

    def told(self, kind: str) -> list[dict]:
        """Read the events of a kind from log.jsonl."""
        return [event for event in map(json.loads, self.log.read_text(encoding="utf-8").splitlines()) if event["event"] == kind]

    def logged(self) -> dict[str, list]:
        """Read the columns that a page draws from log.jsonl."""
        return columns_of(self.log)


def columns_of(log: Path) -> dict[str, list]:
    """Read a log line by line, the plain way."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if line["event"] == "step"]
    return {name: [step[name] for step in steps] for name in ("step", "loss", "mean_loss", "lr", "grad_norm")}


def past_run(
    stage: Stage, name: str, steps: int = 60, outcome: str = "done", total: int = 0, held_out: bool = False, **changes: Any
) -> str:
    """Have a run that has ended, with samples and a checkpoint; return its id."""
    run = ScriptedRun(stage, name, total or steps, **changes)
    with run.training():
        for _ in range(3):
            run.steps(steps // 3)
            run.samples()
            if held_out:
                run.held_out()
        run.checkpoint()
        if outcome in ("done", "kept"):
            run.finish(outcome)
        else:
            run.listener.ends(outcome, f"{outcome} at {run.step} of {run.total}, saved")
    return run.id

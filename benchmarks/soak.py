"""Thousands of tiny steps with saving, sampling, stops and resumes in one process: does anything grow?

`python -m benchmarks.soak --steps 20000`. After a warm-up it samples resident memory, open files, threads and temporary
files once a round, and compares the last third with the first. Writes JSON; exit status 1 when something grew.
"""

import argparse
import dataclasses
import gc
import json
import os
import platform
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from anima_core import train
from anima_core.demo.models import write_models
from anima_core.demo.pictures import write_pictures
from anima_core.errors import Interrupted
from anima_core.settings import (
    DatasetConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    SampleConfig,
    SubsetConfig,
    TrainConfig,
)

STEPS_A_ROUND = 100
MEMORY_SLACK_MB = 12.0  # allocator noise; a leak of 1 kB a step is 10 MB in ten thousand


def config_in(folder: Path) -> TrainConfig:
    corpus = write_pictures(folder / "pictures", 6)
    paths = write_models(folder / "models", corpus)
    subset = SubsetConfig(str(folder / "pictures"), shuffle_caption=True, flip_aug=True, caption_dropout_rate=0.1)
    return TrainConfig(
        model=ModelConfig(
            str(paths["anima_transformer"]), str(paths["vae"]), str(paths["qwen"]), str(paths["t5_tokenizer_dir"])
        ),
        datasets=(DatasetConfig((subset,), ((64, 64),), batch_size=2, min_bucket_reso=32, bucket_reso_steps=16),),
        network=NetworkConfig(rank=4, alpha=4),
        optimizer=OptimizerConfig(type="RAdamScheduleFree", learning_rate=1e-3),
        samples=SampleConfig(prompts=("red circle",), width=64, height=64, steps=1, cfg=1.0, every_n_steps=50),
        output=OutputConfig(str(folder / "out"), "soak", checkpoint_every_n_steps=20, save_every_n_steps=40, save_last_n=2),
        ema_decay=0.99,
        memory="keep",
        device="cpu",
        cache_dir=str(folder / "cache"),
    )


def run(config: TrainConfig, steps: int, rounds: int, folder: Path) -> list[dict]:
    """Each round resumes and goes on; every third is cancelled on the way, every third stopped, the others finish."""
    samples, done = [], 0
    for number in range(rounds):
        goal = done + steps
        answer = ("cancel", "stop", None)[number % 3]
        total = goal if answer is None else goal + 1000
        output = dataclasses.replace(config.output, resume="latest" if number else "")
        listener = lambda e: answer if e["event"] == "step" and e["step"] >= goal else None  # noqa: E731, B023
        try:
            done = train(dataclasses.replace(config, output=output, max_train_steps=total), listener).steps
        except Interrupted:
            done = goal
        samples.append(measure(folder) | {"steps": done})
    return samples


def measure(folder: Path) -> dict:
    gc.collect()
    return {
        "resident_mb": resident_mb(),
        "open_files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "temporary_files": sum(1 for path in folder.rglob("*") if ".tmp" in path.name) + len(os.listdir(tempfile.gettempdir())),
        "run_files": sum(1 for path in (folder / "out").rglob("*") if path.is_file() and path.suffix != ".png"),
    }


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def growth(samples: list[dict]) -> dict:
    """The last third's greatest beside the first third's, after a warm-up of a third of the first third."""
    third = len(samples) // 3
    first, last = samples[third // 3 : third], samples[-third:]
    return {key: [max(s[key] for s in first), max(s[key] for s in last)] for key in samples[0] if key != "steps"}


def grew(changes: dict) -> list[str]:
    slack = {"resident_mb": MEMORY_SLACK_MB}
    return [key for key, (first, last) in changes.items() if last > first + slack.get(key, 0)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "tmp").mkdir()
        tempfile.tempdir = str(folder / "tmp")  # our own, so that what others leave there is not counted
        samples = run(config_in(folder), STEPS_A_ROUND, max(9, args.steps // STEPS_A_ROUND), folder)
    changes = growth(samples)
    result = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "steps": samples[-1]["steps"],
        "rounds": len(samples),
        "seconds": round(time.perf_counter() - started, 1),
        "greatest_in_first_and_last_third": changes,
        "resident_mb_by_tenths": [round(s["resident_mb"], 1) for s in samples[:: max(1, len(samples) // 10)]],
        "grew": grew(changes),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if args.output:
        args.output.write_text(text + "\n", encoding="utf-8")
    return 1 if result["grew"] else 0


if __name__ == "__main__":
    sys.exit(main())

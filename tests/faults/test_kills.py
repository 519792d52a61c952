"""Runs that are ended from outside: whatever happens, the next start goes on from a whole state."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from anima_core.demo.pictures import write_pictures

from ..test_cli import flags
from ..tiny import same_tensors

ROOT = Path(__file__).resolve().parents[2]
ROUNDS = 30
STEPS = 400


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 6)
    return folder


def start(model, pictures, out, **changes) -> subprocess.Popen:
    settings = dict(max_train_steps=STEPS, checkpoint_every_n_steps=5, save_precision="fp32", learning_rate="1e-3") | changes
    command = [sys.executable, "-m", "anima_core", *flags(model, pictures, out, **settings)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    return process.returncode, errors


def steps_logged(out: Path) -> list[int]:
    log = out / "x-run" / "log.jsonl"
    if not log.is_file():
        return []
    lines = log.read_text(encoding="utf-8").splitlines()
    return [event["step"] for event in map(json.loads, lines[:-1]) if event["event"] == "step"]


def wait_for_step(out: Path, step: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if any(s >= step for s in steps_logged(out)):
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} was not reached: {process.poll()}")


def resumable(out: Path) -> bool:
    return any((out / "x-run" / "checkpoints").glob("step-*"))


def test_thirty_kills_cost_nothing_but_time(model, pictures, tmp_path):
    """SIGKILL at random moments, loading, caching and saving included; the end is the uninterrupted run's, bit for bit."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert finish(start(model, pictures, whole))[0] == 0
    chance, kills, furthest = random.Random(0), 0, 0
    for _ in range(ROUNDS):
        process = start(model, pictures, parts, resume="latest" if resumable(parts) else None)
        try:
            process.communicate(timeout=chance.uniform(0.3, 4.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:
            assert process.returncode == 0
        leftovers = [
            p.name for p in parts.rglob("*") if p.is_dir() and p.name.startswith("step-") and not (p / "sha256.json").is_file()
        ]
        assert leftovers == []
        furthest = max([furthest, *steps_logged(parts)])
    assert kills >= 10 and furthest > 5
    status, errors = finish(start(model, pictures, parts, resume="latest" if resumable(parts) else None))
    assert status == 0, errors
    assert same_tensors(load_file(whole / "x.safetensors"), load_file(parts / "x.safetensors"))


def kill_when(process: subprocess.Popen, seen) -> bool:
    """SIGKILL as soon as `seen()`; False when the process ended before."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(FileNotFoundError):  # a folder that is not there yet, or was renamed meanwhile
            if seen():
                process.kill()
                process.communicate()
                return True
    process.communicate()
    return False


def test_kills_at_the_worst_moments(model, pictures, tmp_path):
    """In the middle of caching, of a checkpoint, of the adapter file: twice each, then the uninterrupted run's bits."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = dict(max_train_steps=30, save_every_n_steps=3, checkpoint_every_n_steps=2)
    assert finish(start(model, pictures, whole, **settings))[0] == 0
    settings["cache_dir"] = parts / "cache"
    moments = [
        (parts / "cache" / "latents", "*/*.safetensors"),
        (parts / "x-run" / "checkpoints", ".step-*.tmp"),
        (parts, ".x*.tmp"),
    ]
    kills = []
    for folder, pattern in moments * 2:
        resume = "latest" if resumable(parts) else None
        if "cache" in str(folder):
            shutil.rmtree(folder, ignore_errors=True)
        before = set(folder.glob(pattern)) if folder.is_dir() else set()
        process = start(model, pictures, parts, resume=resume, **settings)
        if kill_when(process, lambda: set(folder.glob(pattern)) - before):  # noqa: B023
            kills.append(pattern)
    assert len(set(kills)) == 3
    status, errors = finish(start(model, pictures, parts, resume="latest" if resumable(parts) else None, **settings))
    assert status == 0, errors
    assert same_tensors(load_file(whole / "x.safetensors"), load_file(parts / "x.safetensors"))
    for checkpoint in (parts / "x-run" / "checkpoints").iterdir():  # hidden ones too: what was half-written is gone
        assert (checkpoint / "sha256.json").is_file(), checkpoint
    assert not list(parts.glob(".x*.tmp"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_polite_signals_save_the_state(model, pictures, tmp_path, number):
    process = start(model, pictures, tmp_path, max_train_steps=100000, checkpoint_every_n_steps=0)
    wait_for_step(tmp_path, 3, process)
    process.send_signal(number)
    status, errors = finish(process)
    assert status == 130 and "Traceback" not in errors
    (checkpoint,) = (tmp_path / "x-run" / "checkpoints").iterdir()
    at = int(checkpoint.name.removeprefix("step-"))
    assert at >= max(steps_logged(tmp_path)) - 1
    status, errors = finish(start(model, pictures, tmp_path, max_train_steps=at + 3, resume="latest"))
    assert status == 0, errors
    assert f"resumed at step {at}" in errors


def test_a_second_run_of_the_same_name_is_told_so(model, pictures, tmp_path):
    first = start(model, pictures, tmp_path, max_train_steps=100000)
    wait_for_step(tmp_path, 2, first)
    status, errors = finish(start(model, pictures, tmp_path))
    assert status == 2 and "another run of this name is training now; choose another name" in errors
    first.kill()
    first.communicate()
    status, errors = finish(start(model, pictures, tmp_path, max_train_steps=2))  # no orphan lock is left behind
    assert status == 0, errors

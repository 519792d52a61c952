"""Runs that are ended from outside: whatever happens, the next start goes on from a whole state.

Each kill comes when something is seen, not at a time: so many modules loaded, files cached, lines logged.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from safetensors.torch import load_file

from anima_core.demo.pictures import write_pictures

from .. import processes
from ..conftest import needs_signals
from ..processes import HANGS, wait_until
from ..test_cli import flags
from ..tiny import same_tensors

ROOT = Path(__file__).resolve().parents[2]
PICTURES = 6
# How often a campaign kills: in CI, and before a release.
CAMPAIGNS = [pytest.param(10, marks=[pytest.mark.kills, pytest.mark.long]), pytest.param(30, marks=pytest.mark.long)]
ENDLESS = 10**6  # steps: such a run is still there when the kill comes, however late that is
OFTEN = 0.003  # seconds between two looks


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, PICTURES)
    return folder


def command(model, pictures, out, *python: str, **changes) -> list[str]:
    settings = dict(checkpoint_every_n_steps=5, save_precision="fp32", learning_rate="1e-3", cache_dir=out / "cache") | changes
    return [sys.executable, *python, "-m", "anima_core", *flags(model, pictures, out, **settings)]


@contextmanager
def endless(model, pictures, out, *python: str, **changes) -> Iterator[subprocess.Popen]:
    """A run that does not end by itself. What it says goes into the file `said(out)`."""
    arguments = command(model, pictures, out, *python, max_train_steps=ENDLESS, **changes)
    with (
        open(said(out), "wb") as file,
        processes.started(arguments, cwd=ROOT, stdout=file, stderr=file, env={"OMP_NUM_THREADS": "1"}) as process,
    ):
        yield process


def said(out: Path) -> Path:
    return out.with_name(f"{out.name}.txt")


def finished(model, pictures, out, **changes) -> str:
    """Run to the end. Returns what was said on stderr."""
    done = processes.run(command(model, pictures, out, **changes), cwd=ROOT, env={"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return done.stderr


def log_of(out: Path) -> bytes:
    """The events so far, a line each, without one that is just being written."""
    log = out / "x-run" / "log.jsonl"
    return log.read_bytes().rpartition(b"\n")[0] if log.is_file() else b""


def steps_logged(out: Path) -> list[int]:
    return [event["step"] for event in map(json.loads, log_of(out).splitlines()) if event["event"] == "step"]


def files(folder: Path, pattern: str) -> set[Path]:
    try:
        return set(folder.glob(pattern))
    except FileNotFoundError:  # a folder was renamed meanwhile
        return set()


class Seen:
    """What shows from outside how far the next run in `out` has come."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.log_before, self.saves_before = len(log_of(out)), self.saves()

    def kinds(self) -> list[tuple[str, Callable[[], int], int]]:
        """Name, count, and the number up to which a kill may wait: it is reached in every run."""
        return [
            ("modules", lambda: said(self.out).read_bytes().count(b"import time:"), 1200),
            ("cached files", lambda: len(files(self.out, "cache/**/*.safetensors")), 3 * PICTURES),
            ("events", lambda: self.log().count(b"\n"), 20),
            ("more events", lambda: self.log().count(b"\n"), 80),
            ("half a checkpoint", lambda: len(self.saves() - self.saves_before), 1),
        ]

    def log(self) -> bytes:
        return log_of(self.out)[self.log_before :]

    def saves(self) -> set[Path]:
        return files(self.out, "x-run/checkpoints/.step-*.tmp")

    def stage(self) -> str:
        log = self.log()
        return "training" if b'"event": "step"' in log else "caching" if b'"event": "progress"' in log else "loading"


def resume(out: Path) -> str | None:
    return "latest" if files(out, "x-run/checkpoints/step-*") else None


def same_as_uninterrupted(model, pictures, parts: Path, **changes) -> bool:
    """Let a run that was killed go on to its end, and compare with one that never was."""
    whole, steps = parts.with_name("whole"), max([0, *steps_logged(parts)]) + 5
    finished(model, pictures, parts, max_train_steps=steps, resume=resume(parts), **changes)
    finished(model, pictures, whole, max_train_steps=steps, **changes)
    return same_tensors(load_file(whole / "x.safetensors"), load_file(parts / "x.safetensors"))


@pytest.mark.parametrize("rounds", CAMPAIGNS)
def test_kills_cost_nothing_but_time(model, pictures, tmp_path, rounds):
    """SIGKILL while loading, caching, training and saving; the end is the uninterrupted run's, bit for bit."""
    parts, chance, reached = tmp_path / "parts", random.Random(0), []
    for number in range(rounds):
        seen = Seen(parts)
        kind, count, highest = seen.kinds()[number % 5]
        if kind == "cached files":
            shutil.rmtree(parts / "cache", ignore_errors=True)
        wanted = chance.randint(1, highest)
        with endless(model, pictures, parts, "-X", "importtime", resume=resume(parts)) as process:
            wait_until(lambda: count() >= wanted, process, OFTEN)  # noqa: B023
            process.kill()
        reached.append(seen.stage())
        assert all((folder / "sha256.json").is_file() for folder in files(parts, "**/step-*") if folder.is_dir())
    assert min(reached.count(stage) for stage in ("loading", "caching", "training")) >= rounds // 10, reached
    assert max(steps_logged(parts)) > 5
    assert same_as_uninterrupted(model, pictures, parts)


@pytest.mark.parametrize("rounds", CAMPAIGNS)
def test_kills_at_the_worst_moments(model, pictures, tmp_path, rounds):
    """In the middle of caching, of a checkpoint, of the adapter file, as what is left half done shows."""
    parts = tmp_path / "parts"
    settings = dict(save_every_n_steps=3, checkpoint_every_n_steps=2)
    moments = {
        "cache/latents/*/*.safetensors": lambda found: 0 < len(found) < PICTURES,
        "x-run/checkpoints/.step-*.tmp": bool,
        ".x*.tmp": bool,
    }
    for pattern, half_done in list(moments.items()) * (rounds // 10):
        for _ in range(20):  # what was seen can be done before the kill comes
            shutil.rmtree(parts / "cache", ignore_errors=True)
            before = files(parts, pattern)
            with endless(model, pictures, parts, resume=resume(parts), **settings) as process:
                wait_until(lambda: files(parts, pattern) - before, process, OFTEN)  # noqa: B023
                process.kill()
            if half_done(files(parts, pattern) - before):
                break
        else:
            raise AssertionError(f"never killed in the middle of {pattern}")
    assert same_as_uninterrupted(model, pictures, parts, **settings)
    for checkpoint in (parts / "x-run" / "checkpoints").iterdir():  # hidden ones too: what was half-written is gone
        assert (checkpoint / "sha256.json").is_file(), checkpoint
    assert not list(parts.glob(".x*.tmp"))


@needs_signals
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGTERM, id="SIGTERM"),
        pytest.param(signal.SIGINT, id="SIGINT", marks=[pytest.mark.kills, pytest.mark.long]),
    ],
)
def test_polite_signals_save_the_state(model, pictures, tmp_path, number):
    out = tmp_path / "out"
    with endless(model, pictures, out, checkpoint_every_n_steps=0) as process:
        wait_until(lambda: max([0, *steps_logged(out)]) >= 3, process)
        process.send_signal(number)
        assert process.wait(HANGS) == 130
    assert "Traceback" not in said(out).read_text(encoding="utf-8")
    (checkpoint,) = (out / "x-run" / "checkpoints").iterdir()
    at = int(checkpoint.name.removeprefix("step-"))
    assert at >= max(steps_logged(out)) - 1
    assert f"resumed at step {at}" in finished(model, pictures, out, max_train_steps=at + 3, resume="latest")


def test_a_second_run_of_the_same_name_is_told_so(model, pictures, tmp_path):
    out = tmp_path / "out"
    with endless(model, pictures, out) as first:
        wait_until(lambda: max([0, *steps_logged(out)]) >= 2, first)
        second = processes.run(command(model, pictures, out), cwd=ROOT)
        assert second.returncode == 2
        assert "another run of this name is training now; choose another name" in second.stderr
    finished(model, pictures, out, max_train_steps=2)  # no orphan lock is left behind

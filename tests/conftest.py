"""Shared fixtures. Tests that need a ComfyUI ask for the fixture `comfyui_oracle` and skip, with the reason, without one."""

import gc
import json
import os
import signal
import subprocess
from pathlib import Path

import hypothesis
import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core.settings import ModelConfig
from anima_core.training.signals import ENDING_SIGNALS

from . import processes
from .tiny import model_config

ROOT = Path(__file__).resolve().parents[1]

needs_signals = pytest.mark.skipif(os.name == "nt", reason="Windows has no signals that another process could answer")

hypothesis.settings.register_profile("any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark tests by what they ask for and where they lie (see pyproject.toml); begin with the files that take long.

    So no worker of pytest-xdist is left alone with one at the end.
    """
    gc.freeze()  # a run collects garbage three times, which among torch's and pytest's million objects takes a second
    for item in items:
        if "comfyui" in item.fixturenames:
            item.add_marker("comfyui")
        if item.path.is_relative_to(ROOT / "tests" / "faults"):
            item.add_marker("faults")
        if item.path.is_relative_to(ROOT / "tests" / "browser"):
            item.add_marker("browser")
    first = {item.path for item in items if {"comfyui", "faults", "slow", "long"} & {mark.name for mark in item.iter_markers()}}
    items.sort(key=lambda item: item.path not in first)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _signals():
    """Put back what a test, or the command line within it, makes of the signals."""
    before = {number: signal.getsignal(number) for number in ENDING_SIGNALS}
    yield
    for number, handler in before.items():
        if handler is not None:  # one that was not set from Python
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> ModelConfig:
    """Tiny model files, written once."""
    config = model_config(tmp_path_factory.mktemp("models"))
    gc.freeze()  # what was imported for them, see above
    return config


def find_comfyui() -> tuple[Path, Path] | None:
    """(checkout, interpreter): `$COMFYUI_PATH`, else the ComfyUI this pack is installed in, else comfy-cli's default place."""
    places = [os.environ.get("COMFYUI_PATH", ""), ROOT.parents[1], Path.home() / "comfy" / "ComfyUI"]
    for place in (Path(p) for p in places if p):
        if (place / "comfy" / "ldm" / "anima" / "model.py").is_file():
            folder, name = ("Scripts", "python.exe") if os.name == "nt" else ("bin", "python")
            python = Path(os.environ.get("COMFYUI_PYTHON") or place / ".venv" / folder / name)
            if python.is_file():
                return place, python
    return None


@pytest.fixture(scope="session")
def comfyui() -> tuple[Path, Path]:
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI with Anima: set COMFYUI_PATH and COMFYUI_PYTHON, or install it in ~/comfy/ComfyUI")
    if processes.run([found[1], "-c", "import schedulefree, toml"]).returncode:
        pytest.skip(f"ComfyUI's interpreter lacks this pack's requirements.txt: {found[1]} -m pip install -r requirements.txt")
    return found


@pytest.fixture(scope="session")
def oracle_process(comfyui, tmp_path_factory):
    """ComfyUI's own code in one process for all questions: to import it takes seconds."""
    checkout, python = comfyui
    log = tmp_path_factory.mktemp("oracle") / "log"
    command = [python, ROOT / "tests" / "comfyui" / "run_oracle.py", checkout]
    with open(log, "wb") as said, processes.started(command, stdin=subprocess.PIPE, stdout=said, stderr=said) as process:
        yield process, log


@pytest.fixture(scope="session")
def comfyui_oracle(oracle_process, tmp_path_factory):
    """Ask one of tests/comfyui/oracle_*.py, which runs inside ComfyUI's own interpreter.

    `comfyui_oracle("oracle_vae.py", tensors, **params)` writes the tensors to a file, calls the script's
    `run(tensors, params) -> dict[str, Tensor]` with ComfyUI importable, and returns what it answered.
    """
    process, log = oracle_process

    def call(script: str, tensors: dict[str, torch.Tensor], **params) -> dict[str, torch.Tensor]:
        folder = tmp_path_factory.mktemp("oracle")
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "in.safetensors")
        (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
        question = json.dumps([str(ROOT / "tests" / "comfyui" / script), str(folder)])
        process.stdin.write(question.encode() + b"\n")
        process.stdin.flush()
        answer, failed = folder / "out.safetensors", folder / "failed.txt"
        try:
            processes.wait_until(lambda: answer.exists() or failed.exists(), process)
        except AssertionError:
            pytest.fail(f"ComfyUI ended:\n{log.read_text(errors='replace')[-6000:]}")
        assert answer.exists(), f"{script} failed in ComfyUI:\n{failed.read_text(encoding='utf-8')[-6000:]}"
        return load_file(answer)

    return call


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """||ours - theirs|| / ||theirs||, in fp64."""
    ours, theirs = ours.double(), theirs.double()
    return ((ours - theirs).norm() / theirs.norm().clamp_min(1e-30)).item()

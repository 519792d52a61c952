"""Two processes under accelerate (gloo, CPU) against one with twice the accumulation."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from anima_core.cli import main
from anima_core.demo_pictures import write_pictures

from .comfyui.server import free_port
from .conftest import relative_error
from .test_cli import flags
from .tiny import model_config, same_tensors

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_config(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 7)
    return folder


def launch(arguments: list[str], processes: int = 2) -> subprocess.CompletedProcess:
    pytest.importorskip("accelerate")
    # --multi_gpu starts one process for each rank; without a GPU accelerate then takes gloo on the CPU
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes)]
    command += [
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
        "--main_process_port",
        str(free_port()),
    ]
    command += [str(ROOT / "anima_train_network.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=300)


def events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "x-run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_two_processes_equal_one_with_twice_the_accumulation(model, pictures, tmp_path):
    extra = dict(shuffle_caption=None, network_dropout=0.1, flip_aug=None, save_precision="fp32", max_train_steps=5)
    common = [*flags(model, pictures, "OUT", **extra), "--shuffle_caption", "--flip_aug"]

    def at(folder, accumulation):
        named = [str(folder) if text == "OUT" else text for text in common]
        return [*named, "--gradient_accumulation_steps", str(accumulation), "--cache_dir", str(folder / "cache")]

    done = launch(at(tmp_path / "two", 1)[1:])
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(at(tmp_path / "one", 2)) == 0
    two, one = (load_file(tmp_path / name / "x.safetensors") for name in ("two", "one"))
    assert two.keys() == one.keys()
    assert max(relative_error(two[k], one[k]) for k in two if one[k].norm() > 0) < 1e-5
    logged = events(tmp_path / "two")
    steps = [e for e in logged if e["event"] == "step"]
    assert [e["step"] for e in steps] == [1, 2, 3, 4, 5]  # one writer
    ones = [e["loss"] for e in events(tmp_path / "one") if e["event"] == "step"]
    assert all(abs(a["loss"] - b) < 1e-5 for a, b in zip(steps, ones))
    assert len([e for e in logged if e["event"] == "saved"]) == 1


def test_two_processes_resume_exactly(model, pictures, tmp_path):
    """Stopped after two of four steps and resumed, by two processes: the bits of a run in one go."""

    def run(folder, **changes):
        extra = dict(save_precision="fp32", max_train_steps=4, cache_dir=tmp_path / "cache") | changes
        done = launch(flags(model, pictures, folder, **extra)[1:])
        assert done.returncode == 0, done.stderr[-3000:]
        return load_file(folder / "x.safetensors")

    whole = run(tmp_path / "whole", checkpoint_every_n_steps=2)
    (tmp_path / "parts").mkdir()
    (tmp_path / "whole" / "x-run").rename(tmp_path / "parts" / "x-run")
    shutil.rmtree(tmp_path / "parts" / "x-run" / "checkpoints" / "step-00000004")  # the one of the finished run
    resumed = run(tmp_path / "parts", resume="latest")
    notes = [e["text"] for e in events(tmp_path / "parts") if e["event"] == "note"]
    assert any("resumed at step 2" in note for note in notes)
    assert same_tensors(whole, resumed)

"""Two processes under accelerate (gloo, CPU) against one with twice the accumulation."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from anima_core.cli import main
from anima_core.demo.pictures import write_pictures
from anima_core.settings import SampleConfig, to_dict
from anima_core.settings.toml_file import dump_toml

from . import processes
from .comfyui.server import free_port
from .conftest import needs_signals, relative_error
from .test_cli import flags
from .tiny import same_tensors, train_config

pytestmark = pytest.mark.faults
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 7)
    return folder


ENVIRONMENT = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}


def on_two_ranks(arguments: list, program: Path = ROOT / "anima_train_network.py") -> list:
    pytest.importorskip("accelerate")
    # --multi_gpu starts one process for each rank; without a GPU accelerate then takes gloo on the CPU
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    command += ["--num_machines", 1, "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*command, "--main_process_port", free_port(), program, *arguments]


def events(folder: Path, name: str = "x") -> list[dict]:
    return [json.loads(line) for line in (folder / f"{name}-run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("module", ["networks.lora_anima", "networks.tlora_anima"])
def test_two_processes_equal_one_with_twice_the_accumulation(model, pictures, tmp_path, module):
    extra = dict(shuffle_caption=None, network_dropout=0.1, flip_aug=None, save_precision="fp32", max_train_steps=5)
    extra |= dict(network_module=module)
    common = [*flags(model, pictures, "OUT", **extra), "--shuffle_caption", "--flip_aug"]
    common += ["--optimizer_args", "eps=1e-3"]  # else AdamW makes steps of full size from gradients that are rounding alone

    def at(folder, accumulation):
        named = [str(folder) if text == "OUT" else text for text in common]
        return [*named, "--gradient_accumulation_steps", str(accumulation), "--cache_dir", str(folder / "cache")]

    done = processes.run(on_two_ranks(at(tmp_path / "two", 1)[1:]), env=ENVIRONMENT)
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


@needs_signals
def test_two_processes_end_together_on_a_signal_and_resume_exactly(model, pictures, tmp_path):
    """Ctrl-C reaches the launcher and both processes, and the launcher passes it on once more."""

    def arguments(folder, **changes):
        return flags(model, pictures, folder, save_precision="fp32", cache_dir=tmp_path / "cache", **changes)[1:]

    def run(folder, **changes):
        done = processes.run(on_two_ranks(arguments(folder, **changes)), env=ENVIRONMENT)
        assert done.returncode == 0, done.stderr[-3000:]
        return load_file(folder / "x.safetensors")

    log = tmp_path / "parts" / "x-run" / "log.jsonl"
    command = on_two_ranks(arguments(tmp_path / "parts", max_train_steps=10**6))
    with open(tmp_path / "said", "wb") as said, processes.started(command, env=ENVIRONMENT, stdout=said, stderr=said) as cut:
        processes.wait_until(lambda: log.is_file() and b'"step": 2,' in log.read_bytes(), cut)
        os.killpg(cut.pid, signal.SIGINT)
        cut.wait(processes.HANGS)
    at = max(e["step"] for e in events(tmp_path / "parts") if e["event"] == "step")
    assert [path.name for path in (tmp_path / "parts" / "x-run" / "checkpoints").iterdir()] == [f"step-{at:08d}"]
    resumed = run(tmp_path / "parts", max_train_steps=at + 2, resume="latest")
    assert any(e.get("text", "").startswith(f"resumed at step {at}") for e in events(tmp_path / "parts"))
    assert same_tensors(run(tmp_path / "whole", max_train_steps=at + 2), resumed)


WISHES = """
import sys
from anima_core import train
from anima_core.settings import TrainConfig, from_dict
from anima_core.settings.toml_file import read_toml

wishes = {2: "save", 3: "preview"}
config = from_dict(TrainConfig, read_toml(sys.argv[1]), "config")
train(config, lambda event: wishes.get(event["step"]) if event["event"] == "step" else None)
"""


def test_what_the_first_process_is_asked_for_it_does_once_and_the_other_waits(model, pictures, tmp_path):
    samples = SampleConfig(prompts=("a",), width=64, height=64, steps=1, cfg=1.0)
    config = train_config(model, pictures, tmp_path / "out", samples=samples, max_train_steps=6)
    (tmp_path / "config.toml").write_text(dump_toml(to_dict(config)), encoding="utf-8")
    (tmp_path / "wishes.py").write_text(WISHES, encoding="utf-8")
    done = processes.run(on_two_ranks([tmp_path / "config.toml"], tmp_path / "wishes.py"), env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    logged = events(tmp_path / "out", "test")
    assert [event["step"] for event in logged if event["event"] == "step"] == [1, 2, 3, 4, 5, 6]
    saved, sample, last = [event["step"] for event in logged if event["event"] in ("saved", "sample")]
    assert 2 <= saved <= 4 and 3 <= sample <= 5 and last == 6  # steps are reported two later at the most
    assert len(list((tmp_path / "out").glob("*.safetensors"))) == 2


def test_two_processes_measure_the_held_out_loss_together_and_stop_early_at_the_same_step(model, pictures, tmp_path):
    """The base model's losses are the same to the bit; the adapter's as near as the adapters are."""
    write_pictures(tmp_path / "held", 12)
    for path in pictures.iterdir():
        (tmp_path / "held" / path.name).unlink(missing_ok=True)
    extra = dict(held_out_folder=tmp_path / "held", validate_every_n_steps=1, held_out_patience=1, max_train_steps=8)
    extra |= dict(optimizer_args="eps=1e-3", learning_rate=3.0)

    def at(folder, accumulation):
        own = dict(gradient_accumulation_steps=accumulation, cache_dir=folder / "cache")
        return flags(model, pictures, folder, **extra, **own)

    done = processes.run(on_two_ranks(at(tmp_path / "two", 1)[1:]), env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(at(tmp_path / "one", 2)) == 0
    two, one = ([e for e in events(tmp_path / name) if e["event"] in ("held_out", "finish")] for name in ("two", "one"))
    assert two[0]["pictures"] == 5 and two[0]["base_levels"] == one[0]["base_levels"]
    assert [e["step"] for e in two] == [e["step"] for e in one] and two[-1]["reason"] == one[-1]["reason"] == "stopped early"
    assert all(abs(a["loss"] / b["loss"] - 1) < 1e-4 for a, b in zip(two[:-1], one))

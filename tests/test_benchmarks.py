"""The commands that measure a step run and write what they say; and what a block costs at the real sizes does not grow."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from anima_core.demo.random_transformer import TINY
from anima_core.speed.counting import Meter, cuda_kernels
from benchmarks import step
from benchmarks.floor import Floor, analytic_flops
from benchmarks.training_step import META, NETWORKS, Case, OurStep, batch_of, count, random_weights

from . import processes

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--tiny", "--px", "64", "--rank", "4", "--repeats", "1", "--device", "cpu"]

# Of each block at 1024 px, rank 32, in bf16, by what CUDA would call: (launches forward and backward, tensors of N x D kept for
# the backward pass, TFLOP of 28 blocks)
COSTS = {
    ("lora", "keep"): (174, 23.5, 43.4),
    ("lora", "cheap"): (198, 13.4, 43.4),
    ("lora", "attention"): (251, 3.1, 53.4),
    ("lora", "checkpoint"): (253, 1.1, 57.8),
    ("lokr", "keep"): (174, 23.5, 43.0),
    ("lokr", "cheap"): (198, 13.4, 43.0),
    ("lokr", "attention"): (242, 3.1, 52.7),
    ("lokr", "checkpoint"): (244, 1.1, 57.1),
    ("lokr_full", "keep"): (174, 23.5, 45.8),
    ("lokr_full", "cheap"): (198, 13.4, 45.8),
    ("lokr_full", "attention"): (242, 3.1, 55.5),
    ("loha", "keep"): (407, 23.5, 57.0),
    ("loha", "attention"): (502, 3.1, 66.9),
    ("dora", "keep"): (286, 23.5, 43.7),
    ("dora", "attention"): (381, 3.1, 53.7),
    ("tlora", "keep"): (204, 23.5, 43.4),
    ("tlora", "attention"): (290, 3.1, 53.4),
}


def run(tmp_path: Path, module: str, *arguments: str, python: Path | str = sys.executable, **options) -> list[dict]:
    out = tmp_path / "out.json"
    done = processes.run([python, "-m", f"benchmarks.{module}", *SMALL, *arguments, "--out", out], cwd=ROOT, **options)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["environment"]["torch"]
    return report["cases"]


@pytest.mark.slow
@pytest.mark.parametrize("plain", [[], pytest.param(["--plain"], marks=pytest.mark.long)])
def test_the_step_is_measured_at_every_asked_case(tmp_path, plain):
    rows = run(tmp_path, "step", "--network", "lora", "lokr_full", "--level", "keep", "attention", *plain)
    assert [(r["network"], r["level"]) for r in rows] == [(n, v) for n in ("lora", "lokr_full") for v in ("keep", "attention")]
    for row in rows:
        assert row["plain"] == bool(plain) and row["median_s"] > 0 and row["first_step_s"] > 0
        assert row["share_of_floor"] > 0 and row["flops"] >= 0.99 * row["analytic_flops"] > 0
        assert row["launches"] > 100 and row["peak"] > row["kept"] > 0


def test_what_was_measured_stays_when_a_later_case_ends_the_process(tmp_path, monkeypatch):
    def measure(case, device, repeats):
        if case.level == "attention":
            raise KeyboardInterrupt
        return case.facts()

    out = tmp_path / "folder" / "out.json"
    monkeypatch.setattr(step, "measure", measure)
    monkeypatch.setattr(step, "line", lambda row: row["level"])
    asked = ["--network", "lora", "--level", "keep", "cheap", "attention", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["step", *SMALL, *asked])
    with pytest.raises(KeyboardInterrupt):
        step.main()
    assert [row["level"] for row in json.loads(out.read_text(encoding="utf-8"))["cases"]] == ["keep", "cheap"]


@pytest.mark.slow
@pytest.mark.parametrize("network", ["lokr_full", *(pytest.param(n, marks=pytest.mark.long) for n in ("lora", "lokr"))])
def test_others_take_the_same_step(tmp_path, network):
    """That all forms answer with the same loss before training is checked by the command itself."""
    (case,) = run(tmp_path, "peers", "--network", network, "--level", "keep", "--no-comfyui")
    forms = case["forms"]
    assert list(forms) == ["bare floor", "ours, keep", "ours, slow forms", "sd-scripts' way"]
    assert forms["bare floor"]["to_floor"] == 1.0
    assert forms["sd-scripts' way"]["kept"] < forms["ours, keep"]["kept"]
    assert forms["bare floor"]["launches"] < forms["ours, keep"]["launches"] < forms["ours, slow forms"]["launches"]
    assert forms["ours, slow forms"]["launches"] < forms["sd-scripts' way"]["launches"]


@pytest.mark.comfyui
def test_comfyuis_class_takes_the_same_step(tmp_path, comfyui):
    """In its own interpreter, with its own attention and norms, counted and timed."""
    checkout, python = comfyui
    arguments = ("--network", "lora", "--level", "keep")
    (case,) = run(tmp_path, "peers", *arguments, python=python, env={"COMFYUI_PATH": str(checkout)})
    theirs = case["forms"]["ComfyUI's class"]
    assert theirs["median_s"] > 0 and theirs["flops"] == case["forms"]["ours, slow forms"]["flops"] and theirs["kept"] > 0


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("batch", [1, 4])
def test_the_floor_does_the_products_that_the_formula_has(network, batch):
    """And these are what a step cannot do without: it does them, and few more."""
    case = Case(network=network, blocks=2, batch=batch)
    with cuda_kernels(), Meter() as meter:
        Floor(case, META)()
    assert meter.flops == analytic_flops(case)


@pytest.mark.slow
@pytest.mark.parametrize("network, level", COSTS)
def test_what_a_block_costs_does_not_grow(network, level):
    """A better form lowers these numbers; nothing may raise them unseen."""
    found = [counted(Case(network=network, level=level, blocks=blocks)) for blocks in (2, 3)]
    block = {name: found[1][name] - found[0][name] for name in found[0]}
    launches, kept, tflop = COSTS[network, level]
    assert block["launches"] <= launches
    assert block["kept"] / (Case().tokens * Case().sizes.width * 2) <= kept
    assert 28 * block["flops"] / 1e12 <= tflop


def counted(case: Case) -> dict:
    return count(OurStep(case, random_weights(case, META), batch_of(case, META)))


def test_a_step_of_the_benchmark_trains():
    """It moves the adapter and leaves the model alone."""
    case = dataclasses.replace(Case(px=64, rank=4, blocks=2, dtype="fp32"), sizes=TINY)
    device = torch.device("cpu")
    weights = random_weights(case, device)
    before = {name: tensor.clone() for name, tensor in weights.items()}
    step = OurStep(case, weights, batch_of(case, device))
    adapter = {name: p.detach().clone() for name, p in step.run.state.network.named_parameters()}
    step()
    step()
    moved = [name for name, p in step.run.state.network.named_parameters() if not p.equal(adapter[name])]
    assert len(moved) == len(adapter)
    assert all(tensor.equal(before[name]) for name, tensor in weights.items())

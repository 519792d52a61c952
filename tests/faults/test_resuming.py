"""Resuming with something changed: what is said takes effect, what was accumulated stays, no other branch is taken up."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file

from anima_core import train
from anima_core.errors import FileError, RunError
from anima_core.settings import OptimizerConfig, OutputConfig
from anima_core.training.events import Events
from anima_core.training.optimizers import build_optimizer
from anima_core.training.state import TrainState, find_checkpoint

from ..tiny import train_changed, train_config


def configured(model, pictures, folder, resume="", **changes):
    output = OutputConfig(
        str(folder), "test", save_dtype="fp32", checkpoint_every_n_steps=1, keep_checkpoints=0, resume=resume,
        resume_with_changes=bool(resume),
    )  # fmt: skip
    return train_config(model, pictures, folder, output=output, **changes)


def cut_at(config, step: int) -> None:
    train(config, lambda e: "stop" if e.get("step") == step else None)


@pytest.mark.parametrize("kind", ["AdamW", "AdamWScheduleFree", "Prodigy", "Adafactor"])
def test_a_changed_learning_rate_takes_effect(model, pictures, tmp_path, kind):
    """At next to nothing the adapter stays as it was. torch's own loading would bring the old rate back."""
    rate = 1.0 if kind == "Prodigy" else 2e-3
    cut_at(configured(model, pictures, tmp_path, optimizer=OptimizerConfig(type=kind, learning_rate=rate)), 3)
    before = load_file(tmp_path / "test-run" / "checkpoints" / "step-00000003" / "state.safetensors")
    still = OptimizerConfig(type=kind, learning_rate=rate * 1e-7)
    train(configured(model, pictures, tmp_path, resume="latest", optimizer=still))
    after = load_file(tmp_path / "test-run" / "checkpoints" / "step-00000006" / "state.safetensors")
    stepped = [k for k in before if (k.endswith(".z") if "ScheduleFree" in kind else k.startswith("adapter."))]  # not averages
    assert stepped and max((after[k] - before[k]).abs().max() for k in stepped) < 1e-7
    step_before = before.get("optimizer.0.step")
    assert step_before is None or after["optimizer.0.step"] == step_before + 3  # its moments went on


def test_settings_are_the_configs_and_accumulated_numbers_the_checkpoints(tmp_path):
    def built(**changes):
        parameter = torch.nn.Parameter(torch.ones(3))
        return build_optimizer([{"params": [parameter], "lr": changes["learning_rate"]}], OptimizerConfig(**changes))

    def state_of(optimizer):
        return TrainState(network=None, optimizer=optimizer, gradient=None, ema=None)

    first = built(type="RAdamScheduleFree", learning_rate=1e-3, betas=(0.9, 0.99))
    for _ in range(4):
        first.param_groups[0]["params"][0].grad = torch.ones(3)
        first.step()
    second = built(type="RAdamScheduleFree", learning_rate=5e-4, betas=(0.8, 0.99), weight_decay=0.1)
    state_of(second)._load_optimizer(first.state_dict())
    old, new = first.param_groups[0], second.param_groups[0]
    assert (new["lr"], new["initial_lr"], new["betas"], new["weight_decay"]) == (5e-4, 5e-4, (0.8, 0.99), 0.1)
    assert new["k"] == old["k"] == 4 and new["weight_sum"] == old["weight_sum"] and new["train_mode"] is True


def test_an_average_can_be_switched_on_when_resuming(model, pictures, tmp_path):
    cut_at(configured(model, pictures, tmp_path), 3)
    assert train(configured(model, pictures, tmp_path, resume="latest", ema_decay=0.9)).steps == 6
    assert train(configured(model, pictures, tmp_path, resume="latest", ema_decay=0.0, max_train_steps=7)).steps == 7


def test_fewer_pictures_than_the_position_in_the_data_go_on(model, pictures, tmp_path):
    import shutil

    copies = shutil.copytree(pictures, tmp_path / "p")
    cut_at(configured(model, copies, tmp_path, dataset=dict(batch_size=1)), 3)
    for path in sorted(copies.glob("*.png"))[1:]:
        path.unlink()
    events = []
    config = configured(model, copies, tmp_path, resume="latest", dataset=dict(batch_size=1))
    assert train(config, events.append).steps == 6
    assert any("content of the data is not what it was" in e.get("text", "") for e in events)


def test_an_earlier_checkpoint_sets_the_later_ones_aside(model, pictures, tmp_path):
    """Else `latest` would go on from a branch that was given up."""
    train(configured(model, pictures, tmp_path))
    run = tmp_path / "test-run"
    earlier = run / "checkpoints" / "step-00000002"
    events = []
    config = configured(model, pictures, tmp_path, resume=str(earlier), seed=7)
    train(config, lambda e: events.append(e) or ("stop" if e.get("step") == 3 else None))
    assert any("4 later checkpoints are set aside" in e.get("text", "") for e in events)
    assert find_checkpoint("latest", run)[0].name == "step-00000003"
    assert sorted(p.name for p in (run / "set_aside").iterdir()) == [f"step-{n:08d}" for n in (3, 4, 5, 6)]


def test_a_run_of_a_name_that_was_used_keeps_the_earlier_one_and_says_so(model, pictures, tmp_path):
    first = train(configured(model, pictures, tmp_path))
    adapter = first.adapter_path.read_bytes()
    events = []
    second = train(configured(model, pictures, tmp_path, seed=7), events.append)
    said = " ".join(e.get("text", "") for e in events)
    assert "test-run-2 continues it" in said and "a copy is kept with its run" in said
    aside = tmp_path / "test-run-2"
    assert (aside / "test.safetensors").read_bytes() == adapter != second.adapter_path.read_bytes()
    third = train(configured(model, pictures, tmp_path, resume=str(aside), max_train_steps=7), events.append)
    assert third.steps == 7 and third.losses[:6] == first.losses
    assert (tmp_path / "test-run-3").is_dir()  # the second run's: it is no branch of the resumed one
    assert [p.name for p in (tmp_path / "test-run" / "checkpoints").iterdir()] == ["step-00000007"]


def test_a_checkpoint_never_holds_an_adapter_that_is_not_finite(model, pictures, tmp_path):
    """It would push out the last good one."""

    def change(run):
        real = run.between_steps

        def poison():
            if run.state.step == 4:
                next(run.state.network.parameters()).data.fill_(torch.nan)
            real()

        run.between_steps = poison

    with pytest.raises(RunError, match="step 4: the adapter is not finite any more; lower optimizer.learning_rate"):
        train_changed(configured(model, pictures, tmp_path), change)
    names = sorted(p.name for p in (tmp_path / "test-run" / "checkpoints").iterdir())
    assert names == ["step-00000001", "step-00000002", "step-00000003"]
    assert train(configured(model, pictures, tmp_path, resume="latest")).steps == 6


def test_a_full_disk_costs_lines_of_the_log_only():
    """/dev/full answers every write as a full disk does."""
    from pathlib import Path

    if not Path("/dev/full").exists():
        pytest.skip("only Linux has /dev/full")
    seen = []
    events = Events(Path("/dev/full"), seen.append)
    for number in range(3):
        events.emit("note", text=str(number))
    events.close()
    assert [e["text"] for e in seen if e["event"] == "note"] == ["0", "1", "2"]
    assert [e["text"] for e in seen if e["event"] == "warning"] == ["log.jsonl: No space left on device; lines are lost"]


def test_half_a_line_that_a_power_cut_left_spoils_no_other(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"event": "note"}\n{"event": "st')
    events = Events(log)
    events.emit("note", text="after")
    events.close()
    lines = log.read_bytes().splitlines()
    assert len(lines) == 3 and json.loads(lines[2])["text"] == "after"


def test_a_folder_that_cannot_be_moved_is_one_line(model, pictures, tmp_path, monkeypatch):
    from anima_core.training import rundir

    train(configured(model, pictures, tmp_path, max_train_steps=1))

    def busy(*paths):
        raise PermissionError(13, "The process cannot access the file because it is being used by another process")

    monkeypatch.setattr(rundir, "replace", busy)
    with pytest.raises(FileError, match=r"test-run: cannot be prepared \(The process.*close what has it open"):
        train(dataclasses.replace(configured(model, pictures, tmp_path), seed=2))

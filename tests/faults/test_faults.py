"""Faults of the run: full and read-only disks, damaged checkpoints, changed settings, memory that runs out, clocks."""

import contextlib
import dataclasses
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anima_core import train
from anima_core.errors import FileError, RunError, SettingError
from anima_core.models.checkpoint import read_header
from anima_core.settings import OptimizerConfig, OutputConfig, SampleConfig

from .. import processes
from ..tiny import same_tensors, train_changed, train_config


def saving(folder, **changes) -> OutputConfig:
    return OutputConfig(**(dict(dir=str(folder), name="test", save_dtype="fp32", checkpoint_every_n_steps=2) | changes))


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path, monkeypatch):
    """Where a run that finds its disk full saves instead."""
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))


def stopped_at(config, step: int):
    """Run until `step`, then stop and keep."""
    return train(config, lambda e: "stop" if e["event"] == "step" and e["step"] == step else None)


def warnings_of(events: list[dict]) -> str:
    return "\n".join(e["text"] for e in events if e["event"] == "warning")


def test_a_flipped_byte_passes_a_checkpoint_over(model, pictures, tmp_path):
    whole = train(train_config(model, pictures, tmp_path / "whole"))
    config = train_config(model, pictures, tmp_path / "parts", output=saving(tmp_path / "parts"))
    stopped_at(config, 5)
    checkpoints = sorted((tmp_path / "parts" / "test-run" / "checkpoints").iterdir())
    newest = checkpoints[-1] / "state.safetensors"
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    events = []
    resumed = train(dataclasses.replace(config, output=saving(tmp_path / "parts", resume="latest")), events.append)
    assert "state.safetensors is damaged or missing; this checkpoint is passed over" in warnings_of(events)
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))
    assert resumed.losses == whole.losses


def test_no_whole_checkpoint_is_an_error_that_says_so(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path, output=saving(tmp_path))
    stopped_at(config, 3)
    for file in (tmp_path / "test-run" / "checkpoints").rglob("state.json"):
        file.unlink()
    with pytest.raises(FileError, match="no whole checkpoint in .*state.json is damaged or missing"):
        train(dataclasses.replace(config, output=saving(tmp_path, resume="latest")))


@pytest.mark.parametrize(
    "changes, text",
    [
        (dict(seed=7), "seed was 42, now 7.*allow it with output.resume_with_changes"),
        (dict(optimizer=OptimizerConfig(learning_rate=1e-5)), "learning_rate was 0.002, now 1e-05.*output.resume_with_changes"),
        (dict(optimizer=OptimizerConfig(type="Adafactor", learning_rate=2e-3)), "optimizer.type was 'AdamW'.*cannot continue"),
    ],
)
def test_changed_settings_are_named(model, pictures, tmp_path, changes, text):
    config = train_config(model, pictures, tmp_path, output=saving(tmp_path))
    stopped_at(config, 3)
    again = dataclasses.replace(config, output=saving(tmp_path, resume="latest"), **changes)
    with pytest.raises(SettingError, match=text):
        train(again)
    if "cannot" not in text:
        events = []
        allowed = dataclasses.replace(again, output=saving(tmp_path, resume="latest", resume_with_changes=True))
        assert train(allowed, events.append).steps == 6
        assert "resumed with a change" in warnings_of(events)


def test_more_steps_and_another_cadence_are_free(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path, output=saving(tmp_path))
    stopped_at(config, 3)
    output = saving(tmp_path, resume="latest", checkpoint_every_n_steps=1, save_every_n_steps=4)
    assert train(dataclasses.replace(config, output=output, max_train_steps=8)).steps == 8


def test_a_moved_model_file_is_the_same_model(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path, output=saving(tmp_path))
    stopped_at(config, 3)
    copy = tmp_path / "moved.safetensors"
    shutil.copy(model.transformer, copy)
    moved = dataclasses.replace(config.model, transformer=str(copy))
    assert train(dataclasses.replace(config, model=moved, output=saving(tmp_path, resume="latest"))).steps == 6


def test_an_error_that_is_not_about_memory_is_not_tried_again(model, pictures, tmp_path):
    calls = []

    def change(run):
        def forward(batch):
            calls.append(1)
            raise RuntimeError("CUDA error: device-side assert triggered")

        run.forward = forward

    with pytest.raises(RuntimeError, match="device-side assert"):
        train_changed(train_config(model, pictures, tmp_path), change)
    assert len(calls) == 1


def test_no_room_anywhere_still_says_what_went_wrong_first(model, pictures, tmp_path):
    def full(folder, text):
        raise FileError(f"{folder}: the checkpoint could not be written (No space left on device); free some space")

    events = []
    config = train_config(model, pictures, tmp_path, output=saving(tmp_path))
    with pytest.raises(RunError, match="test-run.checkpoints.step-00000002: the checkpoint could not be written"):
        train_changed(config, lambda run: setattr(run.state, "save", full), events.append)
    assert warnings_of(events).count("step 2 could not be saved in") == 2


def test_a_preview_that_fails_never_ends_a_run(model, pictures, tmp_path, monkeypatch):
    from anima_core.training import previews

    monkeypatch.setattr(previews, "sample", lambda *a, **k: (_ for _ in ()).throw(torch.OutOfMemoryError("simulated")))
    events = []
    samples = SampleConfig(prompts=("x",), width=64, height=64, steps=1, every_n_steps=2, cfg=1.0)
    assert train(train_config(model, pictures, tmp_path, samples=samples), events.append).steps == 6
    assert "the preview failed and was left out" in warnings_of(events)


@pytest.mark.parametrize("fault", ["swap", "folder"])
def test_a_preview_that_cannot_even_begin_never_ends_a_run(model, pictures, tmp_path, fault):
    def change(run):
        calls, real = [], run.state.saved_weights

        def saved_weights():
            calls.append(1)
            if len(calls) == 1:
                raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
            return real()

        if fault == "swap":
            run.state.saved_weights = saved_weights

    samples = SampleConfig(prompts=("x",), width=64, height=64, steps=1, every_n_steps=4, cfg=1.0)
    config = train_config(model, pictures, tmp_path, samples=samples)

    def listener(event):
        events.append(event)
        if fault == "folder" and event.get("step") == 2:
            (tmp_path / "test-run" / "samples").write_bytes(b"in the way")

    events = []
    assert train_changed(config, change, listener).steps == 6
    assert "the preview was left out" in warnings_of(events) or "the preview failed and was left out" in warnings_of(events)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(model, pictures, tmp_path):
    """The disk fills up at the second checkpoint: the first stays whole, the state goes elsewhere."""
    calls = []

    def change(run):
        real = run.state.save

        def full(folder, text):
            calls.append(folder)
            if len(calls) == 2:
                raise FileError(f"{folder}: the checkpoint could not be written (No space left on device); free some space")
            return real(folder, text)

        run.state.save = full

    config = train_config(model, pictures, tmp_path, output=saving(tmp_path))
    with pytest.raises(RunError, match="No space left"):
        train_changed(config, change)
    assert (tmp_path / "test-run" / "checkpoints" / "step-00000002" / "sha256.json").is_file()
    assert len(calls) == 3 and calls[2].parent.name == "checkpoints"  # the third try, on the way out, had room
    assert train(dataclasses.replace(config, output=saving(tmp_path, resume="latest"))).steps == 6


def mounted(disk: Path, options: str) -> bool:
    """Mount an empty file system in memory, where this machine lets us."""
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk]
    return shutil.which("mount") is not None and processes.run(mount).returncode == 0


def unmount(disk: Path) -> None:
    assert processes.run(["umount", disk]).returncode == 0


def test_a_really_full_disk(model, pictures, tmp_path):
    """A file system of 3 MB, where this machine lets us make one."""
    disk = tmp_path / "disk"
    if not mounted(disk, "size=3m"):
        pytest.skip("mounting a tmpfs needs root")
    try:
        config = train_config(model, pictures, disk, cache_dir=str(tmp_path / "cache"), max_train_steps=400)
        config = dataclasses.replace(config, output=saving(disk, save_every_n_steps=1, save_state=True))
        events = []
        with pytest.raises(RunError, match="could not be written|cannot be written"):
            train(config, events.append)
        whole = list((disk / "test-run" / "checkpoints").glob("step-*"))
        assert whole and all((c / "sha256.json").is_file() for c in whole)
        for file in disk.glob("test-step*.safetensors"):
            read_header(file)  # every file that is there is whole
        (saved,) = (tmp_path / "elsewhere" / "test-run" / "checkpoints").glob("step-*")
        assert saved.name >= max(c.name for c in whole)  # the state of the last step, on another disk
        assert f"the state is saved in {tmp_path / 'elsewhere' / 'test-run'}: set `output.resume=" in warnings_of(events)
        steps = int(saved.name.removeprefix("step-")) + 2
        onwards = saving(tmp_path / "new", resume=str(tmp_path / "elsewhere" / "test-run"))
        assert train(dataclasses.replace(config, output=onwards, max_train_steps=steps)).steps == steps
    finally:
        unmount(disk)


def test_a_disk_that_is_full_from_the_start_is_one_line(model, pictures, tmp_path):
    disk = tmp_path / "disk"
    if not mounted(disk, "size=1m"):
        pytest.skip("mounting a tmpfs needs root")
    try:
        with contextlib.suppress(OSError):
            (disk / "filler").write_bytes(bytes(2 << 20))
        config = train_config(model, pictures, disk, cache_dir=str(tmp_path / "cache"))
        with pytest.raises(FileError, match=r"config.toml: cannot be written \(No space left on device\); free some space"):
            train(config)
        with pytest.raises(FileError, match=r"cannot be written \(No space left on device\); set cache_dir elsewhere"):
            train(train_config(model, pictures, tmp_path / "out", cache_dir=str(disk / "cache")))
        (disk / "filler").unlink()
        assert train(config).steps == 6
    finally:
        unmount(disk)


def test_a_read_only_output_is_refused_before_anything_is_loaded(model, pictures, tmp_path):
    """A folder that root cannot write either: one that belongs to the kernel, or a disk mounted read-only."""
    disk = tmp_path / "disk"
    own = mounted(disk, "ro")
    if not own:
        disk.chmod(0o555)
        if os.access(disk, os.W_OK):
            pytest.skip("everything is writable for this user, and mounting is not allowed")
    try:
        with pytest.raises(FileError, match=r"cannot be written \(.*\); choose another folder"):
            train(train_config(model, pictures, tmp_path, output=saving(disk)))
    finally:
        unmount(disk) if own else disk.chmod(0o755)


def test_the_clock_may_jump(model, pictures, tmp_path, monkeypatch):
    base = time.time()
    clock = iter([base, base - 1e6, base + 1e9] * 1000)
    monkeypatch.setattr(time, "time", lambda: next(clock))
    result = train(train_config(model, pictures, tmp_path, output=saving(tmp_path, checkpoint_every_n_minutes=1e-9)))
    assert result.steps == 6 and len(list((tmp_path / "test-run" / "checkpoints").iterdir())) == 2

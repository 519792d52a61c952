"""Files on a Windows machine: moves refused for a moment, deletions refused for good, mapped files. With simulated errors."""

import os

import pytest
import torch
from safetensors.torch import save_file

from anima_core import files
from anima_core.models.checkpoint import load_tensors


def refused(winerror: int | None) -> PermissionError:
    error = PermissionError(13, "Access is denied")
    if winerror is not None:
        error.winerror = winerror
    return error


@pytest.fixture
def moves(monkeypatch):
    """What `os.replace` is to raise, call by call; pauses are counted and not made."""
    raised, pauses, real = [], [], os.replace

    def replace(source, target):
        if raised:
            raise raised.pop(0)
        real(source, target)

    monkeypatch.setattr(files.os, "replace", replace)
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    return raised, pauses


@pytest.mark.parametrize("winerror", [5, 32])
def test_a_move_that_is_refused_for_a_moment_is_tried_again(tmp_path, moves, winerror):
    raised, pauses = moves
    raised += [refused(winerror)] * 10
    files.write_whole(tmp_path / "a", "text")
    assert (tmp_path / "a").read_text() == "text" and len(pauses) == 10


def test_a_move_that_stays_refused_is_an_error_after_seconds(tmp_path, moves):
    raised, pauses = moves
    raised += [refused(32)] * 100
    with pytest.raises(PermissionError):
        files.write_whole(tmp_path / "a", "text")
    assert sum(pauses) == pytest.approx(3.0) and list(tmp_path.iterdir()) == []


def test_a_move_that_is_not_allowed_is_an_error_at_once(tmp_path, moves):
    raised, pauses = moves
    raised.append(refused(None))
    with pytest.raises(PermissionError):
        files.write_whole(tmp_path / "a", "text")
    assert pauses == []


def test_what_cannot_be_deleted_is_told_not_raised(tmp_path, monkeypatch):
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.write_text("x")
    (folder / "inner").mkdir(parents=True)

    def locked(*args, **kwargs):
        raise refused(32)

    with monkeypatch.context() as patched:
        patched.setattr(files.shutil, "rmtree", locked)
        patched.setattr(files.Path, "unlink", locked)
        assert not files.delete(file) and not files.delete(folder)
    assert files.delete(file) and files.delete(folder) and files.delete(tmp_path / "never there")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="only Linux lists the files that a process has mapped")
def test_an_adapter_that_was_read_is_not_mapped(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file({"a": torch.randn(1000), "alpha": torch.tensor(4.0)}, path)
    kept = load_tensors(path)
    with open("/proc/self/maps") as maps:
        assert not any(str(path) in line for line in maps)
    assert kept["alpha"] == 4


def test_a_free_name_keeps_the_ending_of_a_file(tmp_path):
    for name, free in (("a.safetensors", "a-2.safetensors"), ("grid.png", "grid-2.png"), ("v1.5", "v1.5-2")):
        (tmp_path / name).touch()
        assert files.unused(tmp_path / name) == tmp_path / free

"""What stands on a node at its end, and what makes ComfyUI execute it again; without a ComfyUI."""

import importlib.util
import sys
from pathlib import Path

import pytest

from anima_core.run_store import FinishedRun
from anima_core.settings import DatasetConfig, SubsetConfig

from .comfyui.pack import ROOT, import_nodes


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    """-> a function from the name of a module of nodes/ to that module."""
    return import_nodes(tmp_path, monkeypatch)


@pytest.fixture
def said(nodes) -> list[tuple[str, str]]:
    return sys.modules["server"].said


def run_at(path: Path, steps: int = 4, total: int = 4) -> FinishedRun:
    return FinishedRun(str(path), "", "x-run", [0.25] * steps, steps, [], total=total)


def test_the_sentence_of_a_finished_run(nodes, tmp_path):
    told, adapter = nodes("sentences"), tmp_path / "models" / "loras" / "x.safetensors"
    assert told.done(run_at(adapter)) == "done: models/loras/x.safetensors, 4 steps, loss 0.250"
    many = told.done(run_at(adapter), ["a", "b", "c", "d"], "trains anew, not as y")
    assert many == (
        "done: models/loras/x.safetensors, 4 steps, loss 0.250, 4 warnings: a; b; c; …, see the console\ntrains anew, not as y"
    )
    assert told.done(run_at(adapter), ["a"]).endswith(", 1 warning: a")
    assert told.already(run_at(adapter)) == "already trained: models/loras/x.safetensors, 4 steps"
    assert told.already(run_at(Path("/elsewhere/x.safetensors"))).startswith(
        f"already trained: {Path('/elsewhere/x.safetensors')}"
    )


def test_the_sentence_of_a_kept_run_names_the_way_on(nodes, tmp_path):
    told, run = nodes("sentences"), run_at(tmp_path / "models" / "loras" / "x.safetensors", 39, 200)
    kept = "kept at step 39 of 200: models/loras/x.safetensors; Continue Anima Run goes on"
    assert told.done(run) == told.already(run) == kept
    assert told.done(run, ["a"]) == f"{kept}; 1 warning: a"
    assert told.written_again(run).endswith(kept)


def test_the_sentence_of_a_cancelled_run_promises_what_is_there(nodes):
    told, text = nodes("sentences"), "cancelled at step 36 of 200"
    assert told.cancelled(text, 36, 36) == f"{text}, saved; Run continues"
    assert told.cancelled(text, 36, 25) == f"{text}; Run continues from step 25"  # the last save failed
    assert told.cancelled(text, 0, 0) == f"{text}; Run goes on"


def test_a_training_node_is_executed_again_when_its_file_is_not_what_it_returned(nodes, said, tmp_path):
    returned, adapter = nodes("returned"), tmp_path / "x.safetensors"
    assert returned.changes() == 0 and said == []
    adapter.write_bytes(b"1")
    returned.remember("done: x", str(adapter))
    assert returned.changes() == 0 and said == [("12", "done: x")] * 2  # at its end, and by a prompt that is all cached
    adapter.rename(tmp_path / "y.safetensors")
    assert returned.changes() == returned.changes() == 1  # ComfyUI executes once
    returned.remember("already trained: y", str(tmp_path / "y.safetensors"))
    assert returned.changes() == 1 and said[-1] == ("12", "already trained: y")
    (tmp_path / "y.safetensors").write_bytes(b"other")
    assert returned.changes() == 2
    sys.modules["server"].node = "13"
    assert returned.changes() == 0  # another node


def test_a_path_that_a_link_brings_is_looked_at_in_every_run(nodes):
    on_disk = nodes("on_disk")
    first, second = on_disk.unknown(), on_disk.unknown()
    assert first != second and (first,) != (second,)  # ComfyUI compares tuples, which look for the same object first
    assert on_disk.chosen("loras", None) != on_disk.chosen("loras", None)


def test_a_file_that_is_replaced_under_its_name_is_noticed(nodes, tmp_path):
    on_disk, folder = nodes("on_disk"), tmp_path / "other_disk" / "loras"
    (folder / "hf").mkdir(parents=True)
    (folder / "a.safetensors").write_bytes(b"1")
    before = [on_disk.chosen("loras", name) for name in ("a.safetensors", "hf/", "none")]
    assert before == [on_disk.chosen("loras", name) for name in ("a.safetensors", "hf/", "none")]
    (folder / "a.safetensors").write_bytes(b"22")
    (folder / "hf" / "config.json").write_text("{}", encoding="utf-8")
    after = [on_disk.chosen("loras", name) for name in ("a.safetensors", "hf/", "none")]
    assert [a == b for a, b in zip(before, after)] == [False, False, True]


def test_everything_that_a_file_names_is_looked_at(nodes, tmp_path):
    """Pictures, captions and masks of every folder."""
    on_disk = nodes("on_disk")
    for folder in ("a", "b", "masks"):
        (tmp_path / folder).mkdir()
    subsets = (SubsetConfig(str(tmp_path / "a")), SubsetConfig(str(tmp_path / "b"), mask_dir=str(tmp_path / "masks")))
    states = [on_disk.state_of(DatasetConfig(subsets))]
    for name in ("a/1.txt", "b/2.png", "masks/2.png"):
        (tmp_path / name).write_bytes(b"")
        states.append(on_disk.state_of(DatasetConfig(subsets)))
    assert len(set(states)) == 4


def test_names_that_are_no_text_do_not_break_a_fingerprint(nodes, tmp_path):
    """Linux takes any bytes as a name; Python has lone surrogates for them."""
    try:
        (tmp_path / "\udcff.png").write_bytes(b"")
    except (OSError, UnicodeError):
        pytest.skip("this system takes only text as a name")
    assert nodes("on_disk").folder_state(str(tmp_path))


@pytest.mark.parametrize("resolution", ["", " ", ",", "a", "1024x", "1024,,b"])
def test_a_resolution_without_a_number_is_one_line(nodes, monkeypatch, resolution):
    sides_of = sides_function(nodes, monkeypatch)
    with pytest.raises(Exception, match=r"`?dataset.resolutions`?|resolutions") as error:
        sides_of(resolution)
    assert "write 1024, or 768,1024 for several" in str(error.value) and "\n" not in str(error.value)


def sides_function(nodes, monkeypatch):
    """-> nodes.dataset_widgets.sides_of; the widgets around it need ComfyUI's inputs, which are only looked at here."""
    latest = type(sys)("comfy_api.latest")
    latest.io = type("io", (), {"Input": object})
    monkeypatch.setitem(sys.modules, "comfy_api", type(sys)("comfy_api"))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    return nodes("dataset_widgets").sides_of


def test_sides_are_read_as_people_write_them(nodes, monkeypatch):
    sides_of = sides_function(nodes, monkeypatch)
    assert sides_of("1024") == [1024] and sides_of(" 768, 1024 ,") == [768, 1024]


def test_what_lacks_is_said_with_the_command():
    spec = importlib.util.spec_from_file_location("pack_entry", ROOT / "__init__.py")
    entry = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entry)
    told = entry.what_lacks(ModuleNotFoundError("No module named 'toml'", name="toml"))
    assert told.startswith(f'the package toml: run "{sys.executable}" -m pip install -r "{ROOT / "requirements.txt"}"')
    old = entry.what_lacks(ImportError("cannot import name 'io'", name="comfy_api.latest"))
    assert old == "ComfyUI 0.25.0 or newer (cannot import name 'io'); update ComfyUI"

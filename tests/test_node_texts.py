"""What stands on a node at its end, and what makes ComfyUI execute it again; without a ComfyUI."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import ClassVar
from unittest.mock import MagicMock

import pytest

from anima_core.run_store import FinishedRun, UnfinishedRun
from anima_core.settings import DatasetConfig, SubsetConfig

from .comfyui.pack import ROOT, import_nodes
from .comfyui.server import link_folder


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
    best = SimpleNamespace(best_step=650, best_loss=0.08123)
    assert told.done(run_at(adapter), ["a"], held_out=best).endswith(
        ", loss 0.250, held-out loss best at step 650 (0.0812), 1 warning: a"
    )
    assert told.already(run_at(adapter)) == "already trained: models/loras/x.safetensors, 4 steps"
    assert told.already(run_at(Path("/elsewhere/x.safetensors"))).startswith(
        f"already trained: {Path('/elsewhere/x.safetensors')}"
    )


def test_the_sentence_of_a_kept_run_names_the_way_on(nodes, tmp_path):
    told, run = nodes("sentences"), run_at(tmp_path / "models" / "loras" / "x.safetensors", 39, 200)
    kept = "kept at step 39 of 200: models/loras/x.safetensors; Continue Anima Run goes on"
    assert told.done(run) == told.already(run) == kept
    assert told.done(run, ["a"]) == f"{kept}; 1 warning: a"
    best = SimpleNamespace(best_step=20, best_loss=None)
    assert told.done(run, held_out=best) == f"{kept}; held-out loss best at step 20"
    assert told.written_again(run).startswith(f"{kept}; its file was gone or changed, and is written again")


def test_the_sentence_of_a_cancelled_run_promises_what_is_there(nodes):
    told, text = nodes("sentences"), "cancelled at step 36 of 200"
    assert told.cancelled(text, 36, 36) == f"{text}, saved; Run continues"
    assert told.cancelled(text, 36, 25) == f"{text}; Run continues from step 25"  # the last save failed
    assert told.cancelled(text, 0, 0) == f"{text}; Run goes on"
    assert told.failed("out of memory", 25) == "out of memory; saved at step 25, Run continues from there"
    assert told.failed("out of memory", 0) == "out of memory"


def test_of_a_graph_that_always_starts_over_the_node_is_named_that_goes_on(nodes):
    told, text = nodes("sentences"), "cancelled at step 36 of 200"
    assert told.cancelled(text, 36, 36, False) == f"{text}, saved; Continue Anima Run goes on"
    assert told.cancelled(text, 36, 25, False) == f"{text}; Continue Anima Run goes on from step 25"
    assert told.cancelled(text, 0, 0, False) == f"{text}; Run starts over"
    assert told.failed("out of memory", 25, False) == "out of memory; saved at step 25, Continue Anima Run continues from there"


def test_a_run_that_is_left_behind_is_named_with_the_way_on(nodes):
    told, run = nodes("sentences"), UnfinishedRun("style", "key", 40, 900, 0.0, result_version=1)
    by = "style was begun by an earlier version of this program and is left at step 40: Continue Anima Run goes on with it"
    assert told.left_behind(run) == by and told.left_behind(None) == ""
    same = UnfinishedRun("style", "key", 40, 900, 0.0)
    assert told.left_behind(same).startswith("style was begun with other inputs and is left at step 40")
    what = "steps end with their epoch where batches are accumulated; fast forms of a step round the last digits otherwise"
    assert f"; from step 40 on its numbers are others: {what}" in told.of_two_versions(run)


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


LINKED = [
    ("datasets", "AnimaDatasetFolder", "folder"),
    ("datasets", "AnimaDatasetFolder", "mask_folder"),
    ("datasets", "AnimaDatasetTOML", "path"),
    ("train_toml", "AnimaTrainFromTOML", "path"),
    ("continue_run", "AnimaContinueRun", "run"),
    ("adapters", "AnimaLoadAdapter", "adapter"),
    ("loaders", "AnimaTransformerLoader", "transformer"),
    ("loaders", "AnimaVAELoader", "vae"),
    ("loaders", "AnimaQwenLoader", "qwen"),
    ("loaders", "AnimaT5TokenizerLoader", "tokenizer"),
]


@pytest.mark.parametrize("module, node, name", LINKED, ids=[f"{node}.{name}" for _, node, name in LINKED])
def test_every_node_that_names_something_on_disk_does_so(nodes, monkeypatch, module, node, name):
    """ComfyUI gives None for an input that a link brings."""
    stand_in(monkeypatch, "comfy_api.latest", io=MagicMock(Input=object, ComfyNode=object))
    stand_in(monkeypatch, "comfy_execution.graph", ExecutionBlocker=object)
    for part in ("comfy.model_management", "comfy.sd", "comfy.utils"):
        stand_in(monkeypatch, part, ProgressBar=Bar)
    told = getattr(nodes(module), node).fingerprint_inputs(**{name: None})
    assert told != told  # not a number


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


def test_what_lies_behind_a_link_is_looked_at_once(nodes, tmp_path):
    """Data are read there, so a caption that is edited there must be noticed; and a link may lead back."""
    on_disk, elsewhere = nodes("on_disk"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "data").mkdir()
    link_folder(elsewhere, tmp_path / "data" / "5_style")
    link_folder(tmp_path / "data", elsewhere / "back")
    before = on_disk.folder_state(str(tmp_path / "data"))
    assert before == on_disk.folder_state(str(tmp_path / "data"))
    (elsewhere / "a.txt").write_text("a caption", encoding="utf-8")
    assert on_disk.folder_state(str(tmp_path / "data")) != before


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
    stand_in(monkeypatch, "comfy_api.latest", io=SimpleNamespace(Input=object))
    return nodes("dataset_widgets").sides_of


def stand_in(monkeypatch, name: str, **members) -> None:
    """Put a module of ComfyUI, and its package, in place."""
    for part in (name.partition(".")[0], name):
        monkeypatch.setitem(sys.modules, part, sys.modules.get(part) or ModuleType(part))
    vars(sys.modules[name]).update(members)
    setattr(sys.modules[name.partition(".")[0]], name.rpartition(".")[2], sys.modules[name])


class Interrupt(BaseException):
    pass


class Bar:
    """ComfyUI's bar, which never goes back, and raises after a Cancel. moved: (done, total) of all bars."""

    moved: ClassVar[list[tuple[int, int]]] = []
    cancelled: ClassVar[bool] = False

    def __init__(self, total: int, node_id: str) -> None:
        self.total, self.current = total, 0

    def update_absolute(self, done: int, total: int, preview: object = None) -> None:
        if Bar.cancelled:
            Bar.cancelled = False
            raise Interrupt
        assert done >= self.current
        self.current, self.total = done, total
        Bar.moved.append((done, total))


@pytest.fixture
def listener(nodes, monkeypatch):
    stand_in(monkeypatch, "comfy_api.latest", io=SimpleNamespace(Input=object, ComfyNode=object, NodeOutput=object))
    flag = dict(processing_interrupted=lambda: False, InterruptProcessingException=Interrupt)
    stand_in(monkeypatch, "comfy.model_management", **flag)
    stand_in(monkeypatch, "comfy.utils", ProgressBar=Bar)
    Bar.moved, Bar.cancelled = [], False
    with nodes("bridge").NodeListener("12") as found:
        yield found


def progress(stage: str, done: int, total: int, **more: int) -> dict:
    return {"event": "progress", "stage": stage, "done": done, "total": total} | more


def step(number: int, total: int, **more) -> dict:
    return {"event": "step", "step": number, "total": total, "mean_loss": 0.5, "seconds": 2.0, "eta": 90, "peak_gb": 0} | more


def test_the_bar_moves_through_hashing_and_caching_and_waits_while_previews_are_drawn(listener, said):
    events = [progress("reading model files (MB)", 5600, 5600), progress("latents", 1, 2), progress("latents", 2, 2)]
    events += [step(1, 4), progress("preview", 30, 30, picture=1, pictures=3), step(2, 4)]
    assert [listener(event) for event in events] == [None] * 6
    assert Bar.moved == [(5600, 5600), (1, 2), (2, 2), (1, 4), (2, 4)]
    texts = [text for _, text in said]
    assert texts[0] == "reading model files (MB) 5600 / 5600" and "preview 1 of 3, step 30 / 30" in texts


def test_the_text_of_a_step_and_why_it_is_taken(listener, said):
    listener.why = "trains anew, not as x"
    listener(step(4, 4, peak_gb=7.04))
    assert said[-1] == ("12", "step 4 / 4 · loss 0.5000 · 2.00 s/step · ETA 1 min 30 s · 7.0 GB\ntrains anew, not as x")


def test_a_cancel_that_the_bar_sees_first_is_a_cancel_like_any_other(listener):
    """ComfyUI's bar clears the flag that it raises for: the run must still be told, and end as interrupted."""
    Bar.cancelled = True
    assert [listener(step(1, 4)), listener(step(2, 4))] == ["cancel", "cancel"] and listener.is_cancelled


def test_warnings_go_to_the_console_by_their_level_and_to_the_last_sentence(listener, caplog):
    with caplog.at_level("INFO", logger="anima_trainer"):
        listener({"event": "warning", "text": "careful"})
        listener({"event": "note", "text": "by the way"})
    assert listener.warnings == ["careful"]
    told = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert told == [("WARNING", "[Anima Trainer] warning: careful"), ("INFO", "[Anima Trainer] by the way")]


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

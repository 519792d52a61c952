"""The nodes' run store and file names, without a ComfyUI: only `folder_paths` is stood in for."""

import dataclasses
import importlib
import sys
import types
from pathlib import Path

import pytest

from .tiny import train_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """The pack's modules under another name, around folders of this test."""
    folder_paths = types.ModuleType("folder_paths")
    folder_paths.get_output_directory = lambda: str(tmp_path / "output")
    folder_paths.get_folder_paths = lambda kind: [str(tmp_path / kind)]
    monkeypatch.setitem(sys.modules, "folder_paths", folder_paths)
    for name, folder in (("pack", ROOT), ("pack.nodes", ROOT / "nodes")):
        module = types.ModuleType(name)
        module.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, module)
    yield types.SimpleNamespace(
        runs=importlib.import_module("pack.nodes.runs"),
        names=importlib.import_module("pack.nodes.names"),
        core="pack.anima_core",
    )
    for name in [n for n in sys.modules if n.startswith("pack.")]:
        del sys.modules[name]


def write(folder: Path, name="a.png", colour="red", caption="red"):
    from PIL import Image

    folder.mkdir(exist_ok=True)
    Image.new("RGB", (64, 64), colour).save(folder / name)
    (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def key(pack, config) -> str:
    preflight = importlib.import_module(f"{pack.core}.training.preflight").preflight
    return pack.runs.run_key(preflight(config))


def test_the_key_follows_everything_that_shapes_the_result(pack, model, tmp_path):
    write(tmp_path / "p")
    config = train_config(model, tmp_path / "p", tmp_path)
    first = key(pack, config)
    assert key(pack, config) == first
    changes = [
        dict(seed=1),
        dict(max_train_steps=7),
        dict(ema_decay=0.5),
        dict(network=dataclasses.replace(config.network, rank=5)),
        dict(optimizer=dataclasses.replace(config.optimizer, learning_rate=1e-5)),
        dict(flow=dataclasses.replace(config.flow, loss="l1")),
        dict(samples=dataclasses.replace(config.samples, prompts=("x",))),
        dict(output=dataclasses.replace(config.output, save_dtype="bf16")),
        dict(output=dataclasses.replace(config.output, name="other")),
    ]
    keys = [key(pack, dataclasses.replace(config, **change)) for change in changes]
    assert len({first, *keys}) == len(changes) + 1
    (tmp_path / "p" / "a.txt").write_text("crimson", encoding="utf-8")
    caption = key(pack, config)
    write(tmp_path / "p", colour="blue", caption="crimson")
    picture = key(pack, config)
    write(tmp_path / "p", "b.png")
    assert len({first, caption, picture, key(pack, config)}) == 4


def test_the_key_ignores_where_things_are(pack, model, tmp_path):
    import shutil

    write(tmp_path / "p")
    config = train_config(model, tmp_path / "p", tmp_path)
    shutil.copytree(tmp_path / "p", tmp_path / "moved")
    copied = tmp_path / "model.safetensors"
    shutil.copy(model.transformer, copied)
    moved = train_config(dataclasses.replace(model, transformer=str(copied)), tmp_path / "moved", tmp_path / "elsewhere")
    assert key(pack, moved) == key(pack, config)
    cadence = dataclasses.replace(config.output, checkpoint_every_n_steps=50, dir=str(tmp_path / "x"))
    assert key(pack, dataclasses.replace(config, output=cadence)) == key(pack, config)


def test_a_finished_run_is_found_while_its_file_is_as_it_was(pack, tmp_path):
    adapter = tmp_path / "a.safetensors"
    adapter.write_bytes(b"weights")
    run = pack.runs.FinishedRun(str(adapter), pack.runs.file_identity(adapter), "dir", [0.5], 4, [])
    assert pack.runs.find("k") is None
    pack.runs.remember("k", run)
    assert pack.runs.find("k") == run and pack.runs.find("other") is None
    adapter.write_bytes(b"edited since")
    assert pack.runs.find("k") is None
    adapter.unlink()
    assert pack.runs.find("k") is None
    pack.runs._path("k").write_text("{ not json", encoding="utf-8")
    assert pack.runs.find("k") is None


def test_names_are_never_taken_twice_and_unfinished_runs_keep_theirs(pack, model, tmp_path):
    output = dict(dir=str(pack.runs.store_folder()), name="x", adapter_dir=str(tmp_path / "loras"))
    config = train_config(model, tmp_path / "p", tmp_path)
    config = dataclasses.replace(config, output=dataclasses.replace(config.output, **output))
    (tmp_path / "loras").mkdir()
    assert pack.runs.claim(config, "k1", go_on=True).output.name == "x"
    (tmp_path / "loras" / "x.safetensors").write_bytes(b"")
    assert pack.runs.claim(config, "k2", go_on=True).output.name == "x-2"
    checkpoint = pack.runs.store_folder() / "x-2-run" / "checkpoints" / "step-00000005"
    checkpoint.mkdir(parents=True)
    again = pack.runs.claim(config, "k2", go_on=True)
    assert (again.output.name, again.output.resume) == ("x-2", "latest")
    anew = pack.runs.claim(config, "k2", go_on=False)
    assert (anew.output.name, anew.output.resume) == ("x-3", "")


@pytest.mark.parametrize(
    "name", ["a/b", "..", "", "  ", "a:b", "con", "LPT1", ".hidden", "x\0y", "a\\b", 'q"', "\ud800", "風" * 61]
)
def test_names_that_leave_their_folder_or_fit_no_file_system_are_refused(pack, name):
    with pytest.raises(Exception, match="use a plain file name|use at most 180"):
        pack.names.safe_name(name)


@pytest.mark.parametrize("name", ["style v2", "風格", "my.lora", "a-b_c (1)"])
def test_plain_names_of_any_script_are_kept(pack, name, tmp_path):
    assert pack.names.safe_name(f" {name}.safetensors ") == name
    folder = pack.names.loras_folder()
    for expected in (name, f"{name}-2", f"{name}-3"):
        path = pack.names.unused_path(folder, name)
        assert path.stem == expected
        path.write_bytes(b"")

"""What there is to choose from in the graph, without a ComfyUI: model files in an order that helps, folders of pictures."""

import os
import shutil
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from .comfyui.pack import import_nodes
from .processes import wait_until


@pytest.fixture
def nodes(tmp_path, monkeypatch):
    return import_nodes(tmp_path, monkeypatch)


@pytest.fixture
def preselect(nodes, tmp_path):
    """The module, with files of a model folder that hold their own rank, or nothing."""
    module = nodes("preselect")
    sys.modules["folder_paths"].get_folder_paths = lambda kind: [str(tmp_path / "gone"), str(tmp_path)]
    for name, rank in {"a": "", "b": "2", "c": "", "d": "1", "e": "2"}.items():
        (tmp_path / name).write_text(rank, encoding="utf-8")
    return module


def rank_in(path: str) -> int | None:
    text = Path(path).read_text(encoding="utf-8")
    return int(text) if text else None


def test_the_wanted_stand_first_by_rank_then_in_their_order(preselect):
    assert preselect.Dropdown("vae", rank_in).order([*"abcde", "gone"]) == [*"dbeac", "gone"]


def test_nothing_is_read_before_the_server_has_started(preselect, monkeypatch):
    started = []
    server = sys.modules["server"].PromptServer.instance
    server.app = SimpleNamespace(on_startup=started)
    monkeypatch.setattr(preselect, "_dropdowns", {"vae": preselect.Dropdown("vae", rank_in)})
    preselect.begin_with_the_server()
    assert preselect.wanted_first("vae", ["a", "b"]) == ["a", "b"]
    listed = []
    sys.modules["folder_paths"].get_filename_list = lambda kind: listed.append(kind) or ["a", "b"]
    with pytest.raises(StopIteration):
        started[0](server.app).send(None)
    wait_until(lambda: preselect.wanted_first("vae", ["a", "b"]) == ["b", "a"])
    wait_until(lambda: listed == ["vae", "checkpoints"])  # without a page that asks


def test_a_drive_that_does_not_answer_holds_up_nobody(preselect, monkeypatch):
    """The list is as it was until the headers are read, then it is the better one; meanwhile no second reader starts."""
    answered, asked = threading.Event(), []
    dropdown = preselect.Dropdown("vae", lambda path: asked.append(path) or (answered.wait(60) and rank_in(path)))
    monkeypatch.setattr(preselect, "PATIENCE", 0.01)
    assert [dropdown.order([*"abcde"]) for _ in range(5)] == [[*"abcde"]] * 5 and len(asked) == 1
    answered.set()
    wait_until(lambda: dropdown.order([*"abcde"]) == [*"dbeac"])
    assert len(asked) == 5  # each once


def test_a_new_name_is_looked_at_at_once(preselect, tmp_path, monkeypatch):
    dropdown = preselect.Dropdown("vae", rank_in)
    assert dropdown.order(["a", "c"]) == ["a", "c"]
    (tmp_path / "c").write_text("1", encoding="utf-8")
    assert dropdown.order(["a", "c"]) == ["a", "c"]  # the same names, asked for a moment later
    assert dropdown.order(["a", "c", "d"]) == ["c", "d", "a"]
    (tmp_path / "a").write_text("0", encoding="utf-8")
    monkeypatch.setattr(preselect, "PAUSE", 0.0)
    time.sleep(0.002)  # a clock may stand still for that long
    assert dropdown.order(["a", "c", "d"]) == ["a", "c", "d"]


# --- what holds several models


@pytest.fixture
def names(nodes, tmp_path):
    """nodes/model_names.py around folders of models, with a checkpoint, diffusers folders, and what is none."""
    paths = sys.modules["folder_paths"]
    kinds = ("diffusion_models", "vae", "text_encoders", "checkpoints", "diffusers")
    paths.folder_names_and_paths |= {kind: ([str(tmp_path / "models" / kind)], set()) for kind in kinds}

    def listed(kind: str) -> list[str]:
        root = tmp_path / "models" / kind
        return sorted(
            str(p.relative_to(root)) for p in root.rglob("*") if p.is_file() and p.suffix in (".safetensors", ".ckpt")
        )

    paths.get_filename_list = listed
    for file in (
        "diffusion_models/a.safetensors",
        "diffusion_models/pipe/model_index.json",
        "diffusion_models/other/notes.txt",
        "vae/v.safetensors",
        "vae/qwen_vae/config.json",
        "text_encoders/t5/spiece.model",
        "text_encoders/hf/config.json",
        "checkpoints/all.safetensors",
        "checkpoints/old.ckpt",
        "diffusers/Anima/modular_model_index.json",
        "secret/s.safetensors",
    ):
        (tmp_path / "models" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / file).write_bytes(b"x")
    return nodes("model_names")


def test_what_holds_several_models_stands_in_each_list_by_its_place(names, tmp_path):
    assert names.names_of("diffusion_models") == ["a.safetensors", "pipe/", "checkpoints/all.safetensors", "diffusers/Anima/"]
    shared = ["checkpoints/all.safetensors", "diffusers/Anima/", "diffusion_models/pipe/"]
    assert names.names_of("vae") == ["v.safetensors", "qwen_vae/", *shared]
    assert names.names_of("text_encoders") == ["hf/", *shared]
    for kind in ("diffusion_models", "vae", "text_encoders"):
        assert all(os.path.exists(names.path_of(kind, name)) for name in names.names_of(kind))
    assert Path(names.path_of("vae", "checkpoints/all.safetensors")) == tmp_path / "models" / "checkpoints" / "all.safetensors"


@pytest.mark.parametrize(
    "name",
    [
        *("../secret/s.safetensors", "checkpoints/../secret/s.safetensors", "checkpoints/../../models/secret/"),
        *(
            "diffusers/../secret/",
            "..",
            "../",
            "",
            "a.safetensors/",
            "secret/s.safetensors",
            "checkpoints/",
            "/etc/passwd",
            "a\0b",
        ),
    ],
)
def test_a_name_that_leads_elsewhere_means_nothing(names, name):
    assert all(names.path_of(kind, name) is None for kind in ("diffusion_models", "vae", "text_encoders"))


def test_the_description_is_of_listed_files_only_and_names_no_folder(names, nodes, model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", SimpleNamespace(web=SimpleNamespace(Request=object, Response=object)))
    tell = nodes("describe_route").text_of
    shutil.copy(model.transformer, tmp_path / "models" / "diffusion_models" / "tiny.safetensors")
    assert tell("diffusion_models", "tiny.safetensors") == "Anima, 2 blocks, fp32, 0.01 GB"
    assert tell("diffusion_models", "a.safetensors") == "a.safetensors: truncated inside its header; download it again"
    for kind, name in (("diffusion_models", "../secret/s.safetensors"), ("loras", "a.safetensors"), ("vae", "a.safetensors")):
        assert tell(kind, name) is None


# --- folders of pictures


def fill(folder: Path, *names: str, changed: float = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name.endswith((".txt", ".json")):
            (folder / name).write_text("x", encoding="utf-8")
        else:
            Image.new("RGB", (8, 8)).save(folder / name)
    if changed:
        os.utime(folder, (changed, changed))


@pytest.fixture
def placed(tmp_path):
    fill(tmp_path / "input" / "cats", "b.png", "a.jpg", "a.txt", "c.png", "d.png", "e.png", "orphan.txt", changed=3000)
    fill(tmp_path / "input" / "deep", changed=2000)
    fill(tmp_path / "input" / "deep" / "inner" / "too_deep", "1.png")
    fill(tmp_path / "input" / "deep" / "inner", "1.png", changed=1000)
    fill(tmp_path / "input" / "style" / "10_ink", "1.png", "1.txt", changed=4000)
    fill(tmp_path / "input" / "style" / "2_oil", "2.png", changed=500)
    fill(tmp_path / "input" / "style" / "rest", "3.png", changed=600)
    fill(tmp_path / "input" / "bare", changed=900)
    for name in ("clipspace", ".hidden"):
        fill(tmp_path / "input" / name, "1.png")
    fill(tmp_path / "sets" / "cats", "z.png", changed=5000)
    fill(tmp_path / "sets" / "dogs", "z.png", "z.json", changed=100)
    return tmp_path


def test_folders_are_told_by_what_to_type(nodes, placed):
    found = nodes("folders").folders()
    told = [(f.name, f.root, f.pictures, f.captions) for f in found]
    assert told == [
        ("datasets/cats", "datasets", 1, 0),
        ("style", "input", 2, 1),
        ("cats", "input", 5, 1),
        ("deep/inner", "input", 1, 0),
        ("bare", "input", 0, 0),
        ("style/rest", "input", 1, 0),
        ("dogs", "datasets", 1, 1),
    ]
    assert found[2].shown == ["a.jpg", "b.png", "c.png", "d.png"] and found[1].shown == ["10_ink/1.png", "2_oil/2.png"]
    find = nodes("roots").user_path
    for folder in found:
        path = Path(find(folder.name, "folder"))
        assert path.is_dir() and all(nodes("folders").picture_in(folder.name, file).is_file() for file in folder.shown)
        assert ("sets" in path.parts) == (folder.root == "datasets")


def test_an_error_names_a_few_folders(nodes, placed):
    text = nodes("folders").there_are()
    assert text.startswith(
        "there are datasets/cats (1 picture), style (2 pictures), cats (5 pictures), deep/inner (1 picture), "
    )
    assert text.endswith(", style/rest (1 picture) and 1 more") and "bare" not in text


def test_where_there_is_no_folder_the_error_says_so(nodes):
    assert nodes("folders").there_are() == "there is none with pictures yet; make one in ComfyUI's input folder"


@pytest.mark.parametrize(
    "folder, file",
    [
        ("cats", "../bare"),
        ("cats", "../../secret.png"),
        ("cats", "a.txt"),
        ("cats", "x.png"),
        ("", "cats/b.png"),
        ("..", "secret.png"),
    ],
)
def test_no_other_file_is_a_picture_of_a_folder(nodes, placed, folder, file):
    Image.new("RGB", (8, 8)).save(placed / "secret.png")
    with pytest.raises(Exception, match="no picture of|no such picture|outside of the folders") as error:
        nodes("folders").picture_in(folder, file)
    assert "\n" not in str(error.value)

"""What a graph may name on a server, and what strangers may send to its routes; without a ComfyUI."""

import dataclasses
import ntpath
import os
from types import SimpleNamespace

import pytest

from anima_core.settings import DatasetConfig, ModelConfig, SubsetConfig, TrainConfig, walk

from .comfyui.pack import import_nodes
from .comfyui.server import link_folder


@pytest.fixture
def roots(tmp_path, monkeypatch):
    """nodes/roots.py around folders of this test."""
    return import_nodes(tmp_path, monkeypatch)("roots")


INSIDE = [
    "input/a",
    "input",
    "output/anima_trainer/x",
    "models/vae/v.safetensors",
    "other_disk/loras/l.safetensors",
    "sets/s",
    "more/s",
]
OUTSIDE = ["", "secret", "input/../secret", "inputs", "input_2/a", "models/../../etc", "custom_nodes/pack", "other_disk/x"]


@pytest.mark.parametrize("path", INSIDE)
def test_what_lies_in_comfyuis_folders_is_allowed(roots, tmp_path, path):
    full = str(tmp_path / path)
    assert roots.allowed(full, "folder") == full


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_lies_elsewhere_is_refused_in_one_line(roots, tmp_path, path):
    with pytest.raises(Exception, match="outside of the folders that this server reads; move it into ComfyUI's input") as error:
        roots.allowed(os.path.join(tmp_path, path), "image_dir")
    assert str(error.value).startswith("image_dir=") and "\n" not in str(error.value)


def test_the_owner_allows_more(roots, tmp_path, monkeypatch):
    secret = str(tmp_path / "secret" / "deep")
    monkeypatch.setenv("ANIMA_TRAINER_ROOTS", os.pathsep.join([str(tmp_path / "x"), str(tmp_path / "secret")]))
    assert roots.allowed(secret, "folder") == secret
    monkeypatch.setenv("ANIMA_TRAINER_ROOTS", "*")
    assert roots.allowed("/anywhere", "folder") == "/anywhere"


def test_odd_registrations_of_other_packs_open_nothing(roots, tmp_path, monkeypatch):
    """An empty folder name would be the folder that the server was started in."""
    monkeypatch.chdir(tmp_path)
    odd = {"a": ([""], set()), "b": [[tmp_path / "b"], set()], "c": ([None], set()), "d": ((), set(), 1)}
    roots.folder_paths.folder_names_and_paths.update(odd)
    assert roots.allowed(str(tmp_path / "b" / "x"), "folder")
    with pytest.raises(Exception, match="outside"):
        roots.allowed(str(tmp_path / "secret"), "folder")


def test_a_nul_is_refused(roots):
    with pytest.raises(Exception, match="folder=.*NUL"):
        roots.user_path("pics\0", "folder")


ON_WINDOWS = {
    r"C:\ComfyUI\input\a": True,
    r"c:/comfyui/INPUT/a": True,
    r"D:\sets\a": True,
    r"D:\sets\..\secret": False,
    r"C:\ComfyUI\input\..\user": False,
    r"C:\ComfyUI\input_2\a": False,
    r"D:\ComfyUI\input\a": False,
    r"\\server\share\a": False,
    r"\\?\C:\ComfyUI\input\..\secret": False,
}


@pytest.mark.parametrize("path", ON_WINDOWS)
def test_drives_and_cases_of_windows(roots, monkeypatch, path):
    """By ntpath's rules, which only compare text: no drive is asked."""
    monkeypatch.setattr(roots, "roots", lambda: ["C:\\ComfyUI\\input", "D:\\sets"])
    monkeypatch.setattr(roots, "os", SimpleNamespace(path=ntpath))
    if ON_WINDOWS[path]:
        assert roots.allowed(path, "folder") == path
    else:
        with pytest.raises(Exception, match="outside"):
            roots.allowed(path, "folder")


def test_a_link_that_the_owner_made_may_lead_out(roots, tmp_path):
    (tmp_path / "input").mkdir()
    (tmp_path / "big_disk").mkdir()
    link_folder(tmp_path / "big_disk", tmp_path / "input" / "pics")
    assert roots.allowed(str(tmp_path / "input" / "pics" / "a"), "folder")


def test_the_disk_is_not_asked_about_refused_paths(roots, tmp_path, monkeypatch):
    """Else the answer, or its time, would tell whether there is such a file."""
    asked = []

    def listening(real):
        return lambda path, *args, **named: asked.append(str(path)) or real(path, *args, **named)

    for name in ("stat", "lstat", "scandir", "listdir"):
        monkeypatch.setattr(os, name, listening(getattr(os, name)))
    with pytest.raises(Exception, match="outside"):
        roots.allowed("/probe/this/path", "folder")
    assert not [path for path in asked if "probe" in path]


def test_typed_names(roots, tmp_path):
    (tmp_path / "sets" / "mine").mkdir(parents=True)
    assert roots.user_path(' "pics" ', "folder") == str(tmp_path / "input" / "pics")
    assert roots.user_path("mine", "folder") == str(tmp_path / "sets" / "mine")
    for name in ("../secret", "~", "~/x", "/etc", "pics/../../secret"):
        with pytest.raises(Exception, match="outside of the folders"):
            roots.user_path(name, "folder")


@pytest.mark.parametrize(
    "typed, found",
    [
        ("datasets/cats", "input/datasets/cats"),
        ("datasets/dogs", "sets/dogs"),
        ("dogs", "sets/dogs"),
        ("input/mine", "input/mine"),
        ("x-run/config.toml", "output/anima_trainer/x-run/config.toml"),
        ("anima_trainer/x-run/config.toml", "output/anima_trainer/x-run/config.toml"),
        ("output/anima_trainer/x-run/config.toml", "output/anima_trainer/x-run/config.toml"),
        ("nowhere/x", "input/nowhere/x"),
    ],
)
def test_names_as_people_write_them(roots, tmp_path, typed, found):
    """As ComfyUI's own training nodes write them, as the templates do, and from ComfyUI's folder on."""
    for folder in ("input/datasets/cats", "sets/dogs", "input/mine", "output/anima_trainer/x-run"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "output" / "anima_trainer" / "x-run" / "config.toml").write_text("", encoding="utf-8")
    assert os.path.normpath(roots.user_path(typed, "folder")) == str(tmp_path / found)


def test_what_a_file_names_is_looked_for_beside_it_then_as_it_is_typed(roots, tmp_path):
    for folder in ("input/project/cats", "input/dogs", "input/both", "input/project/both"):
        (tmp_path / folder).mkdir(parents=True)
    beside = str(tmp_path / "input" / "project")
    found = {name: roots.user_path(name, "image_dir", beside) for name in ("cats", "dogs", "both", "none")}
    places = {"cats": "project/cats", "dogs": "dogs", "both": "project/both", "none": "project/none"}
    assert found == {name: str(tmp_path / "input" / place) for name, place in places.items()}
    with pytest.raises(Exception, match="image_dir=.*outside of the folders"):
        roots.user_path("../../secret", "image_dir", beside)
    with pytest.raises(Exception, match="path='': name a file"):
        roots.user_file("", "path")


def test_the_paths_of_a_file_become_full_ones(roots, tmp_path):
    for folder in ("input/project/cats", "models/vae"):
        (tmp_path / folder).mkdir(parents=True)
    named = ModelConfig("t", "../../models/vae", "q", "t5")
    config = TrainConfig(named, (DatasetConfig((SubsetConfig("cats", mask_dir=""),)),))
    placed = roots.find_paths(config, str(tmp_path / "input" / "project"))
    assert placed.datasets[0].subsets[0].image_dir == str(tmp_path / "input" / "project" / "cats")
    assert os.path.samefile(placed.model.vae, tmp_path / "models" / "vae")
    assert placed.datasets[0].subsets[0].mask_dir == "" == placed.network.weights
    assert dataclasses.replace(placed, model=named, datasets=config.datasets) == config  # and nothing else


def test_every_path_of_a_config_is_looked_at(roots, tmp_path):
    inside = [str(tmp_path / "models" / name) for name in ("a", "b", "c", "d", "e", "f", "w")]
    subset = SubsetConfig(str(tmp_path / "input"), mask_dir=str(tmp_path / "input"), metadata_file=str(tmp_path / "input"))
    good = TrainConfig(ModelConfig(*inside[:6]), (DatasetConfig((subset,)),))
    good = dataclasses.replace(good, network=dataclasses.replace(good.network, weights=inside[6]))
    assert roots.check_config(good) is good
    assert len([found for found in walk(good) if found.facts.path == "read"]) == 12
    with pytest.raises(Exception, match="outside"):
        roots.check_config(dataclasses.replace(good, held_out=dataclasses.replace(good.held_out, folder="/etc")))
    with pytest.raises(Exception, match="outside"):
        roots.check_config(dataclasses.replace(good, metadata=dataclasses.replace(good.metadata, picture="/etc/x")))
    for field in ("transformer", "vae", "qwen", "t5_tokenizer_dir", "qwen_tokenizer_dir", "llm_adapter"):
        with pytest.raises(Exception, match="outside"):
            roots.check_config(dataclasses.replace(good, model=dataclasses.replace(good.model, **{field: "/etc/x"})))
    with pytest.raises(Exception, match="network.weights='/etc/x'|weights='/etc/x': outside"):
        roots.check_config(dataclasses.replace(good, network=dataclasses.replace(good.network, weights="/etc/x")))
    for change in (dict(image_dir="/etc"), dict(mask_dir="/etc"), dict(metadata_file="/etc/x")):
        other = (DatasetConfig((dataclasses.replace(subset, **change),)),)
        with pytest.raises(Exception, match="outside"):
            roots.check_config(dataclasses.replace(good, datasets=other))


def test_files_that_a_toml_names_are_asked_about_before_they_are_read(tmp_path):
    """A prompt file would show up in the previews' settings."""
    from anima_core.compat.arguments import config_from_file

    from .tiny import model_config

    model = model_config(tmp_path)
    (tmp_path / "secret.txt").write_text("a secret", encoding="utf-8")
    lines = [
        f"{name} = '{value}'"
        for name, value in (("anima_transformer", model.transformer), ("vae", model.vae), ("qwen", model.qwen))
    ]
    lines += [f"t5_tokenizer_dir = '{model.t5_tokenizer_dir}'", f"train_data_dir = '{tmp_path}'", "resume = 'a-run'"]
    toml = tmp_path / "x.toml"
    toml.write_text("\n".join([*lines, f"sample_prompts = '{tmp_path / 'secret.txt'}'"]), encoding="utf-8")
    asked = {}

    def guard(path, setting):
        asked[setting] = path
        if "secret" in path:
            raise PermissionError(setting)
        return path

    with pytest.raises(PermissionError, match="sample_prompts"):
        config_from_file(toml, guard)
    assert set(asked) >= {"anima_transformer", "vae", "qwen", "t5_tokenizer_dir", "train_data_dir", "resume", "sample_prompts"}

"""Settings files as people write them: paths of Windows, JSON, YAML, other encodings; what --resume is given."""

import pytest
import torch
from safetensors.torch import save_file

from anima_core.compat.arguments import config_from_file
from anima_core.compat.dataset_config import read_dataset_config
from anima_core.errors import AnimaError, FileError, SettingError, in_words
from anima_core.settings.toml_file import line_of, read_toml
from anima_core.training.state import find_checkpoint

BACKSLASH = "a backslash in double quotes means another character; write / instead, or put the path in single quotes"


@pytest.mark.parametrize(
    "text, line",
    [
        (r'a = "C:\Users\me"', 1),  # no TOML at all
        ('a = 1\n\nimage_dir = "D:\\train\\new"', 3),  # TOML, with a tab and a line break
        ('image_dir = "D:\\new"', 1),
        ('dirs = ["C:/a", "D:\\b"]', 1),
        ('x = "\\\\server\\new"', 1),
        ('x = "..\\new"', 1),
    ],
)
def test_a_windows_path_in_double_quotes_is_named_with_its_line(tmp_path, text, line):
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    with pytest.raises(FileError) as refused:
        read_toml(tmp_path / "a.toml")
    assert str(refused.value).endswith(f"a.toml, line {line}: {BACKSLASH}")


@pytest.mark.parametrize(
    "text, data",
    [
        (r"a = 'C:\Users\new'", {"a": "C:\\Users\\new"}),
        (r'a = "D:\\train\\new"', {"a": "D:\\train\\new"}),
        (r'prompt = "one\ntwo"', {"prompt": "one\ntwo"}),
        (r'a = 1 # was "C:\Users"', {"a": 1}),
        ("", {}),
    ],
)
def test_what_is_right_stays_right(tmp_path, text, data):
    (tmp_path / "a.toml").write_text(text, encoding="utf-8")
    assert read_toml(tmp_path / "a.toml") == data


@pytest.mark.parametrize(
    "data, text",
    [
        (b"datasets:\n  - subsets:\n    - image_dir: x\n", "is YAML, which is not read; write it as TOML"),
        ('图 = "训练"'.encode("gbk"), r"is in GBK or another older encoding, not UTF-8 \(line 1\); save it as UTF-8"),
        ('a = 1\nb = "训练"'.encode("gbk"), r"not UTF-8 \(line 2\)"),
        ('a = "训练"'.encode("utf-16"), "is UTF-16, not UTF-8"),
        (b"\x80\x02\x00", "is no text, not UTF-8"),
        (b'[{"image_dir": "x"}]', "is a JSON list, which is not read"),
        (b'{"datasets": }', r"begins like JSON, and is not valid \(Expecting value, line 1\)"),
        (b"a == 1", "not valid TOML: .*; repair that line"),
    ],
)
def test_a_file_that_is_no_toml_is_named_for_what_it_is(tmp_path, data, text):
    (tmp_path / "a.toml").write_bytes(data)
    with pytest.raises(FileError, match=text):
        read_toml(tmp_path / "a.toml")


def test_a_folder_and_an_empty_name_are_no_toml(tmp_path):
    with pytest.raises(FileError, match=r"is a folder; name the .toml file in it"):
        read_toml(tmp_path)
    with pytest.raises(FileError, match=r"no file is named; name a .toml file"):
        read_toml("")


def test_a_json_dataset_file_is_read_as_sd_scripts_reads_it(tmp_path):
    path = tmp_path / "data.json"
    path.write_text(
        '{"general": {"caption_extension": ".txt", "class_tokens": null},\n'
        ' "datasets": [{"resolution": 512, "subsets": [{"image_dir": "a", "num_repeats": 3}]}]}',
        encoding="utf-8",
    )
    (dataset,), notes = read_dataset_config(path, {})
    assert dataset.resolutions == ((512, 512),) and dataset.subsets[0].num_repeats == 3 and notes == []
    assert line_of(path, "datasets", "num_repeats") == 2


def test_dataset_and_training_files_in_each_others_place_are_named(tmp_path):
    data, training = tmp_path / "data.toml", tmp_path / "training.toml"
    data.write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'a'\n", encoding="utf-8")
    training.write_text("[models]\npretrained_model_name_or_path = 'a'\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"data.toml: is a dataset file .*; give it as --dataset_config"):
        config_from_file(data)
    with pytest.raises(SettingError, match=r"training.toml: is the file of a whole training .*; give it as --config_file"):
        read_dataset_config(training, {})


def test_control_characters_of_a_name_are_shown_escaped():
    assert str(AnimaError("D:\train\new: no such folder")) == r"D:\train\new: no such folder"
    assert str(AnimaError("a\x1b[31m漢字\u2028b\u3000c")) == "a\\x1b[31m漢字\\u2028b\u3000c"


def resume_error(path, run_dir) -> str:
    with pytest.raises(FileError) as refused:
        find_checkpoint(str(path), run_dir)
    return in_words(refused.value.text, {"output.resume": "--resume", "network.weights": "--network_weights"})


def test_what_no_run_has_written_is_told_and_how_to_start_from_an_adapter(tmp_path):
    adapter = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, adapter)
    assert "is a file, an adapter perhaps, and not a run's folder; --network_weights starts" in resume_error(adapter, tmp_path)
    state = tmp_path / "a-step00000100-state"
    state.mkdir()
    (state / "random_states_0.pkl").write_bytes(b"")
    assert "is a state of sd-scripts or accelerate, which only they continue; --network_weights" in resume_error(
        state, tmp_path
    )
    assert "holds files and no checkpoint; name a run's folder" in resume_error(tmp_path, tmp_path)
    assert "no checkpoint in" in resume_error(tmp_path / "gone", tmp_path)
    assert "(there is no such folder); leave it off" in resume_error("latest", tmp_path / "gone")

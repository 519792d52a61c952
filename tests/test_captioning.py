"""Captions of a tagger, written beside pictures: nothing is lost, nothing is written elsewhere, and all is counted."""

import json

import pytest
from PIL import Image

from anima_core.data import captioning
from anima_core.data.captioning import APPEND, APPEND_LINE, KEEP, REPLACE, captions_file, merged, places, write_captions
from anima_core.data.folder import scan
from anima_core.errors import FileError, SettingError

from .tiny import dataset, write


def pictures(folder, *names):
    for number, name in enumerate(names):
        write(folder, name, colour=(10 * number, 0, 0), caption=None)
    return folder


def texts(folder):
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.txt"))}


def test_captions_stand_beside_their_pictures_and_those_that_are_there_stay(tmp_path):
    pictures(tmp_path, "a.png", "b.png", "c.JPG", "d.png")
    (tmp_path / "b.txt").write_text("mine", encoding="utf-8")
    (tmp_path / "d.txt").write_text("", encoding="utf-8")
    assert [(p.name, p.has_text) for p in places(tmp_path)] == [
        ("a.png", False),
        ("b.png", True),
        ("c.JPG", False),
        ("d.png", False),
    ]
    said = [("a.png", " 猫, solo\r\nA cat.\0 "), ("b.png", "theirs"), ("c.JPG", "  "), ("d.png", "lone \ud800"), ("e.png", "x")]
    told = write_captions(tmp_path, said)
    assert texts(tmp_path) == {"a.txt": "猫, solo\nA cat.", "b.txt": "mine", "d.txt": "lone ?"}
    assert told.sentence() == (
        "captions: 2 written, 1 kept as they were, 1 empty, not written, 1 for no picture of the folder (e.png)"
    )
    assert told.backup is None and not (tmp_path / captioning.BACKUPS).exists()


def test_what_is_replaced_is_copied_first_and_no_copy_is_ever_overwritten(tmp_path, monkeypatch):
    monkeypatch.setattr(captioning.time, "strftime", lambda form: "a moment")
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "a.txt").write_bytes("été".encode("cp1252"))
    told = write_captions(tmp_path, [("a.png", "one"), ("b.png", "new")], REPLACE)
    assert told.replaced == ["a.png"] and told.written == ["b.png"]
    assert told.backup == tmp_path / captioning.BACKUPS / "a moment"
    again = write_captions(tmp_path, [("a.png", "two"), ("b.png", "new")], REPLACE)
    assert again.replaced == ["a.png"] and again.same == ["b.png"] and again.backup != told.backup
    assert (told.backup / "a.txt").read_bytes() == "été".encode("cp1252") and (again.backup / "a.txt").read_text() == "one"
    assert (tmp_path / "a.txt").read_text() == "two" and not (told.backup / "b.txt").exists()
    assert scan(dataset(tmp_path))[1].warnings() == []  # nothing takes the copies for data


@pytest.mark.parametrize(
    "existing, old, new",
    [
        (KEEP, "1girl", "1girl"),
        (REPLACE, "1girl", "solo, smile"),
        (APPEND, "1girl", "1girl, solo, smile"),
        (APPEND, "1girl, ", "1girl, solo, smile"),
        (APPEND, "1girl, solo, smile, hat", "1girl, solo, smile, hat"),
        (APPEND, "solo, smiley", "solo, smiley, solo, smile"),
        (APPEND_LINE, "1girl\n", "1girl\nsolo, smile"),
        (APPEND, "", "solo, smile"),
    ],
)
def test_a_caption_becomes_what_is_asked_for_also_when_a_graph_runs_again(existing, old, new):
    once = merged(old, "solo, smile", existing)
    assert once == new and merged(once, "solo, smile", existing) == new


def test_what_cannot_be_read_is_not_added_to(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\xfd")
    told = write_captions(tmp_path, [("a.png", "x")], APPEND)
    assert told.unreadable == ["a.png"] and (tmp_path / "a.txt").read_bytes() == b"\xff\xfe\xfd"
    assert write_captions(tmp_path, [("a.png", "x")], REPLACE).replaced == ["a.png"]


def test_a_caption_under_another_ending_counts(tmp_path):
    pictures(tmp_path, "a.png")
    (tmp_path / "a.caption").write_text("old", encoding="utf-8")
    assert write_captions(tmp_path, [("a.png", "new")]).kept == ["a.png"]
    assert write_captions(tmp_path, [("a.png", "new")], APPEND).replaced == ["a.png"]
    assert texts(tmp_path) == {"a.txt": "old, new"} and (tmp_path / "a.caption").read_text() == "old"
    ((picture,), _) = scan(dataset(tmp_path))
    assert picture.caption == "old, new"


def test_two_pictures_of_one_stem_get_one_caption(tmp_path):
    pictures(tmp_path, "a.jpg", "a.png")
    told = write_captions(tmp_path, [("a.jpg", "first"), ("a.png", "second")])
    assert texts(tmp_path) == {"a.txt": "first"} and told.shared == ["a.png"]


def test_folders_of_a_set_are_written_into_and_no_others(tmp_path):
    folder = tmp_path / "sets"
    pictures(folder / "3_cat", "a.png")
    pictures(folder / "other", "b.png")
    pictures(tmp_path, "a.png")
    names = ["3_cat/a.png", "other/b.png", "../a.png", "/etc/a.png", "3_cat/../other/b.png", ""]
    told = write_captions(folder, [(name, "x") for name in names])
    assert texts(tmp_path) == {"sets/3_cat/a.txt": "x"} and len(told.unmatched) == 5


@pytest.mark.parametrize("extension", [".png", "py", "", ".json", "/../x", ".safetensors", "txt/../../b"])
def test_no_other_files_than_captions_are_written(tmp_path, extension):
    pictures(tmp_path, "a.png")
    with pytest.raises(SettingError, match="captions are written as one of .cap, .caption, .prompt"):
        write_captions(tmp_path, [("a.png", "x")], REPLACE, extension)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_failure_leaves_whole_files(tmp_path, monkeypatch):
    pictures(tmp_path, "a.png", "b.png")
    (tmp_path / "b.txt").write_text("old", encoding="utf-8")
    real = captioning.write_whole

    def full(path, content):
        if path.parent == tmp_path and path.name == "b.txt":
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(captioning, "write_whole", full)
    with pytest.raises(FileError, match=r"b.txt: cannot be written \(No space left on device\)"):
        write_captions(tmp_path, [("a.png", "x"), ("b.png", "y")], REPLACE)
    assert (tmp_path / "a.txt").read_text() == "x" and (tmp_path / "b.txt").read_text() == "old"


def test_one_file_for_a_graph_holds_all_captions_and_leaves_the_folder_as_it_is(tmp_path):
    folder = pictures(tmp_path / "p", "a.png", "b.png", "c.png")
    (folder / "b.txt").write_text("mine", encoding="utf-8")
    before = sorted(path.name for path in folder.iterdir())
    path, told = captions_file(folder, [("a.png", "theirs"), ("b.png", "theirs")], KEEP, ".txt", tmp_path / "out")
    assert json.loads(path.read_text(encoding="utf-8")) == {"a.png": {"caption": "theirs"}, "b.png": {"caption": "mine"}}
    assert (told.written, told.kept) == (["a.png"], ["b.png"]) and sorted(p.name for p in folder.iterdir()) == before
    found, report = scan(dataset(folder, metadata_file=str(path)))
    assert {p.name: p.caption for p in found} == {"a.png": "theirs", "b.png": "mine"}
    assert report.warnings() == ["pictures that the metadata file does not name, left out: 1 (c.png)"]
    assert captions_file(folder, [("a.png", "theirs")], KEEP, ".txt", tmp_path / "out")[0] == path
    assert captions_file(folder, [("a.png", "more")], APPEND, ".txt", tmp_path / "out")[0] != path
    pictures(tmp_path / "q" / "5_x", "a.png")
    with pytest.raises(SettingError, match="has sub-folders named N_words"):
        captions_file(tmp_path / "q", [], KEEP, ".txt", tmp_path / "out")
    Image.new("RGB", (20, 20)).save(tmp_path / "q" / "x.png")
    with pytest.raises(FileError, match="no picture has a caption"):
        captions_file(pictures(tmp_path / "r", "a.png"), [], KEEP, ".txt", tmp_path / "out")

"""Where a picture's caption comes from: files of either ending, a metadata file; what is found and not read is named."""

import json
import os

import pytest

from anima_core.data.folder import scan
from anima_core.errors import FileError
from anima_core.settings import DatasetConfig

from .test_sets import draws, from_flags, warned
from .tiny import dataset, write


def test_caption_files_of_sd_scripts_default_are_found_where_there_is_no_txt(tmp_path):
    for name, ending in (("a", ".caption"), ("b", ".txt")):
        write(tmp_path, f"{name}.png", colour=(0, 0, ord(name)), caption=None)
        (tmp_path / f"{name}{ending}").write_text(f"in {ending}", encoding="utf-8")
    (tmp_path / "b.caption").write_text("the other", encoding="utf-8")
    assert [p.caption for p in scan(dataset(tmp_path))[0]] == ["in .caption", "in .txt"]
    for extension in (".caption", "caption"):  # as in sd-scripts, the dot may be left out
        assert [p.caption for p in scan(dataset(tmp_path, caption_extension=extension))[0]] == ["in .caption", "the other"]


@pytest.mark.parametrize(
    "name, line",
    [
        ("a.caption", "captions under another ending, not read (set caption_extension): 1 (a.caption)"),
        ("a.tags", "captions under another ending, not read (set caption_extension): 1 (a.tags)"),
        ("a.json", "captions in JSON files, not read (set caption_extension to .json): 1 (a.json)"),
        ("meta_cap.json", "captions in a metadata file, not read (set metadata_file): 1 (meta_cap.json)"),
    ],
)
def test_captions_that_are_found_but_not_read_are_named(tmp_path, name, line):
    write(tmp_path, "a.png", caption=None)
    (tmp_path / name).write_text("{}", encoding="utf-8")
    assert line in warned(dataset(tmp_path, class_tokens="x", caption_extension=".text"))


def test_json_captions_are_not_read_as_text(tmp_path):
    write(tmp_path, "a.png", caption=None)
    (tmp_path / "a.json").write_text('{"tags": "x"}', encoding="utf-8")
    with pytest.raises(FileError, match=r"no captions; .* \(captions in JSON files, not read"):
        scan(dataset(tmp_path))


def test_links_that_lead_nowhere_and_jfif_are_named(tmp_path):
    write(tmp_path, "a.png")
    write(tmp_path, "b.jpg", colour="blue", caption=None).rename(tmp_path / "b.jfif")
    os.symlink(tmp_path / "gone.png", tmp_path / "c.png")
    assert warned(dataset(tmp_path)).splitlines() == [
        "JPEG pictures under another ending, left out (rename them to .jpg): 1 (b.jfif)",
        "links that lead to no file, left out: 1 (c.png)",
    ]


# --- metadata files


def with_metadata(folder, entries, name="meta_cap.json", **changes) -> DatasetConfig:
    for number, place in enumerate(("a.png", "b.png", "sub/c.png")):
        path = folder / "p" / place
        write(path.parent, path.name, colour=(number, 0, 0), caption="not read")
    lines = "\n".join(json.dumps({"image_path": key} | entry) for key, entry in entries.items())
    (folder / name).write_text(lines if name.endswith("l") else json.dumps(entries), encoding="utf-8")
    return dataset(folder / "p", metadata_file=str(folder / name), **changes)


@pytest.mark.parametrize("name", ["meta_cap.json", "meta.jsonl"])
def test_a_metadata_file_says_which_pictures_and_captions(tmp_path, name):
    entries = {
        str(tmp_path / "p" / "a.png"): {"caption": "a cat", "tags": "cat, red"},
        "sub/c": {"tags": "stem alone"},
        "gone": {"caption": "x"},
        str(tmp_path / "elsewhere.png"): {"caption": "x"},
    }
    pictures, report = scan(with_metadata(tmp_path, entries, name))
    found = {p.path.relative_to(tmp_path / "p").as_posix(): p.caption for p in pictures}
    assert found == {"a.png": "a cat,cat, red", "sub/c.png": "stem alone"}
    assert report.warnings() == [
        "entries of the metadata file outside of image_dir, left out: 1 " + f"({tmp_path / 'elsewhere.png'})",
        "entries of the metadata file without a usable picture: 1 (gone)",
        "pictures that the metadata file does not name, left out: 1 (b.png)",
    ]


def test_wildcards_put_the_tags_behind_each_line(tmp_path):
    config = with_metadata(tmp_path, {"a": {"caption": "one\n\ntwo", "tags": "x\ny"}}, enable_wildcard=True)
    assert scan(config)[0][0].caption == "one,x,y\ntwo,x,y"


@pytest.mark.parametrize(
    "text, wrong",
    [
        ("[1]", "no metadata file"),
        ("nonsense", "no metadata file"),
        ('{"a": 1}', "'a': must be a picture with a table"),
        ('{"a": {"caption": 1}}', "a: caption and tags must be text"),
        ('{"/nowhere/a.png": {}}', "names no picture below"),
        (None, "cannot be read"),
        ('{"a": {"caption": "x \\ud83d"}}', r"'a': half a character \(.ud83d\); repair the entry"),
        ('{"a \\ud83d": {}}', r"'a .ud83d': half a character \(.ud83d\); repair the entry"),
    ],
)
def test_what_is_no_metadata_file_is_named(tmp_path, text, wrong):
    config, path = with_metadata(tmp_path, {"a": {}}), tmp_path / "meta_cap.json"
    path.unlink()
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(FileError, match=wrong):
        scan(config)


def test_control_characters_of_a_metadata_file_are_left_out(tmp_path):
    (picture,), _ = scan(with_metadata(tmp_path, {"a": {"caption": "x\0", "tags": "\1y"}}))
    assert picture.caption == "x,y"


def test_a_metadata_file_in_a_dataset_file_and_on_the_command_line(tmp_path):
    with_metadata(tmp_path, {"p/a": {"caption": "x"}})
    toml, metadata = tmp_path / "d.toml", tmp_path / "meta_cap.json"
    toml.write_text(f"[[datasets]]\n[[datasets.subsets]]\nmetadata_file = '{metadata}'\n", encoding="utf-8")
    assert draws(from_flags(dataset_config=toml)) == {"p/a.png": 1}
    assert draws(from_flags(train_data_dir=tmp_path, in_json=metadata, dataset_repeats=2)) == {"p/a.png": 2}


def test_sources_that_no_picture_has_are_named(tmp_path):
    write(tmp_path, "a.png", caption="red")
    with pytest.raises(FileError, match=r"no captions; put \.nl files beside .*, or name other endings in .*caption_sources"):
        scan(dataset(tmp_path, caption_sources=(".nl",)))

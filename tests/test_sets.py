"""Which folders are trained and how often their pictures come: sd-scripts' rules, one a test."""

import argparse
import json
import re

import pytest

from anima_core import files
from anima_core.compat.arguments import config_of, request_from
from anima_core.data.check import check_datasets
from anima_core.data.folder import scan
from anima_core.errors import FileError, SettingError
from anima_core.settings import DatasetConfig, SubsetConfig, to_dict
from anima_core.settings.toml_file import dump_toml
from anima_core.training.state import DIGESTS, FILES

from .tiny import dataset, write

REQUIRED = {"anima_transformer": "t", "vae": "v", "qwen": "q", "t5_tokenizer_dir": "t5"}


def from_flags(**flags: object) -> DatasetConfig:
    given = REQUIRED | {name: str(value) for name, value in flags.items()}
    return config_of([word for name, value in given.items() for word in (f"--{name}", value)]).datasets[0]


def draws(config: DatasetConfig) -> dict[str, int]:
    return {f"{picture.folder.name}/{picture.name}": picture.repeats for picture in scan(config)[0]}


def warned(config: DatasetConfig) -> str:
    return "\n".join(scan(config)[1].warnings())


# --- folder numbers


def numbered(folder):
    """Two sets with numbers, one that is off, a folder and a picture that are no data."""
    write(folder / "3_a cat_b", "a.png", caption=None)
    write(folder / "3_a cat_b", "b.png", colour="blue", caption="own")
    write(folder / "5", "c.png", colour="green", caption="bare number")
    write(folder / "0_off", "d.png", colour="white")
    write(folder / "other", "e.png", colour="grey")
    write(folder, "loose.png", colour="yellow")
    return folder


def test_numbered_sub_folders_are_the_sets_and_nothing_beside_them(tmp_path):
    config = from_flags(train_data_dir=numbered(tmp_path))
    pictures, report = scan(config)
    assert draws(config) == {"3_a cat_b/a.png": 3, "3_a cat_b/b.png": 3, "5/c.png": 5}
    assert [p.caption for p in pictures] == ["a cat_b", "own", "bare number"]
    assert report.warnings() == [
        "pictures beside the folders N_words, left out: 1 (loose.png)",
        "sub-folders not read (name them N_words for N draws): 1 (other)",
    ]
    assert "folders that are switched off (0 repeats): 1 (0_off)" in report.notes()


def test_without_numbered_sub_folders_a_folder_is_the_set_and_its_name_means_nothing(tmp_path):
    write(tmp_path / "10_subject", "a.png", caption=None)
    write(tmp_path / "10_subject", "b.png", colour="blue")
    assert draws(from_flags(train_data_dir=tmp_path / "10_subject")) == {"10_subject/a.png": 1, "10_subject/b.png": 1}
    pictures, report = scan(dataset(tmp_path / "10_subject"))
    assert [p.caption for p in pictures] == ["", "a tag"]
    said = "a number in the folder's own name is not read (name the folder above it, or set the repeats): 1 (10_subject)"
    assert report.notes() == [said]


@pytest.mark.parametrize("given", [1, 2])
def test_a_number_that_was_given_is_the_only_one(tmp_path, given):
    write(tmp_path / "10_subject", "a.png")
    write(tmp_path / "10_subject" / "4_sub", "b.png", colour="blue")
    config = from_flags(train_data_dir=tmp_path / "10_subject", num_repeats=given)
    assert draws(config) == {"10_subject/a.png": given}
    assert "sub-folders not read (each would be a folder of its own): 1 (4_sub)" in warned(config)


@pytest.mark.parametrize("name", ["10_subject", "2024_summer", "20240131_party"])
def test_folder_names_mean_nothing_in_a_dataset_file(tmp_path, name):
    write(tmp_path / name, "a.png")
    write(tmp_path / name / "7_sub", "b.png", colour="blue")
    toml, subset = tmp_path / "data.toml", f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path / name}'\n"
    toml.write_text(f"{subset}num_repeats = 3\n", encoding="utf-8")
    assert draws(from_flags(dataset_config=toml)) == {f"{name}/a.png": 3}
    toml.write_text(subset, encoding="utf-8")
    assert draws(from_flags(dataset_config=toml, dataset_repeats=2)) == {f"{name}/a.png": 2}


def test_repeats_beside_numbered_sub_folders_are_said_to_do_nothing(tmp_path):
    """As in the graph, where the number cannot be left away."""
    config = dataset(numbered(tmp_path / "d"), num_repeats=2)
    assert draws(config)["5/c.png"] == 5 and "repeats without effect: the numbers of sub-folders count: 1 (d: 2)" in warned(
        config
    )


@pytest.mark.parametrize("name", ["20240131_party", "10001", "99999999999999999999_x"])
def test_a_date_is_no_number_of_repeats_and_its_folder_one_that_is_not_read(tmp_path, name):
    said = f"sub-folders not read (name them N_words for N draws): 1 ({name})"
    write(tmp_path / name, "a.png")
    assert draws(dataset(tmp_path / name)) == {f"{name}/a.png": 1}
    with pytest.raises(FileError, match=re.escape(f"no usable pictures ({said})")):
        scan(dataset(tmp_path))
    write(tmp_path, "loose.png", colour="blue")
    assert draws(dataset(tmp_path)) == {f"{tmp_path.name}/loose.png": 1} and said in warned(dataset(tmp_path))
    write(tmp_path / "3_set", "c.png", colour="green")
    assert draws(dataset(tmp_path)) == {"3_set/c.png": 3} and said in warned(dataset(tmp_path))


def test_sets_without_pictures_and_all_switched_off(tmp_path):
    write(tmp_path / "2_full", "a.png")
    (tmp_path / "3_empty").mkdir()
    assert "folders without a usable picture: 1 (3_empty)" in warned(dataset(tmp_path))
    (tmp_path / "2_full").rename(tmp_path / "0_full")
    with pytest.raises(FileError, match="no usable pictures"):
        scan(dataset(tmp_path))
    (tmp_path / "3_empty").rename(tmp_path / "0_empty")
    with pytest.raises(FileError, match="every folder is switched off by 0 repeats"):
        check_datasets((dataset(tmp_path),), None, None)


def test_a_dataset_that_is_switched_off_whole_leaves_the_others(tmp_path):
    write(tmp_path / "a", "a.png")
    write(tmp_path / "b", "b.png", colour="blue")
    off = dataset(tmp_path / "a", num_repeats=0)
    (none, report), (some, _) = check_datasets((off, dataset(tmp_path / "b")), None, None)
    assert none == [] and [p.name for p in some] == ["b.png"] and report.batches == 0
    assert report.notes() == ["folders that are switched off (0 repeats): 1 (a)"]
    with pytest.raises(FileError, match="every folder is switched off by 0 repeats"):
        check_datasets((off, off), None, None)


def test_zero_repeats_switch_a_subset_off(tmp_path):
    write(tmp_path / "a", "a.png")
    write(tmp_path / "b", "b.png", colour="blue")
    (tmp_path / "a").rename(tmp_path / "gone")  # it is not looked for
    both = DatasetConfig((SubsetConfig(str(tmp_path / "a"), num_repeats=0), SubsetConfig(str(tmp_path / "b"))))
    assert draws(both) == {"b/b.png": 1} and "folders that are switched off (0 repeats): 1 (a)" in scan(both)[1].notes()


# --- the same pictures twice


def test_a_folder_that_a_dataset_names_twice_counts_once(tmp_path):
    write(tmp_path / "a", "a.png")
    twice = DatasetConfig((SubsetConfig(str(tmp_path / "a")), SubsetConfig(str(tmp_path / "a" / ".." / "a"), num_repeats=4)))
    assert draws(twice) == {"a/a.png": 1}
    assert warned(twice) == "folders that their dataset names twice, the later left out: 1 (a)"


def test_parent_and_child_do_not_count_a_picture_twice(tmp_path):
    write(tmp_path / "p", "a.png")
    write(tmp_path / "p" / "2_c", "b.png", colour="blue")
    names = (tmp_path / "p", tmp_path / "p" / "2_c")
    plain = DatasetConfig(tuple(SubsetConfig(str(name), folder_numbers=False) for name in names))
    assert draws(plain) == {"p/a.png": 1, "2_c/b.png": 1}
    reading = DatasetConfig(tuple(SubsetConfig(str(name)) for name in names))
    assert draws(reading) == {"2_c/b.png": 2} and "names twice, the later left out: 1 (2_c)" in warned(reading)


def test_a_folder_in_two_datasets_is_trained_in_each_and_said(tmp_path):
    """How kohya's users train at several resolutions."""
    write(tmp_path, "a.png")
    found = check_datasets((dataset(tmp_path), dataset(tmp_path, resolutions=((512, 512),))), None, None)
    assert [len(pictures) for pictures, _ in found] == [1, 1]
    assert f"folders that an earlier dataset has too: trained in each: 1 ({tmp_path.name})" in found[1][1].notes()


# --- regularisation


@pytest.mark.parametrize(
    "train, regularisation, expected",  # (pictures, repeats) twice
    [
        ((2, 10), (5, 1), [4, 4, 4, 4, 4]),  # repeated
        ((2, 3), (4, 1), [2, 2, 1, 1]),  # the first ones once more
        ((2, 2), (9, 1), [1, 1, 1, 1]),  # cut
        ((2, 3), (3, 4), [4, 4]),  # the last one keeps its own repeats
        ((1, 1), (2, 1), [1]),
    ],
)
def test_regularisation_has_as_many_draws_as_the_other_pictures(tmp_path, train, regularisation, expected):
    for kind, (count, _) in (("t", train), ("r", regularisation)):
        for number in range(count):
            write(tmp_path / kind, f"{number}.png", colour=(number, ord(kind), 0))
    regular = SubsetConfig(str(tmp_path / "r"), num_repeats=regularisation[1], is_reg=True)
    pictures, report = scan(DatasetConfig((regular, SubsetConfig(str(tmp_path / "t"), num_repeats=train[1]))))
    assert [p.repeats for p in pictures if p.subset.is_reg] == expected
    assert [p.repeats for p in pictures if not p.subset.is_reg] == [train[1]] * train[0]
    unused = regularisation[0] - len(expected)
    said = [line for line in report.warnings() if f"left out (more than the draws of the other pictures): {unused} (" in line]
    assert len(said) == (unused > 0)


def test_regularisation_folders_of_the_command_line_are_balanced(tmp_path):
    write(tmp_path / "t" / "6_a cat", "a.png", caption=None)
    write(tmp_path / "r" / "1_cat", "b.png", colour="blue", caption=None)
    config = from_flags(train_data_dir=tmp_path / "t", reg_data_dir=tmp_path / "r", prior_loss_weight=0.5)
    (a, b), _ = scan(config)
    assert (a.caption, a.repeats, a.subset.loss_weight) == ("a cat", 6, 1.0)
    assert (b.caption, b.repeats, b.subset.loss_weight) == ("cat", 6, 0.5)


def test_regularisation_alone_is_nothing_to_train_on(tmp_path):
    write(tmp_path / "r", "a.png")
    write(tmp_path / "t", "b.png", colour="blue")
    alone = dataset(tmp_path / "r", is_reg=True)
    with pytest.raises(FileError, match="only regularisation pictures are left; name a folder of others in the same dataset"):
        check_datasets((alone,), None, None)
    (_, report), _ = check_datasets((alone, dataset(tmp_path / "t")), None, None)
    assert report.warnings() == ["regularisation pictures left out (their dataset has no other pictures): 1 (a.png)"]


# --- the seed of front ends


def test_a_seed_of_minus_one_is_drawn_and_said(monkeypatch):
    given = argparse.Namespace(**REQUIRED, train_data_dir="x", seed=-1)
    requests = [request_from(given) for _ in range(4)]
    seeds = {request.config.seed for request in requests}
    assert len(seeds) > 1 and all(0 <= seed < 2**31 for seed in seeds)
    assert all(f"seed=-1: {r.config.seed} was drawn; the run's config.toml has it" in r.notes for r in requests)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SettingError, match="seed=-1: each of several processes would draw its own; name a seed"):
        request_from(given)


def test_a_run_that_goes_on_keeps_the_seed_that_it_has_drawn(tmp_path, monkeypatch):
    given = REQUIRED | {"train_data_dir": "x", "seed": -1, "output_dir": str(tmp_path), "output_name": "n"}
    checkpoint = tmp_path / "n-run" / "checkpoints" / "step-00000007"
    checkpoint.mkdir(parents=True)
    config = request_from(argparse.Namespace(**given)).config
    for name in FILES:
        text = dump_toml(to_dict(config)) if name == "config.toml" else "a file"
        (checkpoint / name).write_text(text, encoding="utf-8")
    (checkpoint / DIGESTS).write_text(json.dumps({name: files.digest(checkpoint / name) for name in FILES}), encoding="utf-8")
    monkeypatch.setenv("WORLD_SIZE", "2")  # all read the same one
    for resume in ("latest", str(checkpoint), str(tmp_path / "n-run")):
        resumed = request_from(argparse.Namespace(**given, resume=resume))
        assert resumed.config.seed == config.seed
        assert f"seed=-1: {config.seed} of the checkpoint that is resumed" in resumed.notes
    assert request_from(argparse.Namespace(**(given | {"seed": 3}), resume="latest")).config.seed == 3
    with pytest.raises(FileError, match="no checkpoint in"):
        request_from(argparse.Namespace(**(given | {"output_name": "other"}), resume="latest"))

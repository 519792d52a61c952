"""Which pictures are held out: by their content, by share, number or folder, in all words of sd-scripts."""

import dataclasses
import shutil

import pytest

from anima_core.cli import main
from anima_core.compat.arguments import config_of
from anima_core.compat.dataset_config import read_dataset_config
from anima_core.compat.flags import setting_words
from anima_core.data.check import check_datasets
from anima_core.data.held_out import Holding
from anima_core.errors import FileError, SettingError, in_words
from anima_core.settings import DatasetConfig, HeldOutConfig, SubsetConfig

from .tiny import dataset, write

REQUIRED = ["--anima_transformer", "t", "--vae", "v", "--qwen", "q", "--t5_tokenizer_dir", "t5"]


def drawn(folder, config=None, **changes) -> tuple[set[str], set[str]]:
    """Return the names that are trained and those that are held out of one folder."""
    holding = Holding(config or HeldOutConfig(share=0.25))
    datasets = (dataset(folder, **changes),)
    ((pictures, _),) = check_datasets(datasets, None, None, holding=holding)
    (held,) = holding.result(datasets).pictures
    return {p.name for p in pictures}, {p.name for p in held}


def many(folder, count=16):
    for number in range(count):
        write(folder, f"{number:02}.png", (64, 64), (number * 15, 0, 0), f"number {number}")


def test_a_share_is_drawn_by_content_and_another_picture_moves_at_most_one(tmp_path):
    many(tmp_path)
    trained, held = drawn(tmp_path)
    assert len(held) == 4 and not trained & held and len(trained | held) == 16
    (tmp_path / next(iter(held))).rename(tmp_path / "renamed.png")
    (tmp_path / "renamed.txt").write_text("another", encoding="utf-8")
    assert "renamed.png" in drawn(tmp_path)[1]
    for number in range(4):
        before = drawn(tmp_path)[1]
        write(tmp_path, f"new {number}.png", (64, 64), (0, 200, 60 * number), "new")
        now = drawn(tmp_path)[1]
        assert len(before - now) <= 1 and len(now - before) <= 2
    assert drawn(tmp_path, HeldOutConfig(share=0.25, seed=1))[1] != drawn(tmp_path)[1]
    assert len(drawn(tmp_path, HeldOutConfig(count=3))[1]) == 3


def test_pictures_of_the_same_bytes_are_on_one_side_also_in_another_dataset(tmp_path):
    many(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    write(tmp_path / "b", "more.png", (64, 64), "green")
    datasets = (dataset(tmp_path / "a", validation_split=0.25), dataset(tmp_path / "b"))
    holding = Holding()
    (first, _), (second, report) = check_datasets(datasets, None, None, holding=holding)
    held = {p.digest for group in holding.result(datasets).pictures for p in group}
    assert len(held) == 4 and not held & {p.digest for p in (*first, *second)}
    assert (len(first), len(second), report.pictures, report.batches) == (12, 13, 13, 13)
    assert any("another dataset holds them out: 4" in line for line in report.warnings())
    shutil.copy(tmp_path / "a" / "00.png", tmp_path / "a" / "copy.png")
    shutil.copy(tmp_path / "a" / "00.txt", tmp_path / "a" / "copy.txt")
    trained, once = drawn(tmp_path / "a", HeldOutConfig(count=15))
    assert len(once) == 15 and {"00.png", "copy.png"} & trained in ({"00.png", "copy.png"}, set())


def test_regularisation_pictures_are_never_held_out_and_balance_what_is_left(tmp_path):
    many(tmp_path / "own", 8)
    for number in range(9):
        write(tmp_path / "reg", f"r{number}.png", (64, 64), (0, 0, 20 * number), "class")
    subsets = (SubsetConfig(str(tmp_path / "own")), SubsetConfig(str(tmp_path / "reg"), is_reg=True))
    datasets, holding = (DatasetConfig(subsets),), Holding(HeldOutConfig(share=0.5))
    ((pictures, _),) = check_datasets(datasets, None, None, holding=holding)
    assert len([p for p in pictures if p.subset.is_reg]) == len([p for p in pictures if not p.subset.is_reg]) == 4
    (held,) = holding.result(datasets).pictures
    assert {p.folder.name for p in held} == {"own"} and all(p.repeats == 1 for p in held)


@pytest.mark.parametrize(
    "config, said", [({"share": 0.5}, "share=0.5: 1 picture is too few to hold 1 out"), ({"count": 2}, "count=2")]
)
def test_too_few_pictures_are_refused_with_the_way_out(tmp_path, config, said):
    write(tmp_path, "a.png")
    with pytest.raises(SettingError, match=f"held_out.{said}") as refused:
        drawn(tmp_path, HeldOutConfig(**config))
    assert "name a folder of others as held_out.folder" in str(refused.value)


def test_a_folder_that_shares_a_picture_with_training_is_refused_by_names(tmp_path):
    many(tmp_path / "own", 4)
    shutil.copytree(tmp_path / "own", tmp_path / "held")
    for name in ("00", "01", "02"):
        (tmp_path / "held" / f"{name}.png").unlink()
    shutil.move(tmp_path / "held" / "03.png", tmp_path / "held" / "copy.png")
    shutil.move(tmp_path / "held" / "03.txt", tmp_path / "held" / "copy.txt")
    with pytest.raises(FileError, match=r"1 of its pictures are trained as well \(.*03\.png = .*copy\.png\)"):
        check_datasets((dataset(tmp_path / "own"),), None, None, holding=Holding(HeldOutConfig(folder=str(tmp_path / "held"))))
    with pytest.raises(SettingError, match="cannot be with a share"):
        HeldOutConfig(folder="x", share=0.1)


def test_flags_and_dataset_files_of_sd_scripts_hold_pictures_out(tmp_path):
    typed = "--validation_split 0.2 --validation_seed 7 --validate_every_n_steps 5 --validate_every_n_epochs 2"
    config = config_of([*REQUIRED, *f"--train_data_dir p {typed} --max_validation_steps 9 --held_out_patience 4".split()])
    found = config.held_out
    assert (found.seed, found.every_n_steps, found.every_n_epochs, found.most, found.patience) == (7, 5, 2, 9, 4)
    assert config.datasets[0].subsets[0].validation_split == 0.2 and found.keep_best
    file = tmp_path / "data.toml"
    subsets = "".join(
        f"[[datasets.subsets]]\nimage_dir = '{name}'\n{own}\n" for name, own in (("a", ""), ("b", "validation_split = 1.0"))
    )
    file.write_text(f"[general]\nvalidation_split = 0.1\n[[datasets]]\nvalidation_seed = 3\n{subsets}", encoding="utf-8")
    ((one,), notes) = read_dataset_config(file, {})
    assert [(s.validation_split, s.validation_seed) for s in one.subsets] == [(0.1, 3), (1.0, 3)] and notes == []
    with pytest.raises(SettingError, match="data.toml: validation_split_num=4: cannot be with validation_split;"):
        read_dataset_config(file, {"validation_split_num": 4})


@pytest.mark.parametrize(
    "typed, said",
    [
        (
            "--validation_split 0.1 --validation_split_num 3",
            "--validation_split_num=3: cannot be with --validation_split; set one",
        ),
        ("--validation_split 0.1 --held_out_folder x", "--held_out_folder=x: cannot be with --validation_split=0.1; set one"),
        (
            "--validation_split_num 2 --held_out_folder x",
            "--held_out_folder=x: cannot be with --validation_split_num=2; set one",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "check"])
def test_two_ways_at_once_are_refused_in_the_words_of_the_flags(capsys, command, typed, said):
    assert main([command, *REQUIRED, *f"--train_data_dir p {typed}".split()]) == 2
    assert capsys.readouterr().err.startswith(f"anima: {said}")


def test_every_setting_of_held_out_pictures_has_its_flag_in_messages():
    said = in_words(" ".join(f"`held_out.{field.name}`" for field in dataclasses.fields(HeldOutConfig)), setting_words())
    assert said == (
        "--validation_split --validation_split_num --held_out_folder --validation_seed --max_validation_steps "
        "--validate_every_n_steps --validate_every_n_epochs --held_out_patience --held_out_keep_best"
    )
    assert SettingError("`held_out.share`=0.5: too many").field == "held_out.share"


def test_what_has_no_effect_without_held_out_pictures_is_said():
    config = HeldOutConfig(patience=3, every_n_steps=2)
    assert config.warnings(held_out=True) == [] == HeldOutConfig().warnings(held_out=False)
    steps, patience = config.warnings(held_out=False)
    assert patience == "`held_out.patience`=3 has no effect: nothing is held out; 0.1 is usual as `held_out.share`"
    assert steps.startswith("`held_out.every_n_steps`=2 has no effect")


def test_a_check_names_what_training_holds_out_and_refuses_what_it_refuses(tmp_path, capsys):
    many(tmp_path / "own", 6)
    for seed in (1, 2, 3):
        typed = ["--validation_split_num", "2", "--validation_seed", str(seed)]
        assert main(["check", str(tmp_path / "own"), *typed]) == 0
        names = ", ".join(sorted(drawn(tmp_path / "own", HeldOutConfig(count=2, seed=seed))[1]))
        assert f"pictures held out of training: 2 ({names})" in capsys.readouterr().out
    write(tmp_path / "held", "own.png", (64, 64), "green")
    assert main(["check", str(tmp_path / "own"), "--held_out_folder", str(tmp_path / "held")]) == 0
    assert "held-out folder: 1 picture\n" in capsys.readouterr().out
    shutil.copy(tmp_path / "own" / "00.png", tmp_path / "held" / "copy.png")
    assert main(["check", str(tmp_path / "own"), "--held_out_folder", str(tmp_path / "held")]) == 2
    assert f"anima: --held_out_folder={tmp_path / 'held'}: 1 of its pictures are trained" in capsys.readouterr().err


@pytest.mark.parametrize("there", [False, True])
def test_a_held_out_folder_without_pictures_is_named_as_itself(tmp_path, capsys, there):
    many(tmp_path / "own", 2)
    if there:
        (tmp_path / "held").mkdir()
    assert main(["check", str(tmp_path / "own"), "--held_out_folder", str(tmp_path / "held")]) == 2
    assert capsys.readouterr().err.rstrip().endswith("; check --held_out_folder")


def test_a_folder_of_a_dataset_may_be_held_out_whole(tmp_path):
    many(tmp_path / "a", 4)
    write(tmp_path / "b", "only.png", (64, 64), "green")
    datasets = (DatasetConfig((SubsetConfig(str(tmp_path / "a")), SubsetConfig(str(tmp_path / "b"), validation_split=1.0))),)
    holding = Holding()
    ((pictures, report),) = check_datasets(datasets, None, None, holding=holding)
    assert len(pictures) == 4 and [p.name for group in holding.result(datasets).pictures for p in group] == ["only.png"]
    assert "pictures held out of training: 1 (only.png)" in report.notes()
    with pytest.raises(FileError, match="every picture is held out, and none is left to train"):
        check_datasets((dataset(tmp_path / "b", validation_split=1.0),), None, None)

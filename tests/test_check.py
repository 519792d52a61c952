"""`python -m anima_core check`: the data of a training, looked through without a model."""

from pathlib import Path

from anima_core.cli import main
from anima_core.data.cache_folder import INDEX

from .tiny import write


def check(capsys, *argv) -> tuple[int, str, str]:
    status = main(["check", *map(str, argv)])
    out, err = capsys.readouterr()
    return status, out, err


def test_a_folder_is_enough(tmp_path, capsys):
    write(tmp_path, "a.png", (1024, 1024))
    write(tmp_path, "b.png", (1024, 512), "blue", caption="")
    status, out, _ = check(capsys, tmp_path)
    assert status == 0
    assert out.splitlines() == [
        "2 pictures, 2 with repeats",
        "warning: empty captions: 1 (b.txt)",
        "pictures enlarged: 1 (b.png 1024x512 -> 1408x704)",
        "buckets:",
        "  1024x1024: 1 pictures, 1 batches",
        "  1408x704: 1 pictures, 1 batches",
        "one epoch: 2 batches, 2 steps",
    ]
    assert (tmp_path / ".anima_cache" / INDEX).is_file()


def test_strict_makes_warnings_errors(tmp_path, capsys):
    write(tmp_path, "a.png", (1024, 1024), caption="")
    write(tmp_path, "b.png", (1024, 1024), "blue")
    status, out, err = check(capsys, tmp_path, "--strict")
    assert status == 2 and "empty captions" in out
    assert err.splitlines()[-1] == "anima: strict: 1 warnings about the data, see above; repair it, or leave --strict off"
    (tmp_path / "a.txt").write_text("good now", encoding="utf-8")
    assert check(capsys, tmp_path, "--strict")[0] == 0


def test_all_names_every_file(tmp_path, capsys):
    for number in range(9):
        write(tmp_path, f"{number}.png", (1024, 1024), (number, 0, 0), caption="" if number else "one")
    assert "3.txt, … and 5 more)" in check(capsys, tmp_path)[1]
    assert "7.txt, 8.txt)" in check(capsys, tmp_path, "--all")[1]


def test_it_takes_the_files_and_flags_of_training(tmp_path, capsys):
    write(tmp_path / "p", "a.png", (96, 64))
    write(tmp_path / "q", "b.png", (64, 64), "blue")
    subsets = "".join(f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{tmp_path / n}'\n" for n in "pq")
    toml = tmp_path / "data.toml"
    toml.write_text(f"[general]\nbatch_size = 2\nenable_bucket = true\nmin_bucket_reso = 32\n{subsets}", encoding="utf-8")
    flags = ("--gradient_accumulation_steps", 2, "--cache_dir", tmp_path / "cache")
    status, out, _ = check(capsys, "--dataset_config", toml, *flags)
    assert status == 0 and out.startswith("dataset 1\n1 pictures") and "dataset 2\n" in out
    assert out.endswith("one epoch: 2 batches, 1 steps\n")
    assert (tmp_path / "cache" / INDEX).is_file() and not (tmp_path / "p" / ".anima_cache").exists()


def test_a_run_s_frozen_config_is_checked_as_it_is(tmp_path, capsys):
    from anima_core.compat.arguments import write_config

    from .tiny import model_config, train_config

    write(tmp_path / "p", "a.png", caption="")
    write(tmp_path / "p", "b.png", (64, 64), "blue")
    config = train_config(model_config(tmp_path / "models"), tmp_path / "p", tmp_path)
    write_config(config, tmp_path / "run.toml")
    status, out, _ = check(capsys, "--config", tmp_path / "run.toml", "--strict")
    assert status == 2 and "empty captions: 1 (a.txt)" in out


def test_what_cannot_be_looked_at(tmp_path, capsys):
    for argv, text in (((), "No pictures: set"), ((tmp_path / "gone",), "no such folder of pictures")):
        status, out, err = check(capsys, *argv)
        assert (status, out) == (2, "") and text in err and "Traceback" not in err
    assert not Path(tmp_path / "gone").exists()

"""The check of a dataset before training: sizes, captions, and `python -m anima_core check`."""

import sys
from pathlib import Path

from PIL import Image

from anima_core.cli import main
from anima_core.data.cache_folder import INDEX
from anima_core.data.check import check_captions, check_sizes, epoch_line
from anima_core.data.folder import scan
from anima_core.demo.pictures import write_pictures

from . import processes
from .tiny import dataset, write


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
        "pictures without edges, not compared with others: 2 (a.png, b.png)",
        "buckets:",
        "  1024x1024: 1 pictures, 1 batches",
        "  1408x704: 1 pictures, 1 batches",
        "one epoch: 2 batches, 2 steps",
        "tags: 1",
        "  1 a tag",
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


def test_tags_and_copies_are_told(tmp_path, capsys):
    write_pictures(tmp_path, 1)
    (picture,) = tmp_path.glob("*.png")
    Image.open(picture).save(tmp_path / "again.jpg")
    (tmp_path / "again.txt").write_text(", ".join(f"tag {number:02d}" for number in range(30)), encoding="utf-8")
    status, out, _ = check(capsys, tmp_path, "--strict", "--resolution", 128, "--min_bucket_reso", 64)
    assert status == 0 and f"(resized, saved again, mirrored): 1 (again.jpg ~ {picture.name})" in out
    assert "tags: 33, the 20 most frequent\n  1 drawing\n" in out and out.count("\n  1 ") == 20


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
    assert out.endswith("one epoch: 2 batches, 1 steps\ntags: 1\n  2 a tag\n")
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


def diagnosed(folder, t5=None, **changes):
    config = dataset(folder, **changes)
    pictures, report = scan(config)
    check_sizes(config, pictures, report)
    check_captions(pictures, report, t5)
    return report


def test_sizes_are_held_against_buckets(tmp_path):
    write(tmp_path, "small.png", (300, 300))
    write(tmp_path, "fits.png", (1024, 1024), "blue")
    write(tmp_path, "larger.png", (900, 900), "green")
    write(tmp_path, "strip.png", (4000, 100), "white")
    report = diagnosed(tmp_path, batch_size=4)
    warned, noted = "\n".join(report.warnings()), "\n".join(report.notes())
    assert "pictures enlarged to more than twice their side: 2 (small.png 300x300 -> 1024x1024, strip.png 4000x100" in warned
    assert "pictures cropped by more than a quarter: 1 (strip.png 4000x100 -> 4096x256, 60% lost)" in warned
    assert "pictures enlarged: 1 (larger.png 900x900 -> 1024x1024)" in noted
    assert "sparse buckets, their batches stay smaller: 2 (1024x1024: 3 of 4, 4096x256: 1 of 4)" in noted
    assert report.tables == [
        "1024x1024: 3 pictures, 1 batches, the last of 3",
        "4096x256: 1 pictures, 1 batches, the last of 1",
    ]
    assert epoch_line([report], 1) == "one epoch: 2 batches, 2 steps" and epoch_line([report], 2).endswith("1 steps")


def test_long_and_shared_captions_are_listed(tmp_path):
    write(tmp_path, "a.png", colour="red", caption="word " * 600)
    write(tmp_path, "b.png", colour="blue", caption="the same")
    write(tmp_path, "c.png", colour="green", caption="the same")

    class Words:
        def encode(self, captions):
            return [[0] * (len(caption.split()) + 1) for caption in captions]

    report = diagnosed(tmp_path, Words())
    notes = "\n".join(report.notes())
    assert "captions over 512 tokens, kept whole: 1 (a.png: 601)" in notes
    assert "captions that several pictures share: 1 ('the same' 2 times)" in notes


def test_many_names_are_cut_but_counted(tmp_path):
    for number in range(6):
        write(tmp_path, f"{number}.png", colour=(number, 0, 0), caption="" if number else "one")
    report = diagnosed(tmp_path)
    assert report.warnings()[0] == "empty captions: 5 (1.txt, 2.txt, 3.txt, … and 2 more)"
    assert report.warnings(names=9)[0] == "empty captions: 5 (1.txt, 2.txt, 3.txt, 4.txt, 5.txt)"


def test_looking_at_a_folder_loads_no_torch(tmp_path):
    """The check of a folder starts at once."""
    write(tmp_path, "a.png")
    code = "import sys; from anima_core.cli import main; assert main(sys.argv[1:]) == 0; assert 'torch' not in sys.modules"
    done = processes.run([sys.executable, "-c", code, "check", tmp_path])
    assert done.returncode == 0, done.stderr

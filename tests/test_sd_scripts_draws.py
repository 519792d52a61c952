"""Buckets and draws of ten recreated public configurations beside sd-scripts' own.

sd_scripts_draws.json holds both, and says how they were got.
"""

import json
from pathlib import Path

import pytest
from PIL import Image

from anima_core.compat.arguments import config_of
from anima_core.data.buckets import choose_bucket
from anima_core.data.check import check_datasets
from anima_core.settings import DatasetConfig

RECORDED = json.loads(Path(__file__).with_name("sd_scripts_draws.json").read_text(encoding="utf-8"))
REQUIRED = ["--anima_transformer", "t", "--vae", "v", "--qwen", "q", "--t5_tokenizer_dir", "t5"]


def write_pictures(case: dict, root: Path) -> None:
    for folder, pictures in case["folders"].items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, size in pictures.items():
            Image.new("1", tuple(size), 1).save(root / folder / name)
            (root / folder / name).with_suffix(".txt").write_text("a tag", encoding="utf-8")
    for name, entries in case.get("metadata", {}).items():
        (root / name).write_text(json.dumps(entries), encoding="utf-8")


def datasets_of(case: dict, root: Path) -> tuple[DatasetConfig, ...]:
    """Read the case's file or flags as a user would give them."""
    argv = [*REQUIRED, *(word.replace("{root}", root.as_posix()) for word in case.get("argv", []))]
    for kind in ("config", "config_file", "dataset_config"):
        if kind in case:
            (root / "given.toml").write_text("\n".join(case[kind]).replace("{root}", root.as_posix()), encoding="utf-8")
            argv += [f"--{kind}", str(root / "given.toml")]
    return config_of(argv).datasets


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["name"])
def test_the_same_pictures_are_drawn_as_often_at_the_same_size(tmp_path, case):
    write_pictures(case, tmp_path)
    datasets = datasets_of(case, tmp_path)
    found = check_datasets(datasets, None, None)
    differs = {place: tuple(entry["draw"]) for place, entry in case["differs"].items()}
    for dataset, (pictures, report), theirs in zip(datasets, found, case["sd_scripts"], strict=True):
        ours = {
            picture.path.relative_to(tmp_path).as_posix(): (
                *choose_bucket(picture.size, dataset, dataset.resolutions[0]),
                picture.repeats,
            )
            for picture in pictures
        }
        assert ours == {place: tuple(draw) for place, draw in theirs["draws"].items()} | differs
        assert report.draws == sum(draws for _, _, draws in ours.values())
        assert differs or report.batches == theirs["batches"]


def test_what_differs_has_a_reason():
    reasons = [entry["why"] for case in RECORDED["cases"] for entry in case["differs"].values()]
    assert len(RECORDED["cases"]) == 10 and len(reasons) == 2 and all(reasons)

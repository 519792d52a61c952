"""What an adapter file tells those who get it: tags, buckets, words of its author, a thumbnail; and nothing else of anybody."""

import base64
import dataclasses
import io
import json

import pytest
from PIL import Image

from anima_core import train
from anima_core.compat.arguments import config_of
from anima_core.data import metadata
from anima_core.data import tag_chart as tags_drawn
from anima_core.data.batches import build_items
from anima_core.data.folder import Picture
from anima_core.data.metadata import data_metadata, tag_frequency
from anima_core.data.sheets import BLUE, MARGIN
from anima_core.data.tag_chart import tag_chart
from anima_core.data.tags import count_tags, ranked, tag_lines
from anima_core.errors import FileError, SettingError
from anima_core.models.checkpoint import read_header, read_metadata
from anima_core.settings import DatasetConfig, MetadataConfig, OutputConfig, SampleConfig, SubsetConfig
from anima_core.training.preflight import preflight
from anima_core.training.previews import newest

from .test_foreign_adapters import flags, notes_on
from .tiny import train_config, write


def picture(tmp_path, name: str, caption: str, folder="10_somebody", size=(640, 512), repeats=2, **subset) -> Picture:
    return Picture(tmp_path / folder, name, SubsetConfig(image_dir=str(tmp_path), **subset), repeats, size, name, caption)


def test_tags_are_counted_by_folder_as_sd_scripts_writes_them(tmp_path):
    pictures = [
        picture(tmp_path, "a", "1girl, Red Hair,  smile,"),
        picture(tmp_path, "b", "1girl, red hair, red hair"),
        picture(tmp_path, "c", "1girl", folder="other"),
        picture(tmp_path, "d", f"sketch\na line of prose that is {'very ' * 20}long, solo", folder="other"),
    ]
    found = tag_frequency(pictures)
    assert found == {"10_somebody": {"1girl": 2, "red hair": 2, "smile": 1}, "other": {"1girl": 1, "sketch": 1, "solo": 1}}
    assert list(found["10_somebody"])[-1] == "smile"


def test_separators_and_the_words_of_a_subset_are_those_of_training(tmp_path):
    one = picture(
        tmp_path,
        "a",
        "x|y ;; z ||| w",
        caption_prefix="trigger|",
        caption_separator="|",
        secondary_separator=";;",
        keep_tokens_separator="|||",
    )
    assert tag_frequency([one]) == {"10_somebody": dict.fromkeys(["trigger", "x", "y", "z", "w"], 1)}


def test_tags_of_a_dataset_are_counted_once_for_each_picture_and_drawn_as_bars(tmp_path):
    pictures = [
        *[picture(tmp_path, str(n), f"Drawing, tag {n:02d}{', half' if n % 2 else ''}", folder=str(n % 3)) for n in range(60)],
        picture(tmp_path, "prose", "x" * 101),
    ]
    counts = count_tags([*pictures, *pictures[:9]])
    assert counts["drawing"] == 60 and counts["half"] == 30 and len(counts) == 62
    assert ranked(counts, 3) == [("drawing", 60), ("half", 30), ("tag 00", 1)]
    assert tag_lines(pictures)[:3] == ["tags: 62, the 20 most frequent", "  60 drawing", "  30 half"]
    assert len(tag_lines(pictures)) == 21 and tag_lines(pictures[-1:]) == []
    chart = tag_chart(pictures)
    bars = [
        [chart.getpixel((x, MARGIN + tags_drawn.HEAD + row * tags_drawn.LINE + 8)) for x in range(chart.width)].count(BLUE)
        for row in range(tags_drawn.TAGS_DRAWN)
    ]
    assert bars[0] == pytest.approx(tags_drawn.BAR * 60 / 61, abs=2) and bars[1] == pytest.approx(bars[0] / 2, abs=2)
    assert 0 < bars[39] < 10 and chart.height == 2 * MARGIN + tags_drawn.HEAD + 40 * tags_drawn.LINE
    title = "62 tags in the captions of 61 pictures, the 40 most frequent; 1 without a tag"
    assert tags_drawn.chart_title(61, len(counts), 1) == title
    assert tag_chart(pictures[-1:]).height < 100


def test_buckets_and_folders_are_told_in_sd_scripts_form(tmp_path):
    dataset = DatasetConfig((SubsetConfig(image_dir="x"),), resolutions=((512, 512),))
    pictures = [picture(tmp_path, "a", "t", size=(512, 512), repeats=3), picture(tmp_path, "b", "t", size=(1024, 512))]
    found = data_metadata(build_items([dataset], [pictures]))
    wide = build_items([dataset], [pictures])[-1].bucket
    info = json.loads(found["ss_bucket_info"])
    assert info["buckets"] == {
        "0": {"resolution": [512, 512], "count": 3},
        "1": {"resolution": list(wide), "count": 2},
    }
    assert info["mean_img_ar_error"] == pytest.approx(abs(wide[0] / wide[1] - 2) / 2)
    assert found["ss_num_train_images"] == "5" and found["ss_num_pictures"] == "2"
    assert json.loads(found["ss_dataset_dirs"]) == {"10_somebody": {"n_repeats": 2, "img_count": 2}}
    assert str(tmp_path) not in json.dumps(found)
    assert "ss_tag_frequency" not in data_metadata(build_items([dataset], [pictures]), with_tags=False)


def test_tags_are_bounded_and_the_most_frequent_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "MOST_TAGS", 3)
    pictures = [picture(tmp_path, str(n), ", ".join([f"once {n}", "often", *["sometimes"] * (n % 2)])) for n in range(40)]
    found = tag_frequency(pictures)["10_somebody"]
    assert len(found) == 3 and found["often"] == 40 and found["sometimes"] == 20


def test_a_run_writes_what_managers_show(model, tmp_path):
    write(tmp_path / "pictures", "a.png", caption="red circle, on white")
    words = {name: f"some {name}" for name in ("author", "description", "license", "tags", "usage_hint", "trigger_phrase")}
    samples = SampleConfig(prompts=("red circle",), width=64, height=64, steps=1, cfg=1.0, every_n_steps=1)
    config = train_config(
        model,
        tmp_path / "pictures",
        tmp_path,
        samples=samples,
        max_train_steps=2,
        metadata=MetadataConfig(title="A title", **words),
    )
    path = train(config).adapter_path
    found = read_metadata(path)
    assert found["modelspec.title"] == "A title" and all(found[f"modelspec.{name}"] == text for name, text in words.items())
    assert found["ss_num_blocks"] == "2" and found["ss_mixed_precision"] == "float32"
    assert json.loads(found["ss_tag_frequency"]) == {"pictures": {"red circle": 1, "on white": 1}}
    head, _, data = found["modelspec.thumbnail"].partition(",")
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert head == "data:image/jpeg;base64" and shown.size == (64, 64) and shown.format == "JPEG"
    assert len(read_header(path)) > 0


def test_a_picture_of_the_users_is_made_small_and_loses_what_its_camera_wrote(model, tmp_path):
    write(tmp_path / "pictures", "a.png")
    exif = Image.Exif()
    exif[0x010F] = "hidden camera"
    Image.new("RGB", (900, 600), "blue").save(tmp_path / "cover.jpg", exif=exif)
    about = MetadataConfig(picture=str(tmp_path / "cover.jpg"))
    config = train_config(model, tmp_path / "pictures", tmp_path, max_train_steps=1, metadata=about)
    found = read_metadata(train(config).adapter_path)
    data = base64.b64decode(found["modelspec.thumbnail"].partition(",")[2])
    assert Image.open(io.BytesIO(data)).size == (256, 171) and b"hidden camera" not in data
    assert str(tmp_path) not in json.dumps(found) and '"picture": "cover.jpg"' in found["anima_trainer.config"]
    off = dataclasses.replace(
        config, metadata=MetadataConfig(thumbnail=False, tag_frequency=False), output=OutputConfig(str(tmp_path), "b")
    )
    found = read_metadata(train(off).adapter_path)
    assert "modelspec.thumbnail" not in found and "ss_tag_frequency" not in found and found["modelspec.title"] == "b"
    (tmp_path / "cover.jpg").write_bytes(b"no picture")
    with pytest.raises(FileError, match="cover.jpg: cannot be read as a picture"):
        preflight(config)


def test_the_newest_preview_is_that_of_the_last_step_so_far(tmp_path):
    assert newest(tmp_path, 9) is None
    for name in ("step-00000002-0.png", "step-00000004-1.png", "step-00000004-0.png", "step-00000008-0.png", "step-x-0.png"):
        (tmp_path / name).write_bytes(b"")
    assert newest(tmp_path, 6).name == "step-00000004-0.png" and newest(tmp_path, 1) is None


def test_sd_scripts_flags_of_metadata_act(model, tmp_path):
    given = ["--metadata_title", "T", "--metadata_author", "A", "--metadata_description", "D", "--metadata_license", "L"]
    given += ["--metadata_tags", "a, b", "--metadata_trigger_phrase", "xyz", "--metadata_usage_hint", "0.8", "--no-thumbnail"]
    given += ["--metadata_thumbnail", "c.png", "--metadata_merged_from", "m"]
    read = config_of(flags(model, "")[:-2] + given).metadata
    assert read == MetadataConfig("T", "A", "D", "L", "a, b", "0.8", "xyz", "c.png", thumbnail=False)
    assert "metadata_merged_from has no effect" in notes_on(flags(model, "")[:-2] + given)
    with pytest.raises(SettingError, match="metadata.description=30,000 characters: must have at most 20,000"):
        MetadataConfig(description="x" * 30_000)

"""Previews of held-out captions: what is drawn, and the pictures that they are compared with."""

import dataclasses
import json

import pytest
from PIL import Image

from anima_core.data.measured import measured_items
from anima_core.data.pictures import fit
from anima_core.report import contact_sheet, read_story, table_of
from anima_core.report.pictures import ORIGINAL
from anima_core.run_history import samples_in
from anima_core.settings import HeldOutConfig, SampleConfig
from anima_core.training.loop import train
from anima_core.training.preflight import preflight
from anima_core.training.previews import newest, too_few

from .tiny import train_config, write

CAPTION = "red circle --w 512"  # in a caption that is no flag


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("held-out")
    for name, colour in (("a", "red"), ("b", "green"), ("c", "blue"), ("d", "white")):
        write(folder / "pics", f"{name}.png", (128, 96), colour, CAPTION)
    samples = SampleConfig(prompts=("red circle",), held_out=1, width=64, height=64, steps=1, cfg=2.0, at_end=True)
    config = train_config(model, folder / "pics", folder, samples=samples, held_out=HeldOutConfig(count=2), max_train_steps=2)
    events = []
    return config, train(config, events.append), events


def test_a_held_out_caption_is_drawn_at_its_pictures_size_beside_the_picture(run):
    config, result, events = run
    folder = result.run_dir / "samples"
    assert sorted(path.name for path in folder.iterdir()) == [
        "original-1.png",
        "step-00000002-0.png",
        "step-00000002-1.png",
    ]
    assert [event["prompt"] for event in events if event["event"] == "sample"] == ["red circle", CAPTION]
    original, drawn = Image.open(folder / "original-1.png"), Image.open(folder / "step-00000002-1.png")
    assert original.size == drawn.size != (64, 64)
    (item, *_) = measured_items(preflight(config).held_out, config.held_out)
    assert original.tobytes() == fit(Image.open(item.picture.path).convert("RGB"), item.bucket, flip=False).tobytes()


def test_originals_are_no_samples_and_stand_first_in_a_report(run):
    _, result, _ = run
    folder = result.run_dir
    assert sorted(samples_in(folder)) == ["step-00000002-0.png", "step-00000002-1.png"]
    assert newest(folder / "samples", 2).name == "step-00000002-0.png"
    table = table_of(read_story(folder))
    assert table.steps == [ORIGINAL, 2] and table.left_out == 0
    assert [prompt for step, prompt in table.cells if step == ORIGINAL] == [(1, CAPTION)]
    assert contact_sheet(table).height > contact_sheet(dataclasses.replace(table, steps=[2], cells=without(table))).height


def without(table):
    return {key: path for key, path in table.cells.items() if key[0] != ORIGINAL}


def test_fewer_than_asked_for_is_told_before_anything_loads(run):
    config, _, events = run
    many = dataclasses.replace(config, samples=dataclasses.replace(config.samples, held_out=3))
    (told,) = (text for text in preflight(many).warnings if "sample.held_out" in text)
    assert told == "`sample.held_out`=3: 2 pictures are held out; hold more out with `held_out.share`"
    assert not any("sample.held_out" in event.get("text", "") for event in events)
    assert too_few(SampleConfig(), preflight(config).held_out) == []
    assert SampleConfig(held_out=1, at_end=True).warnings() == []
    start = next(event for event in events if event["event"] == "start")
    json.dumps(start)
    assert start["prompts"] > 0

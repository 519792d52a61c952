"""Several caption files of a picture, trigger words, renames, a blacklist: drawn by weight, applied always, counted."""

import dataclasses
import json
import re
from collections import Counter
from itertools import permutations

import pytest
import torch
from safetensors.torch import load_file

from anima_core import train
from anima_core.compat.arguments import config_from_file, config_of
from anima_core.data.batches import Item, build_items
from anima_core.data.caption_rules import rules_met
from anima_core.data.captions import process_caption
from anima_core.data.check import check_datasets
from anima_core.data.drawn_captions import caption_variant
from anima_core.data.folder import scan
from anima_core.data.index import FileIndex
from anima_core.data.metadata import tags_of
from anima_core.errors import SettingError
from anima_core.run_store import run_key
from anima_core.settings import OutputConfig, SubsetConfig, TrainConfig
from anima_core.training.preflight import preflight
from anima_core.training.prepare import all_captions
from anima_core.training.resume import contents

from .test_check import check
from .test_sets import REQUIRED
from .test_training import log_of
from .tiny import dataset, same_tensors, train_config, write


def draw(text: str, seed=0, **options) -> str:
    return process_caption(text, SubsetConfig("pictures", **options), torch.Generator().manual_seed(seed), False)


def of_flags(*flags: object) -> TrainConfig:
    required = [word for name, value in REQUIRED.items() for word in (f"--{name}", value)]
    return config_of([*required, *map(str, flags)])


def items_of(config: TrainConfig) -> list[Item]:
    return build_items(config.datasets, [scan(one)[0] for one in config.datasets])


# --- several files


def several(folder, **changes):
    """Picture a has all three files, b only text."""
    write(folder, "a.png", caption="1girl, solo")
    (folder / "a.nl.txt").write_text("A girl, alone.", encoding="utf-8")
    (folder / "a.json").write_text(json.dumps({"tags": ["j", "k"], "nl": "N."}), encoding="utf-8")
    write(folder, "b.png", colour="blue", caption="cat")
    return dataset(folder, caption_sources=(".txt=2", "nl.txt=1", ".json"), **changes)


def test_one_of_several_files_is_drawn_by_weight(tmp_path):
    (a, b), report = scan(several(tmp_path))
    generator = torch.Generator().manual_seed(0)
    counts = Counter(process_caption(a.caption, a.subset, generator, False, a.sources) for _ in range(4000))
    assert counts.keys() == {"1girl, solo", "A girl, alone.", "j, k. N."}
    assert abs(counts["1girl, solo"] - 2000) < 130 and abs(counts["j, k. N."] - 1000) < 110  # four standard deviations
    assert {process_caption(b.caption, b.subset, generator, False, b.sources) for _ in range(50)} == {"cat"}
    assert report.warnings() == []
    assert report.notes() == [
        "pictures without a caption in .json (their others are drawn): 1 (b.png)",
        "pictures without a caption in .nl.txt (their others are drawn): 1 (b.png)",
    ]
    assert a.subset.varies


def test_an_unchanged_folder_is_recalled_with_all_its_captions(tmp_path):
    config = several(tmp_path / "p", shuffle_caption=True)
    with FileIndex(tmp_path / "index.sqlite") as index:
        first = scan(config, index)
        index._write("UPDATE folders SET key = key", [()])
        again = scan(config, index)
    assert again[0] == first[0] and hash(again[0][0]) == hash(first[0][0])
    assert again[1].findings == first[1].findings


def test_every_caption_that_a_run_meets_was_listed_before(model, tmp_path):
    several(tmp_path / "p")
    options = dict(
        caption_sources=(".txt=2", ".nl.txt", ".json"), shuffle_caption=True, category_dropout=("nl=0.5", "general=0.3")
    )
    for variants in (0, 12):
        config = train_config(model, tmp_path / "p", tmp_path / "o", subset=options, caption_variants=variants)
        items = items_of(config)
        listed = set(all_captions(items, config, epochs=20))
        met = {caption_variant(item, epoch, config.seed, variants) for item in items for epoch in range(20)}
        assert met <= listed and len(met) > 4
        assert listed - {""} == met - {""}


def test_a_changed_caption_file_is_another_run(model, tmp_path):
    """Also where only the category of a tag is another, and nothing else shows."""
    several(tmp_path / "p")
    config = train_config(model, tmp_path / "p", tmp_path / "o", subset=dict(caption_sources=(".txt", ".json")))
    seen = set()
    for data in ({"tags": ["j", "k"]}, {"tags": ["j"], "environment": ["k"]}, {"tags": ["j", "l"]}):
        (tmp_path / "p" / "a.json").write_text(json.dumps(data), encoding="utf-8")
        plan = preflight(config)
        seen.add((run_key(plan), contents(config, plan.pictures, ())["content of the data"]))
    assert len({key for key, _ in seen}) == len({data for _, data in seen}) == 3


JSON = {"quality": "safe", "artist": "@somebody", "tags": ["red", "circle"], "nl": "A red circle."}
EVERY = dict(
    caption_sources=(".json=2", ".txt"),
    shuffle_caption=True,
    category_dropout=("artist=0.5", "nl=0.5"),
    caption_replace=("circle => disc", 're:^(\\w)\\b => "\\1 1"'),
    caption_trigger="sks",
    caption_dropout_rate=0.2,
)


@pytest.mark.slow
def test_a_training_with_every_caption_option_goes_on_exactly(model, tmp_path):
    for name in "ab":
        write(tmp_path / "p", f"{name}.png", (64, 64), (ord(name), 0, 0), caption=f"{name}, circle")
        (tmp_path / "p" / f"{name}.json").write_text(json.dumps(JSON), encoding="utf-8")

    def config(folder, **output):
        output = OutputConfig(dir=str(tmp_path / folder), name="test", save_dtype="fp32", **output)
        changes = dict(subset=EVERY, caption_variants=2, max_train_steps=4, output=output)
        return train_config(model, tmp_path / "p", tmp_path / folder, **changes)

    whole = train(config("whole"))
    half = dataclasses.replace(config("half", save_state=True), max_train_steps=2)
    train(half)
    again = train(config("half", resume="latest"))
    assert again.steps == whole.steps == 4
    assert same_tensors(load_file(whole.adapter_path), load_file(again.adapter_path))
    assert any("circle => disc" in e["text"] for e in log_of(whole) if e["event"] == "note")


# --- rules


def test_renames_meet_whole_tags_and_patterns_everything():
    rules = ("Red_Hair => redhead", "re:^(\\w+) eyes$ => eyes of \\1", "gone =>", 're:(?<!score)_ => " "')
    text = "red hair, blue eyes, red hair ribbon, gone, score_9, long_coat\nHer red hair, and a_b."
    assert (
        draw(text, caption_replace=rules)
        == "redhead, eyes of blue, red hair ribbon, score_9, long coat\nHer red hair, and a b."
    )


def test_a_blacklist_leaves_tags_out_and_keeps_sentences():
    options = dict(caption_blacklist=("SOLO", "re:^bad "), keep_tokens=1, shuffle_caption=True)
    drawn = {draw("solo, first, a, bad hands, b\nShe is solo.", seed, **options) for seed in range(30)}
    assert drawn == {"first, a, b\nShe is solo.", "first, b, a\nShe is solo."}


def test_renames_come_before_the_blacklist_and_in_their_order():
    assert draw("a, x", caption_replace=("a => b", "b => c"), caption_blacklist=("c",)) == "x"


@pytest.mark.parametrize(
    "text, caption",
    [
        ("a, b", "sks, a, b"),
        ("a, SKS, b", "sks, a, b"),  # a tag comes to the front
        ("", "sks"),
        ("a, sks girl", "a, sks girl"),
        ("A photo of sks.", "A photo of sks."),
        ("asks, b", "sks, asks, b"),
        ("a\nHere is Sks.", "a\nHere is Sks."),
    ],
)
def test_a_trigger_stands_first_unless_the_caption_has_it(text, caption):
    assert draw(text, caption_trigger="sks") == caption


def test_a_trigger_is_never_shuffled_or_left_out():
    options = dict(caption_trigger="sks, my style", shuffle_caption=True, caption_tag_dropout_rate=0.9, keep_tokens=1)
    for seed in range(40):
        tags = draw("a, b, my style, c", seed, **options).split(", ")
        assert sorted(tags[:2]) == ["my style", "sks"] and tags[2] == "a"


def test_a_rename_may_make_several_tags_which_later_rules_see():
    rules = dict(caption_replace=("common => one, two, three", "TWO => zwei"), caption_blacklist=("three",))
    assert draw("common, a", **rules) == "one, zwei, a"
    assert {draw("common", seed, caption_replace=rules["caption_replace"], shuffle_caption=True) for seed in range(60)} == {
        ", ".join(order) for order in permutations(("one", "zwei", "three"))
    }
    own = SubsetConfig("x", **rules)
    assert rules_met(["common"], "", own) == {*rules["caption_replace"], "three"}


def test_captions_that_rules_leave_empty_are_warned_of(tmp_path):
    for number, (name, caption) in enumerate({"a": "solo", "b": "solo, x", "c": "", "d": "Solo\nA."}.items()):
        write(tmp_path, f"{name}.png", colour=(number, 0, 0), caption=caption)

    def emptied(**rules):
        ((_, report),) = check_datasets([dataset(tmp_path, **rules)], None, None)
        return [finding.names for what, finding in report.findings.items() if what == "captions that rules leave empty"]

    assert emptied(caption_blacklist=("solo",)) == [["a.png"]]
    assert emptied(caption_replace=("re:(?i)solo|A. =>",)) == [["a.png", "d.png"]]
    assert emptied(caption_blacklist=("solo",), caption_trigger="sks") == emptied() == []


def test_rules_that_meet_captions_are_counted_and_the_others_warned_of(tmp_path):
    write(tmp_path, "a.png", caption="1girl, solo\nA solo girl.")
    write(tmp_path, "b.png", colour="blue", caption=None)
    (tmp_path / "b.json").write_text(json.dumps({"tags": ["solo"], "nl": "Words_here."}), encoding="utf-8")
    rules = dict(caption_replace=("solo => alone", "re:_ => x"), caption_blacklist=("ALONE", "words_here.", "nothing"))
    ((_, report),) = check_datasets([dataset(tmp_path, caption_extension=".json", **rules)], None, None)
    found = {what: finding.names for what, finding in report.findings.items() if "rule" in what}
    assert found == {
        "captions with what the rule 'solo => alone' is for": ["a.png", "b.png"],
        "captions with what the rule 're:_ => x' is for": ["b.png"],
        "captions with what the rule 'ALONE' is for": ["a.png", "b.png"],
        "rules for tags that no caption has": ["'nothing'", "'words_here.'"],
    }


def test_metadata_counts_the_tags_that_are_trained(tmp_path):
    write(tmp_path, "a.png", caption=None)
    (tmp_path / "a.json").write_text(json.dumps({"artist": "@A", "tags": "x, y", "nl": "Short."}), encoding="utf-8")
    rules = dict(caption_replace=("x => z",), caption_blacklist=("y",), caption_trigger="sks")
    (picture,), _ = scan(dataset(tmp_path, caption_extension=".json", **rules))
    assert tags_of(picture) == {"@a", "z", "sks"}


@pytest.mark.parametrize(
    "caption, tags",
    [
        ("a, b", {"a", "b", "sks"}),
        ("a, SKS", {"a", "sks"}),
        ("a, sks girl", {"a", "sks girl"}),  # it is there as a word, and is not put in front
    ],
)
def test_metadata_counts_a_trigger_where_it_is_or_is_put(tmp_path, caption, tags):
    write(tmp_path, "a.png", caption=caption)
    (picture,), _ = scan(dataset(tmp_path, caption_trigger="sks"))
    assert tags_of(picture) == tags


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(caption_replace=("old new",)), "subset.caption_replace='old new': write old => new, or re:pattern => new"),
        (
            dict(caption_replace=("re:a => \\1",)),
            "subset.caption_replace='re:a => \\\\1': is no pattern (invalid group reference 1",
        ),
        (dict(caption_blacklist=("re:(",)), "subset.caption_blacklist='re:(': is no pattern (missing )"),
        (dict(caption_blacklist=("re:",)), "subset.caption_blacklist='re:': name a tag, or a pattern"),
        (dict(caption_sources=(".txt=0",)), "subset.caption_sources='.txt=0': a weight must be above 0"),
        (dict(caption_sources=(".txt", "txt=2")), "subset.caption_sources='txt=2': name each ending once"),
    ],
)
def test_wrong_rules_are_refused(options, message):
    with pytest.raises(SettingError) as error:
        SubsetConfig("x", **options)
    assert str(error.value).startswith(message)


# --- what people type, and what front ends write


def test_check_shows_captions_as_they_are_trained(tmp_path, capsys):
    write(tmp_path, "a.png", (64, 64), caption="x, y, z")
    write(tmp_path, "b.png", (64, 64), "blue", caption="w")
    flags = [
        "--resolution",
        64,
        "--captions",
        2,
        "--shuffle_caption",
        "--caption_trigger",
        "sks",
        "--caption_blacklist",
        "z",
        "w",
    ]
    status, out, _ = check(capsys, tmp_path, *flags)
    lines = re.sub(r"\d+ tokens: ", "", out).splitlines()  # told where a T5 tokenizer is found
    start = lines.index("captions as they are trained with seed 42:")
    config = of_flags("--train_data_dir", tmp_path, *flags[:2], *flags[4:])
    item, other = items_of(config)
    drawn = [caption_variant(item, epoch, config.seed, 16) for epoch in range(4)]
    assert status == 0 and set(drawn) == {"sks, x, y", "sks, y, x"}
    epochs = [f"    epoch {n + 1}, {text}" for n, text in enumerate(drawn)]
    assert lines[start + 1 :] == ["  a.png", *epochs, "  b.png", "    always, sks"]
    assert "captions as they" not in check(capsys, tmp_path)[1] and other.picture.name == "b.png"


@pytest.mark.parametrize(
    "prefers, extension, read", [(True, ".txt", ".json"), (True, ".tags", ".tags"), (False, ".txt", ".txt")]
)
def test_a_front_end_that_prefers_json_has_it_read(tmp_path, prefers, extension, read):
    write(tmp_path / "p", "a.png")
    said = f"prefer_json_caption = {str(prefers).lower()}\ncaption_extension = '{extension}'\n"
    models = "".join(f"{key} = 'x'\n" for key in ("pretrained_model_name_or_path", "vae", "qwen3", "t5_tokenizer_dir"))
    flat = tmp_path / "flat.toml"
    flat.write_text(f"{models}train_data_dir = '{tmp_path / 'p'}'\noutput_name = 'x'\n{said}", encoding="utf-8")
    config, notes = config_from_file(flat)
    assert config.datasets[0].subsets[0].caption_extension == read and not [n for n in notes if "json" in n]
    toml = tmp_path / "d.toml"
    toml.write_text(f"[general]\n{said}[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path / 'p'}'\n", encoding="utf-8")
    assert of_flags("--dataset_config", toml).datasets[0].subsets[0].caption_extension == read


def test_a_dataset_file_has_all_of_them(tmp_path):
    toml = tmp_path / "d.toml"
    own = "caption_sources = ['.txt=2', '.json']\ncaption_replace = ['a => b']\ncategory_dropout = ['artist=0.3']\n"
    toml.write_text(f"[general]\n{own}[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{tmp_path}'\n", encoding="utf-8")
    subset = of_flags("--dataset_config", toml).datasets[0].subsets[0]
    assert subset.caption_sources == (".txt=2", ".json") and subset.caption_replace == ("a => b",)
    assert subset.category_dropout == ("artist=0.3",)

"""JSON captions: every form that is written, rendered in Anima's order beside a slow reference; chances by category."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anima_core.data.caption_sources import Source, whole_caption
from anima_core.data.captions import process_caption
from anima_core.data.folder import scan
from anima_core.data.json_captions import read_json_caption
from anima_core.errors import FileError, SettingError
from anima_core.settings import SubsetConfig
from anima_core.settings.captions import ORDER

from .test_sets import warned
from .tiny import dataset, write

STUDIO = {
    "fixed": {"quality": "newest, safe", "series": "vocaloid", "artist": "@wlop"},
    "character": {"name": "hatsune miku", "variant": "school"},
    "from_path": {"appearance": ["twintails"]},
    "ai_output": {
        "count": "1girl",
        "appearance": ["long hair", "Twintails"],
        "tags": ["singing", "smile"],
        "environment": ["stage"],
        "nl": "Miku sings on a stage.",
    },
}
PLAIN = {
    "nl": "Miku sings on a stage.",
    "environment": "stage",
    "tags": "singing, smile",
    "appearance": ["twintails", "long hair"],
    "artist": "@wlop",
    "series": ["vocaloid"],
    "character": ["hatsune miku", "school"],
    "count": "1girl",
    "quality": ["newest", "safe"],
}
MIKU = "newest, safe, 1girl, hatsune miku, school, vocaloid, @wlop, twintails, long hair, singing, smile, stage. "
MIKU += "Miku sings on a stage."
FORMS = [
    (STUDIO, MIKU),
    (PLAIN, MIKU),
    ({"tags": {key: value for key, value in PLAIN.items() if key != "nl"}, "nl": PLAIN["nl"]}, MIKU),
    ({"caption": "A cat.", "tags": "cat, red"}, "cat, red. A cat."),
    ({"caption": "A cat"}, "A cat"),
    (["cat", "red, big"], "cat, red, big"),
    ("cat, red\nA cat.", "cat, red. A cat."),
    ({"Rating": "safe", "year": 2024, "meta": ["highres"], "general": "cat"}, "safe, year 2024, highres, cat"),
    (
        {"copyright": "x", "artists": ["@a", "@b"], "characters": "c", "description": ["One.", "Two."]},
        "c, x, @a, @b. One. Two.",
    ),
    ({"quality": None, "tags": [], "nl": ""}, ""),
    ([], ""),
]


def subset(**options) -> SubsetConfig:
    return SubsetConfig(image_dir="pictures", caption_extension=".json", **options)


def source(data) -> Source:
    tags, prose, _ = read_json_caption(json.dumps(data))
    return Source(".json", prose, tags)


def draw(data, seed=0, **options) -> str:
    return process_caption("", subset(**options), torch.Generator().manual_seed(seed), False, (source(data),))


@pytest.mark.parametrize("data, caption", FORMS, ids=[caption for _, caption in FORMS])
def test_every_form_is_read_and_rendered_in_anima_s_order(data, caption):
    assert draw(data) == whole_caption(source(data), subset()) == caption
    assert draw(data, shuffle_caption=True, category_shuffle=("appearance=0", "general=0", "environment=0")) == caption


def test_what_is_not_read_is_named():
    data = {
        "id": 7,
        "score": 9,
        "ai_output": {"mood": "x", "tags": ["a", 3]},
        "character": {"name": "c", "age": 9},
        "nl": {"en": "x"},
    }
    assert read_json_caption(json.dumps(data)).unread == (
        "id",
        "score",
        "ai_output.mood",
        "ai_output.tags (not text)",
        "character.age",
        "nl (not text)",
    )


TAGS = st.lists(st.text("abcdefg ", min_size=1).map(str.strip).filter(bool), max_size=4, unique=True)


@given(st.dictionaries(st.sampled_from(ORDER[:-1]), TAGS), st.sampled_from(["", "A cat.", "A cat"]), st.permutations(ORDER))
def test_a_caption_is_rendered_as_by_the_slow_reference(tags, prose, order):
    """The reference writes one word after the other, and looks at the end of what there is."""
    text = ""
    for category in order:
        for piece in [prose] * bool(prose) if category == "nl" else tags.get(category, []):
            sentence = category == "nl" or (prose and text.rstrip(".").endswith("cat") and "A cat" in text[-7:])
            text += (". " if not text.endswith(".") else " ") * bool(text) if sentence else ", " * bool(text)
            text += piece
    own = Source(".json", prose, tuple((name, tuple(some)) for name, some in tags.items()))
    assert whole_caption(own, subset(caption_order=tuple(order))) == text
    generator = torch.Generator().manual_seed(1)
    assert process_caption("", subset(caption_order=tuple(order)), generator, False, (own,)) == text


def test_an_order_that_is_named_in_part_goes_on_in_anima_s():
    assert draw(PLAIN, caption_order=("nl", "artist")).startswith("Miku sings on a stage. @wlop, newest, safe, 1girl, hatsune")


def test_shuffling_stays_within_the_general_categories_as_in_the_studio():
    data = {
        "quality": "q, r",
        "artist": "@a, @b",
        "appearance": list("abcd"),
        "tags": list("efgh"),
        "environment": "x",
        "nl": "N.",
    }
    drawn = {draw(data, seed, shuffle_caption=True) for seed in range(60)}
    assert len(drawn) > 40
    for text in drawn:
        tags = text.removesuffix(". N.").split(", ")
        assert tags[:4] == ["q", "r", "@a", "@b"] and tags[-1] == "x"
        assert (sorted(tags[4:8]), sorted(tags[8:12])) == (list("abcd"), list("efgh"))


def test_the_chances_of_each_category_are_met():
    data = {"artist": "@a, @b", "tags": [f"t{n}" for n in range(10)], "quality": "q", "environment": "e", "nl": "N."}
    own = subset(
        caption_tag_dropout_rate=0.2,
        category_dropout=("artist=0.3", "nl=0.5", "environment=0"),
        category_shuffle=("artist=0.25",),
    )
    generator, counts, orders, draws = torch.Generator().manual_seed(0), Counter(), Counter(), 4000
    for _ in range(draws):
        text = process_caption("", own, generator, False, (source(data),))
        tags = text.removesuffix(" N.").rstrip(".").split(", ")
        counts.update(tag[0] for tag in tags)
        counts["N"] += text.endswith("N.")
        artists = [tag for tag in tags if tag[0] == "@"]
        orders[tuple(artists)] += 1
        assert [tag for tag in tags if tag[0] == "t"] == sorted(tag for tag in tags if tag[0] == "t")
    assert counts["q"] == counts["e"] == draws
    expected = {"@": (2 * draws, 0.7), "t": (10 * draws, 0.8), "N": (draws, 0.5)}
    for name, (number, chance) in expected.items():
        assert abs(counts[name] - number * chance) < 4 * (number * chance * (1 - chance)) ** 0.5
    both = orders["@a", "@b"] + orders["@b", "@a"]
    assert abs(orders["@b", "@a"] - both / 8) < 4 * (both * 0.125 * 0.875) ** 0.5  # half of the quarter that is shuffled


def test_text_captions_are_general_with_sentences_behind_the_first_line():
    text = "keep, a, b, c\nA cat."
    own = subset(keep_tokens=1, category_shuffle=("general",), category_dropout=("general=0.5", "nl=0.5", "artist=1"))
    drawn = [process_caption(text, own, torch.Generator().manual_seed(seed), False) for seed in range(200)]
    assert all(one.startswith("keep") for one in drawn)
    assert 70 < sum(one.endswith("\nA cat.") for one in drawn) < 130 and len({one.split("\n")[0] for one in drawn}) == 16
    assert SubsetConfig("x", category_dropout=("nl=0.5",)).varies and not SubsetConfig("x", category_dropout=("nl=0",)).varies


def test_wildcards_prefix_and_separators_act_on_json_too():
    data = {"count": "1girl", "tags": ["{red|blue} hair", "a;;b"], "nl": "She {sits|stands}."}
    options = dict(enable_wildcard=True, caption_prefix="p,", caption_suffix="end", secondary_separator=";;")
    drawn = {draw(data, seed, **options) for seed in range(40)}
    assert drawn == {f"p, 1girl, {c} hair, a,b. She {v}. end" for c in ("red", "blue") for v in ("sits", "stands")}


def test_wildcards_may_hold_commas_and_braces_of_emoticons_do_not():
    drawn = {draw({"tags": "{red|blue, green}, x"}, seed, enable_wildcard=True) for seed in range(20)}
    assert drawn == {"red, x", "blue, green, x"}
    drawn = {draw({"tags": "{red|blue, no}, x"}, seed, enable_wildcard=True, caption_blacklist=("no",)) for seed in range(20)}
    assert drawn == {"red, x", "blue, x"}
    assert source({"tags": ":{, a, :}, {b, c}"}).tags == (("general", (":{", "a", ":}", "{b", "c}")),)


def test_control_characters_become_no_braces():
    assert draw({"tags": "a\0b, \1", "nl": "\0N.\1"}, enable_wildcard=True) == "ab. N."


def test_a_tag_in_two_categories_stands_once():
    assert draw({"tags": ["Solo", "a"], "count": ["1girl", "solo"], "environment": "A"}) == "1girl, solo, a"


@pytest.mark.parametrize("data", [{"tags": "", "nl": ""}, {"tags": []}, {"fixed": {"quality": ""}}, {"tags": "\0"}])
def test_fields_that_are_empty_are_no_caption(data):
    assert source(data).is_empty and not source({"tags": "", "count": "1girl"}).is_empty


def test_a_folder_of_json_captions(tmp_path):
    for name, text in (("a", json.dumps(STUDIO | {"mood": "x"})), ("b", "")):
        write(tmp_path, f"{name}.png", colour=(0, 0, ord(name)), caption="in text")
        (tmp_path / f"{name}.json").write_text(text, encoding="utf-8")
    write(tmp_path, "c.png", caption="only text\nhere")
    (tmp_path / "c.nl.txt").write_text("x", encoding="utf-8")
    pictures, report = scan(dataset(tmp_path, caption_extension="json"))
    assert [p.caption for p in pictures] == [MIKU, "", "only text\nhere"]
    assert [bool(p.sources) for p in pictures] == [True, True, False]
    assert report.warnings() == [
        "empty captions: 1 (b.json)",
        "keys of JSON captions that mean nothing here, not read: 1 (a.json: mood)",
    ]
    assert report.notes() == [
        "further captions of a picture, not read (set caption_sources to draw from several): 3 (a.txt, b.txt, c.nl.txt)",
        "pictures without a JSON caption (their text file is read): 1 (c.png)",
    ]


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"tags": "a",\n "nl": }', "not valid JSON: Expecting value, line 2"),
        ("girl, solo", "not valid JSON: Expecting value, line 1"),
        ('{"tags": "a \\ud83d"}', r"not valid JSON: half a character (\ud83d)"),
        ("3", "must be a table, a list of tags or a text"),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
    ],
)
def test_a_broken_file_is_counted_with_its_line_and_its_picture_left_out(tmp_path, text, problem):
    write(tmp_path, "a.png", caption=None)
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    write(tmp_path, "b.png", colour="blue")
    line = f"pictures left out, their captions cannot be read: 1 (a.json: {problem}; repair the caption)"
    assert line in warned(dataset(tmp_path, caption_extension=".json"))
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileError, match="no usable pictures"):
        scan(dataset(tmp_path, caption_extension=".json"))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            dict(category_dropout=("genral=0.1",)),
            "subset.category_dropout='genral=0.1': 'genral' is no category; they are quality",
        ),
        (dict(category_dropout=("artist=2",)), "subset.category_dropout='artist=2': must be a chance from 0 to 1"),
        (dict(category_shuffle=("nl=often",)), "subset.category_shuffle='nl=often': 'often' must be a number"),
        (dict(caption_order=("artist", "artist")), "subset.caption_order=artist, artist: name each category once"),
    ],
)
def test_wrong_categories_are_refused(options, message):
    with pytest.raises(SettingError) as error:
        subset(**options)
    assert str(error.value).startswith(message)

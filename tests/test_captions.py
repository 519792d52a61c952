"""Captions: prose survives untouched, tags keep their multiset, one option's draws do not move another's."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anima_core.data.caption_files import read_caption
from anima_core.data.captions import process_caption, split_tags
from anima_core.errors import FileError
from anima_core.settings import SubsetConfig

TAG = st.text(st.characters(blacklist_characters=",|\n", blacklist_categories=["Cs"]), min_size=1).map(str.strip).filter(bool)
TAGS = st.lists(TAG, max_size=12)
SEED = st.integers(0, 2**32)
LETTERS = "a, b, c, d, e, f, g, h"


def subset(**options) -> SubsetConfig:
    return SubsetConfig(image_dir="pictures", **options)


def draw(text: str, seed: int = 0, drop: bool | None = None, **options) -> str:
    return process_caption(text, subset(**options), torch.Generator().manual_seed(seed), drop)


@given(st.text(), SEED)
def test_off_is_identity(text, seed):
    assert draw(text, seed) == text


@pytest.mark.parametrize("text", ["", " ", "1girl", "a,b ,  c,,", "A girl.\nShe smiles, and waves.\n", "x , y"])
def test_prose_survives_dropout_of_the_whole(text):
    assert draw(text, caption_dropout_rate=0.5, drop=False) == text
    assert draw(text, caption_dropout_rate=0.0, drop=True) == ""


@given(TAGS, SEED, st.integers(0, 5))
def test_shuffle_keeps_the_multiset_and_the_head(tags, seed, keep):
    result = draw(", ".join(tags), seed, shuffle_caption=True, keep_tokens=keep)
    shuffled = split_tags(result, subset())[1]
    assert Counter(shuffled) == Counter(tags)
    assert shuffled[:keep] == tags[:keep]


@given(TAGS, TAGS, TAGS, SEED)
def test_keep_tokens_separator_fixes_head_and_tail(head, middle, tail, seed):
    text = "|||".join(", ".join(part) for part in (head, middle, tail))
    tags = split_tags(draw(text, seed, shuffle_caption=True, keep_tokens=1, keep_tokens_separator="|||"), subset())[1]
    assert tags[: len(head)] == head
    assert tags[len(tags) - len(tail) :] == tail
    assert Counter(tags) == Counter(head + middle + tail)


@given(TAGS, SEED, st.floats(0, 0.99), st.integers(0, 3))
def test_tag_dropout_keeps_order_and_head(tags, seed, rate, keep):
    text = ", ".join(tags)
    kept = split_tags(draw(text, seed, caption_tag_dropout_rate=rate, keep_tokens=keep), subset())[1]
    rest = iter(tags)
    assert all(tag in rest for tag in kept)
    assert kept[:keep] == tags[:keep]
    both = draw(text, seed, caption_tag_dropout_rate=rate, keep_tokens=keep, shuffle_caption=True)
    assert Counter(split_tags(both, subset())[1]) == Counter(kept)


def test_an_options_draws_do_not_depend_on_the_others():
    shuffled = draw(LETTERS, 4, shuffle_caption=True)
    assert shuffled != LETTERS
    assert draw(LETTERS, 4, shuffle_caption=True, caption_dropout_rate=0.01) == shuffled
    both = draw(LETTERS, 4, shuffle_caption=True, caption_tag_dropout_rate=0.4).split(", ")
    kept = draw(LETTERS, 4, caption_tag_dropout_rate=0.4).split(", ")
    assert both == [tag for tag in shuffled.split(", ") if tag in kept] and 0 < len(kept) < 8


def test_draws_follow_the_generator():
    assert draw(LETTERS, 1, shuffle_caption=True) == draw(LETTERS, 1, shuffle_caption=True)
    assert len({draw(LETTERS, seed, shuffle_caption=True) for seed in range(50)}) == 50


def test_rates_are_met():
    generator = torch.Generator().manual_seed(0)
    whole = subset(caption_dropout_rate=0.2)
    dropped = sum(process_caption("a", whole, generator) == "" for _ in range(4000))
    assert 700 < dropped < 900  # 800, standard deviation 25
    tags = subset(caption_tag_dropout_rate=0.3)
    kept = sum(len(process_caption(LETTERS, tags, generator).split(", ")) for _ in range(1000))
    assert 5450 < kept < 5750  # 5600, standard deviation 41
    assert draw("a", caption_dropout_rate=1.0) == ""


def test_prefix_and_suffix_come_first():
    assert draw("b", caption_prefix="a", caption_suffix="c") == "a b c"
    assert draw("", caption_prefix="a") == "a"
    assert draw("b", caption_prefix="trigger,", shuffle_caption=True, keep_tokens=1).startswith("trigger, b")
    assert draw("b", caption_prefix="a", drop=True) == ""


def test_lines_after_the_first_are_prose():
    prose = "\nA girl, by the sea, smiles.\n"
    result = draw(LETTERS + prose, 5, shuffle_caption=True)
    assert result.endswith(prose) and result.split("\n")[0] != LETTERS
    assert Counter(result.split("\n")[0].split(", ")) == Counter(LETTERS.split(", "))


def test_the_keep_tokens_marker_is_never_text():
    assert draw("a, b ||| c, d ||| e", keep_tokens_separator="|||") == "a, b, c, d, e"
    assert draw("a, b", keep_tokens_separator="|||", keep_tokens=2, shuffle_caption=True) == "a, b"


def test_another_separator():
    result = draw("red hair; a, b; blue eyes", 2, caption_separator=";", shuffle_caption=True)
    assert sorted(result.split("; ")) == ["a, b", "blue eyes", "red hair"]
    assert draw("a, b", caption_separator="", shuffle_caption=True) == "a, b"


def test_the_second_separator_becomes_the_first_in_the_end():
    options = dict(caption_separator=",", secondary_separator=";;;")
    assert draw("a;;;b, c", **options) == "a,b, c"
    drawn = {draw("a;;;b, c, d", seed, shuffle_caption=True, **options) for seed in range(40)}
    assert len(drawn) == 6 and all("a,b" in text for text in drawn)  # what it joins stays together


RECORDED = json.loads(Path(__file__).with_name("sd_scripts_captions.json").read_text(encoding="utf-8"))["cases"]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["caption"])
def test_the_captions_that_sd_scripts_draws_are_drawn_and_no_others(case):
    assert sorted({draw(case["caption"], seed, **case["options"]) for seed in range(300)}) == case["sd_scripts"]


LINES = "\n 1girl, red \n\nA girl in red.\n"


def test_wildcards_draw_one_line_with_prefix_and_suffix():
    options = dict(enable_wildcard=True, caption_prefix="sks", caption_suffix="end")
    assert {draw(LINES, seed, **options) for seed in range(20)} == {"sks 1girl, red end", "sks A girl in red. end"}
    assert draw(LINES, 3, **options) == draw(LINES, 3, **options)
    assert draw("", enable_wildcard=True) == draw("\n", enable_wildcard=True) == ""
    assert "\n" in draw(LINES)  # without them all lines stay


def test_wildcards_draw_one_of_the_choices_and_doubled_braces_are_braces():
    options = dict(enable_wildcard=True)
    assert {draw("a {b|c} d", seed, **options) for seed in range(20)} == {"a b d", "a c d"}
    assert {draw("{a|b}{c|d}", seed, **options) for seed in range(60)} == {"ac", "ad", "bc", "bd"}
    assert draw("{{a|b}} {solo} {}", **options) == "{a|b} solo {}"
    assert draw("a {b|c}") == "a {b|c}"
    assert SubsetConfig("x", enable_wildcard=True).varies and not SubsetConfig("x", enable_wildcard=True).varies_tags


def test_wildcards_come_before_the_tags():
    drawn = {draw("x\n{a, b|c}, d", seed, enable_wildcard=True, shuffle_caption=True) for seed in range(60)}
    assert drawn == {"x", "a, b, d", "a, d, b", "b, a, d", "b, d, a", "d, a, b", "d, b, a", "c, d", "d, c"}


@pytest.mark.parametrize("raw", ["1girl, 漢字\n".encode(), "1girl, 漢字".encode("utf-8-sig"), "\r\n 1girl, 漢字 \r\n".encode()])
def test_read_caption(tmp_path, raw):
    (tmp_path / "a.txt").write_bytes(raw)
    assert read_caption(tmp_path / "a.txt") == ("1girl, 漢字", "UTF-8")


def test_read_caption_keeps_lines(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"tags, here\r\nProse.\r\n")
    assert read_caption(str(tmp_path / "a.txt"))[0] == "tags, here\nProse."


def test_read_caption_names_the_file(tmp_path):
    (tmp_path / "odd.txt").write_bytes(b"caf\xff\xff")
    with pytest.raises(FileError, match=r"odd.txt: not UTF-8 \(byte 0xff at 3\) nor clearly anything else; save"):
        read_caption(tmp_path / "odd.txt")
    with pytest.raises(FileError, match="gone.txt: cannot be read"):
        read_caption(tmp_path / "gone.txt")

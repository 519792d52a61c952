"""Copies of pictures: resized, saved again and mirrored ones are found, other pictures are not, and nothing is told twice."""

import base64
import random

import pytest
from PIL import Image, ImageOps

from anima_core.data import likeness
from anima_core.data.alike_sheet import PAIRS_SHOWN, alike_sheet, alike_title
from anima_core.data.check import check_datasets
from anima_core.data.folder import scan
from anima_core.data.index import FileIndex
from anima_core.data.likeness import ALIKE, EVEN, Alike, Look, are_alike, find_alike, pairs
from anima_core.data.sheets import NOTE
from anima_core.demo.pictures import write_pictures

from .test_index import age, counted
from .tiny import dataset, write

EDGES = ("000_red_circle.png", "005_green_triangle.png", "013_red_circle.png")  # of the demo, one of each shape


def alike_in(*folders, cache=None):
    checked = check_datasets([dataset(folder) for folder in folders], cache, None)
    return find_alike(checked, cache), [report for _, report in checked]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    write_pictures(folder, 36)
    return folder


def test_no_two_pictures_of_the_demo_are_copies_of_each_other(demo):
    """Three shapes in four colours on three grounds: a hash of greys alone takes several of them for one."""
    found, (report,) = alike_in(demo)
    assert found == [] and ALIKE not in report.findings
    assert len(report.findings[EVEN].names) == 3  # yellow on pink: as bright as each other


@pytest.mark.parametrize("name", EDGES)
def test_copies_are_found_and_say_of_what(demo, tmp_path, name):
    for other in EDGES:
        (tmp_path / other).write_bytes((demo / other).read_bytes())
        (tmp_path / other).with_suffix(".txt").write_text("a tag", encoding="utf-8")
    picture = Image.open(demo / name)
    picture.save(tmp_path / "x saved.jpg", quality=50)
    picture.resize((picture.width * 2, picture.height * 2)).save(tmp_path / "x large.webp", quality=80)
    picture.resize((picture.width // 2 + 1, picture.height // 2)).save(tmp_path / "x small.png")
    ImageOps.mirror(picture).save(tmp_path / "x turned.jpg", quality=75)
    found, (report,) = alike_in(tmp_path)
    told = {pair.second.name: (pair.first.name, pair.is_mirrored) for pair in found}
    symmetric = "circle" in name and told["x turned.jpg"] == (name, False)
    plain = dict.fromkeys(("x saved.jpg", "x large.webp", "x small.png"), (name, False))
    assert told == plain | {"x turned.jpg": (name, not symmetric)}
    assert report.findings[ALIKE].names == [pair.text() for pair in found] and not report.findings[ALIKE].warns


def looks(count: int, chance: random.Random) -> list[Look]:
    """Hashes that lie close to each other, mirrored or not, of pictures in two colours and two shapes."""
    tiny = [base64.b64encode(bytes([shade]) * 216).decode() for shade in (90, 93)]
    centres = [chance.getrandbits(64) for _ in range(6)]

    def near(centre: int) -> int:
        return centre ^ sum(1 << bit for bit in chance.sample(range(64), chance.randrange(7)))

    sizes = ((512, 512), (700, 512))
    return [
        Look(near(chance.choice(centres)), near(chance.choice(centres)), chance.choice(tiny), chance.choice(sizes))
        for _ in range(count)
    ]


@pytest.mark.parametrize("seed", range(4))
def test_bands_find_what_comparing_each_with_each_finds(seed):
    some = looks(120, random.Random(seed))
    slow = []
    for second, look in enumerate(some):
        like = [
            (first, second, is_mirrored)
            for first in range(second)
            for is_mirrored in (False, True)
            if are_alike(look, some[first], is_mirrored)
        ]
        slow += like[:1]
    assert list(pairs(some)) == slow and 20 < len(slow) < 120
    assert {mirrored for _, _, mirrored in slow} == {False, True}


def test_colours_and_shapes_tell_pictures_of_the_same_greys_apart():
    one = Look(0xFF00, 0x00FF, base64.b64encode(bytes([90]) * 216).decode(), (512, 512))
    assert are_alike(one, one, False) and not are_alike(one, one, True)
    assert not are_alike(one, one._replace(tiny=base64.b64encode(bytes([94]) * 216).decode()), False)
    assert not are_alike(one, one._replace(size=(512, 400)), False)
    assert not are_alike(one, one._replace(own=0xFF00 ^ 0b11111), False)
    assert are_alike(one, one._replace(own=0xFF00 ^ 0b1111, size=(256, 260)), False)


def test_the_same_bytes_are_told_elsewhere_and_other_datasets_are_compared(demo, tmp_path):
    data = (demo / EDGES[0]).read_bytes()
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "same.png").write_bytes(data)
        (tmp_path / place / "same.txt").write_text("a tag", encoding="utf-8")
    assert alike_in(tmp_path / "a", tmp_path / "b", tmp_path / "a")[0] == []
    Image.open(demo / EDGES[0]).save(tmp_path / "b" / "again.jpg")
    found, reports = alike_in(tmp_path / "a", tmp_path / "b", tmp_path / "a")
    assert [pair.text() for pair in found] == ["again.jpg ~ same.png"]
    assert [ALIKE in report.findings for report in reports] == [False, True, False]


def test_each_file_is_looked_at_once_and_the_scan_does_not_forget(demo, tmp_path, monkeypatch):
    for name in EDGES:
        (tmp_path / name).write_bytes((demo / name).read_bytes())
    write(tmp_path, "even.png", caption="one colour")
    age(tmp_path)
    looked, real = [], likeness.look_of
    monkeypatch.setattr(likeness, "look_of", lambda path: looked.append(path.name) or real(path))
    scanned, cache = counted(monkeypatch), tmp_path / "cache"
    for _ in range(2):
        assert alike_in(tmp_path, cache=cache)[0] == []
    assert sorted(looked) == sorted([*EDGES, "even.png"]) and len(scanned) == len(looked) + 1
    with FileIndex(cache / "files.sqlite") as index:
        index._db.execute("DELETE FROM folders")
        scan(dataset(tmp_path), index)
    assert len(scanned) == len(looked) + 1
    Image.open(demo / EDGES[1]).resize((192, 320)).save(tmp_path / EDGES[0])
    (pair,), _ = alike_in(tmp_path, cache=cache)
    assert looked[4:] == [EDGES[0]] and pair.text() == f"{EDGES[1]} ~ {EDGES[0]}"
    assert pair.second.size == (96, 160)


def test_the_sheet_shows_pairs_side_by_side(demo):
    ((pictures, _),) = check_datasets([dataset(demo)], None, None)
    red, green = (next(p for p in pictures if p.name == name) for name in EDGES[:2])
    sheet = alike_sheet([Alike(red, green, True)] * 2, 36)
    half = sheet.width // 4
    colours = [
        {colour for _, colour in sheet.crop((n * half, 34, (n + 1) * half, sheet.height)).getcolors(1 << 16)} for n in range(4)
    ]
    for first, second in ((0, 1), (2, 3)):
        assert (214, 60, 52) in colours[first] and (214, 60, 52) not in colours[second]
        assert (70, 160, 84) in colours[second] and NOTE in colours[first]
    assert alike_title(0, 36) == "none of 36 pictures looks like a copy of another"
    assert alike_title(30, 36) == f"30 of 36 pictures look like a copy of another, {PAIRS_SHOWN} shown"
    assert alike_sheet([], 36).height < 60 and alike_sheet([Alike(red, green, False)] * 99, 200).height < 3000

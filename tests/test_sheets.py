"""A dataset as pictures: which pictures are marked, in which colour, and that any name can be written."""

import dataclasses

import pytest
from PIL import Image, ImageDraw

from anima_core.data import lettering, sheets
from anima_core.data.check import check_datasets
from anima_core.data.marks import Mark, marks
from anima_core.data.report import DataReport
from anima_core.data.sheets import bucket_plan, contact_sheet
from anima_core.settings import DatasetConfig, SubsetConfig

NAMES = ("plain.png", "猫と少女 その一.png", "кот.png", "한국어.png", "😀 ᚠ.png", "a" * 200 + ".png", "العربية.png")


def dataset(folder, pictures: dict[str, tuple[int, int]], **options) -> DatasetConfig:
    """A folder of pictures of these sizes, each of another colour and with a caption."""
    for number, (name, size) in enumerate(pictures.items()):
        Image.new("RGB", size, (20 * number, 90, 160)).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"picture {number}", encoding="utf-8")
    settings = {"resolutions": ((256, 256),), "min_bucket_reso": 128, "max_bucket_reso": 512} | options
    return DatasetConfig((SubsetConfig(str(folder)),), **settings)


def looked_at(data: DatasetConfig):
    ((pictures, report),) = check_datasets([data], None, None)
    return pictures, report, marks(data, pictures)


def test_each_problem_has_its_mark_and_most_pictures_have_none(tmp_path):
    sides = {"good": (256, 256), "small": (100, 100), "bit": (200, 200), "long": (2000, 256), "mute": (257, 256)}
    data = dataset(tmp_path, {f"{name}.png": size for name, size in sides.items()})
    (tmp_path / "mute.txt").unlink()
    (tmp_path / "same.png").write_bytes((tmp_path / "good.png").read_bytes())
    (tmp_path / "same.txt").write_text("again", encoding="utf-8")
    pictures, _, marked = looked_at(data)
    assert {picture.name: found for picture, found in zip(pictures, marked)} == {
        "good.png": [Mark(True, "2 copies")],
        "same.png": [Mark(True, "2 copies")],
        "small.png": [Mark(True, "enlarged 2.6x")],
        "bit.png": [Mark(False, "enlarged 1.3x")],
        "long.png": [Mark(True, "cropped 49%")],
        "mute.png": [Mark(True, "no caption")],
    }


def test_what_trains_nothing_is_marked_so_whatever_its_resolutions(tmp_path):
    data = dataset(tmp_path, {"a.png": (256, 256), "b.png": (512, 512)}, resolutions=((256, 256), (512, 512)))
    pictures, _, _ = looked_at(data)
    blank = [pictures[0]._replace(blank=True), pictures[1]]
    assert marks(data, blank) == [[Mark(True, "not trained"), Mark(False, "enlarged 2.0x")], []]


def test_the_sheet_frames_marked_pictures_which_stand_first(tmp_path):
    pictures, _, marked = looked_at(dataset(tmp_path, {"a.png": (256, 256), "b.png": (256, 256), "c.png": (100, 100)}))
    sheet = contact_sheet(pictures, marked)
    colours = [tile_colours(sheet, number) for number in range(3)]
    assert sheets.PROBLEM in colours[0] and (40, 90, 160) in colours[0]  # c, of the third colour
    assert not any(ground in found for ground in (sheets.PROBLEM, sheets.NOTE) for found in colours[1:])
    assert (0, 90, 160) in colours[1] and (20, 90, 160) in colours[2]
    assert sheets.sheet_title(pictures, marked, 3) == "3 pictures, 1 with a problem"
    assert sheets.sheet_title(pictures, [[]] * 3, 2) == "2 of 3 pictures"


def tile_colours(sheet: Image.Image, column: int) -> set:
    left = column * sheets.TILE
    part = sheet.crop((left, sheets.HEAD, left + sheets.TILE, sheets.HEAD + sheets.TILE))
    return {colour for _, colour in part.getcolors(1 << 16)}


def test_a_large_dataset_is_shown_in_part_its_problems_first(tmp_path):
    pictures, _, _ = looked_at(dataset(tmp_path, {"a.png": (256, 256)}))
    many = pictures * 60
    sheet = contact_sheet(many, [[]] * 59 + [[Mark(True, "no caption")]])
    assert sheet.size == (sheets.COLUMNS * sheets.TILE, sheets.HEAD + sheets.ROWS * (sheets.TILE + sheets.LABEL))
    assert sheets.PROBLEM in tile_colours(sheet, 0)


def test_bars_are_as_long_as_their_counts(tmp_path):
    report = DataReport(pictures=9, draws=12, batches=12, buckets={(256, 256): 8, (128, 512): 4, (512, 128): 1})
    data = dataset(tmp_path, {"a.png": (256, 256)}, batch_size=2)
    plan = bucket_plan([(data, report)])
    bars = {row: [plan.getpixel((x, sheets.MARGIN + row * sheets.LINE + 8)) for x in range(plan.width)] for row in (1, 2, 3)}
    longest = bars[2].count(sheets.BLUE)  # sizes are in order: 128x512, 256x256, 512x128
    assert longest > 400 and bars[1].count(sheets.BLUE) == pytest.approx(longest / 2, abs=2)
    assert bars[3].count(sheets.BLUE) == 0 and bars[3].count(sheets.NOTE) == pytest.approx(
        longest / 8, abs=2
    )  # less than a batch


def test_the_plan_lists_what_was_found_and_says_how_much_it_leaves_out(tmp_path):
    report = DataReport(pictures=1, buckets={(16 * n, 256): n for n in range(1, 31)})
    for number in range(20):
        report.warn(f"problem {number:02d}", "x")
    rows = sheets.rows_of(dataset(tmp_path, {"a.png": (256, 256)}), report, "dataset 2: ")
    texts = [row.text for row in rows]
    assert texts[0].startswith("dataset 2: 1 pictures") and "30 sizes" in texts[0]
    assert len([row for row in rows if row.size]) == sheets.BUCKETS_SHOWN and "and 6 more sizes with 21" in texts
    assert texts[-2:] == ["problem 11: 1", "and 8 more"]


@pytest.mark.parametrize("fonts", ["of the system", "none", "an old Pillow's"])
def test_any_name_is_written_and_cut_to_its_space(tmp_path, monkeypatch, fonts):
    lettering.font.cache_clear()
    if fonts != "of the system":
        monkeypatch.setattr(lettering, "WIDE_FONTS", ("no such font.ttf",))
    if fonts == "an old Pillow's":
        bitmap = lettering.ImageFont.load_default_imagefont()
        monkeypatch.setattr(lettering.ImageFont, "load_default", lambda: bitmap)  # takes no size
    pictures, _, marked = looked_at(dataset(tmp_path, dict.fromkeys(NAMES, (64, 64))))
    odd = [*pictures, pictures[0]._replace(name="bad \udcff\n.png", folder=tmp_path)]
    contact_sheet(pictures, marked)
    pen = ImageDraw.Draw(Image.new("RGB", (300, 40)))
    for picture in odd:
        assert 0 < lettering.write(pen, (0, 0), picture.name, 12, (255, 255, 255), 80) <= 80
    lettering.font.cache_clear()


def test_thumbnails_are_upright_on_white_and_no_larger_than_asked(tmp_path):
    from anima_core.data.picture_files import thumbnail

    Image.new("RGB", (4000, 1000), "red").save(tmp_path / "a.jpg")
    assert thumbnail(tmp_path / "a.jpg", 100).size == (100, 25)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.new("RGB", (400, 100), "red").save(tmp_path / "b.jpg", exif=exif)
    assert thumbnail(tmp_path / "b.jpg", 100).size == (25, 100)
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "c.png")
    assert thumbnail(tmp_path / "c.png", 32).getpixel((3, 3)) == (255, 255, 255)


def test_datasets_of_several_sizes_are_told_apart(tmp_path):
    one = dataset(tmp_path, {"a.png": (256, 256)})
    other = dataclasses.replace(one, resolutions=((128, 128),))
    found = check_datasets([one, other], None, None)
    alone, both = bucket_plan([(one, found[0][1])]), bucket_plan([(d, r) for d, (_, r) in zip((one, other), found)])
    assert both.height > alone.height and both.width == alone.width

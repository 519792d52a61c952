"""Scanning folders: what is found, pictures of every kind, captions in every encoding."""

import os
import time

import numpy as np
import pytest
from PIL import Image, ImageFile

from anima_core.data.caption_files import decode
from anima_core.data.folder import scan
from anima_core.data.index import FileIndex
from anima_core.data.picture_files import HUGE
from anima_core.data.pictures import load_picture
from anima_core.errors import FileError

from .tiny import dataset, write


def age(folder, seconds=60):
    """Files as old as those of a real dataset: younger ones are not believed unchanged."""
    then = time.time() - seconds
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def lines_of(folder, **changes) -> str:
    return "\n".join(scan(dataset(folder, **changes))[1].lines())


# --- what is found


def test_scan_finds_pictures_captions_and_counts_the_rest(tmp_path):
    write(tmp_path, "b.png", caption="one")
    write(tmp_path, "a.jpg", caption=None)
    (tmp_path / "a.txt").write_bytes("\ufeffwith BOM, 日本".encode())
    write(tmp_path, "c.webp", caption="")
    write(tmp_path, "d.png", caption=None)
    write(tmp_path / "unrelated", "x.png")
    (tmp_path / "orphan.txt").write_text("nothing beside me", encoding="utf-8")
    (tmp_path / "notes.md").write_text("", encoding="utf-8")
    (tmp_path / "same.png").write_bytes((tmp_path / "b.png").read_bytes())
    pictures, report = scan(dataset(tmp_path, num_repeats=2))
    assert [p.name for p in pictures] == ["a.jpg", "b.png", "c.webp", "d.png", "same.png"]
    assert [p.repeats for p in pictures] == [2] * 5
    assert [p.caption for p in pictures] == ["with BOM, 日本", "one", "", "", ""]
    assert report.lines() == [
        "5 pictures, 10 with repeats",
        "warning: captions without a picture: 1 (orphan.txt)",
        "warning: empty captions: 1 (c.txt)",
        "warning: pictures that are in the data more than once: 2 (d.png = b.png, same.png = b.png)",
        "warning: pictures without a caption file: 2 (d.png, same.png)",
        "warning: sub-folders not read (name them N_words for N draws): 1 (unrelated)",
        "files that are neither picture nor caption: 1 (notes.md)",
    ]


def test_pictures_of_other_kinds_are_named(tmp_path):
    write(tmp_path, "a.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "b.gif")
    (line,) = scan(dataset(tmp_path))[1].warnings()
    assert line.startswith("pictures of kinds that are not read (those that are: ") and line.endswith(": 1 (b.gif)")


def test_class_tokens_stand_in(tmp_path):
    write(tmp_path, "a.png", caption=None)
    (picture,), report = scan(dataset(tmp_path, class_tokens="a person"))
    assert picture.caption == "a person" and "class_tokens used" in report.lines()[1] and not report.warnings()


@pytest.mark.parametrize("orientation, size", [(1, (64, 48)), (3, (64, 48)), (6, (48, 64)), (8, (48, 64))])
def test_exif_rotation_counts_for_the_size_and_the_pixels(tmp_path, orientation, size):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.new("RGB", (64, 48), "black")
    image.paste("white", (0, 0, 32, 48))
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    (picture,), _ = scan(dataset(tmp_path, class_tokens="x"))
    assert picture.size == size
    pixels = load_picture(picture.path, size)
    assert pixels.shape == (3, size[1], size[0])
    bright = {1: pixels[:, :, :28], 3: pixels[:, :, 36:], 6: pixels[:, :28], 8: pixels[:, 36:]}[orientation]
    assert bright.mean() > 0.9 and abs(pixels.mean()) < 0.1


@pytest.mark.parametrize("text", ["folder", "empty", "captions", "broken"])
def test_what_cannot_be_used_is_named(tmp_path, text):
    write(tmp_path / "captions", "a.png", caption=None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    messages = {
        "folder": "no such folder of pictures; check subset.image_dir",
        "empty": r"no pictures \(.*\); check subset.image_dir",
        "captions": "no captions; put .txt files beside the pictures, or set subset.class_tokens",
        "broken": r"no usable pictures \(unreadable pictures, left out: 1 \(broken.jpg\)\)",
    }
    with pytest.raises(FileError, match=messages[text]):
        scan(dataset(tmp_path / text))


def test_file_names_in_any_script_and_in_none(tmp_path):
    write(tmp_path, "日本 é\u3000(1).png")
    write(tmp_path, "b.png", colour="blue")
    try:
        os.rename(tmp_path / "b.png", os.fsencode(tmp_path) + b"/b\xff.png")
    except OSError:
        pytest.skip("this file system takes Unicode only")
    (picture,), report = scan(dataset(tmp_path), FileIndex(tmp_path / "index.sqlite"))
    assert picture.name == "日本 é\u3000(1).png" and picture.caption == "a tag"
    assert r"files whose names are not Unicode, left out: 1 ('b\udcff.png')" in report.warnings()


# --- pictures of every kind


def noise(size) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))


def cut(path, keep=0.6):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def animated(path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def huge_header(path):
    """A PNG that says it has more pixels than anybody should decode."""
    Image.new("1", (64, 64)).save(path)
    data = bytearray(path.read_bytes())
    data[16:24] = (20000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    path.write_bytes(bytes(data))
    assert HUGE < 20000**2


KINDS = {
    "truncated.jpg": (lambda p: (noise((64, 64)).save(p), cut(p)), "warning: truncated pictures, left out"),
    "truncated.png": (lambda p: (noise((64, 64)).save(p), cut(p)), "warning: truncated pictures, left out"),
    "truncated.webp": (lambda p: (noise((64, 64)).save(p), cut(p)), "left out"),
    "flipped.png": (lambda p: (noise((64, 64)).save(p), flip(p)), "left out"),
    "text.png": (lambda p: p.write_text("not a picture"), "warning: unreadable pictures, left out"),
    "empty.jpg": (lambda p: p.write_bytes(b""), "warning: unreadable pictures, left out"),
    "dot.png": (lambda p: Image.new("RGB", (1, 1)).save(p), "warning: tiny pictures (a side below 16 px), left out"),
    "huge.png": (huge_header, "warning: huge pictures (over 178 million pixels), left out"),
    "moving.webp": (animated, "warning: animated pictures, only the first frame is used"),
    "moving.png": (animated, "warning: animated pictures, only the first frame is used"),
    "ink.jpg": (lambda p: noise((64, 64)).convert("CMYK").save(p), "warning: CMYK pictures, turned into RGB without their"),
    "deep.png": (lambda p: Image.new("I;16", (64, 64), 999).save(p), "16-bit pictures, reduced to 8 bits"),
    "palette.png": (lambda p: noise((64, 64)).quantize(16).save(p), "palette pictures, turned into RGB"),
    "grey.jpg": (lambda p: noise((64, 64)).convert("L").save(p), "grey pictures, turned into RGB"),
    "clear.png": (lambda p: Image.new("RGBA", (64, 64), (9, 9, 9, 99)).save(p), "transparent pictures, put on white"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


@pytest.mark.parametrize("name", KINDS)
def test_pictures_of_every_kind_are_counted(tmp_path, name):
    write(tmp_path, "good.png", colour="blue")
    make, text = KINDS[name]
    make(tmp_path / name)
    (tmp_path / name).with_suffix(".txt").write_text("odd", encoding="utf-8")
    pictures, report = scan(dataset(tmp_path))
    (line,) = [line for line in report.lines() if text in line]
    assert line.endswith(f": 1 ({name})")
    kept = [p for p in pictures if p.name == name]
    assert bool(kept) == ("left out" not in line)
    for picture in kept:
        assert load_picture(picture.path, (64, 64), digest=picture.digest).shape == (3, 64, 64)


def test_an_opaque_alpha_channel_is_not_worth_a_word(tmp_path):
    noise((64, 64)).convert("RGBA").save(tmp_path / "a.png")
    assert (
        lines_of(tmp_path, class_tokens="x")
        == "1 pictures, 1 with repeats\npictures without a caption file (class_tokens used): 1 (a.png)"
    )


@pytest.mark.parametrize("save", [dict(progressive=True), dict(), dict(subsampling=0, quality=95)])
@pytest.mark.parametrize("keep", [0.3, 0.7, 0.98])
def test_every_cut_of_a_jpeg_is_seen(tmp_path, save, keep):
    """Decoding at an eighth of the size still reads to the end."""
    write(tmp_path, "good.png")
    noise((512, 384)).save(tmp_path / "bad.jpg", **save)
    cut(tmp_path / "bad.jpg", keep)
    assert "left out: 1 (bad.jpg)" in lines_of(tmp_path)


def test_truncation_is_seen_where_another_pack_told_pillow_to_look_away(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    write(tmp_path, "good.png")
    noise((64, 64)).save(tmp_path / "bad.jpg")
    cut(tmp_path / "bad.jpg")
    assert "truncated pictures, left out: 1 (bad.jpg)" in lines_of(tmp_path)
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_picture_that_changed_since_the_scan_is_refused(tmp_path):
    write(tmp_path, "a.png")
    (picture,), _ = scan(dataset(tmp_path))
    write(tmp_path, "a.png", colour="blue")
    with pytest.raises(FileError, match="a.png: has changed since it was scanned; start again"):
        load_picture(picture.path, (64, 64), digest=picture.digest)


# --- captions in every encoding

CHINESE = [
    "少女, 蓝天",
    "1girl, 白发, 红色眼睛",
    "一个女孩站在花园里",
    "初音未来",
    "水彩画风格，柔和的光线",
    "二次元",
    "长发",
    "龙",
]
JAPANESE = ["少女", "女の子", "青い空", "初音ミク", "東方プロジェクト, 博麗霊夢", "可愛い", "イラスト", "制服の少女", "空"]
WESTERN = ["café", "été indien", "naïveté", "Ångström", "Übergröße", "mañana", "“quoted” text", "crème brûlée", "Noël", "œuvre"]
ENCODINGS = [("gbk", "GBK", CHINESE), ("cp932", "Shift-JIS", JAPANESE), ("cp1252", "Latin-1", WESTERN)]
CASES = [(codec, name, text) for codec, name, texts in ENCODINGS for text in texts]
CASES += [(codec, "UTF-16", text) for codec in ("utf-16", "utf-16-le", "utf-16-be") for text in ("1girl, 少女", "a b", "é, ü")]
CASES += [(codec, "UTF-8", text) for codec in ("utf-8", "utf-8-sig") for text in (*CHINESE, *JAPANESE, *WESTERN)]


@pytest.mark.parametrize("codec, name, text", CASES)
def test_encodings_are_told_apart(codec, name, text):
    assert decode(text.encode(codec)) == (text, name)


@pytest.mark.parametrize("data", [b"\xff\xfe\xfd", b"\x81\x20\xfe", b"a\0\x01b\x02", bytes(range(128, 256)), b"\xfe\xff\xd8"])
def test_bytes_that_are_no_text_are_not_guessed_at(data):
    with pytest.raises(UnicodeError):
        decode(data)


def test_captions_in_other_encodings_are_read_and_named(tmp_path):
    for name, colour, raw in (
        ("a", "red", "少女, 蓝天".encode("gbk")),
        ("b", "blue", b"plain"),
        ("c", "green", b"\xff\xff\xff"),
    ):
        write(tmp_path, f"{name}.png", colour=colour)
        (tmp_path / f"{name}.txt").write_bytes(raw)
    pictures, report = scan(dataset(tmp_path))
    assert [p.caption for p in pictures] == ["少女, 蓝天", "plain"]
    read, left_out = report.warnings()
    assert read == "captions read as GBK (save them as UTF-8): 1 (a.txt: '少女, 蓝天')"
    assert left_out.startswith("pictures left out, their captions cannot be read: 1 (c.txt: not UTF-8 (byte 0xff at 0)")

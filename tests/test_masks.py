"""Masks: which belongs to which picture, and every way in which they can be wrong, counted and named before a model loads."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from anima_core.data.check import check_datasets
from anima_core.data.folder import scan
from anima_core.data.index import FileIndex
from anima_core.errors import FileError, RunError
from anima_core.settings import DatasetConfig
from anima_core.training.watchdog import Watchdog

from .test_index import age
from .tiny import dataset, write


def mask(folder, name, size=(64, 48), shade=255):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("L", size, shade).save(folder / name)


def masked(tmp_path, **changes):
    return dataset(tmp_path / "p", mask_dir=str(tmp_path / "m"), **changes)


@pytest.fixture
def pictures(tmp_path):
    for number, name in enumerate("ab"):
        write(tmp_path / "p", f"{name}.png", colour=(number, 9, 9))
    return tmp_path


@pytest.mark.parametrize("end", ["", "_mask", "-masklabel"])
def test_a_mask_has_its_pictures_name_or_that_name_marked(pictures, end):
    mask(pictures / "m", f"a{end}.jpg")
    (a, b), report = scan(masked(pictures))
    assert a.mask_path == pictures / "m" / f"a{end}.jpg" and b.mask_path is None
    assert report.warnings() == ["pictures without a mask (counted whole): 1 (b.png)"]


def test_none_matched_is_an_error(pictures):
    mask(pictures / "m", "x.png")
    with pytest.raises(FileError, match="m: none of the 1 masks in it has a picture; a mask has its picture's name; check"):
        scan(masked(pictures))


def test_left_over_masks_are_named(pictures):
    for name in ("a", "b", "c"):
        mask(pictures / "m", f"{name}.png")
    assert scan(masked(pictures))[1].warnings() == ["masks without a picture: 1 (c.png)"]


def test_masks_of_another_shape_are_named(pictures):
    mask(pictures / "m", "a.png", (64, 64))
    mask(pictures / "m", "b.png", (128, 96))
    assert scan(masked(pictures))[1].warnings() == ["masks of another shape than their picture: 1 (a.png 64x48, mask 64x64)"]


def test_sub_folders_are_mirrored_or_flat(tmp_path):
    for folder, colour in (("2_x", "red"), ("3_y", "blue"), ("4_z", "green")):
        write(tmp_path / "p" / folder, "a.png" if folder != "4_z" else "z.png", colour=colour)
    mask(tmp_path / "m" / "2_x", "a.png")
    mask(tmp_path / "m" / "3_y", "a_mask.png")
    mask(tmp_path / "m", "z.png")
    pictures, report = scan(masked(tmp_path))
    assert [p.mask_path.relative_to(tmp_path / "m").as_posix() for p in pictures] == ["2_x/a.png", "3_y/a_mask.png", "z.png"]
    assert not report.warnings()


def test_masks_beside_the_pictures_are_no_pictures(pictures):
    mask(pictures / "p", "a-masklabel.png")
    mask(pictures / "p", "lone_mask.png")  # a picture of a mask
    found, _ = scan(dataset(pictures / "p", mask_dir=str(pictures / "p")))
    assert {p.name: p.mask_path and p.mask_path.name for p in found} == {
        "a.png": "a-masklabel.png",
        "b.png": None,
        "lone_mask.png": None,
    }
    found, report = scan(dataset(pictures / "p"))
    assert len(found) == 4
    said = "pictures that are named like masks of others, trained as pictures (name their folder as that of the masks)"
    assert f"{said}: 1 (a-masklabel)" in report.warnings()


BLACK = "masks that are black everywhere: their pictures train nothing"
NOTHING = "nothing of the {} pictures would be trained: their masks are black everywhere, or they are transparent everywhere"


def checked(*datasets):
    return check_datasets(datasets, None, None)


def test_black_masks_are_counted_and_refused_when_all_are(pictures):
    mask(pictures / "m", "a.png", shade=0)
    mask(pictures / "m", "b.png", shade=1)
    assert scan(masked(pictures))[1].warnings() == [f"{BLACK}: 1 (a.png)"]
    mask(pictures / "m", "b.png", shade=0)
    with pytest.raises(FileError, match=f"p: {NOTHING.format(2)}"):
        checked(masked(pictures))


def test_a_black_mask_is_no_reason_to_refuse_while_anything_is_trained(pictures):
    """A picture without a mask counts whole; and another subset or dataset may have the good masks."""
    mask(pictures / "m", "a.png", shade=0)
    ((found, report),) = checked(masked(pictures))
    assert [p.blank for p in found] == [True, False] and f"{BLACK}: 1 (a.png)" in report.warnings()
    mask(pictures / "m", "b.png", shade=0)
    write(pictures / "good", "c.png", colour="blue")
    black, good = masked(pictures), dataset(pictures / "good")
    assert [p.blank for p, *_ in checked(DatasetConfig((*black.subsets, *good.subsets)))[0][:1]] == [True]
    assert len(checked(black, good)) == 2


def test_a_mask_wins_over_transparency(tmp_path):
    write(tmp_path / "p", "a.png")
    Image.new("RGBA", (64, 48), (9, 9, 9, 0)).save(tmp_path / "p" / "a.png")
    mask(tmp_path / "m", "a.png")
    ((found, report),) = checked(masked(tmp_path, alpha_mask=True))
    assert not found[0].blank and not any("transparent everywhere" in line for line in report.warnings())


def test_what_trains_nothing_is_known_of_an_unchanged_folder_too(tmp_path):
    write(tmp_path / "p", "a.png")
    Image.new("RGBA", (64, 48), (9, 9, 9, 0)).save(tmp_path / "p" / "a.png")
    age(tmp_path / "p")
    for _ in range(2):
        with pytest.raises(FileError, match=NOTHING.format(1)):
            check_datasets((dataset(tmp_path / "p", alpha_mask=True),), tmp_path, None)


def test_one_mask_of_two_sub_folders_pictures_is_named(tmp_path):
    for folder, colour in (("2_x", "red"), ("3_y", "blue")):
        write(tmp_path / "p" / folder, "a.png", colour=colour)
    mask(tmp_path / "m", "a.png")
    said = "pictures with the mask of another sub-folder's picture, by its name alone (put masks in sub-folders"
    assert scan(masked(tmp_path))[1].warnings() == [f"{said} too): 1 (3_y/a.png (that of 2_x/a.png))"]


@pytest.mark.parametrize("mode, shade", [("RGB", (0, 0, 0)), ("RGBA", (0, 0, 0, 255)), ("I;16", 0), ("1", 0)])
def test_black_is_black_in_every_mode(pictures, mode, shade):
    for name in "ab":
        mask(pictures / "m", f"{name}.png")
        Image.new(mode, (64, 48), shade).save(pictures / "m" / f"{name}.png")
    with pytest.raises(FileError, match=NOTHING.format(2)):
        checked(masked(pictures))


def test_pictures_that_are_transparent_everywhere_are_black_masks_too(tmp_path):
    for name, alpha in (("a", 0), ("b", 1)):
        write(tmp_path, f"{name}.png", caption="x")
        Image.new("RGBA", (64, 48), (9, 9, ord(name), alpha)).save(tmp_path / f"{name}.png")
    said = "pictures that are transparent everywhere: with alpha_mask they train nothing: 1 (a.png)"
    assert scan(dataset(tmp_path, alpha_mask=True))[1].warnings() == [said]
    assert not scan(dataset(tmp_path))[1].warnings()
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileError, match=NOTHING.format(1)):
        checked(dataset(tmp_path, alpha_mask=True))


def test_a_mask_that_cannot_be_read_is_an_error_before_training(pictures):
    mask(pictures / "m", "a.png")
    (pictures / "m" / "a.png").write_bytes(b"no picture")
    with pytest.raises(FileError, match=r"a.png: cannot be read as a mask \(unreadable\); repair or remove it"):
        scan(masked(pictures))
    with pytest.raises(FileError, match="gone: no such folder of masks"):
        scan(dataset(pictures / "p", mask_dir=str(pictures / "gone")))


def test_a_mask_that_may_not_be_read_is_the_same_error_with_the_systems_reason(pictures, monkeypatch):
    mask(pictures / "m", "a.png")
    real = Path.read_bytes

    def locked(path):
        if path.parent == pictures / "m":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", locked)
    with pytest.raises(FileError, match=r"a.png: cannot be read as a mask \(unreadable: Permission denied\); repair"):
        scan(masked(pictures))


def test_masks_are_looked_at_once(pictures, monkeypatch):
    from anima_core.data import masks

    looked, real = [], masks.scan_picture
    monkeypatch.setattr(masks, "scan_picture", lambda path: looked.append(path.name) or real(path))
    mask(pictures / "m", "a.png")
    mask(pictures / "m", "b.png")
    age(pictures)
    index = FileIndex(pictures / "index.sqlite")
    first, again = scan(masked(pictures), index), scan(masked(pictures), index)
    assert first == again and sorted(looked) == ["a.png", "b.png"]


@pytest.mark.parametrize("with_masks", [True, False])
def test_an_adapter_that_does_not_move_points_at_the_masks_where_there_are_any(with_masks):
    class Still:
        def host_state(self):
            return {}

        def zero_init_parameters(self):
            return [("a", torch.zeros(2))]

    with pytest.raises(RunError, match="still zero: the adapter gets no gradient; check ") as refused:
        Watchdog(Still(), with_masks).check_moving()
    assert ("the masks (subset.mask_dir, subset.alpha_mask: black is not trained)" in str(refused.value)) == with_masks

"""The index of files: what has not changed is not read again."""

import os
import random
import time

import pytest
from PIL import Image

from anima_core.data import folder as folder_module
from anima_core.data.folder import scan
from anima_core.data.index import FileIndex

from .tiny import dataset, write


def age(folder, seconds=60):
    """Files as old as those of a real dataset: younger ones are not believed unchanged."""
    then = time.time() - seconds
    for path in folder.rglob("*"):
        os.utime(path, (then, then))


def counted(monkeypatch) -> list:
    from anima_core.data import folder

    looked, real = [], folder.scan_file
    monkeypatch.setattr(folder, "scan_file", lambda path, is_picture: looked.append(path.name) or real(path, is_picture))
    return looked


def test_the_index_spares_reading_and_notices_change(tmp_path, monkeypatch):
    looked, index = counted(monkeypatch), tmp_path / "index.sqlite"
    path = write(tmp_path / "p", "a.png")
    age(tmp_path / "p")
    (first,), _ = scan(dataset(tmp_path / "p"), FileIndex(index))
    (again,), _ = scan(dataset(tmp_path / "p"), FileIndex(index))
    assert again == first and sorted(looked) == ["a.png", "a.txt"]
    Image.new("RGB", (32, 32), "blue").save(path)
    (changed,), _ = scan(dataset(tmp_path / "p"), FileIndex(index))
    assert looked[2:] == ["a.png"] and changed.digest != first.digest and changed.size == (32, 32)


def test_a_file_that_changed_a_moment_ago_is_read_again(tmp_path, monkeypatch):
    """Two writes within one tick of the clock leave the same size and time."""
    from anima_core.data import index as module

    monkeypatch.setattr(module, "SETTLED_NS", 3600 * 10**9)  # a slow machine's moment
    looked, index = counted(monkeypatch), tmp_path / "index.sqlite"
    write(tmp_path / "p", "a.png")
    scan(dataset(tmp_path / "p"), FileIndex(index))
    scan(dataset(tmp_path / "p"), FileIndex(index))
    assert len(looked) == 4


@pytest.mark.parametrize(
    "damage", [b"not a database at all, but long enough to be looked at", b"", b"SQLite format 3\0" + b"\xff" * 200]
)
def test_a_damaged_index_is_made_anew(tmp_path, monkeypatch, damage):
    write(tmp_path / "p", "a.png")
    age(tmp_path / "p")
    index = tmp_path / "index.sqlite"
    scan(dataset(tmp_path / "p"), FileIndex(index))
    index.write_bytes(damage)
    assert scan(dataset(tmp_path / "p"), FileIndex(index))[1].pictures == 1
    looked = counted(monkeypatch)
    scan(dataset(tmp_path / "p"), FileIndex(index))
    assert looked == []


def test_an_unchanged_folder_is_recalled_whole_with_all_that_was_found(tmp_path, monkeypatch):
    folder_, index = tmp_path / "p", tmp_path / "index.sqlite"
    for number in range(4):
        write(folder_, f"{number}.png", colour=(number, 0, 0), caption=f"風景 {number}")
    write(folder_, "same.png", colour=(0, 0, 0), caption=None)
    write(folder_, "grey.png").write_bytes(b"no picture")
    (folder_ / "orphan.txt").write_text("x", encoding="utf-8")
    age(folder_)
    fresh = scan(dataset(folder_))
    assert scan(dataset(folder_), FileIndex(index)) == fresh
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "read_folder", None)  # is not called
        assert scan(dataset(folder_), FileIndex(index)) == fresh
    assert fresh[1].warnings()  # there was something to recall
    tokens = dict(class_tokens="a cat")
    assert scan(dataset(folder_, **tokens), FileIndex(index)) == scan(dataset(folder_, **tokens))
    write(tmp_path / "m", "1.png", caption=None)
    masked = dict(mask_dir=str(tmp_path / "m"))
    assert scan(dataset(folder_, **masked), FileIndex(index)) == scan(dataset(folder_, **masked))
    (folder_ / "0.txt").write_text("changed", encoding="utf-8")
    assert scan(dataset(folder_), FileIndex(index)) == scan(dataset(folder_))
    (folder_ / "1.png").unlink()
    assert scan(dataset(folder_), FileIndex(index)) == scan(dataset(folder_))


def test_no_flipped_byte_of_the_index_is_believed(tmp_path):
    """SQLite keeps no checksums of its own."""
    folder_, index = tmp_path / "p", tmp_path / "index.sqlite"
    for number in range(3):
        write(folder_, f"{number}.png", colour=(number, 0, 0), caption=f"the caption of number {number}")
    age(folder_)
    fresh = scan(dataset(folder_))
    with FileIndex(index) as kept:
        scan(dataset(folder_), kept)
    whole, chance = index.read_bytes(), random.Random(0)
    used = [place for place, byte in enumerate(whole) if byte]
    for place in chance.sample(used, 300):
        index.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :])
        with FileIndex(index) as damaged:
            assert scan(dataset(folder_), damaged) == fresh


def test_files_that_are_gone_are_forgotten(tmp_path):
    write(tmp_path / "p", "a.png")
    write(tmp_path / "p", "b.png", colour="blue")
    age(tmp_path / "p")
    index = FileIndex(tmp_path / "index.sqlite")
    scan(dataset(tmp_path / "p"), index)
    (tmp_path / "p" / "b.png").unlink()
    (tmp_path / "p" / "b.txt").unlink()
    scan(dataset(tmp_path / "p"), index)
    assert [row[0] for row in index._db.execute("SELECT name FROM files")] == ["a.png", "a.txt"]


def test_an_interrupted_scan_keeps_what_it_did(tmp_path, monkeypatch):
    looked, index = counted(monkeypatch), tmp_path / "index.sqlite"
    for number in range(100):
        write(tmp_path / "p", f"{number}.png", (16, 16), (number, 0, 0))
    age(tmp_path / "p")

    def interrupt(done, total):
        assert total == 200
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(dataset(tmp_path / "p"), FileIndex(index), lambda stage: interrupt)
    first = len(looked)
    assert 0 < first < 200
    scan(dataset(tmp_path / "p"), FileIndex(index))
    assert len(looked) == 200


def test_an_index_of_another_version_starts_afresh(tmp_path, monkeypatch):
    from anima_core.data import index as module

    path = tmp_path / "index.sqlite"
    monkeypatch.setattr(module, "VERSION", module.VERSION - 1)
    write(tmp_path / "p", "a.png")
    age(tmp_path / "p")
    with FileIndex(path) as old:
        scan(dataset(tmp_path / "p"), old)
        old._db.execute("UPDATE files SET found = 'another format'")
        old._db.commit()
    monkeypatch.undo()
    assert scan(dataset(tmp_path / "p"), FileIndex(path))[1].pictures == 1

"""The demo's files: written once, again when one is missing, and the same bytes every time."""

from anima_core.demo.files import PICTURES, SIDE, demo_files
from anima_core.files import digest


def test_written_once_and_again_when_one_is_missing(tmp_path):
    found = demo_files(tmp_path)
    pictures = sorted(found.pictures.glob("*.png"))
    assert len(pictures) == PICTURES and all(path.with_suffix(".txt").is_file() for path in pictures)
    assert all(path.exists() for path in found.models.values())
    before = {path: (path.stat().st_mtime_ns, digest(path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert demo_files(tmp_path) == found
    assert {path: path.stat().st_mtime_ns for path in before} == {path: time for path, (time, _) in before.items()}
    pictures[3].unlink()
    assert demo_files(tmp_path) == found
    assert {path: digest(path) for path in before} == {path: told for path, (_, told) in before.items()}


def test_as_a_dataset(tmp_path):
    dataset = demo_files(tmp_path).dataset()
    assert dataset.resolutions == ((SIDE, SIDE),) and dataset.subsets[0].image_dir == str(tmp_path / "pictures")

"""Work that threads do ahead: the same results in the same order, never too much of it, errors in turn, no thread left."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from PIL import Image

from anima_core.data import ahead as ahead_module
from anima_core.data.ahead import JOBS_AHEAD, ahead
from anima_core.data.batches import build_items
from anima_core.data.cache import TensorCache
from anima_core.data.folder import scan
from anima_core.data.latents import LatentStore
from anima_core.errors import FileError, Interrupted
from anima_core.models.checkpoint import load_tensors

from .test_data import FakeVAE
from .tiny import dataset, same_tensors, write

PATIENCE = 60  # seconds until a test that waits for what never comes fails


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("anima-ahead")]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_results_come_in_order_whatever_the_number_of_threads(workers):
    assert list(ahead(lambda n: n * n, range(300), workers=workers)) == [n * n for n in range(300)]
    assert list(ahead(lambda n: n, [], workers=workers)) == [] and threads() == []


def test_jobs_run_side_by_side_and_before_they_are_asked_for():
    """Each waits for another one, and the first result is not asked for before all three were at work at once."""
    together = threading.Barrier(3)
    with closing(ahead(lambda n: together.wait(PATIENCE) >= 0, range(3), workers=3)) as results:
        assert list(results) == [True] * 3


@pytest.mark.parametrize("size, most", [(1, JOBS_AHEAD), (300, 3), (2000, 1)])
def test_never_more_is_ahead_than_its_bounds_allow(monkeypatch, size, most):
    monkeypatch.setattr(ahead_module, "BYTES_AHEAD", 1000)
    begun = []
    with closing(ahead(lambda n: begun.append(n) or n, range(200), lambda n: size, workers=2)) as results:
        for asked, result in enumerate(results):
            assert result == asked and len(begun) <= asked + 1 + most


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_is_raised_in_its_turn_and_ends_the_threads(workers):
    def work(n: int) -> int:
        if n in (3, 4):
            raise ValueError(n)
        return n

    seen = []
    with pytest.raises(ValueError, match="3"), closing(ahead(work, range(100), workers=workers)) as results:
        seen += results
    assert seen == [0, 1, 2] and threads() == []


def test_closing_drops_what_has_not_begun(monkeypatch):
    begun, go = [], threading.Event()

    class Pool(ThreadPoolExecutor):
        """Lets the jobs that are at work end when all others have been dropped."""

        def shutdown(self, wait=True, *, cancel_futures=False):
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            go.set()
            super().shutdown(wait=wait)

    def work(n: int) -> int:
        begun.append(n)
        assert n == 0 or go.wait(PATIENCE)
        return n

    monkeypatch.setattr(ahead_module, "ThreadPoolExecutor", Pool)
    results = ahead(work, range(JOBS_AHEAD), workers=2)
    assert next(results) == 0
    results.close()
    assert set(begun) <= {0, 1, 2} and threads() == []


# --- latents


def folder_of(tmp_path, count=7):
    """Pictures of three shapes, noise in none: their sizes and colours tell them apart."""
    sizes = [(64, 64), (96, 48), (300, 400)]
    for n in range(count):
        write(tmp_path / "p", f"{n}.png", sizes[n % 3], (30 * n, 255 - 30 * n, 90))
    config = dataset(tmp_path / "p", resolutions=((64, 64),), min_bucket_reso=32, bucket_reso_steps=16, flip_aug=True)
    return build_items((config,), (scan(config)[0],))


def filled(items, folder, workers, progress=lambda done, total: None):
    store = LatentStore(TensorCache(folder), "vae", 0)
    store.fill(items, FakeVAE, 2, progress, workers=workers)
    return cached(folder, "latents")


def cached(folder, name):
    return {path.name: load_tensors(path)[name] for path in folder.rglob("*.safetensors")}


def test_latents_are_bit_equal_with_and_without_threads(tmp_path):
    items = folder_of(tmp_path)
    plain = filled(items, tmp_path / "plain", 0)
    assert len(plain) == 14 and same_tensors(filled(items, tmp_path / "threads", 3), plain)


@pytest.mark.parametrize("workers", [0, 3])
def test_a_picture_that_cannot_be_read_is_named_and_what_came_before_is_kept(tmp_path, workers):
    items = folder_of(tmp_path)
    bad = items[-1].picture.path
    bad.write_bytes(bad.read_bytes()[:-30])
    store = LatentStore(TensorCache(tmp_path / "c"), "vae", 0)
    with pytest.raises(FileError, match=f"{bad.name}: has changed since it was scanned"):
        store.fill(items, FakeVAE, 1, lambda done, total: None, workers=workers)
    done = [not store.missing([item]) for item in items]
    assert any(done) and threads() == []


def test_a_cancel_while_latents_are_cached_ends_the_threads(tmp_path):
    def cancel(done: int, total: int) -> None:
        raise Interrupted(f"{done} of {total}")

    items = folder_of(tmp_path)
    with pytest.raises(Interrupted, match="2 of 14"):
        filled(items, tmp_path / "c", 3, cancel)
    assert threads() == [] and len(list((tmp_path / "c").rglob("*.safetensors"))) == 2


def test_masks_are_the_same_with_and_without_threads(tmp_path):
    items = folder_of(tmp_path)

    def mask_of(item):
        path = tmp_path / f"mask-{item.picture.name}"
        Image.linear_gradient("L").resize(item.picture.size).save(path)
        return path

    masked = [item._replace(picture=item.picture._replace(mask_path=mask_of(item))) for item in items]
    found = []
    for workers in (0, 3):
        LatentStore(TensorCache(tmp_path / str(workers)), "vae", 0).fill_masks(masked, lambda *of: None, workers=workers)
        found.append(cached(tmp_path / str(workers), "mask"))
    assert len(found[0]) == 6 and same_tensors(*found)

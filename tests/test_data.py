"""From pictures to batches: buckets, pixels, caches, order."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anima_core.data.batches import Batches, build_items
from anima_core.data.buckets import bucket_sizes, bucket_table, choose_bucket, cover
from anima_core.data.cache import TensorCache, cache_key, entry_path
from anima_core.data.folder import Picture, scan
from anima_core.data.latents import LatentStore
from anima_core.data.pictures import load_mask, load_picture
from anima_core.errors import RunError, SettingError
from anima_core.settings import DatasetConfig, SubsetConfig

from .tiny import dataset, write

# --- buckets


@pytest.mark.parametrize("step", [16, 32, 64])
@pytest.mark.parametrize("resolution", [(512, 512), (1024, 1024), (768, 1344)])
def test_buckets_keep_area_sides_and_step(resolution, step):
    sizes = bucket_sizes(resolution, 256, 2048, step)
    area = resolution[0] * resolution[1]
    assert all(256 <= side <= 2048 and side % step == 0 for size in sizes for side in size)
    assert all(w * h <= area for w, h in sizes) and {(h, w) for w, h in sizes} == set(sizes)
    best = max(sizes, key=lambda s: s[0] * s[1])
    assert best[0] * best[1] > 0.9 * area
    ratios = sorted(w / h for w, h in sizes)
    assert ratios[0] < 0.3 and ratios[-1] > 3


@settings(max_examples=200, deadline=None)
@given(st.integers(16, 5000), st.integers(16, 5000), st.sampled_from([16, 32, 48, 64]), st.booleans(), st.booleans())
def test_every_picture_has_a_bucket_that_it_covers(width, height, step, enabled, no_upscale):
    config = DatasetConfig((SubsetConfig("x"),), bucket_reso_steps=step, bucket_no_upscale=no_upscale, enable_bucket=enabled)
    bucket = choose_bucket((width, height), config, (1024, 768))
    assert bucket[0] % 16 == 0 and bucket[1] % 16 == 0 and bucket[0] * bucket[1] <= 1024 * 1024
    if not enabled:
        assert bucket == (1024, 768)
    elif no_upscale:
        assert bucket[0] <= width and bucket[1] <= height
    resized, box = cover((width, height), bucket)
    assert (box[2] - box[0], box[3] - box[1]) == bucket
    assert min(box) >= 0 and box[2] <= resized[0] and box[3] <= resized[1]
    if enabled and not no_upscale and 0.3 < width / height < 3:
        assert abs(math.log(width / height) - math.log(bucket[0] / bucket[1])) < 0.2


def test_portrait_and_landscape_are_treated_alike():
    config = DatasetConfig((SubsetConfig("x"),))
    for size in [(700, 1000), (512, 2000), (999, 1000)]:
        assert choose_bucket(size, config, (1024, 1024)) == choose_bucket(size[::-1], config, (1024, 1024))[::-1]


@pytest.mark.parametrize(
    "size, step, bucket",
    [
        ((1000, 700), 64, (960, 640)),  # smaller than the area: its own size cut down to multiples of the step
        ((1000, 700), 16, (992, 688)),
        ((1000, 60), 64, (960, 48)),  # 16 only where a side is below one step
        ((3000, 30), 64, (2944, 16)),
        ((2048, 2048), 64, (1024, 1024)),  # larger: the area
        ((2000, 3000), 64, (832, 1216)),
        ((1200, 1000), 64, (1088, 896)),
    ],
)
def test_pictures_that_are_not_enlarged_have_sides_in_multiples_of_the_step(size, step, bucket):
    config = DatasetConfig((SubsetConfig("x"),), bucket_no_upscale=True, bucket_reso_steps=step)
    assert choose_bucket(size, config, (1024, 1024)) == bucket


@pytest.mark.parametrize("resolution", [(1000, 1000), (1023, 1025), (90, 111)])
def test_with_buckets_a_resolution_is_only_an_area(resolution):
    config = DatasetConfig((SubsetConfig("x"),), resolutions=(resolution,), min_bucket_reso=64)
    for size in [(500, 900), (1000, 1000), (64, 3000)]:
        bucket = choose_bucket(size, config, resolution)
        assert all(side % 64 == 0 for side in bucket) and bucket[0] * bucket[1] <= resolution[0] * resolution[1]
    with pytest.raises(SettingError, match="sides must be multiples of 16, or turn dataset.enable_bucket on"):
        DatasetConfig((SubsetConfig("x"),), resolutions=(resolution,), enable_bucket=False)


def test_bucket_bounds_that_are_no_multiples_of_the_step_are_rounded_outwards():
    sizes = bucket_sizes((512, 512), 250, 1000, 48)
    assert {min(size) for size in sizes} >= {240} and max(max(size) for size in sizes) == 1008


def test_bucket_table_tells_short_batches():
    assert bucket_table([(64, 64)] * 5 + [(32, 64)] * 4, 4) == [
        "32x64: 4 pictures, 1 batches",
        "64x64: 5 pictures, 2 batches, the last of 1",
    ]


# --- pictures


MODES = {
    "RGB": (200, 100, 50),
    "L": 100,
    "P": (200, 100, 50),
    "CMYK": (0, 128, 200, 55),
    "1": 1,
    "I;16": 32768,
    "LA": (100, 255),
    "RGBA": (200, 100, 50, 255),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_rgb(tmp_path, mode):
    plain = Image.new("RGB" if mode == "P" else mode, (32, 32), MODES[mode])
    image = plain.quantize(4) if mode == "P" else plain
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    pixels = load_picture(path, (32, 32))
    assert pixels.shape == (3, 32, 32) and pixels.dtype == torch.float32 and pixels.min() >= -1 and pixels.max() <= 1
    expected = {"I;16": 0.0, "1": 1.0, "L": 100 / 127.5 - 1, "LA": 100 / 127.5 - 1}.get(mode)
    if expected is not None:
        assert abs(pixels.mean().item() - expected) < 0.01
    elif mode != "CMYK":
        assert torch.allclose(pixels[:, 0, 0], torch.tensor([200, 100, 50]) / 127.5 - 1, atol=0.02)


def test_transparency_is_white_and_may_weigh(tmp_path):
    image = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 32, 64))
    image.save(tmp_path / "a.png")
    pixels = load_picture(tmp_path / "a.png", (64, 64))
    assert pixels[:, :, :32].max() == -1 and pixels[:, :, 32:].min() == 1
    mask = load_mask(tmp_path / "a.png", None, alpha=True, bucket=(64, 64))
    assert mask.shape == (1, 8, 8) and mask[..., :4].min() == 1 and mask[..., 4:].max() == 0
    flipped = load_mask(tmp_path / "a.png", None, alpha=True, bucket=(64, 64), flip=True)
    assert torch.equal(flipped, mask.flip(-1))
    write(tmp_path, "opaque.png")
    assert load_mask(tmp_path / "opaque.png", None, alpha=True, bucket=(64, 64)) is None


def test_flips_mirror_and_crops_are_central(tmp_path):
    array = np.zeros((64, 128, 3), np.uint8)
    array[:, :64, 0] = 255
    Image.fromarray(array).save(tmp_path / "a.png")
    assert torch.equal(
        load_picture(tmp_path / "a.png", (128, 64), flip=True), load_picture(tmp_path / "a.png", (128, 64)).flip(-1)
    )
    middle = load_picture(tmp_path / "a.png", (64, 64))
    assert abs(middle[0].mean()) < 0.05


# --- cache


def test_cache_returns_what_was_put_and_notices_damage(tmp_path):
    for cache in (TensorCache(tmp_path), TensorCache(None)):
        key = cache_key(a=1)
        assert not cache.has(key) and cache.get(key) is None
        cache.put(key, {"x": torch.randn(3, 4).to(torch.bfloat16), "ids": torch.arange(5)})
        assert cache.has(key) and cache.get(key)["ids"].tolist() == [0, 1, 2, 3, 4]
    disk = TensorCache(tmp_path)
    path = entry_path(tmp_path, key)
    whole = path.read_bytes()
    for damaged in (whole[:-3], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"junk" * 20):
        path.write_bytes(damaged)
        assert disk.get(key) is None and not path.exists()
    assert not [p for p in tmp_path.rglob("*") if p.suffix == ".tmp"]


def test_a_file_under_a_wrong_name_is_not_believed(tmp_path):
    cache = TensorCache(tmp_path)
    cache.put(cache_key(a=1), {"x": torch.zeros(1)})
    other = entry_path(tmp_path, cache_key(a=2))
    other.parent.mkdir(parents=True, exist_ok=True)
    entry_path(tmp_path, cache_key(a=1)).rename(other)
    assert cache.get(cache_key(a=2)) is None


def test_keys_depend_on_every_part_and_no_order():
    assert cache_key(a=1, b=2) == cache_key(b=2, a=1)
    assert len({cache_key(a=1, b=2), cache_key(a=2, b=1), cache_key(a=1), cache_key(a=1, b="2")}) == 4


class FakeVAE:
    """Counts; its latents tell pictures apart."""

    def __init__(self):
        self.encoded = 0

    def encode(self, images, tile):
        self.encoded += len(images)
        small = torch.nn.functional.avg_pool2d(images, 8)
        return small.mean(1, keepdim=True).repeat(1, 16, 1, 1)


def fill(folder, cache, identity="vae", tile=0, **changes):
    config = dataset(folder, min_bucket_reso=32, bucket_reso_steps=16, **{"resolutions": ((64, 64),)} | changes)
    pictures, _ = scan(config)
    items = build_items((config,), (pictures,))
    vae, store = FakeVAE(), LatentStore(TensorCache(cache), identity, tile)
    store.fill(items, lambda: vae, batch_size=2, progress=lambda done, total: None)
    return vae.encoded, store, items, config


def test_only_what_changed_is_encoded_again(tmp_path):
    folder, cache = tmp_path / "p", tmp_path / "c"
    for i, size in enumerate([(64, 64), (96, 48), (48, 96)]):
        write(folder, f"{i}.png", size, (80 * i, 10, 10), caption=f"tag {i}")
    assert fill(folder, cache)[0] == 3
    assert fill(folder, cache)[0] == 0
    (folder / "0.txt").write_text("another caption", encoding="utf-8")
    assert fill(folder, cache)[0] == 0
    write(folder, "0.png", (64, 64), "white", caption="tag 0")
    assert fill(folder, cache)[0] == 1
    assert fill(folder, cache, flip_aug=True)[0] == 3
    assert fill(folder, cache, resolutions=((96, 96),))[0] == 3
    assert fill(folder, cache, resolutions=((64, 64), (96, 96)))[0] == 0
    assert fill(folder, cache, identity="another vae")[0] == 3
    assert fill(folder, cache, tile=96)[0] == 0  # no side is longer
    assert fill(folder, cache, tile=64)[0] == 2  # the two wide ones are encoded in tiles now
    write(folder, "3.png", (64, 64), "green")
    assert fill(folder, cache)[0] == 1
    (folder / "3.png").rename(folder / "renamed.png")
    (folder / "3.txt").rename(folder / "renamed.txt")
    assert fill(folder, cache)[0] == 0  # the same bytes under another name


@pytest.mark.parametrize(
    "tile, wanted, batches", [(64, 0, [1] * 18), (128, 0, [4, 4, 1] + [1] * 9), (0, 0, [9, 9]), (64, 5, [5, 4] * 2)]
)
def test_pictures_share_a_batch_that_takes_no_more_than_one_tile(tmp_path, tile, wanted, batches):
    """At half the side four times as many do."""
    for i in range(9):
        write(tmp_path / "p", f"{i}.png", (64, 64), (20 * i, 10, 10))
    config = dataset(tmp_path / "p", min_bucket_reso=32, bucket_reso_steps=16, resolutions=((64, 64), (128, 128)))
    items, vae, seen = build_items((config,), (scan(config)[0],)), FakeVAE(), []
    whole = vae.encode
    vae.encode = lambda images, tile: seen.append(len(images)) or whole(images, tile)
    LatentStore(TensorCache(None), "v", tile).fill(items, lambda: vae, wanted, lambda a, b: None)
    assert seen == batches


def test_latents_of_flipped_draws_are_mirrored(tmp_path):
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 32, 64))
    (tmp_path / "p").mkdir()
    image.save(tmp_path / "p" / "a.png")
    (tmp_path / "p" / "a.txt").write_text("x", encoding="utf-8")
    _, store, items, config = fill(tmp_path / "p", tmp_path / "c", flip_aug=True)
    batches = Batches(items, (config,), seed=0)
    seen = {}
    for _ in range(20):
        ((draw,),) = batches.take()
        seen[draw.flip] = store.latents(draw)
    assert torch.equal(seen[True], seen[False].flip(-1)) and not torch.equal(seen[True], seen[False])


def test_a_vanished_cache_file_is_an_error_that_says_so(tmp_path):
    write(tmp_path / "p", "a.png")
    _, store, items, config = fill(tmp_path / "p", tmp_path / "c")
    for file in (tmp_path / "c").rglob("*.safetensors"):
        file.unlink()
    with pytest.raises(RunError, match="have vanished or are damaged; start again"):
        store.latents(Batches(items, (config,), 0).take()[0][0])


def test_latents_that_are_not_finite_are_refused(tmp_path):
    write(tmp_path / "p", "a.png")
    config = dataset(tmp_path / "p")
    items = build_items((config,), (scan(config)[0],))
    vae = FakeVAE()
    vae.encode = lambda images, tile: torch.full((len(images), 16, 8, 8), math.nan)
    with pytest.raises(RunError, match="a.png: its latents are not finite"):
        LatentStore(TensorCache(None), "v", 0).fill(items, lambda: vae, 1, lambda a, b: None)


# --- batches


def fake_pictures(count, repeats=1, subset=None):
    sizes = [(64, 64), (96, 48), (48, 96), (200, 100)]
    subset = subset or SubsetConfig("x", flip_aug=True)
    from pathlib import Path

    return [Picture(Path("p"), f"{i}.png", subset, repeats, sizes[i % 4], f"{i:064x}", f"tag {i}") for i in range(count)]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(1, 3), st.integers(1, 7), st.integers(0, 5))
def test_each_epoch_holds_every_item_once(count, repeats, batch_size, seed):
    config = DatasetConfig(
        (SubsetConfig("x"),),
        resolutions=((64, 64), (128, 128)),
        batch_size=batch_size,
        min_bucket_reso=32,
        bucket_reso_steps=16,
    )
    items = build_items((config,), (fake_pictures(count, repeats),))
    assert len(items) == count * repeats * 2
    batches = Batches(items, (config,), seed)
    orders = []
    for epoch in range(2):
        drawn = []
        for _ in range(batches.len_epoch()):
            (batch,) = batches.take()
            assert 1 <= len(batch) <= batch_size and len({d.item.bucket for d in batch}) == 1
            assert all(d.epoch == epoch for d in batch)
            drawn += [d.item.number for d in batch]
        assert Counter(drawn) == Counter(range(len(items)))
        orders.append(drawn)
    groups = Counter(item.bucket for item in items)
    assert batches.len_epoch() == sum(math.ceil(n / batch_size) for n in groups.values())


def test_order_follows_from_the_position_alone():
    config = DatasetConfig((SubsetConfig("x"),), batch_size=2)
    items = build_items((config,), (fake_pictures(11),))
    whole = Batches(items, (config,), 3)
    expected = [whole.take()[0] for _ in range(25)]
    for stop in (0, 1, 7, 13):
        first = Batches(items, (config,), 3)
        for _ in range(stop):
            first.take()
        resumed = Batches(items, (config,), 3)
        resumed.load_state_dict(first.state_dict())
        assert [resumed.take()[0] for _ in range(25 - stop)] == expected[stop:]
    assert Batches(items, (config,), 4).take() != expected[:1] or len(items) == 1
    epochs = [[d.item.number for b in expected[i : i + whole.len_epoch()] for d in b] for i in (0, whole.len_epoch())]
    assert epochs[0] != epochs[1]


def test_datasets_keep_their_own_batch_size():
    a = DatasetConfig((SubsetConfig("x"),), batch_size=4, resolutions=((64, 64),), enable_bucket=False)
    b = dataclasses.replace(a, batch_size=1)
    items = build_items((a, b), (fake_pictures(8), fake_pictures(3)))
    batches = Batches(items, (a, b), 0)
    sizes = Counter((batch[0].item.dataset, len(batch)) for batch in batches.take(batches.len_epoch()))
    assert sizes == {(0, 4): 2, (1, 1): 3}


def test_a_hundred_thousand_pictures_make_a_plan():
    config = DatasetConfig((SubsetConfig("x"),), batch_size=4)
    batches = Batches(build_items((config,), (fake_pictures(4) * 25_000,)), (config,), 0)
    assert len(batches.take()[0]) == 4 and batches.len_epoch() == 25_000

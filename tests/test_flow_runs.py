"""What a run makes of ranges of t, drawn crops, and smaller pictures for noisy draws."""

import dataclasses
import json
from collections import defaultdict

import pytest
import torch
from PIL import Image

from anima_core import seeds, train
from anima_core.data.batches import Batches, Draw, build_items
from anima_core.data.crops import Crops
from anima_core.data.folder import scan
from anima_core.data.latents import LatentStore
from anima_core.demo.pictures import write_pictures
from anima_core.settings import FlowConfig, NetworkConfig, SubsetConfig
from anima_core.training import flow
from anima_core.training.feed import Batch, Feed
from anima_core.training.preflight import preflight
from anima_core.training.ranks import Ranks

from .tiny import dataset, prepared, train_changed, train_config, write

SMALLER = FlowConfig(lowres_scale=0.5, lowres_above=0.5, lowres_below=1.0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


def batches(config, steps: int = 4, first: int = 0) -> list[Batch]:
    data, _, _ = prepared(config)
    with Feed(data, preflight(config), first, steps, Ranks()) as feed:
        found = [next(feed)]
        while sum(batch.ends_step for batch in found) < steps:
            found.append(next(feed))
        return found


@pytest.mark.slow
def test_at_the_defaults_a_batch_is_drawn_as_it_ever_was(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path)
    for batch in batches(config):
        generator = seeds.generator(config.seed, "noise", batch.number)
        assert torch.equal(batch.t, torch.sigmoid(torch.randn(len(batch.t), generator=generator)))
        assert torch.equal(batch.noise, torch.randn(batch.latents.shape, generator=generator)) and batch.part is None


@pytest.mark.slow
def test_every_picture_has_its_own_folders_range_and_weight(model, pictures, tmp_path):
    write_pictures(tmp_path / "faces", 3, seed=5)
    for path in [*(tmp_path / "faces").iterdir()]:
        path.rename(path.with_name(f"face_{path.name}"))
    config = train_config(model, pictures, tmp_path, max_train_steps=12)
    high = SubsetConfig(str(tmp_path / "faces"), min_timestep=0.6, timestep_offset=1.0, loss_weight=0.25)
    low = SubsetConfig(str(pictures), max_timestep=0.4)
    config = dataclasses.replace(config, datasets=(dataclasses.replace(config.datasets[0], subsets=(low, high)),))
    seen = defaultdict(set)
    for batch in batches(config, 12):
        for name, t, weight in zip(batch.names, batch.t.tolist(), batch.weight.tolist(), strict=True):
            seen[name.startswith("face")].add((t > 0.5, weight))
            assert t >= 0.6 if name.startswith("face") else t <= 0.4
    assert seen == {True: {(True, 0.25)}, False: {(False, 1.0)}}


# --- smaller pictures for noisy draws


def parts_of(found: list[Batch]) -> dict[int, list[Batch]]:
    parts = defaultdict(list)
    for batch in found:
        parts[batch.number].append(batch)
    return parts


@pytest.mark.slow
def test_noisy_draws_are_a_part_of_their_own_at_the_smaller_size(model, pictures, tmp_path):
    """The t of a micro-batch, its texts and its weights are those of a run without, but for their order."""
    changes = dict(dataset={"batch_size": 4, "enable_bucket": False}, max_train_steps=6)
    plain = batches(train_config(model, pictures, tmp_path / "a", **changes), 6)
    split = parts_of(batches(train_config(model, pictures, tmp_path / "b", flow=SMALLER, **changes), 6))
    assert max(map(len, split.values())) == 2
    for batch in plain:
        parts = split[batch.number]
        drawn = {name: t for part in parts for name, t in zip(part.names, part.t.tolist(), strict=True)}
        assert drawn == dict(zip(batch.names, batch.t.tolist(), strict=True))
        assert sum(1 / part.divisor for part in parts) == pytest.approx(1 / batch.divisor)
        assert [part.ends_step for part in parts] == [False] * (len(parts) - 1) + [True]
        rows = [row for part in parts if part.part for row in range(part.part.pictures)[part.part.rows]]
        assert rows == [*range(len(batch.t))] * (len(parts) > 1)
        for part in parts:
            assert part.latents.shape[2:] == ((4, 4) if part.t.min() > 0.5 else (8, 8))
            assert part.noise.shape == part.latents.shape and (part.t.min() > 0.5) == (part.t.max() > 0.5)


def test_a_part_is_split_further_within_its_whole():
    whole = Batch(
        0,
        torch.zeros(6, 1),
        torch.zeros(6, 1),
        None,
        torch.arange(6.0),
        None,
        torch.ones(6),
        {},
        list("abcdef"),
        2.0,
        1,
        True,
        {},
    )
    first, second = whole.split(2)
    inner = second.split(2)
    assert [range(6)[p.part.rows] for p in (first, *inner)] == [range(0, 3), range(3, 5), range(5, 6)]
    assert {p.part.pictures for p in (first, *inner)} == {6}
    assert [t for p in (first, *inner) for t in p.t.tolist()] == [*range(6)]
    assert sum(1 / p.divisor for p in (first, *inner)) == pytest.approx(1 / whole.divisor)


@pytest.mark.slow
def test_a_step_of_two_sizes_is_the_mean_over_its_pictures(model, pictures, tmp_path):
    """Reported loss and gradient, beside every picture on its own."""
    config = train_config(
        model, pictures, tmp_path, flow=SMALLER, max_train_steps=1, dataset={"batch_size": 4, "enable_bucket": False}
    )

    def compare(run):
        with Feed(run.data, run.plan, 0, 1, Ranks()) as feed:
            found, loss = run.take_gradient(feed)
        assert len(found) == 2
        fast = run.state.gradient.buffer.clone()
        run.state.gradient.zero()
        losses = []
        for batch in found:
            for single in batch.split(len(batch.t)):
                with run.state.network.micro_batch(single.number, single.part, single.t):
                    one = run.forward(single)
                    run.state.gradient.backward(one / 4)
                losses.append(one.item())
        assert loss.item() == pytest.approx(sum(losses) / 4, rel=1e-5)
        assert torch.allclose(fast, run.state.gradient.buffer, rtol=1e-3, atol=1e-6)
        run.state.gradient.zero()
        run.data.batches.load_state_dict({"epoch": 0, "index": 0})

    train_changed(config, compare)


@pytest.mark.slow
def test_a_run_says_how_many_draws_train_smaller_and_how_much_is_cached(model, pictures, tmp_path):
    notes = []
    listen = lambda event: notes.append(event["text"]) if event["event"] == "note" else None  # noqa: E731
    write(tmp_path / "wide", "a.png", (160, 64))
    config = train_config(
        model,
        tmp_path / "wide",
        tmp_path,
        flow=SMALLER,
        max_train_steps=4,
        subset={"random_crop": True},
        dataset={"enable_bucket": False},
    )
    train(config, listen)
    said = "`flow.lowres_scale`=0.5: about 50% of the draws train smaller, at 32x32 instead of 64x64; "
    assert [text for text in notes if text.startswith(said)]
    assert "`subset.random_crop`: 4 crops of 1 pictures are cached" in notes
    entries = [*(tmp_path / "cache" / "latents").rglob("*.safetensors")]
    assert len(entries) == 8


def test_flops_that_smaller_pictures_save():
    """On the real model's sizes; the windows are those that were published, with -15 % of the time for 0.875."""
    from .test_counting import analytic

    for scale, window, least, most in ((0.75, (0.65, 0.95), 0.12, 0.14), (0.875, (0.5, 1.0), 0.12, 0.16)):
        config = FlowConfig(lowres_scale=scale, lowres_above=window[0], lowres_below=window[1])
        t = flow.draw_timesteps([SubsetConfig("x")] * 100_000, config, seeds.generator(0, "share"))
        share = flow.trains_smaller(t, config).float().mean().item()
        saved = share * (1 - analytic(int(1024 * scale), 32, False) / analytic(1024, 32, False))
        assert least < saved < most, saved


# --- crops


def wide(folder):
    """A picture whose columns tell where they are, a mask alike, both twice as wide as their bucket."""
    for part in ("p", "m"):
        (folder / part).mkdir()
        Image.linear_gradient("L").rotate(90).resize((128, 64)).convert("RGB" if part == "p" else "L").save(
            folder / part / "a.png"
        )
    (folder / "p" / "a.txt").write_text("x", encoding="utf-8")
    config = dataset(
        folder / "p",
        mask_dir=str(folder / "m"),
        random_crop=True,
        flip_aug=True,
        num_repeats=2,
        resolutions=((64, 64),),
        enable_bucket=False,
    )
    return config, build_items((config,), (scan(config)[0],))


class Columns:
    """Instead of the VAE: the mean of 8 x 8 pixels, in 16 channels."""

    def __init__(self):
        self.encoded = 0

    def encode(self, images, tile):
        self.encoded += len(images)
        return torch.nn.functional.avg_pool2d(images, 8).mean(1, keepdim=True).repeat(1, 16, 1, 1)


def test_crops_come_in_turn_mirrored_as_drawn_and_masks_alike(tmp_path):
    _, items = wide(tmp_path)
    vae, store = Columns(), LatentStore(tmp_cache(), "vae", 0, crops=Crops(7, variants=3, epochs=9))
    store.fill(items, lambda: vae, 1, lambda *of: None)
    store.fill_masks(items, lambda *of: None)
    corners = store.crops.corners(items[0])
    assert vae.encoded == 2 * len(corners) == 6, "three crops, each mirrored too"
    places = [corner or (32, 0) for corner in corners]
    assert {top for _, top in places} == {0} and all(0 <= left <= 64 for left, _ in places)
    for item in items:
        for epoch in range(9):
            corner = store.crops.corner(item, epoch)
            assert corner == corners[(item.number + epoch) % 3]
            plain, mirrored = (store.latents(Draw(item, flip, epoch, 0)) for flip in (False, True))
            assert torch.allclose(plain, mirrored.flip(-1), atol=1e-6)
            assert torch.allclose(store.mask(Draw(item, False, epoch, 0))[0], (plain[0] + 1) / 2, atol=0.02)
    assert len({store.latents(Draw(items[0], False, epoch, 0))[0, 0, 0].item() for epoch in range(9)}) == 3
    assert vae.encoded == 6, "training encodes nothing"


def tmp_cache():
    from anima_core.data.cache import TensorCache

    return TensorCache(None)


def test_only_crops_that_the_run_meets_are_encoded(tmp_path):
    _, items = wide(tmp_path)
    assert len(Crops(7, variants=100, epochs=2).corners(items[0])) == 2
    vae, store = Columns(), LatentStore(tmp_cache(), "vae", 0, crops=Crops(7, variants=100, epochs=1))
    store.fill(items, lambda: vae, 1, lambda *of: None)
    assert vae.encoded == 2 * 2, "two draws of an epoch take two crops"


def test_crops_are_spread_over_the_picture_and_follow_seed_and_bytes(tmp_path):
    _, items = wide(tmp_path)
    crops = Crops(7, variants=2000, epochs=2000)
    lefts = torch.tensor([left for left, _ in (crops.corner(items[0], epoch) or (32, 0) for epoch in range(2000))]).float()
    assert (lefts.min(), lefts.max()) == (0, 64)
    levels = torch.tensor([0.25, 0.5, 0.75])
    assert torch.allclose(torch.quantile(lefts, levels), 64 * levels, atol=3)
    assert Crops(7, 2000, 1).corner(items[0], 5) == crops.corner(items[0], 5) != Crops(8, 2000, 1).corner(items[0], 5)
    small, large = items[0].smaller(0.5), items[0]
    assert all(abs(2 * (crops.corner(small, e) or (16,))[0] - (crops.corner(large, e) or (32,))[0]) <= 2 for e in range(50))


def test_a_picture_without_room_and_a_folder_without_the_setting_have_the_centre(tmp_path):
    write(tmp_path / "square", "a.png", (80, 80))
    config = dataset(tmp_path / "square", random_crop=True, resolutions=((64, 64),), enable_bucket=False)
    (item,) = build_items((config,), (scan(config)[0],))
    assert Crops(7, 4, 9).corners(item) == [None]
    plain = dataset(tmp_path / "square", resolutions=((64, 64),))
    (item,) = build_items((plain,), (scan(plain)[0],))
    store = LatentStore(tmp_cache(), "vae", 0)
    assert Crops(7, 4, 9).corners(item) == [None] and store.key(item.picture, item.bucket, False, None) == store.key(
        item.picture, item.bucket, False
    )
    assert isinstance(Batches([item], (plain,), 0).take()[0][0], Draw)


# --- learning

LEARNERS = {
    "min_snr": FlowConfig(weighting="min_snr"),
    "detail_inv_t": FlowConfig(weighting="detail_inv_t"),
    "second scale": FlowConfig(multiscale_loss_weight=1.0),
    "multires noise": FlowConfig(multires_noise_iterations=6),
    "smaller when noisy": SMALLER,
}


@pytest.mark.long
@pytest.mark.parametrize("name", LEARNERS)
def test_each_way_learns(model, pictures, tmp_path, monkeypatch, name):
    """The mean loss of ten steps falls by a fifth within 40."""
    monkeypatch.setattr(flow, "LARGE", 4)
    network = NetworkConfig(rank=16, alpha=16, targets="all")
    dataset = {"batch_size": 4, "enable_bucket": False}
    config = train_config(model, pictures, tmp_path, flow=LEARNERS[name], network=network, max_train_steps=40, dataset=dataset)
    losses = train(config).losses
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    assert last < 0.8 * first, json.dumps([first, last])

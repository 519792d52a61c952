"""Whole runs on tiny models: that they learn, repeat bit for bit, resume exactly, and take every kind of data."""

import contextlib
import dataclasses
import itertools
import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anima_core import train
from anima_core.adapters.formats import load_into
from anima_core.adapters.network import AdapterNetwork, merge
from anima_core.demo.pictures import write_pictures
from anima_core.errors import Interrupted, RunError
from anima_core.models.transformer import load_transformer
from anima_core.settings import FlowConfig, NetworkConfig, OptimizerConfig, OutputConfig, SampleConfig, SubsetConfig
from anima_core.settings.optimizer import OPTIMIZERS
from anima_core.speed.forms import make_plain
from anima_core.training import loop as loop_module
from anima_core.training.flow import flow_loss, interpolate, velocity_target
from anima_core.training.loop import opened

from .conftest import relative_error
from .tiny import prepared, same_tensors, train_changed, train_config, write

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 6)
    return folder


def log_of(result) -> list[dict]:
    return [json.loads(line) for line in (result.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()]


LAYOUTS = {
    "lora": NetworkConfig(rank=4, alpha=2),
    "lora +adaln +llm_adapter": NetworkConfig(rank=4, alpha=4, targets="+adaln+llm_adapter"),
    "lora all, norms": NetworkConfig(rank=2, alpha=0, targets="all", train_norm=True),
    "lokr full": NetworkConfig(type="lokr", rank=100000, alpha=0),
    "lokr low rank": NetworkConfig(type="lokr", rank=2, alpha=1, factor=4),
    "lokr both": NetworkConfig(type="lokr", rank=2, alpha=4, factor=-1, decompose_both=True),
    "loha": NetworkConfig(type="loha", rank=2, alpha=2),
    "loha of a high rank": NetworkConfig(type="loha", rank=8, alpha=4, targets="+adaln"),
    "dora": NetworkConfig(rank=4, alpha=2, dora=True, train_norm=True),
    "dora of lokr": NetworkConfig(type="lokr", rank=2, alpha=1, factor=4, dora=True),
    "dora of loha": NetworkConfig(type="loha", rank=2, alpha=2, dora=True),
    "t-lora": NetworkConfig(rank=4, alpha=4, tlora_min_rank=1, targets="+adaln+llm_adapter"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.slow
def test_saved_file_equals_the_live_network(model, pictures, tmp_path, layout):
    """Patching the base weights with the saved file gives the velocity that the trained network gave."""
    network_config = LAYOUTS[layout]
    g = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 16, 8, 6, generator=g), torch.rand(2, generator=g), torch.randn(2, 512, 64, generator=g)
    config = train_config(model, pictures, tmp_path, network=network_config)
    with opened(config) as run:
        result = run.go()
        run.state.network.eval()
        velocity = run.model(*inputs).detach()
        make_plain(run.model)  # as a model is loaded
        with run.state.network.disabled():
            without = run.model(*inputs).detach()
    base = load_transformer(model.transformer)
    assert torch.equal(base(*inputs), without)
    network = AdapterNetwork.inject(base, network_config, seed=99)
    load_into(network, result.adapter_path)
    patched = merge(network)(*inputs)
    assert relative_error(patched, velocity) < 1e-5
    assert relative_error(without, velocity) > 1e-3


def fixed_loss(config, adapter=None, pictures=None):
    """Mean loss on fixed t and noise of every picture, with an adapter file or without."""
    if pictures is not None:
        subset = dataclasses.replace(config.datasets[0].subsets[0], image_dir=str(pictures))
        config = dataclasses.replace(config, datasets=(dataclasses.replace(config.datasets[0], subsets=(subset,)),))
    data, model, network = prepared(config, adapter)
    network.eval()
    losses = []
    with torch.no_grad(), contextlib.nullcontext() if adapter else network.disabled():
        for number in range(data.batches_per_epoch):
            (draws,) = data.batches.take()
            latents = torch.stack([data.latents.latents(d) for d in draws])
            g = torch.Generator().manual_seed(number)
            noise, t = torch.randn(latents.shape, generator=g), torch.linspace(0.1, 0.9, len(draws))
            text, lengths, _ = data.embeddings.place(data.embeddings.fetch([data.caption(d) for d in draws]))
            velocity = model(interpolate(latents, noise, t), t, text, lengths)
            losses += flow_loss(velocity, velocity_target(latents, noise), t, FlowConfig()).tolist()
    return sum(losses) / len(losses)


LEARNERS = {
    "lora": NetworkConfig(rank=16, alpha=16, targets="all"),
    "lokr": NetworkConfig(type="lokr", factor=4, full_matrix=True, targets="all"),
    "loha": NetworkConfig(type="loha", rank=8, alpha=8, targets="all"),
    "dora": NetworkConfig(rank=16, alpha=16, targets="all", dora=True),
    "t-lora": NetworkConfig(rank=16, alpha=16, targets="all", tlora_min_rank=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in (2, 3))])
@pytest.mark.parametrize("kind", LEARNERS)
def test_training_learns(model, pictures, tmp_path, seed, kind):
    """150 steps take a third off the loss on fixed t and noise, for every seed and every type."""
    network = LEARNERS[kind]
    config = train_config(model, pictures, tmp_path, network=network, seed=seed, max_train_steps=150, dataset={"batch_size": 3})
    before = fixed_loss(config)
    after = fixed_loss(config, train(config).adapter_path)
    assert after < 0.67 * before


@pytest.mark.slow
def test_an_adapter_suits_its_own_pictures(model, tmp_path):
    """Trained on one half of a style, the other half's loss falls further below the base's than that of unrelated pictures."""
    for name, colour in (("own", (220, 40, 40)), ("held_out", (200, 60, 50)), ("other", (40, 60, 220))):
        (tmp_path / name).mkdir()
        for i in range(4):
            picture = Image.new("RGB", (64, 64), colour)
            picture.paste((250, 250, 240) if name != "other" else (10, 10, 10), (8 * i, 8, 8 * i + 24, 40))
            picture.save(tmp_path / name / f"{i}.png")
            (tmp_path / name / f"{i}.txt").write_text("a drawing", encoding="utf-8")
    network = NetworkConfig(rank=16, alpha=16, targets="all")
    config = train_config(model, tmp_path / "own", tmp_path / "out", network=network, max_train_steps=120)
    adapter = train(config).adapter_path
    gains = {
        n: fixed_loss(config, adapter, tmp_path / n) / fixed_loss(config, None, tmp_path / n) for n in ("held_out", "other")
    }
    assert gains["held_out"] < 0.8 * gains["other"]


@pytest.mark.slow
def test_same_seed_same_bits(model, pictures, tmp_path):
    subset = dict(shuffle_caption=True, caption_dropout_rate=0.2, flip_aug=True)
    network = NetworkConfig(rank=4, dropout=0.1, rank_dropout=0.1, module_dropout=0.1)
    files, seeds = [], (5, 5, 6)
    for run, seed in enumerate(seeds):
        out = tmp_path / str(run)
        result = train(train_config(model, pictures, out, seed=seed, subset=subset, network=network))
        files.append((load_file(result.adapter_path), result.losses))
    assert same_tensors(files[0][0], files[1][0]) and files[0][1] == files[1][1]
    assert not same_tensors(files[0][0], files[2][0])


@pytest.mark.slow
def test_previews_checkpointing_and_prefetch_change_nothing(model, pictures, tmp_path):
    plain = train(train_config(model, pictures, tmp_path / "a"))
    samples = SampleConfig(prompts=("red circle",), width=64, height=64, steps=2, cfg=2.0, every_n_steps=2, at_first=True)
    other = train(train_config(model, pictures, tmp_path / "b", samples=samples, memory="recompute"))
    assert same_tensors(load_file(plain.adapter_path), load_file(other.adapter_path))
    assert len(list((other.run_dir / "samples").glob("*.png"))) == 4


def test_global_random_state_is_untouched(model, pictures, tmp_path):
    torch.manual_seed(123)
    before = torch.get_rng_state()
    train(train_config(model, pictures, tmp_path, network=NetworkConfig(rank=2, dropout=0.2)))
    assert torch.equal(before, torch.get_rng_state())


def test_training_inside_inference_mode(model, pictures, tmp_path):
    """As a ComfyUI node would call it; a listener sees the mode it had outside again afterwards."""
    with torch.inference_mode():
        result = train(train_config(model, pictures, tmp_path))
        assert torch.is_inference_mode_enabled()
    assert result.steps == 6 and all(math.isfinite(loss) for loss in result.losses)


def test_accumulation_equals_a_larger_batch(model, pictures, tmp_path):
    """Two micro-batches of one picture give the gradient of their mean."""
    config = train_config(model, pictures, tmp_path / "a", dataset={"batch_size": 1}, gradient_accumulation_steps=2)
    single = train_config(
        model, pictures, tmp_path / "b", dataset={"batch_size": 1}, optimizer=OptimizerConfig(learning_rate=1e-30)
    )
    micro, accumulated = train(single).losses, train(config).losses
    assert math.isclose(accumulated[0], (micro[0] + micro[1]) / 2, rel_tol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        OptimizerConfig(type="RAdamScheduleFree", learning_rate=2e-3),
        OptimizerConfig(type="AdamWScheduleFree", learning_rate=2e-3),
        OptimizerConfig(type="SGDScheduleFree", learning_rate=0.1),
        OptimizerConfig(type="Adafactor", learning_rate=2e-3),
        OptimizerConfig(type="AdafactorRelative"),
        OptimizerConfig(type="CAME", learning_rate=2e-3),
        OptimizerConfig(type="ProdigyPlusScheduleFree", learning_rate=1.0, max_grad_norm=0.0, args=("d0=1e-3",)),
        OptimizerConfig(scheduler="cosine", warmup_steps=2, learning_rate=2e-3),
    ],
    ids=lambda o: f"{o.type}-{o.scheduler}",
)
@pytest.mark.slow
@pytest.mark.parametrize("ema", [0.0, 0.9], ids=["plain", "ema"])
def test_resume_is_exact(model, pictures, tmp_path, optimizer, ema):
    """3 steps, a checkpoint, a new process' objects, 3 more: the same bits as 6 in one go."""
    kind = OPTIMIZERS[optimizer.type]
    pytest.importorskip(kind.top, reason=f"{kind.package} is not installed")
    common = dict(optimizer=optimizer, ema_decay=ema, gradient_accumulation_steps=2, subset=dict(shuffle_caption=True))
    whole = train(train_config(model, pictures, tmp_path / "whole", **common))
    save = OutputConfig(str(tmp_path / "parts"), "test", save_dtype="fp32", save_every_n_steps=3, save_state=True)
    config = train_config(model, pictures, tmp_path / "parts", output=save, **common)

    with pytest.raises(Interrupted):
        train(config, lambda e: "cancel" if e["event"] == "step" and e["step"] == 4 else None)
    for later in (tmp_path / "parts" / "test-run" / "checkpoints").glob("step-0000000[4-9]"):
        for file in later.iterdir():
            file.unlink()
        later.rmdir()
    resumed = train(dataclasses.replace(config, output=dataclasses.replace(save, resume="latest")))
    assert same_tensors(load_file(whole.adapter_path), load_file(resumed.adapter_path))
    assert resumed.losses == whole.losses


def test_stop_keeps_and_cancel_saves(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path)
    stopped = train(config, lambda e: "stop" if e["event"] == "step" and e["step"] == 2 else None)
    assert stopped.stop_reason == "stopped" and stopped.steps == 2 and stopped.adapter_path.is_file()
    with pytest.raises(Interrupted):
        train(config, lambda e: "cancel" if e["event"] == "step" and e["step"] == 3 else None)
    assert (tmp_path / "test-run" / "checkpoints" / "step-00000003" / "state.json").is_file()
    assert (tmp_path / "test-run-2" / "log.jsonl").is_file()  # the stopped run's folder was moved aside, not lost


def test_every_kind_of_picture_and_caption(model, tmp_path):
    """Mixed sizes, captions of 0, 1 and over 600 tokens, flips, masks, repeats, several resolutions, a batch of leftovers."""
    folder, masks = tmp_path / "p" / "3_mixed", tmp_path / "masks"
    folder.mkdir(parents=True)
    masks.mkdir()
    texts = ["", "x", "red circle, " * 400, "a (natural) sentence\nof two lines"]
    for i, (size, text) in enumerate(zip([(64, 64), (96, 48), (40, 120), (200, 180)], texts)):
        Image.new("RGB", size, (40 * i, 90, 200)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(text, encoding="utf-8-sig")
    Image.new("L", (64, 64), 128).save(masks / "0.png")
    Image.new("L", (96, 48), 0).save(masks / "1.png")
    subset = dict(flip_aug=True, mask_dir=str(masks), caption_dropout_rate=0.3)
    dataset = dict(resolutions=((64, 64), (96, 96)), batch_size=3)
    config = train_config(model, tmp_path / "p", tmp_path / "out", subset=subset, dataset=dataset, max_train_epochs=1)
    result = train(config)
    said = [e["text"] for e in log_of(result) if e["event"] in ("note", "warning")]
    assert all(math.isfinite(loss) for loss in result.losses)
    assert "4 pictures, 12 with repeats" in said[0]
    assert "pictures without a mask (counted whole): 2 (3_mixed/2.png, 3_mixed/3.png)" in said


def test_a_single_picture(model, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("red", encoding="utf-8")
    result = train(train_config(model, tmp_path, tmp_path / "out", max_train_epochs=3))
    assert result.steps == 3


def test_long_captions_train_whole(model, pictures, tmp_path):
    """600 tokens give 600 rows, and a batch of a long and a short caption gives each its own."""
    (tmp_path / "p").mkdir()
    long, short = "red circle, " * 300, "red"
    for name, caption in (("a", long), ("b", short)):
        write(tmp_path / "p", f"{name}.png", caption=caption)
    data, _, _ = prepared(train_config(model, tmp_path / "p", tmp_path))
    embeds, lengths, _ = data.embeddings.place(data.embeddings.fetch([long.strip(), short]))
    tokens = len(data.embeddings.texts.t5.encode([long.strip()])[0])
    assert tokens > 600 and embeds.shape[1] == tokens and lengths.tolist() == [tokens, 512]
    alone, none, _ = data.embeddings.place(data.embeddings.fetch([short]))
    assert none is None and torch.equal(embeds[1, :512], alone[0])


@pytest.mark.parametrize("variants", [0, 2])
def test_shuffled_captions_from_cache_or_on_the_fly(model, pictures, tmp_path, variants):
    subset = dict(shuffle_caption=True, caption_tag_dropout_rate=0.3)
    config = train_config(model, pictures, tmp_path, subset=subset, caption_variants=variants, max_train_epochs=3)
    assert train(config).steps == 9
    written = len(list((tmp_path / "cache" / "text").rglob("*.safetensors")))
    assert written == 1 if variants == 0 else written > 6


@pytest.mark.parametrize("variants", [0, 16])
def test_numbered_sets_regularisation_and_wildcards_train(model, tmp_path, variants):
    """Draws as in sd-scripts; with variants every caption that a step meets has been cached before."""
    write(tmp_path / "p" / "3_cat", "a.png", caption="one {x|y}\ntwo")
    write(tmp_path / "r" / "1_any", "b.png", colour="blue", caption="any")
    config = train_config(model, tmp_path / "p", tmp_path / "out", caption_variants=variants, max_train_epochs=4)
    subset = dataclasses.replace(config.datasets[0].subsets[0], enable_wildcard=True)
    regularisation = SubsetConfig(str(tmp_path / "r"), is_reg=True, loss_weight=0.5)
    dataset = dataclasses.replace(config.datasets[0], subsets=(subset, regularisation))
    result = train(dataclasses.replace(config, datasets=(dataset,)))
    said = [(e["event"], e["text"]) for e in log_of(result) if e["event"] in ("note", "warning")]
    assert result.steps == 4 * 3 and ("note", "2 pictures, 6 with repeats") in said
    assert "warning" not in dict(said)
    assert len(list((tmp_path / "out" / "cache" / "text").rglob("*.safetensors"))) > (4 if variants else 0)


def test_second_run_computes_nothing_again(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path)
    train(config)
    stages = set()
    train(config, lambda e: stages.add(e.get("stage")) and None)
    assert stages == {None}


def poisoned(calls: range):
    """Let some of the latents that a run reads be NaN."""

    def change(run):
        real, read = run.data.latents.latents, itertools.count()
        run.data.latents.latents = lambda draw: real(draw) * (math.nan if next(read) in calls else 1)

    return change


def test_poisoned_picture_is_named_and_the_run_stops(model, pictures, tmp_path):
    with pytest.raises(RunError, match=r"not finite 3 times in a row \(pictures: .*\.png"):
        train_changed(train_config(model, pictures, tmp_path), poisoned(range(2, 10**6)))
    kept = load_file(next(tmp_path.glob("test-run/test-step*.safetensors")))
    assert all(t.isfinite().all() for t in kept.values())


def test_one_bad_batch_is_skipped_and_reported(model, pictures, tmp_path):
    result = train_changed(train_config(model, pictures, tmp_path), poisoned(range(2, 3)))
    warnings = [e["text"] for e in log_of(result) if e["event"] == "warning"]
    assert len(warnings) == 1 and "the step was left out" in warnings[0] and ".png" in warnings[0]
    assert all(t.isfinite().all() for t in load_file(result.adapter_path).values())


def test_an_adapter_without_gradient_is_an_error(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module.flow, "flow_loss", lambda prediction, *a, **k: prediction.sum(dim=(1, 2, 3)) * 0)
    with pytest.raises(RunError, match="still zero"):
        train(train_config(model, pictures, tmp_path))


def test_starting_from_an_adapter_of_either_family(model, pictures, tmp_path):
    first = train(
        train_config(
            model,
            pictures,
            tmp_path / "a",
            output=OutputConfig(str(tmp_path / "a"), "x", save_dtype="fp32", key_format="lora_unet"),
        )
    )
    network = NetworkConfig(rank=4, alpha=4, weights=str(first.adapter_path))
    config = train_config(model, pictures, tmp_path / "b", network=network)
    base = load_transformer(model.transformer)
    started = AdapterNetwork.inject(base, network, 7)
    load_into(started, first.adapter_path)
    name, module = next(iter(started.trained()))
    key = f"lora_unet_{name.replace('.', '_')}.lora_up.weight"
    assert torch.equal(module.lora_up, load_file(first.adapter_path)[key])
    assert train(config).losses[0] != first.losses[0]


def test_intermediate_files_are_kept_as_asked(model, pictures, tmp_path):
    output = OutputConfig(str(tmp_path), "test", save_every_n_steps=1, save_last_n=2, save_state=True)
    result = train(train_config(model, pictures, tmp_path, output=output))
    assert [p.name for p in sorted(tmp_path.glob("test-step*"))] == [
        "test-step00000004.safetensors",
        "test-step00000005.safetensors",
    ]
    assert len(list((result.run_dir / "checkpoints").iterdir())) == 3  # these, and the last step's

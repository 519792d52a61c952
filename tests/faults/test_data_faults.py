"""Faults of the data: pictures that vanish or change, damaged caches, memory that runs out while caching."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anima_core import train
from anima_core.data import text
from anima_core.demo.pictures import write_pictures
from anima_core.errors import FileError, Interrupted, RunError, SettingError
from anima_core.models.qwen import AnimaQwen
from anima_core.models.vae import AnimaVAE
from anima_core.training import prepare

from ..tiny import same_tensors, train_config


@pytest.fixture
def pictures(tmp_path) -> Path:
    write_pictures(tmp_path / "pictures", 4)
    return tmp_path / "pictures"


def texts(events, kind="warning") -> str:
    return "\n".join(e["text"] for e in events if e["event"] == kind)


def at(stage: str, action):
    """A listener that acts once, when a stage or a step begins."""
    done = []

    def listener(event):
        if not done and stage in (event["event"], event.get("stage"), f"step {event.get('step')}"):
            done.append(action())

    return listener


def same_adapter(a, b) -> bool:
    return same_tensors(load_file(a.adapter_path), load_file(b.adapter_path))


def test_truncated_caches_are_rebuilt(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path)
    first = train(config)
    for number, file in enumerate(sorted((tmp_path / "cache").rglob("*.safetensors"))):
        if number % 2:
            file.write_bytes(file.read_bytes()[:-7])
    assert same_adapter(first, train(config))


@pytest.mark.parametrize("kind", ["latents", "text"])
def test_flipped_bytes_in_cache_files_are_found_and_made_again_while_training(model, pictures, tmp_path, kind):
    """Only a checksum tells them from whole files, and it is looked at when the file is read."""
    config = train_config(model, pictures, tmp_path)
    first = train(config)
    for file in (tmp_path / "cache" / kind).rglob("*.safetensors"):
        data = bytearray(file.read_bytes())
        data[-9] ^= 1
        file.write_bytes(data)
    events = []
    again = train(config, events.append)
    assert same_adapter(first, again) and "damaged; encoded again" in texts(events)
    assert not texts(_events_of(config))  # and the next run finds nothing to mend


def _events_of(config) -> list[dict]:
    events = []
    train(config, events.append)
    return events


def test_caches_deleted_while_training_are_made_again(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path, max_train_steps=12)
    first = train(config)
    events, wipe = [], at("step 4", lambda: shutil.rmtree(tmp_path / "cache"))
    again = train(config, lambda event: events.append(event) or wipe(event))
    assert same_adapter(first, again) and "have vanished or are damaged; encoded again" in texts(events)


def test_a_picture_deleted_or_changed_while_training_does_not_matter(model, pictures, tmp_path):
    """Latents and masks are cached before the first step."""
    (tmp_path / "masks").mkdir()
    for path in pictures.glob("*.png"):
        Image.new("L", (64, 64), 128).save(tmp_path / "masks" / path.name)
    config = train_config(model, pictures, tmp_path, subset=dict(mask_dir=str(tmp_path / "masks")), max_train_steps=12)
    first = train(config)
    keep = shutil.copytree(pictures, tmp_path / "keep"), shutil.copytree(tmp_path / "masks", tmp_path / "keep_masks")

    def ruin():
        one, *others = pictures.glob("*.png")
        Image.new("RGB", (64, 64), "white").save(one)
        for file in [*others, *(tmp_path / "masks").iterdir()]:
            file.unlink()

    shutil.rmtree(tmp_path / "cache")
    assert same_adapter(first, train(config, at("step 1", ruin)))
    shutil.copytree(keep[0], pictures, dirs_exist_ok=True)
    shutil.copytree(keep[1], tmp_path / "masks", dirs_exist_ok=True)
    assert same_adapter(first, train(config))


@pytest.mark.parametrize("fault", ["changed", "deleted"])
def test_a_picture_that_goes_while_it_is_cached_is_named_and_nothing_stale_is_kept(model, pictures, tmp_path, fault):
    victim = sorted(pictures.glob("*.png"))[-1]

    def act():
        Image.new("RGB", (64, 64), "white").save(victim) if fault == "changed" else victim.unlink()

    text = "has changed since it was scanned; start again" if fault == "changed" else "cannot be read as a picture"
    config = train_config(model, pictures, tmp_path)
    with pytest.raises(FileError, match=f"{victim.name}: {text}"):
        train(config, at("start", act))
    assert train(config).steps == 6  # the next start takes the folder as it now is


def test_a_damaged_cache_without_its_picture_ends_the_run_with_its_state_saved(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path, max_train_steps=40)

    def ruin():
        shutil.rmtree(tmp_path / "cache" / "latents")
        for path in pictures.glob("*.png"):
            path.unlink()

    with pytest.raises(RunError, match="have vanished or are damaged, and cannot be encoded again"):
        train(config, at("step 2", ruin))
    assert list((tmp_path / "test-run" / "checkpoints").glob("step-*"))


def test_resuming_with_other_pictures_is_named(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path)
    train(config, lambda e: "stop" if e.get("step") == 3 else None)
    caption = next(pictures.glob("*.txt"))
    caption.write_text("something else", encoding="utf-8")
    output = dataclasses.replace(config.output, resume="latest")
    with pytest.raises(SettingError, match="content of the data is not what it was.*output.resume_with_changes"):
        train(dataclasses.replace(config, output=output))
    events = []
    output = dataclasses.replace(output, resume_with_changes=True)
    assert train(dataclasses.replace(config, output=output), events.append).steps == 6
    assert "resumed with a change: content of the data is not what it was" in texts(events)


def test_resuming_on_another_base_model_is_refused(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path)
    train(config, lambda e: "stop" if e.get("step") == 3 else None)
    from anima_core.demo.random_transformer import TINY, write_random_transformer

    write_random_transformer(tmp_path / "other.safetensors", TINY, seed=9)
    other = dataclasses.replace(config.model, transformer=str(tmp_path / "other.safetensors"))
    output = dataclasses.replace(config.output, resume="latest", resume_with_changes=True)
    with pytest.raises(SettingError, match="content of the transformer is not what it was; this cannot continue"):
        train(dataclasses.replace(config, model=other, output=output))


def fail_first(times, owner, where, monkeypatch):
    calls, real = [], getattr(owner, where)

    def failing(self, *args, **kwargs):
        calls.append(args)
        if len(calls) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory (simulated)")
        return real(self, *args, **kwargs)

    monkeypatch.setattr(owner, where, failing)
    return calls


@pytest.fixture
def several_at_once(monkeypatch):
    """As on a GPU."""
    for module in (text, prepare):
        monkeypatch.setattr(module, "encoded_at_once", lambda device, wanted: wanted)


def nearly_same(a, b) -> bool:
    """Another batch, other rounding."""
    one, other = load_file(a.adapter_path), load_file(b.adapter_path)
    return one.keys() == other.keys() and max((one[k] - other[k]).norm() for k in one) < 1e-4


def test_the_vae_out_of_memory_takes_fewer_pictures(model, pictures, tmp_path, monkeypatch, several_at_once):
    at_once = dict(vae_batch_size=4, dataset=dict(enable_bucket=False))
    plain = train(train_config(model, pictures, tmp_path / "a", **at_once))
    calls = fail_first(2, AnimaVAE, "_fit", monkeypatch)
    assert nearly_same(plain, train(train_config(model, pictures, tmp_path / "b", **at_once)))
    assert [len(args[1]) for args in calls[:3]] == [4, 2, 1]


def test_qwen_out_of_memory_takes_fewer_captions(model, pictures, tmp_path, monkeypatch, several_at_once):
    plain = train(train_config(model, pictures, tmp_path / "a"))
    calls = fail_first(2, AnimaQwen, "encode", monkeypatch)
    assert nearly_same(plain, train(train_config(model, pictures, tmp_path / "b")))
    assert [len(args[0]) for args in calls[:3]] == [5, 2, 1]


@pytest.mark.parametrize("stage", ["latents", "captions"])
def test_caching_that_is_cut_gives_the_same_bits(model, pictures, tmp_path, stage):
    """On the CPU: the rest is encoded in other batches than it would have been."""
    at_once = dict(vae_batch_size=4, dataset=dict(enable_bucket=False))
    whole = train(train_config(model, pictures, tmp_path / "a", **at_once))
    parts = train_config(model, pictures, tmp_path / "b", **at_once)
    with pytest.raises(Interrupted, match=f"cancelled at {stage}, 1 of"):
        train(parts, lambda event: "cancel" if event.get("stage") == stage else None)
    assert same_adapter(whole, train(parts))


@pytest.mark.parametrize(
    "owner, where, text", [(AnimaVAE, "_fit", "VAE: out of memory"), (AnimaQwen, "encode", "Qwen: out of")]
)
def test_caching_that_never_fits_says_so_in_one_line(model, pictures, tmp_path, monkeypatch, owner, where, text):
    fail_first(10**6, owner, where, monkeypatch)
    config = train_config(model, pictures, tmp_path)
    with pytest.raises(RunError, match=text):
        train(config)
    monkeypatch.undo()
    assert train(config).steps == 6


@pytest.mark.parametrize("command, word", [("cancel", "cancelled"), ("stop", "stopped")])
@pytest.mark.parametrize("stage", ["scanning pictures", "latents", "captions", "text embeddings"])
def test_commands_work_before_the_first_step(model, pictures, tmp_path, stage, command, word):
    config = train_config(model, pictures, tmp_path)
    with pytest.raises(Interrupted, match=f"{word} at {stage}, .* before the first step"):
        train(config, lambda event: command if event.get("stage") == stage else None)
    assert not list(tmp_path.glob("*.safetensors"))
    assert train(config).steps == 6

"""The held-out loss: which pictures, which number, and what a run makes of it."""

# ruff: noqa: E501 (tables of cases)

import dataclasses
import gc
import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from anima_core import train
from anima_core.errors import Interrupted, SettingError
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import FlowConfig, HeldOutConfig, OptimizerConfig, OutputConfig, SubsetConfig
from anima_core.training.evaluations import verdict
from anima_core.training.flow import sample_timesteps, timestep_quantiles
from anima_core.training.held_out import LEVELS, HeldOutLoss, noise_of
from anima_core.training.loop import opened
from anima_core.training.saves import Saves

from .tiny import prepared, same_tensors, train_changed, train_config, write

TRAINED, OTHERS = ("darkred", "red", "crimson", "firebrick"), ("blue", "cyan")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Four pictures much alike, and two of the same caption that are not: what is learnt of the four turns against these."""
    base = tmp_path_factory.mktemp("held_out")
    for folder, colours in (("trained", TRAINED), ("others", OTHERS)):
        for number, colour in enumerate(colours):
            write(base / folder, f"{number}.png", (64, 64), colour, "a red circle")
    return base


def too_long(model, folders, folder, **changes):
    """A run that trains four pictures too long, and measures two others."""
    held_out = HeldOutConfig(**({"folder": str(folders / "others"), "every_n_steps": 5} | changes.pop("held_out", {})))
    given = {"max_train_steps": 30, "optimizer": OptimizerConfig(learning_rate=1e-2), "held_out": held_out} | changes
    sizes = {"batch_size": 4, "enable_bucket": False} | given.pop("dataset", {})
    return train_config(model, folders / "trained", folder, dataset=sizes, **given)


def measured(result) -> list[dict]:
    """Return the measurements of a run, without the time of day."""
    found = map(json.loads, (result.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [{k: v for k, v in event.items() if k != "time"} for event in found if event["event"] == "held_out"]


def texts(result) -> str:
    found = map(json.loads, (result.run_dir / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return "\n".join(event["text"] for event in found if event["event"] in ("note", "warning"))


# Which number


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"logit_mean": 0.7, "sigmoid_scale": 1.4},
        {"timestep_sampling": "uniform"},
        {"timestep_sampling": "shift", "shift": 3.0},
        {"timestep_sampling": "resolution_shift"},
        {"timestep_sampling": "mode", "mode_scale": 1.29},
        {"timestep_sampling": "mode", "mode_scale": -0.9, "shift": 2.0},
    ],
)
def test_noise_levels_are_the_quantiles_of_what_the_run_draws(config):
    flow = FlowConfig(**config)
    t = sample_timesteps(400_000, flow, torch.Generator().manual_seed(0), tokens=1024)
    found = timestep_quantiles(LEVELS, flow, tokens=1024)
    shares = torch.stack([(t < level).double().mean() for level in found])
    assert torch.allclose(shares, torch.tensor(LEVELS, dtype=torch.float64), atol=3e-3)


@pytest.mark.parametrize("sampling", ["logit_normal", "uniform", "mode"])
@pytest.mark.parametrize("offset, low, high", [(-0.5, 0.0, 1.0), (0.8, 0.4, 0.9), (0.0, 0.0, 0.3), (0.0, 0.5, 0.5)])
def test_noise_levels_are_those_of_a_folders_own_range_and_offset(sampling, offset, low, high):
    flow = FlowConfig(timestep_sampling=sampling, sigmoid_scale=1.3)
    where = {"offset": offset, "low": low, "high": high}
    t = sample_timesteps(200_000, flow, torch.Generator().manual_seed(0), tokens=1024, **where)
    found = timestep_quantiles(LEVELS, flow, tokens=1024, **where)
    assert torch.allclose(found.double(), t.double().quantile(torch.tensor(LEVELS, dtype=torch.float64)), atol=5e-3)


def test_each_picture_is_measured_at_the_levels_of_its_own_folder(model, tmp_path):
    ranges = {"a": {}, "b": {"min_timestep": 0.5, "max_timestep": 0.75}, "c": {"timestep_offset": -1.0}}
    for number, name in enumerate(ranges):
        for colour in (40, 200):
            write(tmp_path / name, f"{colour}.png", (64, 64), (colour, 50 * number, 0), "a")
    subsets = tuple(SubsetConfig(str(tmp_path / name), validation_split=0.5, **own) for name, own in ranges.items())
    config = train_config(model, tmp_path / "a", tmp_path / "out", max_train_steps=1)
    plain = torch.special.ndtri(torch.linspace(0.1, 0.9, 9, dtype=torch.float64))
    a, b, c = torch.sigmoid(plain), 0.5 + 0.25 * torch.sigmoid(plain), torch.sigmoid(plain - 1)
    datasets = (dataclasses.replace(config.datasets[0], subsets=subsets, batch_size=3),)
    with opened(dataclasses.replace(config, datasets=datasets)) as run:
        (batch,) = run.held_out.batches
        together = run.held_out.of_items([run.held_out.items[number] for number in batch])
        alone = torch.cat([run.held_out.of_items([run.held_out.items[number]]) for number in batch], dim=1)
        for item, levels in zip(run.held_out.items, (a, b, c), strict=True):
            assert torch.allclose(run.held_out.t_of(item).double(), levels, atol=1e-6)
        assert torch.allclose(torch.tensor(run.held_out.noise_levels()), ((a + b + c) / 3).float(), atol=1e-6)
        assert torch.allclose(together, alone, rtol=1e-5) and len(batch) == 3


@pytest.mark.parametrize(
    "config, pictures, said",
    [
        ({}, 2, "2 pictures at 9 noise levels, every 5 steps"),
        ({"every_n_steps": 2}, 1, "1 picture at 9 noise levels, every 2 steps"),
        ({"every_n_epochs": 1}, 3, "3 pictures at 9 noise levels, every epoch"),
        ({"every_n_steps": 2, "every_n_epochs": 1}, 3, "3 pictures at 9 noise levels, every 2 steps and every epoch"),
        ({"every_n_steps": 1, "every_n_epochs": 4}, 3, "3 pictures at 9 noise levels, every step and every 4 epochs"),
    ],
)
def test_a_run_says_when_it_measures(config, pictures, said):
    items = [SimpleNamespace(picture=SimpleNamespace(digest=str(number))) for number in range(pictures)]
    run = object.__new__(HeldOutLoss)
    run.config, run.items, run.reporter = HeldOutConfig(**config), items, SimpleNamespace(total=100)
    assert run.describe() == f"held-out loss: {said}"


def slowly(config, adapter=None) -> torch.Tensor:
    """The losses [levels, pictures] of a run's held-out pictures, one after the other, by the formula."""
    data, model, network = prepared(config, adapter)
    network.eval()
    network.multiplier = 0.0 if adapter is None else 1.0
    found = torch.zeros(9, len(data.held_out))
    quantiles = torch.sigmoid(torch.special.ndtri(torch.linspace(0.1, 0.9, 9, dtype=torch.float64))).float()
    for column, item in enumerate(data.held_out):
        key = data.latents.key(item.picture, item.bucket, False)
        x0, mask = data.latents.cache.get(key)["latents"], torch.ones(1, 8, 8)
        if item.picture.subset.alpha_mask:
            mask = data.latents.cache.get(data.latents.mask_key(item.picture, item.bucket, False))["mask"]
        text, lengths, _ = data.embeddings.place(data.embeddings.fetch([item.picture.caption]))
        for row, t in enumerate(quantiles):
            eps = noise_of(item, row, config.held_out.seed, x0.shape)
            with torch.no_grad():
                velocity = model(((1 - t) * x0 + t * eps)[None], t[None], text, lengths)[0]
            error = (velocity - (eps - x0)).double().square().mean(dim=0, keepdim=True)
            found[row, column] = ((error * mask).sum() / mask.sum()).float()
    return found


def test_losses_are_those_of_a_slow_loop_of_the_base_the_adapter_and_its_average(model, folders, tmp_path):
    config = too_long(model, folders, tmp_path, max_train_steps=4, ema_decay=0.5, held_out={"every_n_steps": 4})
    first, last = measured(train(config))
    assert (first["step"], last["step"], first["pictures"]) == (0, 4, 2)
    base, average = slowly(config), slowly(config, tmp_path / "test.safetensors")
    assert first["base_levels"] == last["base_levels"] and last["loss"] != last["ema"] != last["base"]
    assert first["levels"] == first["ema_levels"] == first["base_levels"]  # a LoRA begins at nothing
    for levels, slow in ((last["base_levels"], base), (last["ema_levels"], average)):
        assert torch.allclose(torch.tensor(levels), slow.mean(dim=1), rtol=1e-5)
    assert last["base"] == pytest.approx(base.mean().item(), rel=1e-5)
    assert last["t"] == pytest.approx(timestep_quantiles(LEVELS, config.flow).tolist())


def test_masks_weigh_and_batches_change_no_noise(model, tmp_path):
    for number in range(5):
        picture = Image.new("RGBA", (64, 64), (200, 40 * number, 0, 255))
        picture.paste((0, 0, 0, 0), (0, 0, 32, 64))
        picture.save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a", encoding="utf-8")
    found = []
    for size in (1, 3):
        config = train_config(
            model,
            tmp_path,
            tmp_path / f"out {size}",
            held_out=HeldOutConfig(count=3),
            subset={"alpha_mask": True, "flip_aug": True, "shuffle_caption": True, "caption_dropout_rate": 0.9},
            dataset={"batch_size": size},
            max_train_steps=1,
        )
        with opened(config) as run:
            run.state.network.eval()
            assert [len(numbers) for numbers in run.held_out.batches] == [size] * (3 // size)
            found.append(run.held_out.losses())
    assert torch.allclose(*found, rtol=1e-5) and torch.allclose(found[0], slowly(config, None), rtol=1e-5)


# What a run makes of it


@pytest.fixture(scope="module")
def whole(model, folders, tmp_path_factory):
    return train(too_long(model, folders, tmp_path_factory.mktemp("whole")))


def test_a_run_that_trains_too_long_says_since_when_and_keeps_the_best(model, folders, whole, tmp_path):
    found = measured(whole)
    losses = {event["step"]: event["loss"] for event in found}
    assert list(losses) == [0, 5, 10, 15, 20, 25, 30] and whole.stop_reason == "finished"
    best = min(losses, key=losses.__getitem__)
    assert 0 < best < 25 and losses[best] < losses[0] and losses[30] > losses[best] + 0.1
    assert (found[-1]["best_step"], found[-1]["best_loss"]) == (best, losses[best])
    assert found[-1]["text"] == f"held-out loss rises since step {best + 5}, best at {best}: use the adapter of step {best}"
    path = whole.adapter_path.with_name("test-best.safetensors")
    shorter = train(too_long(model, folders, tmp_path, max_train_steps=best, held_out={"every_n_steps": 100}))
    assert same_tensors(load_file(path), load_file(shorter.adapter_path))
    with safe_open(path, "pt") as file:
        said = json.loads(file.metadata()["anima_trainer.held_out"])
        assert (said["step"], said["loss"], file.metadata()["ss_steps"]) == (best, losses[best], str(best))
    assert [(save.step, save.by) for save in Saves(whole.run_dir, "adapters").read()] == [(best, ("best",))]


@pytest.mark.parametrize("killed", [False, True])
def test_a_run_that_was_cut_off_and_goes_on_measures_the_same(model, folders, whole, tmp_path, killed):
    """Killed, it goes on from a checkpoint before the best, whose file is there already, and is set aside till it comes again."""
    output = OutputConfig(dir=str(tmp_path), name="test", save_dtype="fp32", checkpoint_every_n_steps=7, keep_checkpoints=0)
    config = too_long(model, folders, tmp_path, output=output)
    with pytest.raises(Interrupted):
        train(config, lambda event: "cancel" if event["event"] == "step" and event["step"] == 22 else None)
    best, run_dir = tmp_path / "test-best.safetensors", config.output.run_dir
    if killed:
        shutil.rmtree(run_dir / "checkpoints" / "step-00000022")
        shutil.rmtree(run_dir / "checkpoints" / "step-00000021")
    else:
        best.unlink()
    result = train(dataclasses.replace(config, output=dataclasses.replace(output, resume="latest")))
    assert {event["step"]: event for event in measured(result)} == {event["step"]: event for event in measured(whole)}
    assert len(measured(result)) == len(measured(whole)) + 2 * killed
    assert same_tensors(load_file(best), load_file(whole.adapter_path.with_name("test-best.safetensors")))
    assert (run_dir / "set_aside" / best.name).is_file() == killed


PLANS = [{"memory": "recompute"}, {"memory": "offload"}, {"blocks_to_swap": 2}, {"attention": "auto"}, {"plain": True}]


@pytest.mark.long
@pytest.mark.parametrize("changes", PLANS, ids=str)
def test_no_plan_changes_the_losses(model, folders, whole, tmp_path, changes):
    result = train(too_long(model, folders, tmp_path, max_train_steps=5, **changes))
    for event, other in zip(measured(result), measured(whole)):
        exact = changes != {"plain": True}  # whose sums have another order
        assert event["levels"] == (other["levels"] if exact else pytest.approx(other["levels"], rel=1e-5))


def test_a_command_leaves_a_measurement_out_and_it_is_made_up_for(model, folders, whole, tmp_path):
    config = too_long(model, folders, tmp_path, max_train_steps=10)
    seen = []

    def cancel(event):
        seen.append(event["event"])
        return "cancel" if event["event"] == "progress" and event["stage"] == "held-out" and "step" in seen else None

    with pytest.raises(Interrupted, match="cancelled at step 5"):
        train(config, cancel)
    result = train(dataclasses.replace(config, output=dataclasses.replace(config.output, resume="latest")))
    assert [event["step"] for event in measured(result)] == [0, 5, 10]
    assert [event["levels"] for event in measured(result)] == [event["levels"] for event in measured(whole)[:3]]


def test_patience_ends_a_run_and_says_so(model, folders, whole, tmp_path):
    config = too_long(model, folders, tmp_path, max_train_steps=60, held_out={"patience": 2, "keep_best": False})
    result = train(config)
    best = measured(whole)[-1]["best_step"]
    assert (result.stop_reason, result.steps) == ("stopped early", best + 10)
    assert f"no lower held-out loss than that of step {best}; training stops early" in texts(result)
    assert measured(result) == [event for event in measured(whole) if event["step"] <= best + 10]
    assert not (tmp_path / "test-best.safetensors").exists()
    again = dataclasses.replace(config, output=dataclasses.replace(config.output, resume="latest"))
    stays = train(again)
    assert stays.steps == best + 10 and "to go on, raise `held_out.patience`" in texts(stays)
    on = train(dataclasses.replace(again, held_out=dataclasses.replace(config.held_out, patience=0), max_train_steps=best + 11))
    assert (on.stop_reason, on.steps) == ("finished", best + 11)


def test_other_held_out_pictures_begin_a_new_history(model, folders, tmp_path):
    write(tmp_path / "third", "0.png", (64, 64), "green", "a red circle")
    config = too_long(model, folders, tmp_path / "out", max_train_steps=2)
    train(config)
    output = dataclasses.replace(config.output, resume="latest")
    changed = dataclasses.replace(config.held_out, folder=str(tmp_path / "third"))
    with pytest.raises(SettingError, match="content of the held-out pictures is not what it was"):
        train(dataclasses.replace(config, output=output, held_out=changed, max_train_steps=3))
    output = dataclasses.replace(output, resume_with_changes=True)
    result = train(dataclasses.replace(config, output=output, held_out=changed, max_train_steps=3))
    assert [(event["step"], event["pictures"]) for event in measured(result)] == [(0, 2), (2, 2), (2, 1), (3, 1)]
    assert measured(result)[2]["best_step"] == 2 and "begins a new history" in texts(result)


def test_there_is_one_model_while_it_is_measured_and_its_weights_return(model, folders, tmp_path):
    optimizer = OptimizerConfig(type="AdamWScheduleFree", learning_rate=1e-3)
    config = too_long(model, folders, tmp_path, max_train_steps=3, optimizer=optimizer, ema_decay=0.5)
    counted = []

    def count(event):
        if event["event"] == "progress" and event["stage"] == "held-out":
            counted.append(sum(isinstance(found, AnimaTransformer) for found in gc.get_objects()))

    before = sum(isinstance(found, AnimaTransformer) for found in gc.get_objects())
    result = train(config, count)
    assert set(counted) == {before + 1}
    without = train(
        dataclasses.replace(config, output=OutputConfig(dir=str(tmp_path / "w"), save_dtype="fp32"), held_out=HeldOutConfig())
    )
    assert same_tensors(load_file(result.adapter_path), load_file(without.adapter_path))
    state = json.loads(next((without.run_dir / "checkpoints").glob("*/state.json")).read_text(encoding="utf-8"))
    assert "held_out" not in state and measured(without) == [] and "held-out" not in texts(without)


def test_out_of_memory_takes_fewer_pictures_at_once_and_one_alone_is_left_out(model, folders, tmp_path):
    config = too_long(model, folders, tmp_path, max_train_steps=1)

    def limit(run, most):
        compute = run.held_out.compute

        def short(items):
            if len(items) > most:
                raise RuntimeError("CUDA out of memory. Tried to allocate")
            return compute(items)

        run.held_out.compute = short

    whole = train_changed(config, lambda run: limit(run, 1))
    assert len(measured(whole)) == 2
    short = dataclasses.replace(config, output=OutputConfig(dir=str(tmp_path / "b")))
    none = train_changed(short, lambda run: limit(run, 0))
    assert measured(none) == [] and "had no memory; left out" in texts(none)


# The sentence


def history(*losses, base=2.0, ema=None):
    return [{"step": 50 * n, "loss": loss, "ema": ema, "base": base} for n, loss in enumerate(losses)]


@pytest.mark.parametrize(
    "losses, said",
    [
        ((2.0,), "held-out loss 2.0000 at step 0, the base model's is 2.0000"),
        ((2.0, 1.5, 1.3, 1.2, 1.14, 1.1), "held-out loss falls, 1.1000 at step 250, the base model's is 2.0000: training still helps"),
        ((2.0, 1.5, 1.3, 1.25, 1.3, 1.4, 1.5), "held-out loss rises since step 200, best at 150: use the adapter of step 150"),
        ((2.0, 1.5, 1.3, 1.31, 1.305, 1.299, 1.304, 1.3), "held-out loss is flat at 1.3000, the base model's is 2.0000; best at 250: use the adapter of step 250"),
        ((2.0, 2.1, 2.2, 2.3), "held-out loss rises since step 100, best at 50: no adapter of this run beats the base model on these pictures; lower the learning rate or add pictures"),
    ],
)  # fmt: skip
def test_the_sentence_says_where_the_loss_goes_and_what_to_use(losses, said):
    assert verdict(history(*losses)) == said

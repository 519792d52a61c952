"""A run's plan of its memory: when it is made and from what, told, corrected, taken over; and that no bit depends on it."""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from anima_core import train
from anima_core.adapters.dropouts import Dropouts, Part
from anima_core.demo.pictures import write_pictures
from anima_core.errors import SettingError
from anima_core.models.checkpoint import read_metadata
from anima_core.settings import NetworkConfig, OptimizerConfig, TrainConfig
from anima_core.settings.optimizer import OPTIMIZERS
from anima_core.speed.cards import FRAGMENTS, GB, SPARE
from anima_core.speed.costs import Shape
from anima_core.speed.forms import LEVELS
from anima_core.training import budget, fit, loop, memory, preflight
from anima_core.training.budget import bytes_per_number, largest_shapes
from anima_core.training.fit import FILE

from .tiny import same_tensors, train_changed, train_config

pytestmark = pytest.mark.slow

CUDA = torch.device("cuda", 0)
EVERYTHING = NetworkConfig(rank=4, dropout=0.2, module_dropout=0.1, train_norm=True, targets="attn+mlp+adaln")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


def planned(model, pictures, folder, **changes) -> TrainConfig:
    """A run with everything that a network may have, all its batches of one size."""
    common = dict(network=EVERYTHING, memory="auto", gradient_accumulation_steps=2, dataset=dict(enable_bucket=False))
    return train_config(model, pictures, folder, **(common | changes))


@pytest.fixture(scope="module")
def room_for(model, pictures, tmp_path_factory):
    """levels -> the budget in GB, that is room for just them."""
    config = planned(model, pictures, tmp_path_factory.mktemp("measured"))
    with loop.opened(config) as run:
        found = budget.budget_on(run.model.device, run.fit.counter, run.state, run.model, run.fit.streaming)
    return lambda *levels: (found.resident + FRAGMENTS * found.costs.peak(levels)) * 1.0001 / GB


def notes_of(events: list[dict], kind: str = "note") -> list[str]:
    return [event["text"] for event in events if event["event"] == kind and event["text"].startswith("memory:")]


@pytest.mark.parametrize(
    "choice, level", [("auto", "keep"), ("keep", "keep"), ("recompute", "checkpoint"), ("offload", "offload")]
)
def test_on_the_cpu_nothing_limits_a_run_without_a_budget(model, pictures, tmp_path, choice, level):
    events = []
    with loop.opened(train_config(model, pictures, tmp_path, memory=choice), events.append) as run:
        assert run.fit.levels == (level, level) and notes_of(events) == []
        assert run.fit.counter._found == {}, "nothing was counted: that takes seconds"
        result = run.go()
    assert read_metadata(result.adapter_path)["ss_gradient_checkpointing"] == str(choice in ("recompute", "offload"))


def test_whatever_the_plan_losses_and_adapter_are_the_same_to_the_bit(model, pictures, tmp_path, room_for):
    plain = train(planned(model, pictures, tmp_path / "plain"))
    seen = set()
    for levels in [("offload", "offload"), ("attention", "attention"), ("cheap", "cheap")]:
        config = planned(model, pictures, tmp_path / levels[0], memory_gb=room_for(*levels))
        run = train(config)
        assert run.losses == plain.losses and same_tensors(load_file(run.adapter_path), load_file(plain.adapter_path))
        seen.add(tuple(json.loads((run.run_dir / FILE).read_text())["levels"]))
    assert len(seen) == 3 and ("keep", "keep") not in seen


def test_a_run_that_cannot_fit_is_refused_with_the_least_that_would_do(model, pictures, tmp_path, monkeypatch):
    """Before a model is loaded; with the budget that is named it trains."""
    config = planned(model, pictures, tmp_path, memory_gb=1e-4)
    with monkeypatch.context() as patch:
        patch.delattr("anima_core.training.loop.load_transformer")
        patch.delattr("anima_core.training.prepare.load_vae")
        with pytest.raises(SettingError, match="memory_gb=0.0001: the least that this run fits into is") as refused:
            train(config)
    least = float(str(refused.value).partition(" is ")[2].partition(";")[0])
    events = []
    with loop.opened(dataclasses.replace(config, memory_gb=least), events.append) as run:
        assert run.fit.budget.fits(run.fit.levels) and notes_of(events, "warning") == []


ALLOWED = [("auto", LEVELS), ("keep", ("keep", "cheap")), ("recompute", ("checkpoint",)), ("offload", ("offload",))]


@pytest.mark.parametrize("choice, allowed", ALLOWED)
def test_a_budget_is_planned_for_within_what_the_setting_allows(model, pictures, tmp_path, room_for, choice, allowed):
    events, limit = [], room_for("cheap", "cheap")
    config = planned(model, pictures, tmp_path, memory=choice, memory_gb=limit)
    with loop.opened(config, events.append) as run:
        assert run.fit.budget.fits(run.fit.levels) and set(run.fit.levels) <= set(allowed)
        assert notes_of(events) == [f"memory: {run.fit.budget.said(run.fit.levels)}"]


def test_a_run_that_may_not_fit_is_told_so_and_tries(model, pictures, tmp_path, room_for):
    """Without the gaps that there are between tensors it would."""
    events = []
    config = planned(model, pictures, tmp_path, memory_gb=room_for("offload", "offload") * 0.995)
    assert train(config, events.append).steps == 6
    (warning,) = notes_of(events, "warning")
    assert warning.startswith("memory: it may run out: ") and warning.endswith("`network.rank` or `dataset.resolutions`")


def test_it_is_decided_when_the_model_is_loaded_for_the_largest_batch(model, pictures, tmp_path, monkeypatch):
    """Not in preflight, which ComfyUI runs before it lets go of its own models."""
    seen = []

    class Watched(fit.Fit):
        def begin(self):
            seen.append((self.model.blocks[0].mlp.layer1.weight.device.type, self.counter.shapes))
            super().begin()

    monkeypatch.setattr(loop, "Fit", Watched)
    config = train_config(model, pictures, tmp_path, dataset=dict(batch_size=3))
    preflight.preflight(config)
    assert seen == []
    with loop.opened(config) as run:
        sizes = run.data.batches.sizes()
        most = max(count * math.prod(size) for count, size in sizes)
        ((device, shapes),) = seen
        assert device == "cpu" and max(s.pictures * s.height * s.width * 256 for s in shapes) == most


class Sizes:
    """Batches of some pictures of some sizes."""

    def __init__(self, *sizes):
        self.sizes = lambda: set(sizes)


def test_only_micro_batches_that_none_exceeds_are_counted():
    batches = Sizes((4, (512, 512)), (2, (512, 512)), (1, (1024, 1024)), (1, (1024, 1536)), (3, (512, 512)))
    assert sorted(largest_shapes(batches, 512), key=str) == [Shape(1, 96, 64, 512), Shape(4, 32, 32, 512)]
    assert largest_shapes(Sizes((2, (64, 32))), 600) == [Shape(2, 2, 4, 600, mixed=True)]


# What there is


def test_free_is_what_the_card_has_and_what_torch_holds_unused(monkeypatch):
    """What other programs hold counts too, ComfyUI's own models among them where it keeps them on the card."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert memory.free_bytes(CUDA) == 25


@pytest.mark.parametrize("memory_gb, room", [(0.0, 5 * GB - SPARE), (100.0, 5 * GB - SPARE), (2.0, 2 * GB - 0.5 * GB)])
def test_the_room_of_a_step_is_what_is_free_or_what_the_budget_leaves(model, pictures, tmp_path, monkeypatch, memory_gb, room):
    """A budget counts what the run holds, and the context that the driver makes for it."""
    monkeypatch.setattr(budget, "free_bytes", lambda device: 5 * GB)
    monkeypatch.setattr(budget, "bytes_on", lambda device, tensors: 0)
    config = train_config(model, pictures, tmp_path, memory_gb=memory_gb)
    with loop.opened(config) as run:
        found = budget.budget_on(CUDA, run.fit.counter, run.state, run.model, run.fit.streaming)
    assert found.room == pytest.approx(room / FRAGMENTS)


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.name)
def test_what_an_optimizer_holds_for_each_number_is_read_off_it(kind):
    try:
        held, temporary = bytes_per_number(OptimizerConfig(type=kind.name, learning_rate=1.0))
    except SettingError:
        pytest.skip(f"{kind.package} is not installed")
    expected = {"AdamW": 8, "Lion": 4, "Adafactor": 0.125, "Prodigy": 16, "SGDScheduleFree": 4}
    expected |= {"AdamW8bit": 2.03, "AdafactorRelative": 0.125, "CAME": 4.25, "ProdigyPlusScheduleFree": 4.49}
    expected = expected.get(kind.name, 8)
    assert held == pytest.approx(expected, rel=0.05) and 0 <= temporary <= 16


def test_an_optimizer_for_cards_alone_is_counted_as_adamw(monkeypatch):
    class OnlyOnCards(torch.optim.SGD):
        def step(self, closure=None):
            raise NotImplementedError("no such kernel on the CPU")

    monkeypatch.setattr(budget, "build_optimizer", lambda groups, config: OnlyOnCards(groups))
    assert bytes_per_number(OptimizerConfig(type="SGDScheduleFree")) == bytes_per_number(OptimizerConfig()) == (8, 0)


def test_some_optimizers_have_yet_to_make_what_they_hold(model, pictures, tmp_path):
    """Their moments come in the first step, after the plan."""
    config = train_config(model, pictures, tmp_path, memory_gb=1.0)
    adafactor = dataclasses.replace(config, optimizer=OptimizerConfig(type="Adafactor"))
    with loop.opened(adafactor) as run:
        before = run.fit.budget
        run.take_steps()
        assert run.fit.budget.resident == pytest.approx(before.resident, rel=0.01)


# What changes it


@pytest.mark.parametrize("factor, more", [(1.3, False), (0.5, True)])
def test_what_the_first_step_takes_corrects_the_plan(model, pictures, tmp_path, monkeypatch, room_for, factor, more):
    events, config = [], planned(model, pictures, tmp_path, max_train_steps=2, memory_gb=room_for("cheap", "cheap"))
    with loop.opened(config, events.append) as run:
        peak, before = run.fit.counter.worst.peak, run.fit.levels
        monkeypatch.setattr(fit, "taken_since_reset", lambda device: factor * peak(before))
        run.take_steps()
        after = run.fit.levels
        assert (peak(after) > peak(before)) == more and after != before
        assert peak(after) * factor <= run.fit.budget.room
        _, note = notes_of(events)
        assert note.startswith("memory: a step took ") and note.endswith(run.fit.said())
    assert json.loads((tmp_path / "test-run" / FILE).read_text())["levels"] == list(after)


def test_a_step_that_took_what_was_planned_changes_nothing(model, pictures, tmp_path, monkeypatch, room_for):
    events = []
    config = planned(model, pictures, tmp_path, memory_gb=room_for("cheap", "cheap"))
    with loop.opened(config, events.append) as run:
        taken = run.fit.counter.worst.peak(run.fit.levels)
        monkeypatch.setattr(fit, "taken_since_reset", lambda device: taken)
        run.take_steps()
    assert len(notes_of(events)) == 1


def interrupted(config, change=lambda run: None) -> None:
    """Train two steps and leave a checkpoint."""

    def stop(run):
        change(run)
        run.reporter.total = 2

    train_changed(dataclasses.replace(config, output=dataclasses.replace(config.output, checkpoint_every_n_steps=1)), stop)


@pytest.fixture(scope="module")
def lowered_once(model, pictures, room_for, tmp_path_factory):
    """A run of two steps whose plan was lowered when memory ran out."""
    config = planned(model, pictures, tmp_path_factory.mktemp("lowered"), memory_gb=room_for("keep", "keep"))
    interrupted(config, lambda run: run.fit.lower(1, [], "out of memory (simulated)"))
    return config


def test_how_often_memory_ran_out_is_counted_for_the_process_that_writes(model, pictures, tmp_path, room_for):
    with loop.opened(planned(model, pictures, tmp_path, memory_gb=room_for("keep", "keep"))) as run:
        assert run.fit.lowered == 0
        for count in (1, 2):
            run.fit.lower(1, [], "out of memory (simulated)")
            assert run.fit.lowered == count


@pytest.fixture
def lowered(lowered_once, tmp_path):
    """The settings that continue a copy of it."""
    output = lowered_once.output
    shutil.copytree(output.dir, tmp_path, dirs_exist_ok=True)
    return dataclasses.replace(lowered_once, output=dataclasses.replace(output, dir=str(tmp_path), resume="latest"))


def continued(config) -> tuple[tuple[str, ...], list[str]]:
    events = []
    with loop.opened(config, events.append) as run:
        return run.fit.levels, notes_of(events)


def test_a_run_that_goes_on_takes_its_plan_over(lowered):
    levels, (note,) = continued(lowered)
    assert levels != ("keep", "keep") and note.endswith(", as before")


@pytest.mark.parametrize(
    "change, why",
    [
        (dict(memory="keep"), "planned anew, memory was auto, is keep"),
        (dict(memory_gb=100.0), "planned anew, memory_gb was "),
        (dict(plan={"levels": ["keep"]}), ""),
        (dict(plan="{"), ""),
        (dict(levels=["keep", "least"]), "planned anew, plan.json is damaged"),
        (dict(made_for={"card": "RTX 3060"}), "planned anew, card was RTX 3060, is cpu"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_plan_that_is_not_right_any_more_is_made_anew_and_told_why(lowered, tmp_path, change, why):
    path = tmp_path / "test-run" / FILE
    found = json.loads(path.read_text())
    found["levels"] = change.pop("levels", found["levels"])
    found["for"] |= change.pop("made_for", {})
    plan = change.pop("plan", found)
    path.write_text(plan if isinstance(plan, str) else json.dumps(plan))
    levels, (note,) = continued(dataclasses.replace(lowered, **change))
    assert levels == ("keep", "keep") and why in note
    assert json.loads(path.read_text())["levels"] == ["keep", "keep"]


def test_a_run_that_came_to_take_micro_batches_in_parts_goes_on_so(lowered, tmp_path, monkeypatch):
    """Whole ones did not fit, which is what the counted peak is of."""
    path, real = tmp_path / "test-run" / FILE, budget.budget_on
    found = json.loads(path.read_text()) | {"levels": ["checkpoint", "checkpoint"], "parts": 2}
    path.write_text(json.dumps(found))
    monkeypatch.setattr(fit, "budget_on", lambda *args: dataclasses.replace(real(*args), room=1.0))
    events = []
    with loop.opened(lowered, events.append) as run:
        assert run.fit.parts == 2 and run.fit.levels == ("checkpoint", "checkpoint")
        assert notes_of(events) == ["memory: 2 of 2 blocks are recomputed, each micro-batch in 2 parts, as before"]
        assert notes_of(events, "warning") == []
    assert json.loads(path.read_text())["parts"] == 2


def test_a_plan_that_fits_no_more_is_made_anew(lowered, monkeypatch):
    real = budget.budget_on
    monkeypatch.setattr(fit, "budget_on", lambda *args: dataclasses.replace(real(*args), room=1.0))
    events = []
    with loop.opened(lowered, events.append):
        (warning,) = notes_of(events, "warning")
    assert "planned anew, what it did before does not fit now" in warning


# Parts of a micro-batch


def test_a_part_has_the_masks_that_it_has_in_the_whole():
    dropouts, like = Dropouts(seed=1, dropout=0.5, rank_dropout=0.0, module_dropout=0.0), torch.empty(0)
    whole = dropouts.mask((5, 7, 3), dropouts.generator(0, torch.device("cpu")), like)
    parts = []
    for rows in (slice(0, 2), slice(2, 4), slice(4, 5)):
        dropouts.part = Part(rows, 5)
        shape = (rows.stop - rows.start, 7, 3)
        parts.append(dropouts.mask(shape, dropouts.generator(0, torch.device("cpu")), like))
    assert torch.equal(torch.cat(parts), whole)


def fails(*inputs):
    raise AttributeError("module 'torch.ops.aten' has no attribute '_x'\nmore")


@pytest.mark.parametrize("choice, level", [("auto", "checkpoint"), ("keep", "keep"), ("recompute", "checkpoint")])
def test_a_run_that_cannot_be_counted_recomputes_and_says_so(model, pictures, tmp_path, monkeypatch, choice, level):
    """Counting leans on much of torch, whose versions differ."""
    monkeypatch.setattr("anima_core.training.budget.costs_of", fails)
    events = []
    with loop.opened(planned(model, pictures, tmp_path, memory=choice, memory_gb=1.0), events.append) as run:
        assert set(run.fit.levels) == {level}
        if level == "keep":  # out of memory then gives all of it up at once
            run.fit.lower(1, [], "out of memory")
            assert set(run.fit.levels) == {"checkpoint"}
        assert run.go().steps == 6
    (warning, *_) = notes_of(events, "warning")
    assert (
        warning.startswith("memory: what this run takes could not be counted (AttributeError: module") and "more" not in warning
    )


@pytest.mark.parametrize("name", ["checkpoints/step-00000002", "../run/checkpoints/step-00000002", "step-00000002"])
def test_what_was_decided_is_found_from_wherever_a_checkpoint_is_named(tmp_path, monkeypatch, name):
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (tmp_path / "run" / FILE).write_text('{"compiled": true}', encoding="utf-8")
    monkeypatch.chdir(checkpoint.parent if name == checkpoint.name else tmp_path / "run")
    assert fit.former_plan(SimpleNamespace(resume_from=Path(name))) == {"compiled": True}

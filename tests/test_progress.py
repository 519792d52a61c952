"""The numbers that a user watches: the smoothed loss, the time that is left, how far previews and hashing are."""

import dataclasses
import math

import pytest
import torch

from anima_core import files
from anima_core.demo.pictures import write_pictures
from anima_core.errors import AnimaError, FileError, Interrupted, RunError, SettingError
from anima_core.progress_bar import ProgressBar, progress_text
from anima_core.settings import SampleConfig
from anima_core.training import model_files
from anima_core.training.events import Events
from anima_core.training.loop import train
from anima_core.training.model_files import hash_models
from anima_core.training.reporting import DECAY, RunningMean, StepRecord, StepReporter, smoothed

from .tiny import train_config


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pics", 2)
    return tmp_path / "pics"


def test_the_smoothed_loss_is_right_from_the_first_step_on():
    """Weighted by powers of the decay and divided by their sum: a constant is that constant, and two values their mean."""
    assert smoothed([]) is None and smoothed([math.nan]) is None
    assert smoothed([0.5]) == pytest.approx(0.5) and smoothed([0.5] * 7) == pytest.approx(0.5)
    values = [2.0, 1.0, 4.0, 3.0]
    weights = [DECAY ** (3 - i) for i in range(4)]
    assert smoothed(values) == pytest.approx(sum(w * v for w, v in zip(weights, values)) / sum(weights))
    assert smoothed([1.0, math.nan, 3.0, math.inf]) == smoothed([1.0, 3.0])


class NoWatchdog:
    def check(self, *args: object) -> None:
        return None


def reported(losses: list[float], seconds: list[float], before: list[float], monkeypatch) -> list[dict]:
    """Report steps of these losses that took these seconds, after the history of a run that was resumed."""
    now = iter([0.0, *(sum(seconds[: i + 1]) for i in range(len(seconds)))])
    monkeypatch.setattr("anima_core.training.reporting.time.perf_counter", lambda: next(now))
    events: list[dict] = []
    total = len(before) + 10
    reporter = StepReporter(Events(None, events.append), NoWatchdog(), list(before), total, torch.device("cpu"))
    for number, loss in enumerate(losses, len(before) + 1):
        reporter.push(StepRecord(number, 1e-4, ["a.png"]), torch.tensor([loss, 0.0, 0.0, 0.5, 1.0]))
    return [event for event in events if event["event"] == "step"]


def test_the_smoothed_loss_goes_on_where_a_run_was_resumed(monkeypatch):
    (step,) = reported([1.0], [1.0], [3.0] * 60, monkeypatch)
    assert step["mean_loss"] == pytest.approx(smoothed([3.0] * 60 + [1.0])) and 2.9 < step["mean_loss"] < 3.0


def test_the_time_left_follows_the_mean_of_the_steps(monkeypatch):
    """One slow step among quick ones does not make minutes of seconds."""
    steps = reported([1.0] * 5, [2.0, 2.0, 2.0, 2.0, 12.0], [], monkeypatch)
    assert [step["pictures_per_second"] for step in steps[:4]] == pytest.approx([0.5] * 4)  # one a step
    assert [step["eta"] for step in steps[:4]] == pytest.approx([18, 16, 14, 12])
    assert steps[4]["seconds"] == 12 and steps[4]["eta"] == pytest.approx(5 * RunningMean([2, 2, 2, 2, 12]).value)


def test_of_the_held_out_loss_a_new_sentence_is_printed_and_not_a_new_number(capsys):
    texts = [*(f"held-out loss falls, best at {step}" for step in (5, 10)), "held-out loss rises since step 15, best at 10"]
    with ProgressBar() as bar:
        for number, text in enumerate([*texts, texts[-1]], 1):
            bar.on_event({"event": "held_out", "step": 5 * number, "text": text})
    printed = capsys.readouterr().err.splitlines()
    assert printed == ["step 5: held-out loss falls, best at 5", f"step 15: {texts[-1]}"]


def test_previews_tell_which_of_them_and_which_of_its_steps(model, pictures, tmp_path):
    samples = SampleConfig(prompts=("a", "b", "c"), width=64, height=64, steps=2, at_end=True, cfg=1.0)
    events: list[dict] = []
    train(train_config(model, pictures, tmp_path, samples=samples, max_train_steps=1), events.append)
    told = [progress_text(event) for event in events if event.get("stage") == "preview"]
    assert told == [f"preview {picture} of 3, step {step} / 2" for picture in (1, 2, 3) for step in (1, 2)]
    assert progress_text({"stage": "latents", "done": 3, "total": 10}) == "latents 3 / 10"


def test_hashing_the_model_files_tells_how_far_it_is_and_can_be_cancelled(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_digests", {})
    monkeypatch.setattr(model_files, "MB", 1000)  # the tiny files have few megabytes
    config, events = train_config(model, pictures, tmp_path), []
    with pytest.raises(Interrupted, match="cancelled at reading model files"):
        hash_models(config, tmp_path, lambda event: "cancel")
    hash_models(config, tmp_path, events.append)
    assert [event["done"] for event in events] == sorted(event["done"] for event in events)
    assert events and events[-1]["total"] > 0
    known = len(events)
    hash_models(config, tmp_path, events.append)
    assert len(events) == known  # nothing is read again


def test_a_run_that_is_stopped_before_its_first_step_has_nothing_to_keep(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path)
    train(dataclasses.replace(config, output=dataclasses.replace(config.output, name="first")))  # fills the caches
    with pytest.raises(Interrupted, match="stopped before the first step; there is nothing to keep"):
        train(config, lambda event: "stop" if str(event.get("text")).startswith("lora:") else None)
    assert not (tmp_path / "test.safetensors").exists()


@pytest.mark.parametrize("error", [AnimaError, SettingError, FileError, RunError, Interrupted])
def test_errors_are_named_shortly(error):
    """ComfyUI prints module and name, and imports a node pack under the path of its folder."""
    assert f"{error.__module__}.{error.__qualname__}" == f"anima_trainer.{error.__name__}"

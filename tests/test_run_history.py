"""The past of a run, read from its folder: which steps count, what is read anew, and which points of a long curve are shown."""

import json
import math
from pathlib import Path

import pytest

from anima_core.demo.pictures import write_pictures
from anima_core.run_history import COLUMNS, LOG, Columns, Histories, Log, columns_of, plan_of, settings_of, shown_rows
from anima_core.settings import SampleConfig
from anima_core.training.loop import train

from .tiny import train_config


def step(number: int, loss: float | None = 0.5, **more) -> str:
    event = {"event": "step", "time": 1.0, "step": number, "total": 100, "loss": loss, "mean_loss": loss, "lr": 1e-3}
    return json.dumps(event | {"grad_norm": 1.0, "seconds": 0.1, "eta": 2.0, "peak_gb": 0.0} | more) + "\n"


def sample(number: int, index: int = 0, path: str = "") -> str:
    path = path or f"/where it was/x-run/samples/step-{number:08d}-{index}.png"
    return json.dumps({"event": "sample", "time": 1.0, "step": number, "path": path, "prompt": "a cat"}) + "\n"


def held_out(number: int, loss: float | None = 0.25, **more) -> str:
    levels, noise = [loss] * 9, [level / 10 for level in range(1, 10)]
    event = {"event": "held_out", "time": 1.0, "step": number, "loss": loss, "levels": levels, "t": noise, "base": 0.5}
    event |= {"base_levels": [0.5] * 9, "ema": None, "ema_levels": None, "best_step": number, "best_loss": loss}
    return json.dumps(event | {"pictures": 4, "text": "held-out loss falls"} | more) + "\n"


def start(number: int) -> str:
    return json.dumps({"event": "start", "time": 1.0, "name": "x", "step": number}) + "\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "x-run" / "samples").mkdir(parents=True)
    return tmp_path / "x-run"


def write(folder: Path, *lines: str, mode: str = "w") -> None:
    with open(folder / "log.jsonl", mode, encoding="utf-8", newline="\n") as file:
        file.write("".join(lines))


def log_of(folder: Path) -> Log:
    log = Log(folder / LOG)
    log.read()
    return log


def steps_in(log: Log) -> Columns:
    return columns_of(log, range(len(log)))


def steps_of(folder: Path) -> list:
    return steps_in(log_of(folder))["step"]


def test_a_real_run_is_read_as_it_was_told(model, tmp_path):
    write_pictures(tmp_path / "pics", 2)
    samples = SampleConfig(prompts=("red", "blue"), width=64, height=64, steps=1, every_n_steps=2)
    events: list[dict] = []
    config = train_config(model, tmp_path / "pics", tmp_path, max_train_steps=4, samples=samples)
    result = train(config, events.append)
    log = log_of(result.run_dir)
    told = [event for event in events if event["event"] == "step"]
    assert all(steps_in(log)[name] == [event[name] for event in told] for name in COLUMNS)
    assert [(s.step, s.index, s.prompt) for s in log.samples_there()] == [
        (2, 0, "red"),
        (2, 1, "blue"),
        (4, 0, "red"),
        (4, 1, "blue"),
    ]
    assert all((result.run_dir / "samples" / s.file).is_file() for s in log.samples_there())
    settings = settings_of(result.run_dir)
    assert settings["network.rank"] == 4 and settings["datasets[0].batch_size"] == 2
    assert list(log.warnings) == [event["text"] for event in events if event["event"] == "warning"]
    assert log.latest["total"] == 4 and log.latest["loss"] == told[-1]["loss"]
    assert plan_of(result.run_dir) == "2 of 2 blocks keep"


def test_of_a_run_that_went_back_only_the_steps_that_count_are_left(folder):
    first = [step(n, 1.0) for n in range(1, 11)]
    again = [step(n, 2.0) for n in range(8, 10)]
    write(folder, *first, sample(5), sample(9), *again)
    for number in (5, 9):
        (folder / "samples" / f"step-{number:08d}-0.png").write_bytes(b"")
    log = log_of(folder)
    assert steps_in(log)["step"] == list(range(1, 10)) and steps_in(log)["loss"] == [1.0] * 7 + [2.0] * 2
    assert [s.step for s in log.samples_there()] == [5]  # the other is of the branch that was given up
    write(folder, start(4), mode="a")
    log = log_of(folder)
    assert steps_in(log)["step"] == [1, 2, 3, 4] and log.latest["step"] == 4  # gone back to, and no step taken yet
    write(folder, start(4), step(5), mode="a")
    assert steps_of(folder) == [1, 2, 3, 4, 5]


def test_held_out_losses_go_back_with_the_steps(folder):
    write(folder, held_out(0, 0.5), *map(step, range(1, 5)), held_out(4, 0.4), *map(step, range(5, 9)), held_out(8, 0.3))
    found = log_of(folder).held_out
    assert [(one.step, one.loss, one.levels, one.base) for one in found] == [
        (number, loss, (loss,) * 9, 0.5) for number, loss in ((0, 0.5), (4, 0.4), (8, 0.3))
    ]
    assert (found[-1].t[0], found[-1].best_step, found[-1].pictures, found[-1].ema) == (0.1, 8, 4, None)
    write(folder, start(4), mode="a")
    assert [one.step for one in log_of(folder).held_out] == [0, 4]
    write(folder, *map(step, range(5, 9)), held_out(8, 0.6), held_out(8, 0.7), mode="a")  # told twice: the last counts
    told = Histories().curve(folder, 10)["held_out"]
    assert [(row["step"], row["loss"]) for row in told] == [(0, 0.5), (4, 0.4), (8, 0.7)] and json.dumps(told, allow_nan=False)
    write(folder, held_out(9, None, t=[0.5]), held_out(-1), held_out(9, levels=None), held_out(9, 1e400), mode="a")
    assert [(one.step, one.loss) for one in log_of(folder).held_out][3:] == [(9, None)]  # infinite; the others are damaged


def test_of_many_held_out_losses_the_best_is_shown(folder):
    write(folder, *(held_out(number, 0.1 if number == 777 else 1.0 + number % 7) for number in range(2000)))
    steps = [row["step"] for row in Histories().curve(folder, 1000)["held_out"]]
    assert len(steps) <= 200 and {0, 777, 1999} <= set(steps)


def test_a_log_is_read_on_and_not_anew(folder, monkeypatch):
    taken: list[bytes] = []
    take = Log.take
    monkeypatch.setattr(Log, "take", lambda log, line: (taken.append(line), take(log, line)))
    histories = Histories()
    write(folder, step(1), step(2), step(3)[:20])
    assert histories.curve(folder, 10)["columns"]["step"] == [1, 2]
    write(folder, step(3)[20:], step(4), mode="a")
    assert histories.curve(folder, 10)["columns"]["step"] == [1, 2, 3, 4] and len(taken) == 4
    assert histories.curve(folder, 10)["steps"] == 4 and len(taken) == 4
    write(folder, start(0), step(1))  # another run of this name
    assert histories.curve(folder, 10)["columns"]["step"] == [1]
    (folder / "log.jsonl").unlink()
    assert histories.curve(folder, 10) == {"columns": {name: [] for name in COLUMNS}, "steps": 0, "held_out": []}


def test_only_the_logs_that_were_asked_for_last_are_held(folder):
    histories = Histories()
    for number in range(40):
        with histories.log(folder.parent / f"{number}-run"):
            pass
    assert len(histories._logs) == 16 and (folder.parent / "39-run") in histories._logs


GARBAGE = [
    "\n", "null\n", "[]\n", "7\n", "{\n", '{"event": 7}\n', '{"event": "step"}\n', '{"event": "step", "step": true}\n',
    '{"event": "step", "step": -1}\n', '{"event": "step", "step": 1.5}\n', '{"event": "sample", "step": 1}\n',
    "[" * 50_000 + "\n", '{"event": "step", "step": 1' + "0" * 400 + "}\n",
    '{"event": "__class__"}\n', '{"event": "step", "step": "1"}\n', "\0\0\0\n",
    sample(3, path="../../etc/passwd"), sample(3, path="step-x.png"), sample(3, path=""), '{"event": "start", "step": "x"}\n',
]  # fmt: skip


@pytest.mark.parametrize("line", GARBAGE)
def test_what_is_no_event_is_passed_over(folder, line):
    write(folder, step(1), line, step(2))
    log = log_of(folder)
    assert (
        steps_in(log)["step"] == [1, 2] and log.samples_there() == [] and settings_of(folder) == {} and plan_of(folder) is None
    )


def test_numbers_that_are_none_are_null(folder):
    write(folder, step(1, None, grad_norm=None, lr="x", seconds=10**400, mean_loss=True, eta=1e400))
    log = log_of(folder)
    assert [steps_in(log)[name] for name in COLUMNS] == [[1], [None], [None], [None], [None], [None]]
    assert log.latest["eta"] is None and json.dumps(log.latest, allow_nan=False)


@pytest.mark.parametrize("plan", ["", "[]", '{"levels": ["keep"], "parts": 1e400}', '{"levels": [7], "parts": 1}'])
def test_a_damaged_plan_is_none(folder, plan):
    (folder / "plan.json").write_text(plan, encoding="utf-8")
    assert plan_of(folder) is None


def test_what_is_no_run_has_no_steps(folder):
    assert len(log_of(folder / "nothing")) == 0
    log = log_of(folder)
    assert log.latest is None and set(map(len, steps_in(log).values())) == {0}


@pytest.mark.parametrize("rows, points", [(0, 10), (1, 10), (10, 10), (11, 10), (1000, 10), (999, 11), (5000, 4000), (3, 10)])
def test_of_a_long_curve_the_first_the_last_and_every_peak_are_shown(rows, points):
    losses = [1.0 + math.sin(row) for row in range(rows)]
    if rows:
        losses[rows // 2], losses[rows // 3] = 99.0, -99.0
    shown = list(shown_rows(losses, points))
    assert len(shown) <= points and shown == sorted(set(shown))
    assert shown == list(range(rows)) if rows <= points else len(shown) >= points // 2
    assert not rows or {0, rows - 1, rows // 2, rows // 3} <= set(shown)


def test_where_all_is_nan_some_rows_are_shown_still():
    assert len(shown_rows([math.nan] * 100, 10)) >= 5

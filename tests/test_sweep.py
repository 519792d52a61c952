"""Sweeps as they run: a bad point, a failing one, an end in the middle, one cache, the page, the winner, the command line."""

import dataclasses
import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from safetensors.torch import load_file

from anima_core.cli import main
from anima_core.demo.pictures import write_pictures
from anima_core.errors import Interrupted, RunError, SettingError
from anima_core.models.qwen import AnimaQwen
from anima_core.models.vae import AnimaVAE
from anima_core.settings import HeldOutConfig, OutputConfig, SampleConfig
from anima_core.sweep import run as running
from anima_core.sweep.outcome import Choice, Outcome, check_pick, choose, read_point_story
from anima_core.sweep.page import page, sample_sheet
from anima_core.sweep.plan import Point, Sweep, asked_for, folder_of, make_sweep
from anima_core.sweep.run import checked, failures, finished_run, placed, run_sweep, winner_of

from .test_cli import flags
from .test_report import Page
from .test_sweep_plan import BASE
from .tiny import same_tensors, train_config

pytestmark = pytest.mark.slow

PROMPTS = ("red circle", "blue <b>square</b>")
GRID = ["rank = 2, 4", "lr = 1e-3, 2e-3"]
BAD = {"points": [{"rank": 0}, {"include": ["nothing.like.this"]}, {"rank": 6}, {"rank": 7}]}  # 6 and 7 fail on their way


def swept(config, vary, plan=None, on_event=None, fails=()):
    """Run a sweep. fails: by rank, what a point of it fails with at its second step. -> what it returned, and was told."""
    sweep = checked(make_sweep(placed(config), asked_for(vary, plan), folder_of(config)))
    told, trained = [], []

    def trainer(point, where):
        def listen(event):
            if event["event"] == "step":
                trained.append((point.output.name, event["step"]))
                if event["step"] == 2 and point.network.rank in fails:
                    raise fails[point.network.rank]
            return on_event(point, event) if on_event else None

        told.append(where)
        return finished_run(point, listen)

    result = SimpleNamespace(sweep=sweep, told=told, trained=trained, folder=sweep.folder)
    try:
        result.outcomes, result.choice = run_sweep(sweep, trainer, told.append)
    except Interrupted as error:
        result.ended = error
    result.json = json.loads((sweep.folder / "results.json").read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def config(model, tmp_path_factory):
    home = tmp_path_factory.mktemp("sweep")
    write_pictures(home / "pictures", 3)
    samples = SampleConfig(PROMPTS, width=64, height=64, steps=1, cfg=1.0, at_end=True)
    output = OutputConfig(str(home / "out"), "tiny", save_dtype="fp32")
    return train_config(model, home / "pictures", home, samples=samples, output=output, max_train_steps=3, cache_dir="")


@pytest.fixture(scope="module")
def whole(config):
    """A grid of four, two points that are refused, two that fail; and how often VAE and Qwen encoded something."""
    encoded = {"pictures": 0, "captions": 0}

    def counting(kind, function, size):
        def count(self, items, *more, **others):
            encoded[kind] += size(items)
            return function(self, items, *more, **others)

        return count

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AnimaVAE, "encode", counting("pictures", AnimaVAE.encode, len))
        patch.setattr(AnimaQwen, "encode", counting("captions", AnimaQwen.encode, len))
        result = swept(config, GRID, BAD, fails={6: RunError("the loss was not finite"), 7: RuntimeError("cuBLAS\nfailed")})
    result.encoded = encoded
    return result


def test_every_point_runs_but_the_bad_ones_which_are_named_first(whole):
    assert [outcome.state for outcome in whole.outcomes] == [*["finished"] * 4, "refused", "refused", "failed", "failed"]
    first, second, *others = whole.told
    assert first == "point 5 of 8: rank 0: left out: `network.rank`=0: must be at least 1"
    assert second.startswith("point 6 of 8: include nothing.like.this: left out: `network.include` 'nothing.like.this'")
    assert others == [
        *(
            f"point {n} of 8: rank {r}, lr {lr}"
            for n, (r, lr) in enumerate([(2, 0.001), (2, 0.002), (4, 0.001), (4, 0.002)], 1)
        ),
        *("point 7 of 8: rank 6", "point 7 of 8: rank 6: failed: the loss was not finite"),
        *("point 8 of 8: rank 7", "point 8 of 8: rank 7: failed: RuntimeError: cuBLAS"),
    ]
    assert "rank 6: the loss was not finite" in failures(whole.outcomes)


def test_all_points_share_one_cache(whole, config):
    pictures = len(list(Path(config.datasets[0].subsets[0].image_dir).glob("*.png")))
    captions = {path.read_text() for path in Path(config.datasets[0].subsets[0].image_dir).glob("*.txt")}
    assert whole.encoded["pictures"] == pictures
    prompts = {*captions, *PROMPTS, ""}  # of previews; the empty one is the negative
    assert len(captions) <= whole.encoded["captions"] <= len(prompts)
    caches = {outcome.point.config.cache_dir for outcome in whole.outcomes if outcome.point.config}
    assert len(caches) == 1


def test_results_are_the_logs(whole):
    told = whole.json
    assert (told["sweep"], told["varied"][:2]) == ("tiny", ["network.rank", "optimizer.learning_rate"])
    for point, outcome in zip(told["points"], whole.outcomes):
        assert (point["name"], point["state"]) == (outcome.point.name, outcome.state)
        if outcome.state != "finished":
            continue
        assert point["settings"] == dict(outcome.point.values) and point["steps"] == point["total"] == 3
        log = [json.loads(line) for line in (Path(point["run"]) / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        steps = [event for event in log if event["event"] == "step"]
        assert (point["loss"], point["smoothed_loss"]) == (steps[-1]["loss"], steps[-1]["mean_loss"])
        assert point["seconds"] == pytest.approx(sum(step["seconds"] for step in steps), abs=1e-3)
        assert load_file(point["adapter"]) and point["best_adapter"] == point["adapter"]
    assert [point["error"] for point in told["points"]][4:] == [
        *("network.rank=0: must be at least 1", whole.outcomes[5].error.replace("`", "")),
        *("the loss was not finite", "RuntimeError: cuBLAS"),
    ]


def test_the_page_compares(whole, config):
    path = whole.folder / "index.html"
    shown = Page(path)
    head, *rows = shown.rows[:9]
    assert head[:5] == ["point", "rank", "lr", "include", "state"] and len(rows) == 8
    lowest = min((point for point in whole.json["points"] if point["adapter"]), key=lambda point: point["smoothed_loss"])
    for number, (row, point) in enumerate(zip(rows, whole.json["points"]), start=1):
        assert row[0] == f"{number}{' winner' if point is lowest else ''}"
        assert row[1] == str(point["settings"].get("network.rank", config.network.rank)) and row[4] == point["state"]
        if point["state"] == "finished":
            assert row[5:8] == ["3", f"{point['smoothed_loss']:.3g}", f"{point['loss']:.3g}"]
    curves = [path["class"] for path in shown.of("path") if path["class"] != "grid"]
    assert curves == [f"c{n} d0" for n in (0, 1, 2, 3, 6, 7)]  # of the points that took a step
    pictures = shown.of("img")
    labels = [f"{number}: {outcome.point.label}" for number, outcome in enumerate(whole.outcomes[:4], start=1)]
    assert [picture["alt"] for picture in pictures] == [f"{label}: {prompt}" for label in labels for prompt in PROMPTS]
    assert "7: rank 6: failed: the loss was not finite" in shown.texts
    assert f"Winner: {lowest['label']}" in shown.texts and "Careful: " in shown.texts
    assert str(Path(config.output.dir).parent) not in shown.html and not shown.of("script")
    policy = next(meta["content"] for meta in shown.of("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    sheet = sample_sheet(whole.outcomes)
    assert isinstance(sheet, Image.Image) and sheet.height > 4 * 64


def test_a_sweep_that_was_ended_goes_on_where_it_was(whole, config, tmp_path):
    """Ended within the third point and begun again: two are found, one resumed, one trained, to the same adapters."""
    other = placed(config)  # the cache is shared
    other = dataclasses.replace(other, output=OutputConfig(str(tmp_path), "tiny", save_dtype="fp32"))

    def cancel(point, event):
        return "cancel" if point.network.rank == 4 and event["event"] == "step" and event["step"] == 2 else None

    ended = swept(other, GRID, on_event=cancel)
    assert isinstance(ended.ended, Interrupted)
    assert [point["state"] for point in ended.json["points"]] == ["finished", "finished", "unfinished", "waiting"]
    assert ended.json["points"][2]["steps"] == 2 and "1 unfinished" in Page(ended.folder / "index.html").text
    again = swept(other, GRID)
    assert [outcome.state for outcome in again.outcomes] == ["finished"] * 4
    third, fourth = (outcome.point.name for outcome in again.outcomes[2:])
    assert again.trained == [(third, 3), (fourth, 1), (fourth, 2), (fourth, 3)]
    for outcome, undisturbed in zip(again.outcomes, whole.outcomes):
        assert Path(outcome.adapter).name == Path(undisturbed.adapter).name
        assert same_tensors(load_file(outcome.adapter), load_file(undisturbed.adapter)), outcome.point.label
    assert swept(other, GRID).trained == []


def test_a_point_that_failed_is_tried_again_under_its_name(config, tmp_path):
    other = dataclasses.replace(config, output=OutputConfig(str(tmp_path), "tiny", save_dtype="fp32"))
    fails = {5: RuntimeError("out of luck")}

    def before_any_step(point, event):
        if event["event"] == "start":
            raise RunError("no luck")

    first = swept(other, ["rank = 5"], on_event=before_any_step)
    assert first.outcomes[0].error == "no luck" and first.choice.winner is None
    with pytest.raises(RunError, match="the sweep has no winner: rank 5: no luck"):
        winner_of(first.outcomes, first.choice)
    second = swept(other, ["rank = 5"], fails=fails)
    assert second.outcomes[0].error == "RuntimeError: out of luck"
    third = swept(other, ["rank = 5"])
    assert third.outcomes[0].state == "finished" and Path(third.outcomes[0].adapter).name == "tiny-rank5.safetensors"
    assert [path.name for path in third.folder.glob("*-run")] == ["tiny-rank5-run"]


def test_a_real_held_out_loss_finds_the_winner(config, tmp_path):
    output = OutputConfig(str(tmp_path), "tiny", save_dtype="fp32")
    held = HeldOutConfig(count=1, every_n_steps=1)
    other = dataclasses.replace(config, output=output, held_out=held, samples=SampleConfig(), max_train_steps=2)
    result = swept(other, ["lr = 1e-6, 2e-2"])
    told = [outcome.held_out for outcome in result.outcomes]
    assert all([found.step for found in outcome.story.held_out] == [0, 1, 2] for outcome in result.outcomes)
    assert told[0].base == told[1].base and told[0].best_loss != told[1].best_loss
    winner = min(result.outcomes, key=lambda outcome: outcome.held_out.best_loss)
    assert result.choice.winner is winner and result.choice.why.startswith("the lowest held-out loss, ")
    assert winner.best_adapter == str(result.folder / f"{winner.point.name}-best.safetensors")
    assert load_file(winner.best_adapter)
    shown = Page(result.folder / "index.html")
    assert shown.rows[0][-4:] == ["held-out", "at step", "time", "memory, peak"]
    assert f"{winner.point.name}-best.safetensors" in shown.texts


def test_the_same_sweep_is_not_run_twice_at_once(config, tmp_path):
    other = dataclasses.replace(config, output=OutputConfig(str(tmp_path), "tiny"))
    sweep = make_sweep(placed(other), asked_for(["rank = 2"]), folder_of(other))
    with running.held(sweep.folder, "tiny"), pytest.raises(SettingError, match="is training now"):
        run_sweep(sweep, finished_run, print)


# The winner


def outcome(folder: Path, label: str, smoothed: float, held_out: list[dict] | None = None) -> Outcome:
    """A point that is done, as its log tells it."""
    run_dir = folder / f"{label}-run"
    run_dir.mkdir(parents=True)
    step = {"event": "step", "step": 10, "total": 10, "loss": smoothed, "mean_loss": smoothed, "lr": 1e-4, "seconds": 1.0}
    events = [step, *({"event": "held_out", "levels": [0.5], "t": [0.5], "text": "…"} | event for event in held_out or [])]
    (run_dir / "log.jsonl").write_text("".join(f"{json.dumps(event)}\n" for event in events), encoding="utf-8")
    adapter = folder / f"{label}.safetensors"
    adapter.write_bytes(b"")
    return Outcome(Point({}, label, f"x-{label}"), "finished", "", str(adapter), run_dir, read_point_story(run_dir))


def held(step: int, loss: float, best_step: int, best_loss: float, base: float = 1.0) -> dict:
    return {"step": step, "loss": loss, "best_step": best_step, "best_loss": best_loss, "base": base}


def test_the_lowest_held_out_loss_wins_and_hands_on_its_best_adapter(tmp_path):
    learnt_by_heart = outcome(tmp_path, "a", 0.1, [held(5, 0.5, 5, 0.5), held(10, 0.9, 5, 0.5)])
    good = outcome(tmp_path, "b", 0.3, [held(5, 0.4, 5, 0.4), held(10, 0.45, 5, 0.4)])
    (tmp_path / "b-best.safetensors").write_bytes(b"")
    found = choose([learnt_by_heart, good])
    assert (found.winner, found.why, found.warning) == (good, "the lowest held-out loss, 0.4 at step 5", "")
    assert found.winner.best_adapter == str(tmp_path / "b-best.safetensors")
    assert learnt_by_heart.best_adapter == str(tmp_path / "a.safetensors")
    assert choose([learnt_by_heart, good], "smoothed_loss").winner is learnt_by_heart
    sweep = make_sweep_of(learnt_by_heart, good)
    shown = page(sweep, [learnt_by_heart, good], found)
    assert "Held-out loss" in shown and "held-out" in shown and "Careful" not in shown


def make_sweep_of(*outcomes: Outcome) -> Sweep:
    return Sweep(BASE, Path("x-sweep"), tuple(outcome.point for outcome in outcomes))


def test_without_held_out_losses_of_all_the_winner_comes_with_a_warning(tmp_path):
    one, other = outcome(tmp_path, "a", 0.2, [held(10, 0.5, 10, 0.5)]), outcome(tmp_path, "b", 0.1)
    found = choose([one, other])
    assert found.winner is other and found.warning.startswith("its training loss is the lowest, which says little")
    assert choose([one, other], "smoothed_loss").warning == ""  # it was asked for
    by_held_out = choose([one, other], "held_out")
    assert by_held_out.winner is one and by_held_out.warning == "1 points have no held-out loss and are left out"
    assert choose([other], "held_out").winner is None and choose([other]).warning == ""


def test_held_out_losses_that_do_not_compare_are_told(tmp_path):
    smaller = outcome(tmp_path, "a", 0.2, [held(10, 0.5, 10, 0.5, base=0.6)])
    larger = outcome(tmp_path, "b", 0.2, [held(10, 0.7, 10, 0.7, base=0.9)])
    found = choose([smaller, larger])
    assert found.winner is smaller and "own held-out loss differs between points (0.6 to 0.9)" in found.warning
    worse = outcome(tmp_path, "c", 0.2, [held(10, 0.61, 10, 0.61, base=0.6)])
    assert choose([worse]).warning == "no point is better on held-out pictures than the untrained model"


def test_a_point_is_picked_by_its_label_or_its_name(tmp_path):
    one, other = outcome(tmp_path, "a", 0.2), outcome(tmp_path, "b", 0.1)
    assert choose([one, other], "a").winner is choose([one, other], "x-a").winner is one
    waiting = Outcome(Point({}, "c", "x-c"))
    assert choose([one, waiting], "c") == Choice(None, "c has no adapter")
    check_pick("b", make_sweep_of(one, other))
    with pytest.raises(SettingError, match="pick='d': write auto, held_out, smoothed_loss, or a point as the page has it"):
        check_pick("d", make_sweep_of(one, other))


def test_what_is_damaged_in_a_log_costs_only_itself(tmp_path):
    broken = [held(6, math.nan, 5, math.nan), {"step": "x"}]
    found = outcome(tmp_path, "a", 0.2, [held(5, 0.5, 5, 0.5), *broken])
    assert (found.held_out.step, found.held_out.best_loss) == (5, 0.5)
    assert choose([found]).winner is found


# The command line


def test_the_command_line_runs_a_file_and_flags_and_tells_the_winner(model, config, tmp_path, capsys):
    plan = tmp_path / "plan.toml"
    plan.write_text("[sweep]\nnetwork_dim = [2]\n[[points]]\nnetwork.rank = 0\n", encoding="utf-8")
    pictures = config.datasets[0].subsets[0].image_dir
    _, *typed = flags(model, pictures, tmp_path / "out", max_train_steps=1, network_dim=4)
    command = ["sweep", str(plan), "--vary", "learning_rate=1e-3,2e-3", *typed]
    assert main(command) == 1
    said = capsys.readouterr()
    folder = tmp_path / "out" / "x-sweep"
    lines = said.out.splitlines()
    assert [line.split()[:3] for line in lines[:4]] == [
        *(["rank", "lr", "state"], ["2", "0.001", "finished"], ["2", "0.002", "finished"], ["0", "0.0001", "refused"])
    ]
    assert lines[4] == f"page: {folder / 'index.html'}" and (folder / "index.html").is_file()
    assert lines[5].startswith("winner: rank 2, lr ") and Path(lines[5].rpartition(": ")[2]).is_file()
    assert "point 3 of 3: rank 0: left out: --network_dim=0: must be at least 1" in said.err
    assert said.err.splitlines()[-1] == "anima: 1 of 3 points failed: rank 0: --network_dim=0: must be at least 1"
    assert main(["sweep", str(folder / "sweep.toml"), "--pick", "rank 2, lr 0.002"]) == 1
    said = capsys.readouterr()
    assert "winner: rank 2, lr 0.002, chosen by its name" in said.out and "step/s" not in said.err


@pytest.mark.parametrize(
    "more, text",
    [
        ([], "sweep: 0 points; say what varies"),
        (["--vary", "ranc=2"], "vary 'ranc': no setting has this name; did you mean rank?"),
        (["--vary", "rank=2", "--pick", "best"], "pick='best': write auto"),
        (["--vary", "rank=2", "--resume", "latest"], "--resume=latest: a sweep continues its points by itself"),
        (["--vary", "rank=2", "--output_config"], "--output_config: is of train; leave it out"),
        (["missing.toml"], "missing.toml: no such file; check the path"),
    ],
)
def test_a_sweep_that_cannot_be_is_one_line(model, config, tmp_path, capsys, more, text):
    _, *typed = flags(model, config.datasets[0].subsets[0].image_dir, tmp_path / "out")
    assert main(["sweep", *more, *typed]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"anima: {text}")
    assert not (tmp_path / "out").exists()

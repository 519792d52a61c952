"""How a run computes attention: chosen once and told, taken over by a run that goes on, changed where gradients break."""

import dataclasses
import json
import math

import pytest
import torch

from anima_core import train
from anima_core.demo.pictures import write_pictures
from anima_core.errors import RunError, SettingError
from anima_core.models.ops import PLAIN
from anima_core.settings import TrainConfig
from anima_core.speed import attention as attention_module
from anima_core.speed import race as race_module
from anima_core.speed.attention import CANDIDATES, Size
from anima_core.speed.forms import ops_of
from anima_core.speed.lean import LEAN
from anima_core.training import loop
from anima_core.training.attending import AttentionChoice
from anima_core.training.fit import FILE
from anima_core.training.watchdog import STEPS_AHEAD, Watchdog

from .attention_fakes import breaks, clocked, put, raises
from .tiny import train_config, write

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Two sizes of pictures, and one caption of over 512 tokens."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 3)
    write(folder, "wide.png", size=(96, 32))
    write(folder, "long.png", caption="red circle, " * 300)
    return folder


@pytest.mark.parametrize("name", ["cudnn", "efficient"])
def test_what_a_device_has_not_is_refused_before_anything_is_loaded(model, pictures, tmp_path, name):
    with pytest.raises(SettingError) as refused:
        train(train_config(model, pictures, tmp_path, attention=name))
    text = refused.value.text
    assert text.startswith(f"`train.attention`={name}: cannot be used on cpu: No viable backend")
    assert text.endswith("; use one of auto, sdpa, flash, chunked, math") and not (tmp_path / "test-run").exists()


def told(events: list[dict], kind: str = "note") -> list[str]:
    return [event["text"] for event in events if event["event"] == kind and "attention" in event["text"]]


def named(run) -> set:
    return set(json.loads((run.plan.run_dir / FILE).read_text())["attention"].get("sizes", {}).values())


def test_without_being_asked_nothing_is_tried(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(race_module, "tried", raises)
    events: list[dict] = []
    with loop.opened(train_config(model, pictures, tmp_path), events.append) as run:
        assert {form.ops for form in run.model.forms} == {LEAN}
        assert named(run) == set() and told(events) == []


@pytest.mark.parametrize("name", ["flash", "chunked", "math"])
def test_a_run_by_name_trains_as_by_default(model, pictures, tmp_path, name):
    usual = train(train_config(model, pictures, tmp_path / "usual"))
    with loop.opened(train_config(model, pictures, tmp_path / name, attention=name)) as run:
        assert {form.ops.attention for form in run.model.forms} == {CANDIDATES[name]}
        assert named(run) == {name}
        assert run.go().losses == pytest.approx(usual.losses, rel=1e-5)


def test_by_itself_a_run_takes_the_fastest_and_says_so_once(model, pictures, tmp_path, monkeypatch):
    clocked(monkeypatch, sdpa=0.0031, flash=0.0029, chunked=0.04)
    events: list[dict] = []
    with loop.opened(train_config(model, pictures, tmp_path, attention="auto"), events.append) as run:
        assert named(run) == {"flash"} and {form.ops.attention for form in run.model.forms} == {CANDIDATES["flash"]}
        run.go()
    (note,) = told(events)
    assert note.startswith("attention: flash 2.9 ms, sdpa 3.1 ms, chunked 40 ms: flash taken for ")
    assert ": flash taken for 15x512; " in note
    assert note.endswith("; left out: " + ", ".join(f"{name} ({REASON})" for name in ("cudnn", "efficient")))


REASON = "No viable backend for scaled_dot_product_attention was found"


def test_where_a_candidate_is_wrong_at_one_size_another_is_taken_there(model, pictures, tmp_path, monkeypatch):
    """As cuDNN is with a mask, where the number of tokens is 64 more than a multiple of 128."""

    def sometimes(q, *others):
        wrong = q.shape[1] == 12 and others[2] is None
        return PLAIN.attention(q, *others) * (float("nan") if wrong else 1)

    put(monkeypatch, cudnn=sometimes)
    clocked(monkeypatch, cudnn=0.1, flash=0.2)
    events: list[dict] = []
    with loop.opened(train_config(model, pictures, tmp_path, attention="auto"), events.append) as run:
        sizes = json.loads((run.plan.run_dir / FILE).read_text())["attention"]["sizes"]
        assert sizes["16x16"] == "cudnn" and sizes["12x12"] == "flash" and len(set(sizes)) > 3
        run.go()
    assert "flash for 12x12 (cudnn: its output or a gradient is not finite)" in told(events)[0]


def test_what_takes_no_mask_is_used_where_there_is_none(model, pictures, tmp_path, monkeypatch):
    def without(q, k, v, mask=None, zeros=0):
        if mask is not None:
            raise RuntimeError("takes no mask here")
        return PLAIN.attention(q, k, v, mask, zeros)

    put(monkeypatch, flash_attn=without)
    config = train_config(model, pictures, tmp_path, attention="auto")
    events: list[dict] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_module, "find_spec", lambda name: name)
        with loop.opened(dataclasses.replace(config, attention="flash_attn"), events.append) as run:
            names = {size: run.model.forms[0].ops.attention.name(size) for size in (Size(16, 16), Size(16, 700, masked=True))}
            assert names[Size(16, 16)] == "flash_attn" != names[Size(16, 700, masked=True)]
            run.go()
    assert "flash_attn (takes no mask here)" in told(events)[0]


# Gradients that break


class Turns:
    """A factor of gradients that is 1 until it is told to turn."""

    def __init__(self) -> None:
        self.turned = False

    def __call__(self) -> float:
        return math.nan if self.turned else 1.0


def turning(config: TrainConfig, turn, at: int) -> tuple[loop.TrainResult, list[dict], set]:
    """Train, and let `turn()` break something when a step is told of."""
    events: list[dict] = []

    def listen(event):
        events.append(event)
        if event["event"] == "step" and event["step"] == at:
            turn()

    with loop.opened(config, listen) as run:
        result = run.go()
        return result, events, named(run)


def test_a_gradient_that_breaks_is_not_by_the_same_attention_again(model, pictures, tmp_path, monkeypatch):
    factor = Turns()
    put(monkeypatch, cudnn=breaks(factor))
    clocked(monkeypatch, cudnn=0.1, flash=0.2)
    config = train_config(model, pictures, tmp_path, attention="auto", max_train_steps=8)

    def turn():
        factor.turned = True

    result, events, names = turning(config, turn, at=3)
    assert result.steps == 8 and names == {"flash"}
    (warning,) = told(events, "warning")
    assert warning.startswith("step 4: the gradient is nan; the step was left out (pictures: ")
    assert "; attention is computed without cudnn from here on: flash 200 ms, " in warning
    left_out = [event["step"] for event in events if event["event"] == "step" and event["grad_norm"] is None]
    assert left_out == [4]

    output = dataclasses.replace(config.output, resume="latest")
    events.clear()
    with loop.opened(dataclasses.replace(config, output=output, max_train_steps=9), events.append) as run:
        assert named(run) == {"flash"} and run.go().steps == 9
    assert told(events)[0].endswith(", as before")


def test_where_nothing_else_is_there_the_run_ends_as_it_does(model, pictures, tmp_path, monkeypatch):
    """On the CPU torch's own choice is not in doubt."""
    events: list[dict] = []
    with loop.opened(train_config(model, pictures, tmp_path), events.append) as run:
        finish = run.state.gradient.finish
        monkeypatch.setattr(run.state.gradient, "finish", lambda norm: finish(norm) * math.nan)
        with pytest.raises(RunError, match="the gradient was not finite 3 times in a row"):
            run.go()
    assert told(events, "warning") == []


@pytest.mark.parametrize("asked, culprits", [("sdpa", ["sdpa"]), ("auto", ["cudnn", "efficient", "flash"])])
def test_each_culprit_is_left_out_in_turn(model, pictures, tmp_path, monkeypatch, asked, culprits):
    """On a card, where torch's own choice may be cuDNN's: with the one the other goes."""

    class OnCard(AttentionChoice):
        def begin(self):
            super().begin()
            self.device = torch.device("cuda")

    monkeypatch.setattr(loop, "AttentionChoice", OnCard)
    put(monkeypatch, cudnn=breaks(lambda: 1.0), efficient=breaks(lambda: 1.0))
    clocked(monkeypatch, cudnn=0.1, efficient=0.2, flash=0.3, sdpa=0.4, chunked=0.5)
    with loop.opened(train_config(model, pictures, tmp_path, attention=asked)) as run:
        for number, culprit in enumerate(culprits):
            assert run.watchdog.remedy().startswith(f"attention is computed without {culprit} from here on: ")
            assert not {"cudnn", "sdpa", *culprits[: number + 1]} & named(run)
        if asked == "auto":
            assert named(run) == {"chunked"} and run.watchdog.remedy() == ""


class Network:
    """As much of an adapter network as a watchdog touches while steps fail."""

    def host_state(self):
        return {}

    def zero_init_parameters(self):
        return iter(())


def test_steps_that_were_under_way_are_not_held_against_what_came_after():
    """A card is told two steps ahead: those are broken as well when the first is heard of."""
    remedies = ["without cudnn", "without flash", ""]
    watchdog = Watchdog(Network(), remedy=lambda: remedies.pop(0))

    def step(number, grad_norm=math.nan):
        return watchdog.check(number, 1.0, grad_norm, ["a"])

    assert step(1).endswith("; without cudnn")
    for number in (2, 3):
        assert step(number).endswith("(pictures: a)")
    assert len(remedies) == 2 and step(4, 1.0) is None
    assert step(5).endswith("; without flash")
    assert STEPS_AHEAD == 2 and step(6) and step(7) and len(remedies) == 1
    assert step(8).endswith("(pictures: a)") and remedies == []
    assert step(9)
    with pytest.raises(RunError, match="the gradient was not finite 3 times in a row"):
        step(10)


def test_a_loss_that_is_not_finite_is_no_matter_of_the_backward_pass():
    watchdog = Watchdog(Network(), remedy=raises)
    assert "the loss is nan" in watchdog.check(1, math.nan, math.nan, ["a"])
    assert "overflowed fp16" in watchdog.check(2, 1.0, math.inf, ["a"], scale=2.0)


# A run that goes on


@pytest.fixture
def begun(model, pictures, tmp_path):
    """The settings that continue a run of three steps, and the plan that it left."""
    config = train_config(model, pictures, tmp_path, attention="flash", max_train_steps=3)
    train(dataclasses.replace(config, output=dataclasses.replace(config.output, save_state=True)))
    again = dataclasses.replace(config, output=dataclasses.replace(config.output, resume="latest"), max_train_steps=4)
    return again, tmp_path / "test-run" / FILE


@pytest.mark.parametrize(
    "setting, change, said",
    [
        ("flash", {}, ", as before"),
        ("chunked", {}, "; chosen anew, before it was flash on cpu"),
        ("flash", {"card": "RTX 3060"}, "; chosen anew, before it was flash on RTX 3060"),
        ("flash", {"sizes": {}}, "; chosen anew, for other sizes than before"),
        ("flash", {"sizes": 3}, "; chosen anew, plan.json is damaged"),
        ("flash", {"name": "cudnn"}, f"; chosen anew, cudnn of before is not right any more for 12x12 ({REASON})"),
        ("flash", {"name": "new"}, "; chosen anew, new of before is not right any more for 12x12 (unknown)"),
    ],
)
def test_it_takes_its_choice_over_where_that_is_right(begun, setting, change, said):
    config, path = begun
    plan = json.loads(path.read_text())
    name = change.pop("name", "")
    plan["attention"] |= change | ({"sizes": dict.fromkeys(plan["attention"]["sizes"], name)} if name else {})
    path.write_text(json.dumps(plan))
    events: list[dict] = []
    with loop.opened(dataclasses.replace(config, attention=setting), events.append) as run:
        assert named(run) == {setting} and run.go().steps == 4
    (note,) = told(events)
    assert note.endswith(said)


def test_in_plain_forms_attention_is_plain(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path, attention="cudnn", trim_text=True, plain=True)
    with loop.opened(config) as run:
        assert {ops_of(form) for form in run.model.forms} == {PLAIN}
        assert run.go().steps == 6 and run.watchdog.remedy() == ""

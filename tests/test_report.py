"""The report of a run: what stands in the page, that nothing in it acts or comes from elsewhere, and that it stays small."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from anima_core import files, train
from anima_core.adapters.analysis import analyse
from anima_core.adapters.findings import sentence
from anima_core.cli import main
from anima_core.demo.pictures import write_pictures
from anima_core.errors import FileError, SettingError
from anima_core.report import contact_sheet, find_run, read_story, table_of, write_report
from anima_core.report.curves import HEIGHT, WIDTH, Line, chart, figures_apart, linear, logarithmic
from anima_core.report.markup import tag
from anima_core.report.pictures import MOST_PROMPTS, MOST_STEPS, SIDE
from anima_core.run_folders import folder_of
from anima_core.run_record import RunRecord, write_record
from anima_core.run_store import FinishedRun, RunStore
from anima_core.settings import OutputConfig, SampleConfig, to_dict
from anima_core.settings.toml_file import dump_toml

from .tiny import train_config, write

pytestmark = pytest.mark.slow

SECRET = "hidden-home-of-somebody"
HOSTILE = "<script>alert('1')</script> & <img src=x onerror=alert(2)> \"quoted\" 風"
VOID = {"meta", "img", "wbr"}


class Page(HTMLParser):
    """A page as a browser reads it: its texts, its elements, and that each is closed where it should be."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []
        self._open: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self._open == []
        self.text = "\n".join(self.texts)

    def handle_starttag(self, name, attributes):
        self.elements.append((name, dict(attributes)))
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")
        if name not in VOID:
            self._open.append(name)

    def handle_endtag(self, name):
        assert self._open.pop() == name

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)
        if {"td", "th"} & set(self._open):
            self.rows[-1][-1] += data

    def of(self, name: str) -> list[dict[str, str]]:
        return [attributes for found, attributes in self.elements if found == name]

    def curves(self, kind: str) -> list[list[tuple[float, float]]]:
        """The points of every curve of a kind, in the drawing's grid."""
        drawn = [path["d"] for path in self.of("path") if path["class"] == kind]
        return [[(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", d)] for d in drawn]


@pytest.fixture(scope="module")
def run_dir(model, tmp_path_factory) -> Path:
    """A run with previews, a hostile prompt and names, in a folder that nobody should learn of."""
    home = tmp_path_factory.mktemp("x") / SECRET
    write_pictures(home / "pictures", 3)
    write(home / "pictures", "b & 'c' 風.png", caption=None)
    (home / "pictures" / "<b>cut.png").write_bytes(b"\x89PNG no picture")
    samples = SampleConfig((HOSTILE, "blue square"), width=64, height=64, steps=1, cfg=1.0, every_n_steps=3, at_first=True)
    output = OutputConfig(str(home / "out"), "it's & me", save_dtype="fp32")
    return train(train_config(model, home / "pictures", home, samples=samples, output=output)).run_dir


@pytest.fixture(scope="module")
def told(run_dir) -> Page:
    return Page(write_report(read_story(run_dir)))


def events_of(folder: Path, kind: str) -> list[dict]:
    events = map(json.loads, (folder / "log.jsonl").read_text(encoding="utf-8").splitlines())
    return [event for event in events if event["event"] == kind]


def written_run(folder: Path, events: list[dict], config=None) -> Path:
    """A run folder that holds these events."""
    folder.mkdir()
    lines = [json.dumps({"time": 1.7e9} | event) for event in events]
    (folder / "log.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if config is not None:
        (folder / "config.toml").write_text(dump_toml(to_dict(config)), encoding="utf-8")
    return folder


def step(number: int, loss: float | None = 0.5, **more) -> dict:
    told = dict(event="step", step=number, total=100_000, loss=loss, mean_loss=loss, lr=1e-4, grad_norm=0.3, seconds=2.0)
    return told | {"peak_gb": 11.25} | more


def test_the_page_tells_how_it_went(run_dir, told):
    last = events_of(run_dir, "step")[-1]
    for text in ("it's & me", "finished", "6 of 6", f"{last['mean_loss']:.3g}", "lora, rank 4", "cpu, float32"):
        assert text in told.texts, text
    assert "it's & me.safetensors" in told.texts and "Continue Anima Run" in told.texts
    assert "python -m anima_core train --config_file it's & me-run/config.toml --resume latest" in told.texts


def test_the_curves_are_the_log(run_dir, told):
    steps = events_of(run_dir, "step")
    (loss, grad_norm), (mean_loss, lr) = told.curves("raw"), told.curves("main")
    drawn = {"loss": loss, "grad_norm": grad_norm, "mean_loss": mean_loss, "lr": lr}
    top = {name: linear(0, max(s[name] for s in steps)).high for name in ("grad_norm", "lr")}
    top["loss"] = top["mean_loss"] = linear(0, max(s["loss"] for s in steps)).high
    for name, points in drawn.items():
        assert [round(1 + 5 * x / WIDTH, 2) for x, _ in points] == [s["step"] for s in steps]
        values = [top[name] * (1 - y / HEIGHT) for _, y in points]
        assert values == pytest.approx([s[name] for s in steps], abs=top[name] / HEIGHT / 10), name


def test_samples_stand_step_by_prompt(run_dir, told):
    *pictures, _ = told.of("img")
    assert [p["alt"] for p in pictures] == [f"step {s}: {prompt}" for s in (0, 3, 6) for prompt in (HOSTILE, "blue square")]
    for number, shown in enumerate(pictures):
        kind, _, data = shown["src"].partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/jpeg;base64" and picture.format == "JPEG"
        original = Image.open(run_dir / "samples" / f"step-{number // 2 * 3:08d}-{number % 2}.png").convert("RGB")
        assert picture.size == original.size == (int(shown["width"]), int(shown["height"]))
        far = [abs(a - b) for a, b in zip(picture.resize((1, 1)).getpixel((0, 0)), original.resize((1, 1)).getpixel((0, 0)))]
        assert max(far) < 12


def test_what_the_adapter_changes_is_told_and_drawn(run_dir, told):
    drawn, said = told.of("img")[-1], sentence(analyse(run_dir.parent / "it's & me.safetensors"))
    assert said in told.texts and drawn["alt"] == f"Strength by block and kind of layer. {said}"
    picture = Image.open(io.BytesIO(base64.b64decode(drawn["src"].removeprefix("data:image/png;base64,"))))
    assert picture.size == (int(drawn["width"]), int(drawn["height"])) and picture.width > 500


def test_an_adapter_that_cannot_be_measured_is_said(run_dir, tmp_path):
    story = read_story(run_dir)
    story.adapter = str(tmp_path / "gone.safetensors")
    assert not [p for p in Page(write_report(story, tmp_path / "a.html")).of("img") if p["alt"].startswith("Strength")]
    (tmp_path / "gone.safetensors").write_bytes(b"no adapter")
    texts = Page(write_report(story, tmp_path / "b.html")).text
    assert "What it changes cannot be measured: gone.safetensors: " in texts and str(tmp_path) not in texts


def test_settings_that_are_not_at_their_default_are_listed(told):
    found = {row[0]: row[1:] for row in told.rows if len(row) == 3}
    assert found["network.rank"] == ["4", "32"] and found["datasets[0].resolutions"] == ["64x64", "1024x1024"]
    assert found["samples.prompts"][0].splitlines() == [HOSTILE, "blue square"] and found["output.dir"] == ["out", "output"]
    assert found["model.vae"][1] == "" and found["memory"] == ["keep", "auto"]
    assert "seed" not in found and "network.type" not in found
    assert "seed = 42" in told.text  # among all of them


def test_data_and_warnings_are_told(run_dir, told):
    assert "4 pictures, 4 with repeats" in told.texts
    listed = [event["text"] for event in events_of(run_dir, "warning")]
    assert any("<b>cut.png" in text for text in listed) and any("b & 'c' 風.png" in text for text in listed)
    assert set(listed) <= set(told.texts)


def test_nothing_in_the_page_acts_or_comes_from_elsewhere(told):
    assert not {"script", "link", "iframe", "object", "base", "form", "a"} & {name for name, _ in told.elements}
    for _, attributes in told.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert all(attributes[name].startswith("data:") for name in attributes if name in ("src", "href"))
    assert "url(" not in told.html and "@import" not in told.html and "http://" not in told.html and "https://" not in told.html
    assert "default-src 'none'" in told.of("meta")[1]["content"]
    assert HOSTILE in told.texts  # at the head of its column, as it is


def test_the_page_names_no_folder_of_its_owner(told, run_dir):
    assert SECRET not in told.html and str(Path.home()) not in told.html
    story = read_story(run_dir)
    story.told[f"an earlier run is kept in {story.config.output.dir}/x-run-2, see `train.max_train_steps`"] = 2
    page = Page(write_report(story))
    assert "an earlier run is kept in out/x-run-2, see max_train_steps (2 times)" in page.texts and SECRET not in page.html


@pytest.mark.parametrize("text", ["half an emoji \ud83d", "a\0b\x1b[31m", "\u2028"])
def test_what_no_page_may_hold_is_replaced(text):
    assert not re.search("[\x00-\x1f\ud800-\udfff\u2028]", tag("p", text, title=text))


def test_a_long_run_stays_small_and_keeps_its_peaks(model, tmp_path):
    steps = [step(n, loss=0.5 if n != 54_321 else 9.0, grad_norm=0.3 if n != 77_777 else 8.0) for n in range(1, 100_001)]
    folder = written_run(tmp_path / "long-run", steps, train_config(model, tmp_path, tmp_path))
    path = write_report(read_story(folder))
    page = Page(path)
    assert path.stat().st_size < 200_000
    for points, peak in zip(page.curves("raw"), (54_321, 77_777), strict=True):
        assert len(points) <= 1000
        highest = min(points, key=lambda point: point[1])
        assert highest[0] == pytest.approx(WIDTH * (peak - 1) / 99_999, abs=0.1) and highest[1] < HEIGHT / 4
    assert "100,000 of 100,000" in page.texts and "55 h 33 min" in page.texts and "11.2 GB" in page.texts


def held_out(number: int, loss: float, **more) -> dict:
    t = [level / 10 for level in range(1, 10)]
    found = {"event": "held_out", "step": number, "loss": loss, "t": t, "levels": [loss + 0.01 * (x - 0.5) for x in t]}
    return found | {"base": 0.2, "base_levels": [0.2 + 0.1 * (x - 0.5) for x in t], "ema": None, "pictures": 4} | more


def test_the_held_out_loss_is_drawn_with_its_best_and_told_by_noise_level(tmp_path):
    sentence = "held-out loss rises since step 3, best at 2: use the adapter of step 2"
    rows = [
        held_out(n, loss, best_step=2, best_loss=0.15, text=sentence) for n, loss in ((0, 0.2), (1, 0.17), (2, 0.15), (3, 0.16))
    ]
    page = Page(write_report(read_story(written_run(tmp_path / "x-run", [step(1), step(2), step(3), *rows]))))
    assert sentence in page.texts and "4 pictures. t: the noise level, 1 is noise alone." in page.texts
    assert ["t", "without adapter", "first, step 0", "best, step 2", "last, step 3"] in page.rows
    assert ["0.1", "0.16", "0.196 (+22.5 %)", "0.146 (-8.8 %)", "0.156 (-2.5 %)"] in page.rows
    assert ["mean", "0.2", "0.2 (+0.0 %)", "0.15 (-25.0 %)", "0.16 (-20.0 %)"] in page.rows
    (best,), (base,) = page.curves("best"), page.curves("base")
    *_, drawn = page.curves("main")
    up = linear(0.15, 0.2)
    assert best == [drawn[2]] and drawn[2] == pytest.approx((WIDTH * 2 / 3, HEIGHT * (1 - up.place(0.15))), abs=0.1)
    assert [x for x, _ in base] == [0, WIDTH] and {y for _, y in base} == {drawn[0][1]}


def test_with_an_average_the_held_out_table_is_of_what_is_saved(tmp_path):
    rows = [held_out(n, 0.3, ema=0.1, ema_levels=[0.1] * 9, best_step=1, best_loss=0.1, text="x") for n in (1,)]
    page = Page(write_report(read_story(written_run(tmp_path / "x-run", [step(1), *rows]))))
    assert ["mean", "0.2", "0.1 (-50.0 %)"] in page.rows and "which is what is saved" in page.text
    assert page.curves("ema") == page.curves("best") and ["t", "without adapter", "best, step 1"] in page.rows
    assert not Page(write_report(read_story(written_run(tmp_path / "y-run", [step(1)])))).text.count("Held-out")


def test_many_samples_are_thinned_and_counted(tmp_path):
    events, picture = [step(1)], Image.new("RGB", (300, 600), "red")
    for number in range(40):
        for index in range(10):
            name = f"step-{number:08d}-{index}.png"
            events.append({"event": "sample", "step": number, "path": f"C:\\x\\{name}", "prompt": f"prompt {index}"})
    folder = written_run(tmp_path / "many-run", events)
    (folder / "samples").mkdir()
    picture.save(folder / "samples" / "one.png")
    for event in events[1:]:
        (folder / "samples" / event["path"].split("\\")[-1]).hardlink_to(folder / "samples" / "one.png")
    shown = table_of(read_story(folder))
    assert len(shown.steps) == MOST_STEPS and len(shown.prompts) == MOST_PROMPTS
    assert shown.steps[0] == 0 and shown.steps[-1] == 39
    page = Page(write_report(read_story(folder)))
    assert len(page.of("img")) == MOST_STEPS * MOST_PROMPTS == 96 and "304 more are in the run's folder samples." in page.texts
    assert {(p["width"], p["height"]) for p in page.of("img")} == {(str(SIDE * 2 // 4), str(SIDE))}


def test_a_prompt_that_was_changed_on_the_way_has_a_column_of_its_own(tmp_path):
    changed = [{"event": "sample", "step": n, "path": f"step-{n:08d}-0.png", "prompt": p} for n, p in ((1, "a"), (2, "b"))]
    folder = written_run(tmp_path / "x-run", [step(1), changed[0], step(2), changed[1]])
    for event in changed:
        write(folder / "samples", event["path"], caption=None)
    (folder / "samples" / "step-00000002-0.png").write_bytes(b"half a picture")
    page = Page(write_report(read_story(folder)))
    assert ["step", "a", "b"] in page.rows and ["1", "", "–"] in page.rows and ["2", "–", "damaged"] in page.rows


def test_the_contact_sheet_has_each_sample_in_its_place(tmp_path):
    colours = {(1, 0): "red", (1, 1): "blue", (2, 1): "lime"}
    sampled = [{"event": "sample", "step": s, "path": f"step-{s:08d}-{i}.png", "prompt": f"{i} 風" * 90} for s, i in colours]
    folder = written_run(tmp_path / "x-run", [step(1), step(2), *sampled])
    for (number, index), colour in colours.items():
        write(folder / "samples", f"step-{number:08d}-{index}.png", (512, 256), colour, caption=None)
    sheet = contact_sheet(table_of(read_story(folder)))
    left, wide, high = sheet.width - 2 * (SIDE + 8), SIDE + 8, SIDE // 2 + 8
    places = {(s, i): (left + i * wide + 100, 30 + (s - 1) * high + 50) for s in (1, 2) for i in (0, 1)}
    expected = {(1, 0): (255, 0, 0), (1, 1): (0, 0, 255), (2, 0): (255, 255, 255), (2, 1): (0, 255, 0)}
    assert {key: sheet.getpixel(place) for key, place in places.items()} == expected
    assert sheet.crop((0, 0, sheet.width, 30)).getextrema() != ((255, 255),) * 3  # prompts stand above


def test_a_run_that_is_cut_off_before_its_first_step(tmp_path):
    begun = [{"event": "note", "text": "4 pictures, 4 with repeats"}, {"event": "start", "device": "cpu", "dtype": "float32"}]
    folder = written_run(tmp_path / "x-run", begun)
    page = Page(write_report(read_story(folder)))
    for text in ("unfinished", "none yet", "None is saved yet.", "config.toml of the run folder cannot be read."):
        assert text in page.texts, text
    assert "No checkpoint is in the run folder" in page.text and "4 pictures, 4 with repeats" in page.texts
    assert not page.of("svg") and not page.of("img") and contact_sheet(table_of(read_story(folder))) is None


@pytest.mark.parametrize(
    "reason, state",
    [
        ("finished", "finished"),
        ("stopped", "stopped and kept"),
        ("stopped early", "stopped early, since the held-out loss did not fall"),
        ("Interrupted", "cancelled"),
        ("RunError", "failed"),
    ],
)
def test_how_it_ended(tmp_path, reason, state):
    start, finish = {"event": "start"}, {"event": "finish", "step": 1, "reason": reason, "path": "/x/y.safetensors"}
    assert read_story(written_run(tmp_path / "a-run", [start, step(1), finish])).state == state
    assert read_story(written_run(tmp_path / "b-run", [start, step(1), finish, start])).state == "unfinished"


def test_a_log_that_somebody_wrote_by_hand_is_no_failure(tmp_path):
    odd = [{"event": "step", "step": 1, "time": "now", "total": "<b>", "peak_gb": "much", "seconds": -1}, {"event": ["x"]}]
    page = Page(write_report(read_story(written_run(tmp_path / "x-run", odd))))
    assert "–" in page.text and "<b>" not in page.html


def test_a_curve_is_broken_where_a_number_is_not_finite():
    html = chart("Loss", [Line("loss", "raw", [(1, 1.0), (2, None), (3, 2.0), (4, 1.0)])])
    (d,) = re.findall(r'd="([^"]*)" class="raw"', html)
    assert re.sub(r"[\d.]+ [\d.]+", "", d) == "Mh0ML"
    assert chart("Loss", [Line("loss", "raw", [(1, None)])]) == "" == chart("Loss", [])


def test_axes_have_round_labels_and_hold_all_values():
    assert linear(0, 0.37).ticks == pytest.approx((0, 0.1, 0.2, 0.3, 0.4)) and linear(0, 0.37).high == pytest.approx(0.4)
    assert linear(1, 600, whole=True).ticks == (200, 400, 600) and linear(1, 600, whole=True).place(1) == 0
    assert linear(0.151, 0.199).ticks == pytest.approx((0.15, 0.16, 0.17, 0.18, 0.19, 0.2))
    assert linear(5, 5, whole=True).place(5) == 0.5 and linear(0, 0).high > 0
    wide = logarithmic([0.003, 40])
    assert (wide.low, wide.high) == pytest.approx((0.001, 100)) and wide.place(0.001) == 0 and wide.place(100) == 1
    assert "logarithmic" in chart("x", [Line("", "raw", [(1, 0.001), (2, 5.0)])], may_be_log=True)
    assert "logarithmic" not in chart("x", [Line("", "raw", [(1, 0.0), (2, 5.0)])], may_be_log=True)


def test_the_command_finds_a_run_by_its_name(tmp_path, monkeypatch, capsys):
    for name in ("out/deep/one-run", "out/two-run", "other/two-run"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        written_run(tmp_path / name, [step(1)])
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one"]) == 0 and capsys.readouterr().out == "report: out/deep/one-run/report.html\n"
    assert main(["report", "out/two.safetensors", "--output", "page/two.html"]) == 0
    assert capsys.readouterr().out == "report: page/two.html\n" and "two" in Page(tmp_path / "page" / "two.html").texts
    assert main(["report", "out/two-run"]) == 0 and (tmp_path / "out" / "two-run" / "report.html").is_file()
    assert main(["report", "two"]) == 2 and "there are several, other/two-run, out/two-run; name the folder" in said(capsys)
    assert main(["report", "three"]) == 2 and "run=three: no run of this name here or in the folders below" in said(capsys)
    assert main(["report", "one", "--output", "out"]) == 2 and "out: cannot be written" in said(capsys)


def said(capsys) -> str:
    return capsys.readouterr().err


def test_what_is_no_run_is_refused(tmp_path):
    for run in ("", ".", "..", "*", "/"):
        with pytest.raises(SettingError, match="no run of this name"):
            find_run(run, tmp_path)
    with pytest.raises(FileError, match=re.escape("no run folder, as it holds no log.jsonl")):
        read_story(tmp_path)


def test_the_run_of_an_adapter_is_found_by_its_file(tmp_path):
    store, adapter, other = RunStore(tmp_path), tmp_path / "style.safetensors", tmp_path / "other.safetensors"
    adapter.write_bytes(b"weights")
    other.write_bytes(b"of somebody else")
    run = FinishedRun(str(adapter), files.identity(adapter), str(store.run_folder("style")), [0.1], 900, [])
    store.remember("key", run)
    assert folder_of(store, adapter) is None  # its folder is gone
    store.run_folder("style").mkdir()
    assert folder_of(store, adapter) == store.run_folder("style") and folder_of(store, other) is None
    renamed = adapter.rename(tmp_path / "renamed.safetensors")
    assert folder_of(store, renamed) == store.run_folder("style") and folder_of(store, adapter) is None


def test_a_run_of_a_graph_tells_what_its_node_ended_with(tmp_path):
    folder = written_run(tmp_path / "x-run", [step(1)])
    write_record(folder, RunRecord("0" * 12, sentence="out of memory; saved at step 1, Run continues from there <b>"))
    assert "out of memory; saved at step 1, Run continues from there <b>" in Page(write_report(read_story(folder))).texts


def test_labels_of_an_axis_are_told_apart():
    assert figures_apart((4.62, 4.625, 4.63)) == ["4.62", "4.625", "4.63"]
    assert figures_apart((0.0, 0.5, 1.0)) == ["0", "0.5", "1"] and figures_apart(()) == []

"""The report of a run as one HTML page: no script, nothing from elsewhere, readable offline, in the dark and on paper."""

import re
import statistics
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path

from ..adapters.metadata import file_name
from ..progress_bar import clock
from ..run_history import columns_of, shown_rows
from ..settings import to_dict
from ..settings.toml_file import dump_toml
from ..training.state import checkpoints_in, step_of
from ..version import __version__
from .curves import Line, chart, figure
from .effect import effect
from .held_out import held_out
from .markup import Html, table, tag
from .pictures import ORIGINAL, Table, data_uri, label, small, spread
from .story import Story
from .style import STYLE
from .words import changed_settings, names_only

POINTS = 1000  # of a curve; a screen has no more
ROWS = 20  # of the table of numbers
PROMPT = 90  # characters at the head of a column
NUMBERS = {"loss": "loss", "mean_loss": "smoothed", "lr": "learning rate", "grad_norm": "gradient norm"}
NOTHING_FROM_ELSEWHERE = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(run: Story, shown: Table) -> str:
    """Return the whole page. Of paths only the last part stands in it, so that it can be handed on. shown: the samples."""
    parts = [
        header(run),
        section("Curves", curves(run)),
        section("Held-out loss", held_out(run)),
        section("Samples", samples(shown)),
        section("Warnings", warnings(run)),
        section("Data", data(run)),
        section("Settings", settings(run)),
        section("Adapter", adapter(run)),
        section("To go on", go_on(run)),
    ]
    return document(f"{run.name}: Anima training", parts)


def document(title: str, parts: Iterable[Html], style: str = "") -> str:
    """Return a page of sections, those that are empty left out. style: beside that of all pages."""
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=NOTHING_FROM_ELSEWHERE),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(STYLE + style)),
    ]
    footer = tag("footer", f"anima_core {__version__}, {day(time.time())}. Of files and folders only the names are told.")
    body = tag("body", tag("main", [*(part for part in parts if part), footer]))
    return "<!DOCTYPE html>\n" + tag("html", [tag("head", head), body], lang="en")


def section(title: str, parts: Iterable[str]) -> Html:
    """Return a section with its heading; empty where there is nothing to say."""
    found = [part for part in parts if part]
    return tag("section", [tag("h2", title), *found]) if found else Html()


def header(run: Story) -> Html:
    """Return the name, how the run ended, and the figures that one looks for first."""
    told = [tag("div", [tag("dt", name), tag("dd", value)]) for name, value in figures(run).items() if value]
    when = f"{day(run.times[0])} to {day(run.times[1])}" if run.times[0] else ""
    line = tag("p", [tag("span", run.state, class_=f"state {run.state.split()[0]}"), when])
    said = [tag("p", names_only(run.sentence, run.config))] if run.sentence else []
    return tag("header", [tag("h1", run.name), line, *said, tag("dl", told)])


def figures(run: Story) -> dict[str, str]:
    """Return the first figures by their names; empty texts for those that are not known."""
    steps, last = len(run), columns_of(run, [len(run) - 1] if len(run) else [])
    seconds = [value for value in run.columns["seconds"] if value > 0]
    found = {
        "steps": f"{int(last['step'][0] or 0):,} of {run.total:,}" if steps else "none yet",
        "loss, smoothed": figure(last["mean_loss"][0]) if steps else "",
    }
    if (config := run.config) is not None:
        found |= {
            "learning rate": figure(config.optimizer.learning_rate),
            "network": f"{config.network.type}, rank {config.network.rank}",
            "batch size": " and ".join(sorted({str(dataset.batch_size) for dataset in config.datasets})),
        }
    return found | {
        "a step": f"{figure(statistics.median(seconds))} s" if seconds else "",
        "all steps": clock(sum(seconds)) if seconds else "",
        "memory, peak": f"{run.peak_gb:.1f} GB" if run.peak_gb else "",
        "device": run.device,
    }


def curves(run: Story) -> Iterator[str]:
    """Yield the loss, the learning rate and the gradient norm, and, folded, their numbers at some steps."""
    loss = [line(run, "loss", "raw", "each step"), line(run, "mean_loss", "main", "smoothed")]
    yield chart("Loss", loss, may_be_log=True)
    below = [chart("Learning rate", [line(run, "lr", "main")])]
    below += [chart("Gradient norm", [line(run, "grad_norm", "raw")], may_be_log=True)]
    yield tag("div", below, class_="pair") if any(below) else Html()
    rows = spread(range(len(run)), ROWS)
    if rows:
        found = columns_of(run, rows)
        cells = zip([f"{step:,}" for step in found["step"]], *(map(figure, found[name]) for name in NUMBERS))
        yield folded(f"Numbers of {len(rows)} of {len(run):,} steps", table(["step", *NUMBERS.values()], cells, "numbers"))


def line(run: Story, column: str, kind: str, name: str = "") -> Line:
    """Return a column as a curve of not too many points, its peaks among them."""
    found = columns_of(run, shown_rows(run.columns[column], POINTS))
    return Line(name, kind, [(int(step or 0), value) for step, value in zip(found["step"], found[column])])


def samples(shown: Table) -> Iterator[str]:
    """Yield the samples as a table, and how many are not in it."""
    if not shown.cells:
        return
    rows = [[label(step), *(cell(shown, step, prompt) for prompt in shown.prompts)] for step in shown.steps]
    yield table(
        ["step", *(heading(prompt) for _, prompt in shown.prompts)], rows, "samples", f"--columns: {len(shown.prompts)}"
    )
    if shown.left_out:
        yield tag("p", f"{shown.left_out:,} more are in the run's folder samples.", class_="note")


def heading(prompt: str) -> Html:
    """Return the beginning of a prompt; all of it stands among the settings."""
    return tag("span", prompt if len(prompt) <= PROMPT else f"{prompt[:PROMPT]}…", title=prompt)


def cell(shown: Table, step: int, prompt: tuple[int, str]) -> Html:
    name = label(step) if step == ORIGINAL else f"step {step}"
    return shown_picture(shown.cells.get((step, prompt)), f"{name}: {prompt[1]}")


def shown_picture(path: Path | None, alt: str) -> Html:
    """Return a picture file as it stands in a table; a dash for none."""
    picture = small(path) if path else None
    if picture is None:
        return tag("span", "damaged" if path else "–", class_="note")
    return tag("img", src=data_uri(picture), alt=alt, width=picture.width, height=picture.height)


def warnings(run: Story) -> Iterator[str]:
    """Yield each warning, with how often it came."""
    told = [(names_only(text, run.config), times) for text, times in run.told.items()]
    if told:
        yield tag("ul", [tag("li", text if n == 1 else f"{text} ({n:,} times)") for text, n in told], class_="warnings")


def data(run: Story) -> Iterator[str]:
    """Yield what the run was told about its pictures, and each folder with how it is read."""
    if run.data:
        yield tag("ul", [tag("li", names_only(text, run.config)) for text in run.data])
    if run.config is not None:
        rows = [
            [file_name(s.image_dir), str(s.num_repeats), ", ".join(f"{w}x{h}" for w, h in d.resolutions), str(d.batch_size)]
            for d in run.config.datasets
            for s in d.subsets
        ]
        yield table(["folder", "repeats", "resolution", "batch size"], rows)


def settings(run: Story) -> Iterator[str]:
    """Yield the settings that are not at their default, then, folded, all of them as in config.toml."""
    if run.config is None:
        yield tag("p", "config.toml of the run folder cannot be read.")
        return
    rows = [[breakable(place), *rest] for place, *rest in changed_settings(run.config)]
    yield table(["not at its default", "value", "default"], rows, "settings")
    yield folded("All settings, as in config.toml", tag("pre", dump_toml(to_dict(run.config, path=file_name))))


def breakable(place: str) -> list[str]:
    """Return the place of a setting with the points where a line may end."""
    return [part for word in re.split(r"(?<=[._])", place) for part in (word, tag("wbr"))]


def adapter(run: Story) -> Iterator[str]:
    """Yield the adapter file, what it changes, and, folded, what the run said on its way."""
    if run.adapter:
        use = "ComfyUI reads it from models/loras: with Load LoRA, or Load Anima Adapter."
        yield tag("p", [tag("code", file_name(run.adapter)), f" {use}"])
        yield from effect(run)
    else:
        yield tag("p", "None is saved yet.")
    if run.notes:
        told = tag("ul", [tag("li", names_only(text, run.config)) for text in run.notes])
        yield folded("What the run said on its way", told)


def go_on(run: Story) -> Iterator[str]:
    """Yield how the run continues, from the newest checkpoint that is there."""
    newest = next(iter(checkpoints_in(run.folder)), None)
    if newest is None:
        yield tag("p", "No checkpoint is in the run folder: the same settings train it from the first step.")
        return
    more = run.state == "finished"
    yield tag("p", f"From the checkpoint of step {step_of(newest):,}" + (", for more steps:" if more else ":"))
    graph = ["In ComfyUI: ", tag("b", "Continue Anima Run"), f", run {run.name}", ", with more steps" if more else ""]
    command = f"python -m anima_core train --config_file {run.folder.name}/config.toml --resume latest"
    words = ["On the command line: ", tag("code", command), ", with a higher max_train_steps in that file" if more else ""]
    yield tag("ul", [tag("li", graph), tag("li", words)])


def folded(title: str, content: Html) -> Html:
    return tag("details", [tag("summary", title), content])


def day(seconds: float) -> str:
    """Write a time as a date, in the time zone of this machine."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")

"""The comparison of a sweep's points as one HTML page, of the report's kind: no script, nothing from elsewhere."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from PIL import Image

from ..adapters.metadata import file_name
from ..report.curves import Line, chart
from ..report.markup import Html, table, tag
from ..report.page import POINTS, breakable, document, folded, heading, section, shown_picture
from ..report.pictures import MOST_PROMPTS, Table, contact_sheet
from ..report.words import changed_settings, names_only
from ..run_history import columns_of, shown_rows
from ..settings import walk
from .outcome import Choice, Outcome, head, rows
from .plan import Point, Sweep

COLOURS, DASHES = 8, 3  # together tell 24 curves apart
BESIDE = 260  # px, of a point's label beside its samples
LIGHT = ["#1f5fbf", "#c2410c", "#1a7037", "#8e24aa", "#a16c00", "#0b7285", "#c2185b", "#5f6672"]
DARK = ["#7db0ff", "#ffab70", "#6fcf8a", "#d9a0f0", "#e3c04f", "#5fd0df", "#ff8fb8", "#aab2bd"]


def style() -> str:
    """Return the look of the curves: a colour for each point, then the same dashed, then dotted."""
    colours = [f"--c{n}: {colour};" for n, colour in enumerate(LIGHT)], [f"--c{n}: {colour};" for n, colour in enumerate(DARK)]
    rules = [
        f".key.c{n}::before {{ background: var(--c{n}); }} path.c{n} {{ stroke: var(--c{n}); stroke-width: 2px; }}"
        for n in range(COLOURS)
    ]
    light, dark = map(" ".join, colours)
    return "\n".join(
        [
            f":root {{ {light} }}",
            f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}",
            f"@media print {{ :root {{ {light} }} }}",
            *rules,
            "path.d1 { stroke-dasharray: 8 5; } path.d2 { stroke-dasharray: 1.5 5; }",
            ".points th:first-child { white-space: nowrap; text-align: left; }",
            ".winner { font-weight: 600; } .samples th:first-child { width: 150px; text-align: left; }",
            ".samples { min-width: calc(150px + 104px * var(--columns)); max-width: calc(150px + 228px * var(--columns)); }",
        ]
    )


def kind_of(number: int) -> str:
    """Return the class of a point's curve."""
    return f"c{number % COLOURS} d{number // COLOURS % DASHES}"


def page(sweep: Sweep, outcomes: Sequence[Outcome], choice: Choice) -> str:
    """Return the whole page. Of paths only the last part stands in it, so that it can be handed on."""
    parts = [
        header(sweep, outcomes, choice),
        section("Points", points(sweep, outcomes, choice)),
        section("Curves", curves(outcomes)),
        section("Last samples", samples(outcomes)),
        section("What failed", failed(sweep, outcomes)),
        section("What all share", shared(sweep)),
    ]
    return document(f"{sweep.name}: Anima sweep", parts, style())


def header(sweep: Sweep, outcomes: Sequence[Outcome], choice: Choice) -> Html:
    """Return the name, how many points came how far, and the winner with what is to be said of it."""
    states = Counter(outcome.state for outcome in outcomes)
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    parts = [tag("h1", sweep.name), tag("p", f"A sweep of {len(outcomes)} points: {told}.")]
    if choice.winner is not None:
        winner = choice.winner
        file = tag("code", file_name(winner.best_adapter))
        parts.append(tag("p", [tag("b", f"Winner: {winner.point.label}", class_="state finished"), file, f" {choice.why}."]))
    else:
        parts.append(tag("p", f"No winner: {choice.why}."))
    if choice.warning:
        parts.append(tag("p", [tag("b", "Careful: ", class_="state"), f"{choice.warning}."]))
    return tag("header", parts)


def points(sweep: Sweep, outcomes: Sequence[Outcome], choice: Choice) -> Iterator[Html]:
    """Yield what the points set and what came of it, and, folded, their files."""
    cells = [
        [mark(number, outcome, choice.winner), *row]
        for number, (outcome, row) in enumerate(zip(outcomes, rows(sweep, outcomes)))
    ]
    yield table(["point", *head(sweep, outcomes)], cells, "numbers points")
    files = [[outcome.point.label, file_name(outcome.best_adapter)] for outcome in outcomes if outcome.adapter]
    if files:
        yield folded("Adapter files", table(["point", "file"], files))


def mark(number: int, outcome: Outcome, winner: Outcome | None) -> list[Html]:
    """Return a point's number in the colour of its curve."""
    found = tag("span", str(number + 1), class_=f"key {kind_of(number)}", title=outcome.point.label)
    return [found, *[tag("span", " winner", class_="winner")] * (outcome is winner)]


def curves(outcomes: Sequence[Outcome]) -> Iterator[Html]:
    """Yield all smoothed losses in one drawing, and the held-out losses where there are some."""
    yield chart("Loss, smoothed", lines(outcomes, smoothed), may_be_log=True)
    yield chart("Held-out loss", lines(outcomes, held_out), from_zero=False)


Curve = Callable[[Outcome], list[tuple[int, float | None]]]


def lines(outcomes: Sequence[Outcome], curve: Curve) -> list[Line]:
    found = [(number, outcome.point, curve(outcome)) for number, outcome in enumerate(outcomes)]
    return [Line(called(number, point), kind_of(number), drawn) for number, point, drawn in found if drawn]


def called(number: int, point: Point) -> str:
    return f"{number + 1}: {point.label}"


def smoothed(outcome: Outcome) -> list[tuple[int, float | None]]:
    if outcome.story is None or not len(outcome.story):
        return []
    found = columns_of(outcome.story, shown_rows(outcome.story.columns["mean_loss"], POINTS))
    return [(int(step or 0), value) for step, value in zip(found["step"], found["mean_loss"])]


def held_out(outcome: Outcome) -> list[tuple[int, float | None]]:
    return [(held.step, held.saved_loss) for held in outcome.story.held_out] if outcome.story else []


def last_samples(outcomes: Sequence[Outcome]) -> Table:
    """Arrange the last sample of every prompt: a row for each point, by its number from 0, a column for each prompt."""
    cells = {
        (number, (sample.index, sample.prompt)): outcome.story.folder / "samples" / sample.file
        for number, outcome in enumerate(outcomes)
        if outcome.story is not None
        for sample in outcome.story.samples_there()  # by step: the last one stays
    }
    prompts = sorted({prompt for _, prompt in cells})[:MOST_PROMPTS]
    shown = {key: path for key, path in cells.items() if key[1] in prompts}
    return Table(sorted({number for number, _ in cells}), prompts, shown, len(cells) - len(shown))


def samples(outcomes: Sequence[Outcome]) -> Iterator[Html]:
    """Yield a table of pictures: what each point draws at its end, from the same noise."""
    shown = last_samples(outcomes)
    if not shown.cells:
        return
    columns = f"--columns: {len(shown.prompts)}"
    cells = [
        [label, *(shown_picture(shown.cells.get((number, p)), f"{label}: {p[1]}") for p in shown.prompts)]
        for number in shown.steps
        for label in [called(number, outcomes[number].point)]
    ]
    yield table(["point", *(heading(prompt) for _, prompt in shown.prompts)], cells, "samples", columns)
    if shown.left_out:
        yield tag("p", f"{shown.left_out:,} more are in the runs' folders samples.", class_="note")


def sample_sheet(outcomes: Sequence[Outcome]) -> Image.Image | None:
    """Draw the same as one picture; None without samples."""
    return contact_sheet(last_samples(outcomes), lambda number: called(number, outcomes[number].point), BESIDE)


def failed(sweep: Sweep, outcomes: Sequence[Outcome]) -> Iterator[Html]:
    """Yield every point that was refused or has failed, with its error."""
    told = [(called(number, outcome.point), outcome) for number, outcome in enumerate(outcomes) if outcome.error]
    if told:
        listed = [f"{name}: {outcome.state}: {names_only(outcome.error, sweep.base)}" for name, outcome in told]
        yield tag("ul", [tag("li", text) for text in listed], class_="warnings")


def shared(sweep: Sweep) -> Iterator[Html]:
    """Yield the settings that no point varies and that are not at their default."""
    own = {found.place for found in walk(sweep.base) if found.name in sweep.varied}
    told = [[breakable(place), *rest] for place, *rest in changed_settings(sweep.base) if place not in own]
    yield table(["not at its default", "value", "default"], told, "settings")

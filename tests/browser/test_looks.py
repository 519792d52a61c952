"""How the pages look, as far as it can be measured: axe-core's rules, contrast among them, nothing cut off or covered."""

import re

import pytest
from playwright.sync_api import Page, expect

from anima_core.demo.pictures import write_pictures

from .browser import Pages, load, look_at, wait_for_steps
from .graphs import trainer
from .looks import CUT_OFF, OVERLAPS, WIDGETS_BELOW, broken_rules, chart_colours_are_fresh
from .script import ScriptedRun, past_run
from .test_folders import chooser
from .test_runs_tab import TAB, open_tab

PALETTES = ("dark", "light")
PANEL, DIALOG = ".anima-panel", "dialog.anima-dialog"
ENGLISH = re.compile(r"\b(step|loss|smoothed|learning|memory|Samples|Stop|Save|Cancel|Warnings|Filter|Finished|Pictures|New)\b")
IS_DARK = "(wanted) => document.documentElement.classList.contains('dark-theme') === wanted"


def assert_it_looks_right(page: Page, selector: str) -> None:
    """In both palettes, which change while the page is open."""
    for palette in PALETTES:
        page.evaluate("(name) => window.app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.wait_for_function(IS_DARK, arg=palette == "dark")
        assert broken_rules(page, selector) == [], palette
        assert page.evaluate(CUT_OFF, selector) == []


@pytest.fixture(params=[(False, "en"), (True, "zh")], ids=["classic-en", "vue-zh"])
def seen(request, pages: Pages, stage):
    """A training that runs, one that has ended, and a folder of pictures; the page, whether it is Vue's, its language."""
    vue, locale = request.param
    write_pictures(stage.base / "input" / "ink drawings", 5)
    past_run(stage, "ink_v1")
    past_run(stage, "ink_v2", rank=32)
    pages.set(vue=vue, locale=locale)
    page = pages.open()
    load(page, trainer())
    look_at(page, "1", 0.7)
    with ScriptedRun(stage, "my_style").training() as run:
        run.steps(40)
        run.samples()
        run.held_out()
        run.events.emit("warning", text="3 of 40 pictures have no caption")
        wait_for_steps(page, 40)
        yield page, vue, locale
        run.finish()


def test_the_panel(seen):
    page, vue, locale = seen
    page.locator(f"{PANEL} .anima-levels summary").click()
    if locale == "zh":
        assert ENGLISH.findall(page.locator(PANEL).inner_text()) == []
    assert_it_looks_right(page, PANEL)
    assert chart_colours_are_fresh(page, PANEL)
    assert page.evaluate(OVERLAPS, PANEL) == []
    if not vue:
        box = page.evaluate(WIDGETS_BELOW, 1)
        assert max(box["above"]) <= box["top"] + 1 and box["end"] <= box["height"] + 1


def test_the_runs_tab(seen):
    page, _, locale = seen
    open_tab(page)
    expect(page.locator(f"{TAB} li")).to_have_count(3)
    assert_it_looks_right(page, TAB)
    if locale == "zh":
        assert ENGLISH.findall(page.locator(TAB).inner_text()) == []
    page.locator(f"{TAB} li").filter(has_text="ink_v1").get_by_role("button").click()
    wait_for_steps(page, 60, TAB)
    assert_it_looks_right(page, TAB)
    page.locator(f"{TAB} button").first.click()
    for name in ("ink_v1", "ink_v2"):
        page.locator(f"{TAB} li").filter(has_text=name).get_by_role("checkbox").check()
    page.locator(".anima-runs-bar button").first.click()
    wait_for_steps(page, 60, TAB)
    assert_it_looks_right(page, TAB)
    assert chart_colours_are_fresh(page, TAB)


def test_the_folder_chooser(pages: Pages, stage):
    from .graphs import graph, node

    write_pictures(stage.base / "input" / "ink drawings", 5)
    pages.set(locale="zh")
    page = pages.open()
    load(page, graph(node(1, "AnimaDatasetFolder")))
    page.evaluate("window.app.graph.nodes[0].widgets.find(({ name }) => name === 'choose_folder').callback()")
    expect(chooser(page).locator("li")).to_have_count(1)
    assert_it_looks_right(page, DIALOG)
    assert ENGLISH.findall(chooser(page).inner_text()) == []

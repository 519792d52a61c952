"""Pictures of the pages to look at, in both renderers, languages and palettes.

`python -m tests.browser.screenshots <folder> [scene …]`: the first scene shows a training in the template that most begin with.
"""

import itertools
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from playwright.sync_api import Page, expect

from anima_core.demo.pictures import write_pictures

from .browser import Pages, chromium, load, look_at, wait_for_steps
from .script import ScriptedRun, past_run
from .stage import ROOT, Stage

SIZE = (1440, 960)
TEMPLATE = next((ROOT / "example_workflows").glob("Style*.json"))
SCENE = json.loads(TEMPLATE.read_text(encoding="utf-8"))
NODES = {node["type"]: node["id"] for node in SCENE["nodes"]}
IMAGES_ARE_THERE = """() => [...document.images]
  .filter((image) => image.checkVisibility() && image.getBoundingClientRect().top < innerHeight)
  .every((image) => image.complete && image.naturalWidth)"""


def stage_set(stage: Stage) -> None:
    write_pictures(stage.base / "input" / "ink drawings", 24)
    write_pictures(stage.base / "input" / "portraits", 9, seed=3)
    write_pictures(stage.base / "input" / "mixed" / "cats", 2, seed=5)
    past_run(stage, "ink_v1", steps=120, workflow=SCENE)
    past_run(stage, "ink_v2", steps=120, rank=32, alpha=16.0, workflow=SCENE, held_out=True)
    past_run(stage, "portrait", steps=60, total=180, outcome="cancelled")


def panel(page: Page) -> None:
    look_at(page, str(NODES["AnimaTrain"]), 0.9)
    page.evaluate("window.app.canvas.ds.offset[0] += 720")
    wait_for_steps(page, 140)


def noise_levels(page: Page) -> None:
    panel(page)
    page.evaluate("window.app.canvas.ds.offset[1] -= 500")
    page.evaluate("document.querySelector('.anima-levels').open = true")
    page.wait_for_function("document.querySelector('.anima-levels .anima-plot').chart")


def runs_tab(page: Page) -> None:
    page.evaluate("window.app.extensionManager.command.execute('AnimaTrainer.runs')")
    expect(page.locator(".anima-runs li")).to_have_count(4)


def compared(page: Page) -> None:
    runs_tab(page)
    for name in ("ink_v1", "ink_v2"):
        page.locator(".anima-runs li").filter(has_text=name).get_by_role("checkbox").check()
    page.locator(".anima-runs-bar button").first.click()
    wait_for_steps(page, 120, ".anima-runs")


def one_run(page: Page) -> None:
    runs_tab(page)
    page.locator(".anima-runs li").filter(has_text="ink_v2").get_by_role("button").click()
    wait_for_steps(page, 120, ".anima-runs")


def folders(page: Page) -> None:
    press = "(id) => window.app.graph.getNodeById(id).widgets.find(({ name }) => name === 'choose_folder').callback()"
    page.evaluate(press, NODES["AnimaDatasetFolder"])
    expect(page.locator("dialog.anima-dialog li")).to_have_count(3)


def templates(page: Page) -> None:
    page.evaluate("window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    page.get_by_role("dialog").get_by_text("ComfyUI-Anima-Tr").first.click()
    page.wait_for_function("document.querySelectorAll('[role=dialog] img').length >= 5")


SCENES: list[Callable[[Page], None]] = [panel, noise_levels, runs_tab, one_run, compared, folders, templates]


def close(page: Page) -> None:
    """Take away what a scene has opened."""
    page.evaluate("document.querySelectorAll('dialog[open]').forEach((dialog) => dialog.close())")
    page.keyboard.press("Escape")
    if page.locator(".anima-runs").count():
        page.evaluate("window.app.extensionManager.command.execute('AnimaTrainer.runs')")


def take(stage: Stage, pages: Pages, folder: Path, wanted: list[str]) -> None:
    scenes = [scene for scene in SCENES if not wanted or scene.__name__ in wanted]
    for vue, locale in itertools.product((False, True), ("en", "zh")):
        pages.set(locale=locale, vue=vue)
        page = pages.open(SIZE)
        load(page, SCENE)
        for scene, palette in itertools.product(scenes, ("dark", "light")):
            page.evaluate("(name) => window.app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
            scene(page)
            page.wait_for_function(IMAGES_ARE_THERE)
            name = f"{scene.__name__}-{'vue' if vue else 'classic'}-{locale}-{palette}.png"
            page.screenshot(path=folder / name)
            close(page)
        page.close()


def main(folder: Path, wanted: list[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as base, Stage(Path(base)).serving() as stage, chromium() as browser:
        stage_set(stage)
        with ScriptedRun(stage, "ink_v3", total=400, node=str(NODES["AnimaTrain"]), workflow=SCENE).training() as run:
            for _ in range(7):
                run.steps(20)
                run.samples()
                run.held_out()
            run.checkpoint()
            take(stage, Pages(browser, stage), folder, wanted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

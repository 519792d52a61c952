"""The whole story in a real ComfyUI: from nothing to the first adapter in five clicks, with files of any name, watched from everywhere.

Also what ComfyUI tells pages of the nodes, which the other tests of the pages have from a record.
"""

import secrets
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Locator, Page, expect

from anima_core.demo.pictures import write_pictures

from ..comfyui.graphs import install_tiny_models
from ..comfyui.server import ComfyUI
from .browser import Pages, drawn, look_at, wait_for_steps
from .record import recorded, wanted, without_files
from .script import columns_of
from .test_runs_tab import TAB, button, open_tab, row

TEMPLATE = "Style from 20 pictures"
ANY_GRAPH = "() => { try { return window.app.extensionManager.getSidebarTabs().some(({ id }) => id === 'anima-runs') } catch { return false } }"
# What makes a training of seconds on a CPU out of one for a GPU; no click of a user.
SMALL = {
    "AnimaDatasetFolder": {"resolution": "64", "bucket_step": 16, "min_side": 64},
    "AnimaSamplePrompts": {"width": 64, "height": 64, "steps": 1, "every_n_steps": 4},
    "AnimaTrain": {"steps": 100_000},
}
SET = """(values) => {
  for (const node of window.app.graph.nodes)
    for (const [name, value] of Object.entries(values[node.type] ?? {})) node.widgets.find((widget) => widget.name === name).value = value
}"""


class Mouse:
    """Clicks as a user does, and counts them."""

    def __init__(self, page: Page) -> None:
        self.page, self.clicks = page, 0

    def click(self, what: Locator) -> None:
        what.scroll_into_view_if_needed()
        what.hover()  # waits until nothing lies over it
        box = what.bounding_box()
        assert box is not None
        self.at(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def at(self, x: float, y: float) -> None:
        self.page.mouse.click(x, y)
        self.clicks += 1


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A ComfyUI's folder with model files and pictures, none of them named as anybody would expect."""
    base = tmp_path_factory.mktemp("story")
    install_tiny_models(base)
    models = base / "models"
    for folder in ("diffusion_models", "vae"):
        shutil.move(models / folder / "tiny.safetensors", models / folder / f"{secrets.token_hex(4)}.safetensors")
    for name in ("tiny_qwen", "tiny_t5"):
        shutil.move(models / "text_encoders" / name, models / "text_encoders" / secrets.token_hex(4))
    shutil.rmtree(base / "input" / "pics")
    write_pictures(base / "input" / secrets.token_hex(4), 4)
    return base


@pytest.fixture(scope="module")
def server(comfyui, base):
    with ComfyUI(*comfyui, base) as running:
        yield running


@pytest.fixture
def story(chromium, server):
    opened = Pages(chromium, server)
    yield opened
    opened.close()


def test_the_record_is_what_comfyui_says(server):
    """Else: python -m tests.browser.record."""
    now, then = wanted(server.get("/object_info")), recorded()
    ours = {name for name in now if name.startswith("Anima")}
    assert ours == {name for name in then if name.startswith("Anima")}
    for name in ours:
        assert without_files(now[name]) == without_files(then[name]), name


def test_the_first_adapter_in_five_clicks_and_watched_from_everywhere(story: Pages, server, base):
    page = story.open(ready=ANY_GRAPH)
    mouse = Mouse(page)  # a first start opens the templates by itself
    mouse.click(page.get_by_role("dialog").get_by_text("ComfyUI-Anima-Tr").first)
    mouse.click(page.get_by_role("dialog").get_by_text(TEMPLATE).first)
    page.wait_for_function("window.app.graph.nodes.some(({ type }) => type === 'AnimaTrain')")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.evaluate(SET, SMALL)
    choose_folder(page, mouse)
    mouse.click(page.locator("dialog.anima-dialog li button").first)
    mouse.click(page.get_by_test_id("queue-button"))
    assert mouse.clicks == 5

    node = page.evaluate("String(window.app.graph.nodes.find(({ type }) => type === 'AnimaTrain').id)")
    look_at(page, node, 0.6)
    wait_for_steps(page, 5)
    (log,) = (base / "output" / "anima_trainer").glob("*-run/log.jsonl")
    page.reload()
    page.wait_for_function(ANY_GRAPH)
    wait_for_steps(page, 8)
    assert_it_is_the_logs_beginning(drawn(page), log)

    second = story.open(ready=ANY_GRAPH)
    second.keyboard.press("Escape")
    open_tab(second)
    row(second, log.parent.name.removesuffix("-run")).get_by_role("button").click()
    wait_for_steps(second, 12, TAB)
    assert_it_is_the_logs_beginning(drawn(second, 0, TAB), log)
    expect(second.locator(f"{TAB} .anima-runs-samples img").first).to_be_visible()

    look_at(page, node, 0.6)
    page.locator(".anima-panel").get_by_role("button", name="Stop and keep").click()
    panel = page.locator(".anima-panel .anima-sentence")
    expect(panel).to_contain_text("my_style.safetensors")
    steps = columns_of(log)
    wait_for_steps(page, steps["step"][-1])
    assert drawn(page) == [steps["step"], steps["loss"], steps["mean_loss"]]
    expect(page.get_by_text("my_style is stopped and kept")).to_be_visible()

    expect(button(second, "Use adapter")).to_be_visible()
    assert drawn(second, 0, TAB) == [steps["step"], steps["loss"], steps["mean_loss"]]
    button(second, "Use adapter").click()
    second.wait_for_function("window.app.graph.nodes.some(({ type }) => type === 'AnimaLoadAdapter')")
    widget = second.evaluate(
        "(({ value, options }) => ({ value, values: [...options.values] }))(window.app.graph.nodes.find(({ type }) => type === 'AnimaLoadAdapter').widgets[0])"
    )
    assert widget["value"] == "my_style.safetensors" and widget["value"] in widget["values"]
    assert (base / "models" / "loras" / widget["value"]).is_file()
    assert story.problems == []


def choose_folder(page: Page, mouse: Mouse) -> None:
    """Click on the dataset node's button, which the classic renderer paints on the canvas."""
    where = """() => {
      const { canvas, graph } = window.app, node = graph.nodes.find(({ type }) => type === "AnimaDatasetFolder")
      const widget = node.widgets.find(({ name }) => name === "choose_folder")
      return widget.last_y && canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10])
    }"""
    page.wait_for_function(where)
    x, y = page.evaluate(where)
    box = page.locator("#graph-canvas").bounding_box()
    assert box is not None
    mouse.at(box["x"] + x, box["y"] + y)
    expect(page.locator("dialog.anima-dialog li")).to_have_count(1)


def assert_it_is_the_logs_beginning(columns: list[list], log: Path) -> None:
    steps = columns_of(log)
    count = len(columns[0])
    assert columns == [steps[name][:count] for name in ("step", "loss", "mean_loss")]

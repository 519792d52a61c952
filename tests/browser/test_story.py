"""The whole story in a real ComfyUI: from nothing to the first adapter in five clicks, with files of any name.

Also what ComfyUI tells pages of the nodes, which the other tests of the pages have from a record.
"""

import secrets
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from anima_core.demo.pictures import write_pictures

from ..comfyui.graphs import install_tiny_models
from ..comfyui.server import ComfyUI
from .browser import HAS_STARTED, Mouse, Pages, click_on_widget, drawn, look_at, wait_for_steps
from .record import recorded, wanted, without_files
from .script import columns_of
from .test_runs_tab import TAB, button, open_tab, row

TEMPLATE = "Style from 20 pictures"
# What makes a training of seconds on a CPU out of one for a GPU; no click of a user.
SMALL = {
    "AnimaDatasetFolder": {"resolution": "64", "bucket_step": 16, "min_side": 64},
    "AnimaSamplePrompts": {"width": 64, "height": 64, "steps": 1, "every_n_steps": 4},
    "AnimaTrain": {"steps": 100_000},
}
SET = """(kinds) => {
  for (const { type, widgets } of window.app.graph.nodes)
    for (const [name, value] of Object.entries(kinds[type] ?? {})) widgets.find((one) => one.name === name).value = value
}"""
ADAPTER = """(() => {
  const [{ value, options }] = window.app.graph.nodes.find(({ type }) => type === "AnimaLoadAdapter").widgets
  return { value, values: [...options.values] }
})()"""


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
    """Else: make docs."""
    now, then = wanted(server.get("/object_info")), recorded()
    ours = {name for name in now if name.startswith("Anima")}
    assert ours == {name for name in then if name.startswith("Anima")}
    for name in ours:
        assert without_files(now[name]) == without_files(then[name]), name


def test_the_first_adapter_in_five_clicks_and_watched_from_everywhere(story: Pages, base):
    page = story.open(ready=HAS_STARTED)
    node = train_in_five_clicks(page)
    look_at(page, node, 0.6)
    wait_for_steps(page, 5)
    (log,) = (base / "output" / "anima_trainer").glob("*-run/log.jsonl")
    page.reload()
    page.wait_for_function(HAS_STARTED)
    wait_for_steps(page, 8)
    assert_it_is_the_logs_beginning(drawn(page), log)

    second = story.open(ready=HAS_STARTED)
    open_tab(second)
    row(second, "my_style").get_by_role("button").click()
    wait_for_steps(second, 12, TAB)
    assert_it_is_the_logs_beginning(drawn(second, 0, TAB), log)
    expect(second.locator(f"{TAB} .anima-runs-samples img").first).to_be_visible()

    look_at(page, node, 0.6)
    page.locator(".anima-panel").get_by_role("button", name="Stop and keep").press(
        "Enter"
    )  # no step moves it from under a mouse
    expect(page.locator(".anima-panel .anima-sentence")).to_contain_text("my_style.safetensors")
    expect(page.get_by_text("my_style is stopped and kept")).to_be_visible()
    expect(button(second, "Use adapter")).to_be_visible()
    steps = columns_of(log)
    for window, within in ((page, ".anima-panel"), (second, TAB)):
        wait_for_steps(window, steps["step"][-1], within)
        assert drawn(window, 0, within) == [steps["step"], steps["loss"], steps["mean_loss"]]
    button(second, "Use adapter").click()
    second.wait_for_function("window.app.graph.nodes.some(({ type }) => type === 'AnimaLoadAdapter')")
    assert second.evaluate(ADAPTER) == {"value": "my_style.safetensors", "values": ["my_style.safetensors"]}
    assert (base / "models" / "loras" / "my_style.safetensors").is_file()
    assert story.problems == []


def train_in_five_clicks(page: Page) -> str:
    """Begin where a first start does, with the templates open; return the id of the node that trains."""
    mouse = Mouse(page)
    mouse.click(page.get_by_role("dialog").get_by_text("ComfyUI-Anima-Tr").first)
    mouse.click(page.get_by_role("dialog").get_by_text(TEMPLATE).first)
    page.wait_for_function("window.app.graph.nodes.some(({ type }) => type === 'AnimaTrain')")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.evaluate(SET, SMALL)
    click_on_widget(page, "AnimaDatasetFolder", "choose_folder", mouse)
    mouse.click(page.locator("dialog.anima-dialog li button").first)
    mouse.click(page.get_by_test_id("queue-button"))
    assert mouse.clicks == 5
    return page.evaluate("String(window.app.graph.nodes.find(({ type }) => type === 'AnimaTrain').id)")


def assert_it_is_the_logs_beginning(columns: list[list], log: Path) -> None:
    steps = columns_of(log)
    count = len(columns[0])
    assert columns == [steps[name][:count] for name in ("step", "loss", "mean_loss")]

"""The chooser of folders on the dataset node, in a real page: choosing one that is there, and making one from files."""

import pytest
from playwright.sync_api import Page, expect

from anima_core.demo.pictures import write_pictures

from .browser import Pages, click_on_widget, load, look_at
from .graphs import graph, node

FOLDER = "window.app.graph.nodes[0].widgets.find(({ name }) => name === 'folder').value"


@pytest.fixture(params=[False, True], ids=["classic", "vue"])
def page(request, pages: Pages, stage) -> Page:
    """A dataset node, and the chooser opened by its button."""
    write_pictures(stage.base / "input" / "ink drawings", 5)
    write_pictures(stage.base / "input" / "cats", 2)
    pages.set(vue=request.param)
    found = pages.open()
    load(found, graph(node(1, "AnimaDatasetFolder", size=(420, 700))))
    look_at(found, "1")
    if request.param:
        found.get_by_role("button", name="Choose or upload a folder").click()
    else:
        click_on_widget(found, "AnimaDatasetFolder", "choose_folder")
    expect(chooser(found).get_by_role("button", name="ink drawings")).to_be_visible()
    return found


def chooser(page: Page):
    return page.locator("dialog.anima-dialog")


def test_a_folder_is_chosen_by_its_pictures(page: Page):
    items = chooser(page).locator("li")
    expect(items).to_have_count(2)
    expect(items.filter(has_text="ink drawings")).to_contain_text("Pictures: 5, captions: 5")
    images = items.filter(has_text="ink drawings").locator("img")
    expect(images).to_have_count(4)
    page.wait_for_function("(images) => images.every(({ naturalWidth }) => naturalWidth > 0)", arg=images.element_handles())
    chooser(page).locator("input[type=search]").fill("ink")
    expect(items).to_have_count(1)
    items.get_by_role("button").click()
    expect(chooser(page)).to_have_count(0)
    assert page.evaluate(FOLDER) == "ink drawings"
    assert page.evaluate("window.app.graph.serialize().nodes[0].widgets_values[0]") == "ink drawings"


def test_a_folder_is_made_from_files_of_this_computer(page: Page, stage, tmp_path):
    write_pictures(tmp_path, 3)
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    files = sorted(tmp_path.iterdir())
    chooser(page).locator("input[type=file]").first.set_input_files([str(path) for path in files])
    expect(chooser(page)).to_contain_text("Pictures: 3, captions: 3")
    expect(chooser(page)).to_contain_text("notes.pdf (neither picture nor .txt)")
    name = chooser(page).get_by_label("Name of the folder in input")
    name.fill("../away")
    expect(chooser(page).get_by_role("button", name="Upload")).to_be_disabled()
    name.fill("from here")
    chooser(page).get_by_role("button", name="Upload").click()
    expect(chooser(page)).to_have_count(0)
    made = stage.base / "input" / "from here"
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        path.name: path.read_bytes() for path in files if path.suffix != ".pdf"
    }
    assert page.evaluate(FOLDER) == "from here"

"""The sidebar tab with the runs, in a real page: what is listed, compared, continued, opened, used and deleted."""

import pytest
from playwright.sync_api import Page, expect

from .browser import Pages, drawn, load, wait_for_steps
from .graphs import trainer
from .script import ScriptedRun, past_run

TAB = ".anima-runs"


def open_tab(page: Page) -> None:
    page.evaluate("window.app.extensionManager.command.execute('AnimaTrainer.runs')")
    expect(page.locator(TAB)).to_be_visible()


def button(page: Page, name: str):
    return page.locator(TAB).get_by_role("button", name=name, exact=True)


@pytest.fixture
def page(pages: Pages, stage) -> Page:
    """Three runs that have ended, and the tab."""
    found = pages.open()
    load(found, trainer())
    graph = found.evaluate("window.app.graph.serialize()")
    past_run(stage, "ink_v1", workflow=graph)
    past_run(stage, "ink_v2", rank=32, alpha=16.0, workflow=graph)
    past_run(stage, "portrait", steps=30, total=90, outcome="cancelled")
    open_tab(found)
    return found


def row(page: Page, name: str):
    return page.locator(f"{TAB} li").filter(has_text=name)


def test_runs_are_listed_filtered_and_compared(page: Page, stage):
    groups = page.locator(f"{TAB} section")
    expect(groups).to_have_count(2)
    expect(groups.nth(0)).to_contain_text("portrait")
    expect(groups.nth(1).locator("li")).to_have_count(2)
    expect(row(page, "portrait")).to_contain_text("30 / 90")
    page.locator(f"{TAB} input[type=search]").fill("rank 32")
    expect(page.locator(f"{TAB} li")).to_have_count(1)
    page.locator(f"{TAB} input[type=search]").fill("")
    for name in ("ink_v1", "ink_v2"):
        row(page, name).get_by_role("checkbox").check()
    button(page, "Compare 2 runs").click()
    wait_for_steps(page, 60, TAB)
    steps, *curves = drawn(page, 0, TAB)
    logs = [ScriptedRun(stage, name).logged() for name in ("ink_v1", "ink_v2")]
    assert steps == logs[0]["step"] and curves == [log["mean_loss"] for log in logs]
    differing = page.locator(f"{TAB} .anima-runs-settings tr").filter(has_text="rank")
    expect(differing).to_have_count(1)
    assert differing.locator("td").all_inner_texts() == ["16", "32"]
    expect(page.locator(TAB)).not_to_contain_text("max_train_steps")
    button(page, "‹ All runs").click()
    expect(page.locator(f"{TAB} li")).to_have_count(3)


def test_a_run_is_continued_opened_and_used(page: Page, stage):
    row(page, "ink_v2").get_by_role("button").click()
    wait_for_steps(page, 60, TAB)
    log = ScriptedRun(stage, "ink_v2").logged()
    assert drawn(page, 0, TAB) == [log["step"], log["loss"], log["mean_loss"]]
    assert page.locator(f"{TAB} .anima-runs-samples tbody tr th").all_inner_texts() == ["60", "40", "20"]
    expect(page.locator(f"{TAB} .anima-runs-samples img")).to_have_count(9)

    button(page, "Continue …").click()
    page.locator(f"{TAB} input[type=number]").fill("90")
    button(page, "Continue").click()
    stage.wait_for(lambda: stage.prompts)
    node = {"class_type": "AnimaContinueRun", "inputs": {"run": "ink_v2", "steps": 90}}
    assert list(stage.prompts[0]["prompt"].values()) == [node]

    button(page, "Use adapter").click()
    page.wait_for_function("window.app.graph.nodes.some(({ type }) => type === 'AnimaLoadAdapter')")
    used = "window.app.graph.nodes.find(({ type }) => type === 'AnimaLoadAdapter').widgets[0].value"
    assert page.evaluate(used) == "ink_v2.safetensors"

    button(page, "Open its graph").click()
    page.wait_for_function("window.app.graph.nodes.length === 1 && window.app.graph.nodes[0].type === 'AnimaTrain'")


def test_a_run_is_deleted_after_it_was_asked_for_twice(page: Page, stage):
    folder = ScriptedRun(stage, "portrait").folder
    row(page, "portrait").get_by_role("button").click()
    button(page, "Delete …").click()
    dialog = page.get_by_role("dialog").filter(has_text="Delete portrait?")
    dialog.get_by_role("button", name="Cancel").click()
    expect(dialog).to_have_count(0)
    assert folder.is_dir() and stage.asked == []
    button(page, "Delete …").click()
    dialog.get_by_role("button", name="Delete").click()
    stage.wait_for(lambda: not folder.exists())
    expect(page.locator(f"{TAB} li")).to_have_count(2)
    assert [(path.partition("/")[0], body) for path, body in stage.asked] == [("runs", {"name": "portrait"})]
    assert (folder.parent / "ink_v1-run").is_dir()


def test_a_training_comes_into_the_list_and_is_stopped_from_it(page: Page, stage):
    with ScriptedRun(stage, "fresh", total=50).training() as run:
        expect(row(page, "fresh")).to_be_visible()
        run.steps(5)
        expect(row(page, "fresh")).to_contain_text("5 / 50")
        row(page, "fresh").get_by_role("button").click()
        run.steps(5)
        wait_for_steps(page, 10, TAB)
        assert drawn(page, 0, TAB)[:2] == [run.logged()["step"], run.logged()["loss"]]
        button(page, "Stop and keep").click()
        stage.wait_for(lambda: stage.asked)
        run.steps(1)
        assert run.wished() == {"stop"}
        run.finish("kept")
    expect(page.locator(TAB)).to_contain_text("Stopped and kept: step 11 of 50")

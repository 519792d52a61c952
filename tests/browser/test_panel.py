"""The panel on a training node, in a real page: what it shows, after a reload and in a second window, and what its buttons post."""

import pytest
from playwright.sync_api import Page, expect

from .browser import Pages, drawn, load, look_at, reload, wait_for_steps
from .graphs import trainer, within_subgraph
from .script import ScriptedRun

RENDERERS = pytest.mark.parametrize("vue", [False, True], ids=["classic", "vue"])


def assert_it_draws_the_log(page: Page, run: ScriptedRun) -> None:
    log = run.logged()
    wait_for_steps(page, log["step"][-1])
    assert drawn(page, 0) == [log["step"], log["loss"], log["mean_loss"]]
    assert drawn(page, 1) == [log["step"], log["lr"]]
    assert drawn(page, 2) == [log["step"], log["grad_norm"]]


@RENDERERS
def test_a_training_is_seen_live_after_a_reload_and_in_a_second_window(pages: Pages, stage, vue):
    pages.set(vue=vue)
    page = pages.open()
    load(page, trainer())
    look_at(page, "1", 0.8)
    panel = page.locator(".anima-panel")
    expect(panel).to_contain_text("While it trains")
    with ScriptedRun(stage, "my_style", workflow=page.evaluate("window.app.graph.serialize()")).training() as run:
        run.steps(40)
        run.samples()
        assert_it_draws_the_log(page, run)
        expect(panel).to_contain_text("step 40 / 200")
        expect(panel.locator(".anima-sample img")).to_have_count(3)

        reload(page)
        look_at(page, "1", 0.8)
        assert_it_draws_the_log(page, run)
        expect(panel.locator(".anima-sample img")).to_have_count(3)

        second = pages.open(window=page)
        load(second, trainer())
        run.steps(7)
        for window in (page, second):
            assert_it_draws_the_log(window, run)
        run.finish()
    for window in (page, second):
        expect(window.locator(".anima-panel")).to_contain_text("done: models/loras/my_style.safetensors")
    assert_it_draws_the_log(page, run)

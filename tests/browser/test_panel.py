"""The panel on a training node, in a real page: what it shows, also after a reload and in a second window, and its buttons."""

import pytest
from playwright.sync_api import Page, expect

from .browser import Pages, drawn, load, look_at, reload, wait_for_steps
from .graphs import trainer, within_subgraph
from .script import ScriptedRun

BEYOND = "(({ scrollWidth, clientWidth }) => scrollWidth - clientWidth)(document.querySelector('.anima-strip'))"
HELD_OUT = ".anima-panel .anima-held-out"
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
        page.wait_for_function("[...document.querySelectorAll('.anima-sample img')].every(({ naturalWidth }) => naturalWidth)")
        assert page.evaluate(BEYOND) == 0

        reload(page)
        look_at(page, "1", 0.8)
        assert_it_draws_the_log(page, run)
        expect(panel.locator(".anima-sample img")).to_have_count(3)

        second = pages.open()
        load(second, trainer())
        run.steps(7)
        for window in (page, second):
            assert_it_draws_the_log(window, run)
        run.finish()
    for window in (page, second):
        expect(window.locator(".anima-panel")).to_contain_text("done: models/loras/my_style.safetensors")
    assert_it_draws_the_log(page, run)


@RENDERERS
def test_the_held_out_loss_is_drawn_with_its_best_and_by_noise_level(pages: Pages, stage, vue):
    pages.set(vue=vue)
    page = pages.open()
    load(page, trainer())
    look_at(page, "1", 0.8)
    panel = page.locator(".anima-panel")
    with ScriptedRun(stage, "my_style", total=80).training() as run:
        run.steps(10)
        assert_it_draws_the_log(page, run)
        expect(page.locator(HELD_OUT)).to_be_hidden()
        for _ in range(3):
            run.held_out()
            run.steps(10)
        told = run.told("held_out")
        best = [None, told[1]["loss"], None]
        assert [one["step"] for one in told] == [10, 20, 30] and told[-1]["best_step"] == 20
        for again in (False, True):
            if again:
                reload(page)
                look_at(page, "1", 0.8)
            expect(panel).to_contain_text("held-out loss rises since step 30, best at 20: use the adapter of step 20")
            columns = [[one[name] for one in told] for name in ("step", "loss", "ema", "base")]
            assert drawn(page, 0, HELD_OUT) == [*columns, best]
            panel.get_by_text("Held-out loss by noise level").click()
            page.wait_for_function("document.querySelector('.anima-levels .anima-plot').chart")
            assert drawn(page, 1, HELD_OUT)[1:] == [[one["levels"][level] for one in told] for level in range(9)]
        run.finish()


def test_what_is_asked_for_arrives_and_is_told(pages: Pages, stage):
    page = pages.open()
    load(page, trainer())
    look_at(page, "1", 0.6)  # all of the node, the buttons at its end too
    panel = page.locator(".anima-panel")
    with ScriptedRun(stage, "my_style", total=100).training() as run:
        run.steps(10)
        run.samples()
        for word, said in (("save", "Saves after this step"), ("preview", "Draws samples after this step")):
            panel.get_by_role("button", name=f"{word.title()} now").click()
            expect(panel).to_contain_text(said)
            stage.wait_for(lambda: len(stage.asked) == 1)
            assert stage.asked.pop() == (word, {"run": run.id})
            run.steps(1)
            assert run.wished() == {word}
        run.checkpoint()
        expect(panel).to_contain_text("Saved at step 12")
        for word, name in (("stop", "Stop and keep"), ("cancel", "Cancel")):
            panel.get_by_role("button", name=name).click()
            stage.wait_for(lambda: len(stage.asked) == 1)
            assert stage.asked.pop() == (word, {"run": run.id})
        run.steps(1)
        assert run.wished() == {"cancel"}
        run.finish("kept")
    expect(page.get_by_text("my_style is stopped and kept")).to_be_visible()
    expect(panel.get_by_role("button", name="Stop and keep")).to_have_count(0)


def test_a_failure_is_told_with_the_line_that_helps(pages: Pages, stage):
    page = pages.open()
    load(page, trainer())
    line = "network.rank=1000: must be below 500; use a lower one"
    with ScriptedRun(stage, "my_style").training() as run:
        run.steps(3)
        wait_for_steps(page, 3)
        run.listener.ends("failed", line)
    expect(page.locator(".anima-panel").get_by_text(line)).to_be_attached()
    expect(page.get_by_text("my_style has failed")).to_be_visible()
    expect(page.get_by_text(line).first).to_be_visible()


def test_what_fails_before_a_training_is_told_by_its_line_too(pages: Pages, stage):
    page = pages.open()
    load(page, trainer())
    line = "folder='': name a folder of captioned pictures"
    failed = {"prompt_id": "1", "node_id": "2", "executed": [], "exception_type": "anima_trainer.SettingError", "traceback": []}
    stage.send_sync("execution_error", failed | {"node_type": "AnimaDatasetFolder", "exception_message": f"{line}\n"})
    expect(page.get_by_text("Anima Dataset (folder) has failed")).to_be_visible()
    expect(page.get_by_text(line).first).to_be_visible()


def test_a_lost_connection_loses_no_step(pages: Pages, stage):
    page = pages.open()
    load(page, trainer())
    with ScriptedRun(stage, "my_style").training() as run:
        run.steps(5)
        assert_it_draws_the_log(page, run)
        stage.drop_connections()
        run.steps(20)
        run.samples()
        stage.wait_for(lambda: stage.sockets)
        assert_it_draws_the_log(page, run)
        expect(page.locator(".anima-sample img")).to_have_count(3)
        run.steps(2)
        assert_it_draws_the_log(page, run)
        stage.drop_connections()  # what ends meanwhile is found ended
        run.finish()
    expect(page.locator(".anima-panel")).to_contain_text("done: models/loras/my_style.safetensors")


def test_samples_are_paged_through_by_keys_and_enlarged(pages: Pages, stage):
    page = pages.open()
    load(page, trainer())
    look_at(page, "1", 0.8)
    with ScriptedRun(stage, "my_style").training() as run:
        for _ in range(3):
            run.steps(10)
            run.samples()
        slider = page.get_by_role("slider", name="Step of the samples")
        expect(slider).to_have_attribute("aria-valuetext", "step 30")
        slider.press("ArrowLeft")
        expect(slider).to_have_attribute("aria-valuetext", "step 20")
        run.steps(10)
        run.samples()  # who looks at an earlier step is left there
        expect(slider).to_have_attribute("max", "3")
        expect(slider).to_have_attribute("aria-valuetext", "step 20")
        page.locator(".anima-sample").nth(1).press("Enter")
        image = page.locator("dialog img")
        expect(image).to_be_visible()
        assert image.get_attribute("src").endswith(f"{run.id}/samples/step-00000020-1.png")
        page.keyboard.press("Escape")
        expect(image).to_have_count(0)
        run.finish()


def test_a_page_that_missed_the_end_stops_no_other_training(pages: Pages, stage):
    page = pages.open()
    load(page, trainer())
    look_at(page, "1", 0.8)
    panel = page.locator(".anima-panel")
    with ScriptedRun(stage, "first").training() as first:
        first.steps(3)
        wait_for_steps(page, 3)
        stage.is_silent = True
        first.finish()
    with ScriptedRun(stage, "second").training() as second:  # on the same node
        panel.get_by_role("button", name="Stop and keep").click()
        expect(panel).to_contain_text("is not training")
        assert stage.asked == [("stop", {"run": first.id})]
        second.steps(1)
        assert second.wished() == set()
        second.finish()
    (refused,) = pages.problems  # what Chromium writes of every 404
    assert "/stop" in refused
    pages.problems.clear()


@RENDERERS
def test_a_training_within_a_subgraph_is_seen_on_its_node(pages: Pages, stage, vue):
    pages.set(vue=vue)
    page = pages.open()
    load(page, within_subgraph())
    with ScriptedRun(stage, "inner", node="12:5").training() as run:
        run.steps(8)
        page.wait_for_function("window.app.graph.getNodeById(12).subgraph.getNodeById(5).properties.anima_run")
        page.evaluate("((outer) => window.app.canvas.openSubgraph(outer.subgraph, outer))(window.app.graph.getNodeById(12))")
        assert_it_draws_the_log(page, run)
        # By key: the view glides into the subgraph, away from under a mouse.
        page.locator(".anima-panel").get_by_role("button", name="Stop and keep").press("Enter")
        stage.wait_for(lambda: stage.asked)
        run.steps(1)
        assert run.wished() == {"stop"}
        run.finish("kept")


def test_commands_reach_every_training(pages: Pages, stage):
    page = pages.open()
    run_command = "(name) => window.app.extensionManager.command.execute(`AnimaTrainer.${name}`)"
    page.evaluate(run_command, "stop")
    expect(page.get_by_text("Nothing trains at the moment.")).to_be_visible()
    with ScriptedRun(stage, "one", node="1").training() as one, ScriptedRun(stage, "two", node="2").training() as two:
        page.evaluate(run_command, "save")
        for run in (one, two):
            run.steps(1)
            assert run.wished() == {"save"}
            run.finish()
    assert sorted(body["run"] for _, body in stage.asked) == sorted([one.id, two.id])

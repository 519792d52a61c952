"""A run of 100,000 steps in a real page: few points travel, and drawing them is quick. Times are printed, not judged."""

import json
import urllib.request

from .browser import Pages, drawn, load, wait_for_steps
from .graphs import trainer
from .script import ScriptedRun

STEPS = 100_000
POINTS = 1000
MOST = 3000  # points that a page keeps before it asks for fewer
FRAMES = """async (frames) => {
  const charts = [...document.querySelectorAll(".anima-panel .anima-plot")].map(({ chart }) => chart)
  const times = []
  for (let i = 0; i < frames; i++) {
    await new Promise(requestAnimationFrame)
    const began = performance.now()
    charts.forEach((chart) => chart.setData(chart.data))
    await Promise.resolve()  // uPlot draws at the end of the task
    charts.forEach((chart) => chart.ctx.getImageData(0, 0, 1, 1))  // waits until it is painted
    times.push(performance.now() - began)
  }
  return times.sort((a, b) => a - b)
}"""


def test_a_hundred_thousand_steps_stay_small(pages: Pages, stage):
    page = pages.open()
    load(page, trainer())
    with ScriptedRun(stage, "long", total=2 * STEPS).training() as run:
        run.write_steps(STEPS)
        run.steps(1)
        wait_for_steps(page, STEPS + 1)
        page.wait_for_function("(most) => document.querySelector('.anima-plot').chart.data[0].length <= most", arg=MOST)
        with urllib.request.urlopen(stage.url(f"/anima_trainer/runs/{run.id}/curve?points={POINTS}")) as answer:
            body = answer.read()
        told = json.loads(body)
        assert told["steps"] == STEPS + 1 and 0.5 * POINTS < len(told["columns"]["step"]) <= POINTS
        steps, losses, means = drawn(page)
        log = run.logged()
        by_step = dict(zip(log["step"], zip(log["loss"], log["mean_loss"])))
        assert [by_step[step] for step in steps] == list(zip(losses, means))  # every point is a step of the log
        assert min(losses) == min(log["loss"]) and max(losses) == max(log["loss"])
        times = page.evaluate(FRAMES, 30)
        print(f"\n{STEPS} steps: {len(body)} bytes, {len(steps)} points; charts drawn in {times[15]:.1f} to {times[-1]:.1f} ms")
        run.finish()

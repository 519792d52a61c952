"""What can be measured of a page's looks: axe-core's rules, what sticks out of its box, what lies over what."""

from pathlib import Path

import pytest
from playwright.sync_api import Page

AXE = Path(__file__).with_name("node_modules") / "axe-core" / "axe.min.js"
OVERLAPS = """(selector) => {
  const [panel] = document.querySelectorAll(selector), box = panel.getBoundingClientRect()
  const inside = (other) => panel.contains(other) || other.contains(panel)
  const covers = ({ left, right, top, bottom }) =>
    Math.min(right, box.right) - Math.max(left, box.left) > 1 && Math.min(bottom, box.bottom) - Math.max(top, box.top) > 1
  return [...document.querySelectorAll(".lg-node input, .lg-node textarea, .lg-node button, .dom-widget > *")]
    .filter((other) => !inside(other) && other.checkVisibility() && covers(other.getBoundingClientRect()))
    .map((other) => other.outerHTML.slice(0, 120))
}"""
CUT_OFF = """(selector) => [...document.querySelectorAll(`${selector} *`)]
  .filter((one) => one.checkVisibility() && !one.closest(".uplot, table, .anima-strip"))
  .filter((one) => getComputedStyle(one).textOverflow !== "ellipsis")
  .filter((one) => one.clientWidth && one.scrollWidth > one.clientWidth + 1)
  .map((one) => `${one.className}: ${one.textContent.slice(0, 60)} (${one.scrollWidth} in ${one.clientWidth} px)`)"""
WIDGETS_BELOW = """(id) => {  // classic: widgets are painted on the canvas, at these heights
  const node = window.app.graph.getNodeById(id), at = node.widgets.findIndex(({ name }) => name === "anima_panel")
  const panel = node.widgets[at], end = panel.y + (panel.computedHeight ?? panel.element.offsetHeight)
  const above = node.widgets.slice(0, at).map(({ y, computedHeight = 20 }) => y + computedHeight)
  return { above, top: panel.y, end, height: node.size[1] }
}"""


def broken_rules(page: Page, selector: str) -> list[str]:
    """Return what axe-core finds serious or critical within an element, one line each."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: run npm ci in tests/browser")
    if not page.evaluate("Boolean(window.axe)"):
        page.evaluate(AXE.read_text(encoding="utf-8"))
    found = page.evaluate("(within) => window.axe.run(within, { resultTypes: ['violations'] })", selector)
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:160]} {node['failureSummary']}"
        for rule in found["violations"]
        if rule["impact"] in ("serious", "critical")
        for node in rule["nodes"]
    ]


def chart_colours_are_fresh(page: Page, selector: str) -> bool:
    """Tell whether every chart looks as it does when it is drawn again now."""
    compare = """async (within) => {
      const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))
      await frame()
      const charts = [...document.querySelectorAll(`${within} .anima-plot`)].map(({ chart }) => chart).filter(Boolean)
      const looks = () => charts.map(({ ctx }) => ctx.canvas.toDataURL()).join()
      const before = looks()
      charts.forEach((chart) => chart.redraw(false, true))
      await frame()
      return charts.length > 0 && before === looks()
    }"""
    return page.evaluate(compare, selector)

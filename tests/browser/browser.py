"""A page of ComfyUI in Chromium, and what a user does on it."""

import json
import os
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
# A page before its graph is there throws at whoever asks for it.
HAS_STARTED = """() => {
  try { return window.app.extensionManager.getSidebarTabs().some(({ id }) => id === "anima-runs") } catch { return false }
}"""
READY = f"() => ({HAS_STARTED})() && window.app.graph.nodes.length > 0"
PATIENCE = int(os.environ.get("PATIENCE", 120_000))  # milliseconds until a test gives up on a page, on the slowest machine
STILL = 15  # frames of a view that does not move


def executable() -> str | None:
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def chromium() -> Iterator[Browser]:
    path = executable()
    if path is None:
        pytest.skip("no Chromium: install it (apt-get install chromium), or name it in CHROMIUM")
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--force-color-profile=srgb"])
        yield browser
        browser.close()


class Pages:
    """Opens pages of one server, in windows of one browser. problems: errors of this pack in their consoles."""

    def __init__(self, browser: Browser, server: Any) -> None:
        self.server = server
        self.problems: list[str] = []
        self.context = browser.new_context()
        self.context.set_default_timeout(PATIENCE)
        self.context.route(lambda url: not url.startswith(server.url("")), lambda route: route.abort())

    def set(self, locale: str = "en", vue: bool = False, palette: str = "dark", **more: Any) -> None:
        """Set what the server keeps for its pages; those that are open do not hear of it."""
        settings = {
            "Comfy.TutorialCompleted": True,
            "Comfy.Locale": locale,
            "Comfy.VueNodes.Enabled": vue,
            "Comfy.ColorPalette": palette,
            "Comfy.Workflow.WarnBlueprintOverwrite": False,
            "Comfy.VueNodes.AutoScaleLayout": False,
        }
        body = json.dumps(settings | more).encode()
        request = urllib.request.Request(self.server.url("/api/settings"), body, {"Content-Type": "application/json"})
        urllib.request.urlopen(request).close()

    def open(self, size: tuple[int, int] = (1600, 1000), ready: str = READY) -> Page:
        """Open the page in a new window, and wait until it can be used."""
        page = self.context.new_page()
        page.set_viewport_size({"width": size[0], "height": size[1]})
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", lambda message: self.note(message))
        page.goto(self.server.url("/"))
        page.wait_for_function(ready)
        return page

    def note(self, message: Any) -> None:
        if message.type == "error" and "/anima" in f"{message.location} {message.text}".lower().replace("-", ""):
            self.problems.append(f"{message.text} {message.location}")

    def forget(self) -> None:
        """Close all windows, and what the browser has stored for them."""
        for page in self.context.pages:
            page.evaluate("localStorage.clear()")
            page.close()
        self.context.clear_cookies()
        self.problems.clear()

    def close(self) -> None:
        self.context.close()


class Mouse:
    """Clicks as a user does, and counts them."""

    def __init__(self, page: Page) -> None:
        self.page, self.clicks = page, 0

    def click(self, what: Locator) -> None:
        what.hover()  # waits until nothing lies over it
        box = what.bounding_box()
        assert box is not None
        self.at(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)

    def at(self, x: float, y: float) -> None:
        self.page.mouse.click(x, y)
        self.clicks += 1


def reload(page: Page) -> None:
    page.reload()
    page.wait_for_function(READY)


def load(page: Page, workflow: dict, name: str = "") -> None:
    """Open a graph, and wait until its nodes are there."""
    page.evaluate("([graph, name]) => window.app.loadGraphData(graph, true, true, name || null)", [workflow, name])
    wanted = len(workflow["nodes"])
    page.wait_for_function("(count) => window.app.graph.nodes.length === count", arg=wanted)
    wait_until_still(page)


def wait_until_still(page: Page) -> None:
    """Wait until the view does not move for some frames: ComfyUI fits it to a graph that is loaded, and clicks go astray."""
    page.evaluate(
        """async (frames) => {
      const { canvas } = window.app
      for (let still = 0, before = ""; still < frames; ) {
        await new Promise(requestAnimationFrame)
        const now = JSON.stringify([canvas.ds.scale, ...canvas.ds.offset, canvas.canvas.width, canvas.canvas.height])
        still = now === before ? still + 1 : 0
        before = now
      }
    }""",
        STILL,
    )


def look_at(page: Page, node: str, scale: float = 1.0) -> None:
    """Move the canvas so that a node stands at the upper left of it."""
    move = """([id, scale]) => {
      const { canvas, graph } = window.app, node = graph.getNodeById(id)
      canvas.ds.scale = scale
      canvas.ds.offset = [120 / scale - node.pos[0], 110 / scale - node.pos[1]]
      canvas.setDirty(true, true)
    }"""
    page.evaluate(move, [int(node), scale])
    wait_until_still(page)


def click_on_widget(page: Page, kind: str, name: str, mouse: Mouse | None = None) -> None:
    """Click on a button of a node that the classic renderer paints on the canvas."""
    where = """([kind, name]) => {
      const { canvas, graph } = window.app, node = graph.nodes.find(({ type }) => type === kind)
      const widget = node.widgets.find((one) => one.name === name)
      return widget.last_y && canvas.convertOffsetToCanvas([node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10])
    }"""
    page.wait_for_function(where, arg=[kind, name])
    wait_until_still(page)
    x, y = page.evaluate(where, [kind, name])
    box = page.locator("#graph-canvas").bounding_box()
    assert box is not None
    (mouse or Mouse(page)).at(box["x"] + x, box["y"] + y)


def drawn(page: Page, chart: int = 0, within: str = ".anima-panel") -> list[list]:
    """Return the columns that a chart draws: uPlot's own data."""
    read = """([within, chart]) =>
      document.querySelectorAll(`${within} .anima-plot`)[chart].chart.data.map((column) => [...column])"""
    return page.evaluate(read, [within, chart])


def wait_for_steps(page: Page, steps: int, within: str = ".anima-panel") -> None:
    """Wait until the loss is drawn up to a step."""
    is_there = """([within, steps]) => {
      const chart = document.querySelector(`${within} .anima-plot`)?.chart
      return chart && chart.data[0].at(-1) >= steps
    }"""
    page.wait_for_function(is_there, arg=[within, steps])

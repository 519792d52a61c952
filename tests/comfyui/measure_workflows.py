"""Writes example_workflows/*.json with the heights that their nodes have in a real frontend.

`python -m tests.comfyui.measure_workflows` needs a ComfyUI, Node.js, Chromium, and npm's playwright-core in tests/browser or
where NODE_PATH says. SCREENSHOTS: a folder for pictures of what it saw.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

from tests import processes
from tests.comfyui.layout import MEASURED, measured
from tests.comfyui.make_workflows import FOLDER, write
from tests.comfyui.server import ComfyUI
from tests.conftest import ROOT, find_comfyui

RENDERERS = ("classic", "vue")
MEASURE = Path(__file__).with_name("measure.cjs")


def workflows() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def drawn(address: str, screenshots: str = "", *look: str) -> dict[str, dict]:
    """Return what measure.cjs finds: {template: {renderer: {boxes, scale, behind}}}."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "workflows.json"
        file.write_text(json.dumps(workflows()), encoding="utf-8")
        done = processes.run(["node", MEASURE, address, file, screenshots, *look], env={"NODE_PATH": node_path()})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def node_path() -> str:
    return os.pathsep.join([os.environ.get("NODE_PATH", ""), str(ROOT / "tests" / "browser" / "node_modules")])


def what_lacks() -> str:
    """Say what a measurement needs and is not here; "" when all is."""
    if shutil.which("node") is None:
        return "Node.js is not installed"
    if not Path(os.environ.get("CHROMIUM", "/usr/bin/chromium")).is_file():
        return "Chromium is not installed; CHROMIUM may say where"
    found = processes.run(["node", "-e", "require('playwright-core')"], env={"NODE_PATH": node_path()})
    return "" if found.returncode == 0 else "playwright-core is not installed: npm install in tests/browser"


def heights(flow: dict, found: dict, names: list[str]) -> dict[str, list[int]]:
    """Return a node's height in both renderers, by its name in the template."""
    return {name: [found[r]["boxes"][str(node["id"])][3] for r in RENDERERS] for name, node in zip(names, flow["nodes"])}


def measure(address: str, screenshots: str = "") -> dict[str, dict]:
    """Return what is kept: heights by name, and boxes, scale and hidden links by renderer."""
    from tests.comfyui.templates import templates

    found, names = drawn(address, screenshots), {t.name: [node.name for node in t.nodes()] for t in templates()}
    return {
        name: {"heights": heights(flow, found[name], names[name]), **found[name]}
        for name, flow in workflows().items()
        if name in names
    }


def keep(found: dict[str, dict]) -> None:
    """Write what was measured, one node a line."""
    text = re.sub(r"\[\s*([^\[\]]*?)\s*\]", lambda m: "[" + re.sub(r"\s+", " ", m[1]) + "]", json.dumps(found, indent=1))
    MEASURED.write_text(text + "\n", encoding="utf-8")


def main() -> None:
    found = find_comfyui()
    assert found is not None, "needs a ComfyUI, see README.md"
    with tempfile.TemporaryDirectory() as base, ComfyUI(*found, Path(base)) as server:
        info = server.get("/object_info")
        while True:  # places follow from heights, which do not depend on places: the second time nothing changes
            before = measured()
            write(info)
            keep(measure(server.url("/"), os.environ.get("SCREENSHOTS", "")))
            if measured() == before:
                break


if __name__ == "__main__":
    main()

"""The pages in web/: their JavaScript under node, its types, its size, and the one vendored file."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEB = ROOT / "web"
MAX_LINES = 1600  # of all JavaScript that is ours
UPLOT = "5dd9b3281aa64b461b42d9945f6adb2649d346502b12281a9ae0d46599a80eba"  # dist/uPlot.esm.js of uplot 1.6.32 on npm


def our_scripts() -> list[Path]:
    return [path for path in sorted(WEB.rglob("*.js")) if path.parent.name != "vendor"]


def test_javascript_does_what_it_says():
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: the pages' functions are not run")
    tests = [str(path) for path in sorted((ROOT / "tests" / "web").glob("*.test.mjs"))]
    assert tests
    done = subprocess.run([node, "--test", *tests], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_javascript_is_typed():
    compiler = ROOT / "tests" / "browser" / "node_modules" / ".bin" / ("tsc.cmd" if os.name == "nt" else "tsc")
    if not compiler.exists():
        pytest.skip("typescript is not installed: run npm install in tests/browser")
    done = subprocess.run([str(compiler), "--project", str(ROOT / "tests" / "browser")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:]


def test_scripts_stay_small_and_typed():
    texts = {path: path.read_text(encoding="utf-8") for path in our_scripts()}
    lines = {path.name: text.count("\n") for path, text in texts.items()}
    assert "anima_trainer.js" in lines
    assert sum(lines.values()) <= MAX_LINES, lines
    assert max(lines.values()) < 400, lines
    assert [path.name for path, text in texts.items() if not text.startswith("// @ts-check\n")] == []


def test_only_the_entry_touches_comfyui():
    touching = ("scripts/app.js", "scripts/api.js", "LiteGraph", "comfyAPI", "extensionManager", "registerExtension")
    found = [
        f"{path.name}: {word}"
        for path in our_scripts()
        if path.name != "anima_trainer.js"
        for word in touching
        if word in path.read_text(encoding="utf-8")
    ]
    assert found == []


def test_vendored_chart_is_the_published_one():
    vendor = WEB / "vendor"
    assert hashlib.sha256((vendor / "uPlot.esm.js").read_bytes()).hexdigest() == UPLOT
    assert "Leon Sorokin" in (vendor / "uPlot.LICENSE").read_text(encoding="utf-8")
    assert {path.name for path in vendor.iterdir()} == {"uPlot.esm.js", "uPlot.esm.d.ts", "uPlot.LICENSE"}

"""Writes the input lists of the help pages from what a real ComfyUI reports: `python -m tests.comfyui.make_help`.

English comes from the nodes' own tooltips, which the settings declare, Chinese from locales/zh. All else in a page is written
by hand; a test keeps the lists in step.
"""

import json
import re
import tempfile
from pathlib import Path

from tests.comfyui.schema import inputs_of, our_nodes
from tests.comfyui.server import ROOT, ComfyUI
from tests.conftest import find_comfyui

DOCS = ROOT / "web" / "docs"
INPUTS = {"en": "## Inputs", "zh": "## 输入"}
MARKS = re.compile(r"[<*]")  # what Markdown would take out of a tooltip: `<regex>` is a tag to it
ESCAPED = r"\\\g<0>"


def translations(language: str) -> dict:
    return json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))


def input_list(name: str, node: dict, language: str) -> list[str]:
    """Return the list of a node's inputs; the numbered sockets of an Autogrow are one, by the input that makes them."""
    translated, rows = translations(language).get(name, {}).get("inputs", {}), []
    for key, found in inputs_of(node).items():
        if not found.slot:
            words = translated.get(key, {})
            if language == "zh":
                rows.append(f"- **{found.name}** {words['name']}：{escaped(words.get('tooltip', ''))}")
            else:
                rows.append(f"- **{found.name}** – {escaped(found.tooltip)}")
    return rows


def escaped(text: str) -> str:
    return MARKS.sub(ESCAPED, text)


def with_list(page: str, rows: list[str], language: str) -> str:
    """Return a page with another list of inputs."""
    section = re.compile(rf"^{INPUTS[language]}\n.*?(?=^## )", re.MULTILINE | re.DOTALL)
    return section.sub(lambda _: "\n".join([INPUTS[language], *rows, "", ""]), page)


def main() -> None:
    found = find_comfyui()
    assert found is not None, "needs a ComfyUI, see README.md"
    with tempfile.TemporaryDirectory() as base, ComfyUI(*found, Path(base)) as server:
        nodes = our_nodes(server.get("/object_info"))
    for name, node in nodes.items():
        for language in INPUTS:
            path = DOCS / name / f"{language}.md"
            rows = input_list(name, node, language)
            path.write_text(with_list(path.read_text(encoding="utf-8"), rows, language), encoding="utf-8")


if __name__ == "__main__":
    main()

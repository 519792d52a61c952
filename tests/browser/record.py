"""What a ComfyUI says of its nodes, for the tests without one: `python -m tests.browser.record` starts it and writes that."""

import json
import sys
import tempfile
from pathlib import Path

from ..comfyui.graphs import install_tiny_models
from ..comfyui.schema import our_nodes
from ..comfyui.server import ROOT, ComfyUI
from ..conftest import find_comfyui

FILE = Path(__file__).with_name("object_info.json")
# Those of the graph that a new page opens.
STOCK = ("UNETLoader", "CLIPLoader", "VAELoader", "CLIPTextEncode", "EmptySD3LatentImage", "ModelSamplingAuraFlow", "KSampler")
STOCK += ("VAEDecode", "SaveImage")


OF_FILES = ("options", "default", "fitting")  # what a dropdown says of the files that are there


def recorded() -> dict:
    return json.loads(FILE.read_text(encoding="utf-8"))


def wanted(object_info: dict) -> dict:
    """Return this pack's nodes, and the stock ones of its templates."""
    templates = [json.loads(path.read_bytes()) for path in (ROOT / "example_workflows").glob("*.json")]
    used = {node["type"] for template in templates for node in template["nodes"]}
    names = our_nodes(object_info).keys() | ((used | set(STOCK)) & object_info.keys())
    return {name: object_info[name] for name in sorted(names)}


def without_files(node: dict) -> dict:
    """Return a node without what depends on the files that are there: the choices of its dropdowns."""

    def plain(kind: str, given: dict) -> dict:
        return {key: value for key, value in given.items() if kind != "COMBO" or key not in OF_FILES}

    inputs = {
        group: {name: [kind, *(plain(kind, given) for given in options)] for name, (kind, *options) in entries.items()}
        for group, entries in node["input"].items()
    }
    return node | {"input": inputs}


def record() -> None:
    found = find_comfyui()
    if found is None:
        sys.exit("no ComfyUI: set COMFYUI_PATH, see CONTRIBUTING.md")
    with tempfile.TemporaryDirectory() as base:
        install_tiny_models(Path(base))
        with ComfyUI(*found, Path(base)) as server:
            nodes = wanted(server.get("/object_info"))
    lines = [f"{json.dumps(name)}: {json.dumps(node, ensure_ascii=False)}" for name, node in nodes.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print(f"{FILE.name}: {len(nodes)} nodes, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    record()

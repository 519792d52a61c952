"""Writes example_workflows/*.json from tests/comfyui/templates.py and a server's /object_info, so that they never drift from
the nodes.

`python -m tests.comfyui.make_workflows` starts the ComfyUI that the tests use and writes all files;
`python -m tests.comfyui.measure_workflows` also measures them in a real browser, which a node that changed its height needs.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

from tests.comfyui.layout import COLOURS, Link, Node, Template, measured, place, ways
from tests.comfyui.server import ComfyUI
from tests.conftest import ROOT, find_comfyui

FOLDER = ROOT / "example_workflows"
HOST = "https://huggingface.co/circlestone-labs/Anima/resolve/main/split_files"
FILES = {
    "transformer": ("anima-base-v1.0.safetensors", "diffusion_models"),
    "qwen": ("qwen_3_06b_base.safetensors", "text_encoders"),
    "vae": ("qwen_image_vae.safetensors", "vae"),
}


def model(kind: str) -> dict[str, str]:
    """What the missing-models panel needs to offer the download."""
    name, folder = FILES[kind]
    return {"name": name, "url": f"{HOST}/{folder}/{name}", "directory": folder}


def is_widget(kind: Any, options: dict) -> bool:
    scalar = isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "COMFY_DYNAMICCOMBO_V3")
    return scalar and not options.get("forceInput")


def specs(info: dict) -> list[tuple[str, Any, dict]]:
    """(name, type, options) of a node's inputs, in the frontend's order."""
    found = []
    for group in ("required", "optional"):
        for name in info.get("input_order", {}).get(group, []):
            kind, *rest = info["input"][group][name]
            found.append((name, kind, rest[0] if rest else {}))
    return found


def widget_values(node: Node, info: dict) -> list[Any]:
    values = []
    for name, kind, options in specs(info):
        if name in node.links or not is_widget(kind, options):
            continue
        if kind == "COMFY_DYNAMICCOMBO_V3":
            values += dynamic_values(name, node, options)
            continue
        values.append(node.values.get(name, default_of(kind, options)))
        if options.get("control_after_generate"):
            values.append("fixed")
        if options.get("image_upload"):
            values.append("image")
    return values


def dynamic_values(name: str, node: Node, options: dict) -> list[Any]:
    key = node.values.get(name, options["options"][0]["key"])
    chosen = next(option for option in options["options"] if option["key"] == key)
    inputs = nested(chosen).items()
    given = [node.values.get(f"{name}.{n}", default_of(k, rest[0] if rest else {})) for n, (k, *rest) in inputs]
    return [key, *given]


def nested(option: dict) -> dict[str, list]:
    """Return the inputs of an option of a DynamicCombo, in the frontend's order."""
    return option["inputs"].get("required", {}) | option["inputs"].get("optional", {})


def default_of(kind: Any, options: dict) -> Any:
    choices = kind if isinstance(kind, list) else options.get("options")
    if "default" in options:
        return options["default"]
    if choices:
        return choices[0]
    return {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False}.get(kind if isinstance(kind, str) else "", "")


def sockets(node: Node, schema: dict) -> list[tuple[str, str]]:
    """(name, type) of a node's inputs that are drawn as sockets; those of an Autogrow by the links that are there."""
    found = []
    for name, kind, options in specs(schema):
        if kind == "COMFY_AUTOGROW_V3":
            found += [(linked, grown_type(options)) for linked in node.links if linked.startswith(f"{name}.")]
        elif name in node.links or not is_widget(kind, options):
            found.append((name, kind if isinstance(kind, str) else "COMBO"))
    return found


def grown_type(options: dict) -> str:
    """Return the type of an Autogrow's sockets."""
    ((kind, *_),) = options["template"]["input"]["required"].values()
    return "*" if kind == "COMFY_MATCHTYPE_V3" else kind


def build(template: Template, info: dict[str, dict]) -> dict:
    """A workflow in the frontend's own format, version 0.4."""
    nodes = template.nodes()
    numbers = {node.name: i for i, node in enumerate(nodes, start=1)}
    drawn = {node.name: draw(node, numbers[node.name], info.get(node.type)) for node in nodes}
    found = [link for node in nodes for link in links_to(node, drawn[node.name])]
    links = []
    for number, link in enumerate(found, start=1):
        output = drawn[link.source]["outputs"][link.output]
        output["links"].append(number)
        drawn[link.target]["inputs"][link.slot]["link"] = number
        links.append([number, numbers[link.source], link.output, numbers[link.target], link.slot, output["type"]])
    return {
        "last_node_id": len(nodes),
        "last_link_id": len(links),
        "nodes": list(drawn.values()),
        "links": links,
        "groups": groups(template),
        "config": {},
        "extra": reroutes(template, found),
        "version": 0.4,
    }


def links_to(node: Node, drawn: dict) -> list[Link]:
    found = []
    for slot, entry in enumerate(drawn["inputs"]):
        if entry["name"] in node.links:
            name, _, index = node.links[entry["name"]].partition(".")
            found.append(Link(name, int(index or 0), node.name, slot))
    return found


def reroutes(template: Template, links: list[Link]) -> dict:
    """Return the points that links pass, as the frontend keeps them: links of one output share theirs."""
    points: dict[tuple, dict] = {}
    extensions = []
    for number, (link, way) in enumerate(ways(template, links).items(), start=1):
        before = None
        for at in way:
            new = {"id": len(points) + 1, "pos": list(at), "linkIds": []}
            point = points.setdefault((link.source, link.output, at), new)
            if before:
                point["parentId"] = before
            point["linkIds"].append(number)
            before = point["id"]
        if before:
            extensions.append({"id": number, "parentId": before})
    return {"reroutes": list(points.values()), "linkExtensions": extensions}


def groups(template: Template) -> list[dict]:
    framed = [group for column in template.columns for group in column.groups if group.kind]
    framed.sort(key=lambda group: list(COLOURS).index(group.kind))
    return [
        {
            "id": number,
            "title": f"{number} {group.title}",
            "bounding": list(group.box),
            "color": COLOURS[group.kind],
            "font_size": 24,
            "flags": {},
        }
        for number, group in enumerate(framed, start=1)
    ]


def draw(node: Node, number: int, schema: dict | None) -> dict:
    if schema is None:  # a note, which only the frontend knows
        schema = {"input": {}, "input_order": {}, "output": [], "output_name": []}
    values = [node.values["text"]] if node.type == "MarkdownNote" else widget_values(node, schema)
    matched = schema.get("output_matchtypes") or [None] * len(schema["output"])
    kinds = ["*" if match else kind for kind, match in zip(schema["output"], matched)]
    properties: dict[str, Any] = {"Node name for S&R": node.type}
    if node.models:
        properties["models"] = [model(kind) for kind in node.models]
    drawn = {
        "id": number,
        "type": node.type,
        "pos": list(node.at),
        "size": list(node.size),
        "flags": {},
        "order": number - 1,
        "mode": 0,
        "inputs": [{"name": name, "type": kind, "link": None} for name, kind in sockets(node, schema)],
        "outputs": [{"name": name, "type": kind, "links": []} for name, kind in zip(schema["output_name"], kinds)],
        "properties": properties,
        "widgets_values": values,
    }
    return drawn | ({"title": node.title} if node.title else {})


def write(info: dict[str, dict]) -> None:
    """Write all templates, with the heights that were measured last."""
    from tests.comfyui.templates import templates

    FOLDER.mkdir(exist_ok=True)
    heights = measured()
    for template in templates():
        place(template, heights.get(template.name, {}).get("heights", {}))
        text = json.dumps(build(template, info), ensure_ascii=False, indent=1) + "\n"
        (FOLDER / f"{template.name}.json").write_text(text, encoding="utf-8")


def main() -> None:
    found = find_comfyui()
    assert found is not None, "needs a ComfyUI, see README.md"
    with tempfile.TemporaryDirectory() as base, ComfyUI(*found, Path(base)) as server:
        write(server.get("/object_info"))


if __name__ == "__main__":
    main()

"""The nodes' inputs as ComfyUI's frontend sees them, read from /object_info."""

from collections.abc import Iterator
from dataclasses import dataclass

PACK = "custom_nodes.ComfyUI-Anima-Trainer"


@dataclass(frozen=True)
class Input:
    """key: its name in nodeDefs.json, dots as underscores (frontend 1.47: normalizeI18nKey); name: as the user sees it."""

    key: str
    name: str
    tooltip: str
    slot: bool = False  # one of an Autogrow's numbered sockets


def our_nodes(object_info: dict) -> dict[str, dict]:
    return {name: node for name, node in object_info.items() if node["python_module"] == PACK}


def inputs_of(node: dict) -> dict[str, Input]:
    """Every input by key, those nested in a DynamicCombo and the sockets of an Autogrow included."""
    return {found.key: found for found in _walk(node["input"], "")}


def _walk(groups: dict, prefix: str) -> Iterator[Input]:
    for group in ("required", "optional"):
        for name, (kind, *options) in groups.get(group, {}).items():
            settings = options[0] if options else {}
            yield Input(prefix + name, name, settings.get("tooltip", ""))
            yield from _nested(kind, settings, f"{prefix}{name}_")


def _nested(kind: str | list, settings: dict, prefix: str) -> Iterator[Input]:
    if kind == "COMFY_DYNAMICCOMBO_V3":
        for option in settings["options"]:
            yield from _walk(option["inputs"], prefix)
    if kind == "COMFY_AUTOGROW_V3":
        template = settings["template"]
        for number in range(template["max"]):
            name = f"{template['prefix']}{number}"
            yield Input(prefix + name, name, "", slot=True)

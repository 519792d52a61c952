"""What a user is told: a sentence on the node, in both of ComfyUI's renderers and without JavaScript; lines in the console."""

import logging
from pathlib import Path

import folder_paths
from comfy_execution.utils import get_executing_context
from server import PromptServer

log = logging.getLogger("anima_trainer")
HEAD = "[Anima Trainer] "  # ComfyUI's console shows no names of loggers


def note(text: str) -> None:
    log.info("%s%s", HEAD, text)


def warning(text: str) -> None:
    log.warning("%swarning: %s", HEAD, text)


def this_node() -> str:
    """Return the id of the node that ComfyUI executes, `12`, or `12:5` within a subgraph."""
    context = get_executing_context()
    return context.node_id if context else ""


def say(text: str, node: str = "") -> None:
    """Put text on a node, by default the one that is executed, in place of what stood there."""
    if PromptServer.instance is not None and (node := node or this_node()):
        PromptServer.instance.send_progress_text(text, node)


def shown(path: str | Path) -> str:
    """Return a path from ComfyUI's folder on, as `models/loras/x.safetensors`; one elsewhere in full."""
    try:
        return Path(path).relative_to(folder_paths.base_path).as_posix()
    except ValueError:
        return str(path)

"""The parts of nodes/ that need little of ComfyUI, imported around the folders of one test and a server that only listens."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = "anima_pack"  # a name of its own: nodes import with dots


def import_nodes(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """-> a function from the name of a module of nodes/ to that module."""
    for stand_in in (folder_paths_of(base), *listening_server()):
        monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    monkeypatch.delenv("ANIMA_TRAINER_ROOTS", raising=False)
    for name in [name for name in sys.modules if name.startswith(f"{PACK}.")]:
        del sys.modules[name]
    for name, folder in ((PACK, ROOT), (f"{PACK}.nodes", ROOT / "nodes")):
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        monkeypatch.setitem(sys.modules, name, module)
    return lambda name: importlib.import_module(f"{PACK}.nodes.{name}")


def folder_paths_of(base: Path) -> ModuleType:
    """ComfyUI's module of this name, as far as it is used: every folder below `base`."""
    module = ModuleType("folder_paths")
    module.get_input_directory = lambda: str(base / "input")
    module.get_output_directory = lambda: str(base / "output")
    module.base_path, module.models_dir = str(base), str(base / "models")
    kinds = {"loras": "other_disk/loras", "custom_nodes": "custom_nodes", "datasets": "sets", "anima_datasets": "more"}
    module.folder_names_and_paths = {kind: ([str(base / folder)], set()) for kind, folder in kinds.items()}
    module.get_folder_paths = lambda kind: module.folder_names_and_paths[kind][0]
    return module


def listening_server() -> list[ModuleType]:
    """ComfyUI's modules for text on a node and for messages to pages. Node `server.node` is executed.

    `server.said` lists what was put on which node, `server.sent` messages and what is in them.
    """
    server, execution, utils = map(ModuleType, ("server", "comfy_execution", "comfy_execution.utils"))
    server.said, server.sent, server.node = [], [], "12"
    listening = SimpleNamespace(
        send_progress_text=lambda text, node: server.said.append((node, text)),
        send_sync=lambda kind, payload: server.sent.append((kind, payload)),
    )
    server.PromptServer = SimpleNamespace(instance=listening)
    utils.get_executing_context = lambda: SimpleNamespace(node_id=server.node)
    return [server, execution, utils]

"""The parts of nodes/ that need no ComfyUI but its `folder_paths`, imported around the folders of one test."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACK = "anima_pack"  # a name of its own: nodes import with dots


def import_nodes(base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """-> a function from the name of a module of nodes/ to that module."""
    monkeypatch.setitem(sys.modules, "folder_paths", folder_paths_of(base))
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
    module.models_dir = str(base / "models")
    kinds = {"loras": "other_disk/loras", "custom_nodes": "custom_nodes", "datasets": "sets", "anima_datasets": "more"}
    module.folder_names_and_paths = {kind: ([str(base / folder)], set()) for kind, folder in kinds.items()}
    return module

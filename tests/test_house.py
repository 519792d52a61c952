"""The house of docs/architecture.md: imports point down, nothing is long, and what is cited is there."""

import ast
import re
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
import toml

from anima_core.version import __version__

ROOT = Path(__file__).parents[1]
ROOMS = [  # each may import from those above it only, and from itself
    {"errors", "version"},
    {"files", "seeds", "progress_bar", "tensors"},
    {"settings", "models"},
    {"adapters", "data", "sampling"},
    {"speed"},
    {"training"},
    {"run_history", "run_record"},
    {"loggers"},
    {"run_store", "compat"},
    {"run_list", "run_folders"},
    {"demo", "report", "workshop_commands"},
    {"grid", "sweep"},
    {"cli"},
    {"__main__", "nodes"},
]
MAX_FILE, MAX_FUNCTION = 400, 40  # lines
SECTION = re.compile(r"docs/(\w+\.md) §([\d.]*\d)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in python_files("anima_core", "nodes")}


def imports(name: str) -> Iterator[str]:
    """Yield what a module imports, at its head or within functions, as absolute names."""
    path = MODULES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            outer = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*outer, *([node.module] if node.module else [])])
            for alias in node.names:
                found = f"{base}.{alias.name}"
                yield found if found in MODULES else base


def room(module: str) -> str:
    first, *rest = module.split(".")
    return rest[0] if first == "anima_core" and rest else first


def test_no_import_goes_in_circles():
    graph = {name: {found for found in imports(name) if found in MODULES and found != name} for name in MODULES}
    assert sum(map(len, graph.values())) > 200
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_no_import_runs_up():
    level = {name: number for number, rooms in enumerate(ROOMS) for name in rooms}
    assert {room(name) for name in MODULES} == level.keys() | {"anima_core"}
    up = [
        f"{name} imports {found}"
        for name in MODULES
        for found in imports(name)
        if found in MODULES and room(name) != room(found) and level[room(found)] >= level.get(room(name), -1)
    ]
    assert up == []


def test_the_core_knows_no_comfyui():
    foreign = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "server", "nodes"}
    assert [n for n in MODULES if room(n) != "nodes" and foreign & {found.split(".")[0] for found in imports(n)}] == []


@pytest.mark.parametrize("folder", ["anima_core", "nodes", "tests", "benchmarks"])
def test_nothing_asks_to_be_split(folder):
    long = []
    for path in python_files(folder):
        text = path.read_text(encoding="utf-8")
        long += [f"{path}: {count} lines"] if (count := len(text.splitlines())) > MAX_FILE else []
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = (node.end_lineno or 0) - node.lineno + 1
                long += [f"{path}: {node.name}: {count} lines"] if count > MAX_FUNCTION else []
    assert long == []


def test_what_is_cited_is_there():
    cited = set()
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    for path in [*python_files("anima_core", "nodes", "tests", "benchmarks"), *pages]:
        text = path.read_text(encoding="utf-8")
        cited |= set(SECTION.findall(text))
        assert "reference" + "/" not in text, f"{path} cites what is not in the repository"
        if path.suffix == ".md":
            missing = [link for link in LINK.findall(text) if not (path.parent / link).exists()]
            assert missing == [], f"{path}: {missing}"
    assert len(cited) > 3
    for name, section in cited:
        headings = (ROOT / "docs" / name).read_text(encoding="utf-8")
        assert re.search(rf"^#+ {re.escape(section)}\.? ", headings, re.MULTILINE), f"{name} has no section {section}"


def test_the_version_is_written_once():
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert __version__ == project["version"]
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

"""What the registry gets: a version with its changes, and an archive with all that the pack reads."""

import re
import subprocess
from pathlib import Path

from anima_core.version import __version__

ROOT = Path(__file__).parents[1]


def tracked() -> list[str]:
    return subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()


def left_out() -> list[str]:
    lines = (ROOT / ".comfyignore").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_the_changelog_begins_with_the_version():
    sections = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sections[0] == __version__


def test_the_archive_leaves_out_what_is_there_and_nothing_that_the_pack_reads():
    files, ignored = tracked(), left_out()
    assert all(any(file.startswith(entry) for file in files) for entry in ignored)
    kept = [file for file in files if not any(file.startswith(entry) for entry in ignored)]
    needed = ("__init__.py", "pyproject.toml", "requirements.txt", "LICENSE", "anima_core/version.py", "web/anima_trainer.js")
    assert set(needed) <= set(kept)
    for folder in ("anima_core", "nodes", "web", "locales", "example_workflows"):
        assert [file for file in kept if file.startswith(f"{folder}/")] == [f for f in files if f.startswith(f"{folder}/")]


def test_the_workflows_test_every_python_that_the_project_allows():
    """The oldest that pyproject.toml allows stands first in the list, and the linters' rules are for it."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.findall(r'requires-python = ">=(.+)"', project)[0]
    pythons = re.findall(r"python: \[(.+)\]", (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))[0]
    assert pythons.split(", ")[0] == f'"{oldest}"' and f'target-version = "py{oldest.replace(".", "")}"' in project

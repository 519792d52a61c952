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
    assert {"README.md", "README.zh.md"} <= set(kept)
    assert set(needed) <= set(kept)
    for folder in ("anima_core", "nodes", "web", "locales", "example_workflows"):
        assert [file for file in kept if file.startswith(f"{folder}/")] == [f for f in files if f.startswith(f"{folder}/")]


def parts(page: str, other: str) -> tuple[list[str], list[int], list[list[str]], list[str]]:
    """What a translation leaves as it is: code, levels of headings, numbers of each table's row, and where links lead."""
    text = (ROOT / page).read_text(encoding="utf-8")
    assert f"]({other})" in text.splitlines()[1], f"{page} must lead to {other} below its title"
    blocks = re.compile(r"^```.*?^```\n", re.MULTILINE | re.DOTALL)
    code, prose = blocks.findall(text), blocks.sub("", text)
    headings = [len(mark) for mark in re.findall(r"^(#+) ", prose, re.MULTILINE)]
    rows = [sorted(re.findall(r"\d+(?:\.\d+)?", row)) for row in prose.splitlines() if row.startswith("|")]
    return code, headings, rows, sorted(link for link in re.findall(r"\]\(([^)]+)\)", prose) if link != other)


def test_the_chinese_readme_says_what_the_english_one_says():
    english, chinese = parts("README.md", "README.zh.md"), parts("README.zh.md", "README.md")
    assert all(english)
    for ours, theirs in zip(english, chinese, strict=True):
        assert ours == theirs


def test_the_workflows_test_every_python_that_the_project_allows():
    """The oldest that pyproject.toml allows stands first in the list, and the linters' rules are for it."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    oldest = re.findall(r'requires-python = ">=(.+)"', project)[0]
    pythons = re.findall(r"python: \[(.+)\]", (ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))[0]
    assert pythons.split(", ")[0] == f'"{oldest}"' and f'target-version = "py{oldest.replace(".", "")}"' in project

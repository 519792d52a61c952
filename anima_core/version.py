"""The version, read from where it is written: the project's file, which ComfyUI's registry reads, too."""

import re
from pathlib import Path

PROJECT = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
__version__ = re.findall(r'^version = "(.+)"$', PROJECT, re.MULTILINE)[0]

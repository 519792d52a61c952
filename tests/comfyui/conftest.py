"""A base directory for a ComfyUI server, with the tiny models in it."""

from pathlib import Path

import pytest

from .graphs import install_tiny_models


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    install_tiny_models(folder)
    return folder

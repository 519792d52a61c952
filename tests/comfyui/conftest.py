"""One ComfyUI server for all tests that need no other, in a base directory with the tiny models in it."""

from pathlib import Path

import pytest

from .graphs import install_tiny_models
from .server import ComfyUI


@pytest.fixture(scope="session")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    install_tiny_models(folder)
    return folder


@pytest.fixture(scope="session")
def server(comfyui, base):
    """To start one takes ten seconds of a core."""
    with ComfyUI(*comfyui, base) as running:
        yield running

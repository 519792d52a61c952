"""One Chromium and one stage for all tests of the pages; each test finds the stage without runs, with the usual settings."""

import importlib.util
import shutil

import pytest

# Without its packages (`make browser` installs them) nothing here can be imported.
NEEDED = ("playwright", "comfyui_frontend_package", "aiohttp")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []


@pytest.fixture(scope="session")
def chromium():
    from .browser import chromium

    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def whole_stage(tmp_path_factory):
    from .stage import Stage

    with Stage(tmp_path_factory.mktemp("stage")).serving() as stage:
        yield stage


@pytest.fixture
def stage(whole_stage):
    for folder in ("output", "input", "other_disk"):
        shutil.rmtree(whole_stage.base / folder, ignore_errors=True)
    (whole_stage.base / "input").mkdir()
    whole_stage.is_silent = False
    whole_stage.settings.clear()
    whole_stage.prompts.clear()
    whole_stage.asked.clear()
    return whole_stage


@pytest.fixture(scope="session")
def stage_pages(chromium, whole_stage):
    from .browser import Pages

    opened = Pages(chromium, whole_stage)
    yield opened
    opened.close()


@pytest.fixture
def pages(stage_pages, stage):
    """Opens pages on the stage. At the end none of them may have failed."""
    stage_pages.set()
    yield stage_pages
    problems = list(stage_pages.problems)
    stage_pages.forget()
    assert problems == []

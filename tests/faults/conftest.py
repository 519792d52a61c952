"""What most fault tests train on."""

import pytest

from anima_core.demo.pictures import write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder

"""What leaves the machine with an adapter or a preview: no path, no user name; and nothing is written outside its folder."""

import dataclasses
import getpass
import os
from pathlib import Path

import pytest

from anima_core import train
from anima_core.demo.pictures import write_pictures
from anima_core.errors import SettingError
from anima_core.models.checkpoint import read_metadata
from anima_core.settings import OutputConfig, SampleConfig

from .tiny import model_config, train_config

SECRET = "hidden-home-of-somebody"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run whose every path lies below a folder that nobody should learn of: stopped, resumed, with previews and masks."""
    home = tmp_path_factory.mktemp("x") / SECRET
    model = model_config(home / "models")
    write_pictures(home / "pictures", 3)
    write_pictures(home / "masks", 3)
    samples = SampleConfig(prompts=("red circle",), width=64, height=64, steps=1, cfg=1.0, at_end=True)
    subset = dict(mask_dir=str(home / "masks"))
    output = OutputConfig(str(home / "out"), "test", adapter_dir=str(home / "loras"), save_every_n_steps=2, save_state=True)
    config = train_config(model, home / "pictures", home, samples=samples, output=output, subset=subset)
    train(config, lambda e: "stop" if e.get("step") == 3 else None)
    return home, train(dataclasses.replace(config, output=dataclasses.replace(output, resume=str(home / "out" / "test-run"))))


def test_adapters_and_previews_name_no_path_and_no_person(finished):
    home, result = finished
    shared = [*(home / "loras").glob("*.safetensors"), *result.run_dir.rglob("*.png")]
    assert len(shared) >= 4
    names = {SECRET, str(home), str(Path.home()), f"/{getpass.getuser()}/"}
    for path in shared:
        data = path.read_bytes()
        assert [name for name in names if name.encode() in data] == [], path.name


def test_metadata_still_says_what_was_trained(finished):
    metadata = read_metadata(finished[1].adapter_path)
    assert (
        metadata["ss_sd_model_name"] == "anima_tiny.safetensors"
        and '"image_dir": "pictures"' in metadata["anima_trainer.config"]
    )


BAD_NAMES = ["../x", "a/b", "a\\b", "..", ".", "", " ", "C:x", "x\0", 'x"y', "a|b", "a*", "x?", "<x>", "a\nb", "\udcff"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_output_names_cannot_leave_their_folder(name):
    with pytest.raises(SettingError, match="must be a plain file name"):
        OutputConfig(name=name)


def test_a_prompt_never_becomes_a_path(tmp_path, finished):
    """Previews are numbered, whatever the prompt says."""
    home, _ = finished
    samples = SampleConfig(
        prompts=("../../escape/../x", "/etc/passwd", "a\\b:c"), width=64, height=64, steps=1, cfg=1.0, at_end=True
    )
    config = train_config(model_config(home / "models"), home / "pictures", tmp_path, samples=samples, max_train_steps=1)
    result = train(config)
    names = sorted(os.listdir(result.run_dir / "samples"))
    assert names == [f"step-00000001-{index}.png" for index in range(3)]

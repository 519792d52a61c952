"""sd-scripts' words for t, crops, noise and losses: on the command line, and in a dataset file."""

import pytest

from anima_core.compat.dataset_config import read_dataset_config
from anima_core.errors import SettingError

from .test_flags import FOLDER, REQUIRED, config, request

FILE = """
[general]
random_crop = true
max_timestep = 900

[[datasets]]
resolution = 1024

[[datasets.subsets]]
image_dir = "faces"
min_timestep = "100"
[datasets.subsets.custom_attributes]
timestep_sampling = { offset = -0.5, mode = "shift" }
caption_weight = 2

[[datasets.subsets]]
image_dir = "figures"
random_crop = false
max_timestep = 400
custom_attributes = { timestep_sampling = { offset = 1 } }

[[datasets.subsets]]
image_dir = "rest"
timestep_offset = 0.25
"""


def written(folder, text=FILE):
    path = folder / "data.toml"
    path.write_text(text, encoding="utf-8")
    return path


def t_of(subset):
    return subset.min_timestep, subset.max_timestep, subset.timestep_offset, subset.random_crop


def test_a_dataset_file_has_them_for_each_subset(tmp_path):
    path = written(tmp_path)
    (found,), notes = read_dataset_config(path, {})
    assert [*map(t_of, found.subsets)] == [(0.1, 0.9, -0.5, True), (0.0, 0.4, 1.0, False), (0.0, 0.9, 0.25, True)]
    assert notes == [
        f"{path}: custom_attributes.{name} has no effect: only timestep_sampling.offset is read"
        for name in ("caption_weight", "timestep_sampling.mode")
    ]


def test_flags_fill_what_a_file_leaves_open(tmp_path):
    path = written(tmp_path, FILE.replace("max_timestep = 900", "").replace("random_crop = true", ""))
    made = request(
        *REQUIRED, "--dataset_config", str(path), "--max_timestep", "800", "--random_crop", "--timestep_offset", "0.5"
    )
    (found,) = made.config.datasets
    assert [*map(t_of, found.subsets)] == [(0.1, 0.8, -0.5, True), (0.0, 0.4, 1.0, False), (0.0, 0.8, 0.25, True)]
    assert f"--max_timestep has no effect where {path} has its own max_timestep" in made.notes


def test_flags_are_of_all_folders_of_the_command_line():
    argv = (
        "--reg_data_dir",
        "reg",
        "--min_timestep",
        "250",
        "--timestep_offset",
        "-0.5",
        "--random_crop",
        "--crop_variants",
        "8",
    )
    made = config(*argv)
    assert [*map(t_of, made.datasets[0].subsets)] == [(0.25, 1.0, -0.5, True)] * 2 and made.crop_variants == 8
    assert t_of(config().datasets[0].subsets[0]) == (0.0, 1.0, 0.0, False)


@pytest.mark.parametrize(
    "argv, said",
    [
        (("--min_timestep", "1000"), "min_timestep=1000: must be at least 0 and below 1000, thousandths of noise"),
        (("--max_timestep", "1200"), "max_timestep=1200: must be at least 1 and at most 1000, thousandths of noise"),
        (("--min_timestep", "600", "--max_timestep", "500"), "max_timestep=500: must be at least 600 and at most 1000"),
    ],
)
def test_a_range_that_is_none_is_refused_in_thousandths(argv, said):
    with pytest.raises(SettingError) as error:
        config(*argv)
    assert error.value.text.startswith(said)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('min_timestep = "100"', 'min_timestep = "low"', "min_timestep='low': must be a number"),
        ("offset = -0.5", 'offset = "near"', "custom_attributes.timestep_sampling.offset='near': must be a number"),
        ("offset = -0.5", "offset = -50", "custom_attributes.timestep_sampling.offset=-50.0: must be at least -20"),
        ("{ timestep_sampling = { offset = 1 } }", "3", "custom_attributes must be a table, not 3"),
        ("{ timestep_sampling = { offset = 1 } }", "{ timestep_sampling = 0.5 }", "timestep_sampling must be a table, not 0.5"),
    ],
)
def test_mistakes_in_a_dataset_file_are_told(tmp_path, old, new, said):
    assert old in FILE
    with pytest.raises(SettingError, match="data.toml") as error:
        read_dataset_config(written(tmp_path, FILE.replace(old, new)), {})
    assert said in error.value.text


def test_noise_and_loss_have_flags():
    flow = config(
        *("--weighting_scheme", "min_snr", "--snr_gamma", "3", "--multiscale_loss_weight", "0.5"),
        *("--multires_noise_iterations", "6", "--multires_noise_discount", "0.35"),
        *("--lowres_scale", "0.875", "--lowres_above", "0.5", "--lowres_below", "1"),
    ).flow
    assert (flow.weighting, flow.snr_gamma, flow.multiscale_loss_weight) == ("min_snr", 3.0, 0.5)
    assert (flow.multires_noise_iterations, flow.multires_noise_discount) == (6, 0.35)
    assert (flow.lowres_scale, flow.lowres_above, flow.lowres_below) == (0.875, 0.5, 1.0)
    assert config("--weighting_scheme", "detail_inv_t").flow.weighting == "detail_inv_t"


def test_sd_scripts_min_snr_gamma_is_noted_as_before():
    made = request(*REQUIRED, *FOLDER, "--min_snr_gamma", "5")
    assert made.config.flow.weighting == "none"
    assert any("min_snr_gamma" in note and "weighting_scheme=min_snr" in note for note in made.notes)

"""The points of a sweep: how their settings may be named and written, what is refused, their labels and file names."""

import itertools

import pytest

from anima_core.errors import SettingError
from anima_core.files import MAX_NAME_BYTES, is_plain_name
from anima_core.settings import DatasetConfig, ModelConfig, OutputConfig, SubsetConfig, TrainConfig
from anima_core.sweep.names import Named, changed, named, read_vary, settings
from anima_core.sweep.plan import MOST_POINTS, asked_for, folder_of, make_sweep, names_of, read_plan

MODEL = ModelConfig("a.safetensors", "v.safetensors", "q", "t5")
BASE = TrainConfig(MODEL, (DatasetConfig((SubsetConfig("x"), SubsetConfig("y"))), DatasetConfig((SubsetConfig("z"),))))


def sweep_of(*vary: str, plan: dict | None = None, base: TrainConfig = BASE):
    return make_sweep(base, asked_for(vary, plan), folder_of(base))


@pytest.mark.parametrize(
    "name, setting",
    [
        ("network.rank", "network.rank"),
        ("network_dim", "network.rank"),
        ("--network_dim", "network.rank"),
        ("rank", "network.rank"),
        ("lr", "optimizer.learning_rate"),
        ("learning_rate", "optimizer.learning_rate"),
        ("steps", "train.max_train_steps"),
        ("train_batch_size", "dataset.batch_size"),
        ("flip_aug", "subset.flip_aug"),
        ("anima_timestep_sampling", "flow.timestep_sampling"),
    ],
)
def test_a_setting_is_found_by_each_of_its_names(name, setting):
    assert named(name, {}).setting == setting


@pytest.mark.parametrize(
    "name, text",
    [
        ("network_dmi", "vary 'network_dmi': no setting has this name; did you mean network_dim?"),
        ("unet_lr", "vary 'unet_lr': sets no setting of its own; name that as section.field"),
        ("output.name", "vary output.name: no number that is learnt depends on it"),
        ("memory", "vary memory: no number that is learnt depends on it"),
        ("cache_dir", "vary cache_dir: no number that is learnt depends on it"),
        ("sample.cfg", "vary sample.cfg: no number that is learnt depends on it"),
    ],
)
def test_what_cannot_be_varied_is_refused_by_its_name(name, text):
    with pytest.raises(SettingError) as refused:
        named(name, {})
    assert str(refused.value).startswith(text)


def test_a_flag_that_counts_otherwise_than_its_setting_means_the_same_here():
    points = sweep_of("min_timestep = 100, 200").points + sweep_of("subset.min_timestep = 0.1, 0.2").points
    assert [point.values["subset.min_timestep"] for point in points] == [0.1, 0.2, 0.1, 0.2]
    assert all(point.config is not None for point in points)


def test_names_of_a_caller_win():
    widget = Named("network.alpha", {"high": 32.0})
    assert named("rank", {"rank": widget}) is widget
    (point,) = make_sweep(BASE, [{"rank": "high"}], folder_of(BASE), {"rank": widget}).points
    assert point.config.network.alpha == 32.0


@pytest.mark.parametrize("line", ["rank", "= 4", "rank = ", "rank = 4,,8"])
def test_a_line_that_is_no_list_is_refused(line):
    with pytest.raises(SettingError, match=r"write name = a, b, such as network.rank = 4, 16"):
        read_vary([line])


def test_lines_are_read_as_people_write_them():
    lines = ["", "# a comment", " network.rank = [4, 16] ", "optimizer.type='AdamW', \"Lion\""]
    assert read_vary(lines) == {"network.rank": ["4", "16"], "optimizer.type": ["AdamW", "Lion"]}
    with pytest.raises(SettingError, match="stands there twice"):
        read_vary(["rank = 4", "rank = 8"])


def test_a_grid_is_every_combination_and_a_list_stands_behind_it():
    sweep = sweep_of("rank = 4, 16", "lr = 1e-4, 3e-4", plan={"points": [{"network": {"dora": True}}, {}]})
    combinations = [dict(zip(("network.rank", "optimizer.learning_rate"), c)) for c in itertools.product((4, 16), (1e-4, 3e-4))]
    assert [dict(point.values) for point in sweep.points] == [*combinations, {"network.dora": True}, {}]
    assert [point.label for point in sweep.points[:2]] == ["rank 4, lr 0.0001", "rank 4, lr 0.0003"]
    assert [point.name for point in sweep.points[1:]] == [
        *("anima-rank4-lr0.0003", "anima-rank16-lr0.0001", "anima-rank16-lr0.0003", "anima-dora", "anima-base")
    ]
    for point in sweep.points[:4]:
        assert point.config == changed(BASE, point.values | {"output.name": point.name})
        assert (point.config.network.rank, point.config.output.name) == (point.values["network.rank"], point.name)
    assert sweep.varied == ("network.rank", "optimizer.learning_rate", "network.dora")


def test_a_setting_of_the_data_is_that_of_all_data():
    for point, size in zip(sweep_of("resolution = 512, 768x1024", "flip_aug = true").points, ((512, 512), (768, 1024))):
        assert [dataset.resolutions for dataset in point.config.datasets] == [(size,), (size,)]
        assert all(subset.flip_aug for dataset in point.config.datasets for subset in dataset.subsets)
    assert [p.name for p in sweep_of("resolution = 512, 768x1024").points] == ["anima-px512", "anima-px768x1024"]


def test_words_of_sd_scripts_are_understood():
    sweep = sweep_of("network_module = networks.lora_anima, networks.lokr_anima", "timestep_sampling = sigmoid, flux_shift")
    assert [(p.config.network.type, p.config.flow.timestep_sampling) for p in sweep.points] == [
        *itertools.product(("lora", "lokr"), ("logit_normal", "resolution_shift"))
    ]
    assert sweep.points[-1].name == "anima-lokr-resolution_shift"


def test_a_pair_is_written_with_blanks_or_in_toml_as_a_list():
    text, toml = sweep_of("betas = 0.9 0.99, 0.95 0.999"), sweep_of(plan={"sweep": {"betas": [[0.9, 0.99], [0.95, 0.999]]}})
    assert text.points == toml.points
    assert [point.config.optimizer.betas for point in text.points] == [(0.9, 0.99), (0.95, 0.999)]


def test_a_bad_value_is_that_points_alone():
    sweep = sweep_of("rank = 4, 0, many", "dropout = 0.1")
    assert [(point.config is None, point.error) for point in sweep.points] == [
        (False, ""),
        (True, "`network.rank`=0: must be at least 1"),
        (True, "`network.rank`='many': must be a whole number"),
    ]
    (point,) = sweep_of(plan={"points": [{"tlora_min_rank": 8, "rank": 4}]}).points  # a rule between two settings
    assert point.error == "`network.tlora_min_rank`=8: must be at most the rank, 4"


def test_points_that_are_the_same_are_run_once_and_counted():
    sweep = sweep_of("rank = 4, 4, 8", plan={"points": [{"network_dim": 8}]})
    assert [point.label for point in sweep.points] == ["rank 4", "rank 8"]
    assert sweep.notes == ("2 points are there twice, and are run once",)
    with pytest.raises(SettingError, match=r"network.rank: has two values in one point"):
        sweep_of("rank = 4", "network_dim = 8")


@pytest.mark.parametrize("count", [0, MOST_POINTS + 1])
def test_no_points_and_too_many_are_refused(count):
    with pytest.raises(SettingError, match=f"sweep: {count} points"):
        make_sweep(BASE, [{"seed": n} for n in range(count)], folder_of(BASE))


def test_names_are_plain_short_and_of_one_point_each():
    base = TrainConfig(MODEL, BASE.datasets, output=OutputConfig(name="名" * 55))
    lines = ["include = re:^blocks\\.(1|2)\\., */mlp/*, " + "x" * 300, "weights = /a/b.safetensors, /c/b.safetensors"]
    sweep = sweep_of(*lines, base=base)
    names = [point.name for point in sweep.points]
    assert len({name.casefold() for name in names}) == len(names) == 6
    assert all(is_plain_name(name) and len(name.encode()) < MAX_NAME_BYTES - 10 for name in names)
    assert all(point.config is not None for point in sweep.points)
    longer = sweep_of(*lines, base=base, plan={"points": [{"rank": 4}]})
    assert [point.name for point in longer.points[:6]] == names  # what is added changes no name
    assert names_of("a", [{"network.rank": 4}, {"network.alpha": 4.0}]) == ["a-rank4", "a-alpha4"]


def test_a_frozen_plan_is_read_back_as_the_same_points(tmp_path):
    sweep = sweep_of("rank = 4, 0", "resolution = 512, 768x1024", plan={"points": [{"betas": [0.9, 0.95]}, {}]})
    path = tmp_path / "sweep.toml"
    path.write_text(sweep.frozen(), encoding="utf-8")
    table, base = read_plan(path)
    assert base == BASE
    assert make_sweep(base, asked_for((), table), folder_of(base)) == sweep


@pytest.mark.parametrize(
    "text, error",
    [
        ("[network]\nrank = 4", "unknown network; a sweep file has"),
        ("[sweep]\nrank = 4", "rank=4: write a list of values"),
        ("[sweep]\nrank = []", r"rank=\[\]: write a list of values"),
        ("points = 4", "write lists of values in"),
        ("sweep = [1]", "write lists of values in"),
    ],
)
def test_a_file_that_is_no_sweep_is_refused(tmp_path, text, error):
    path = tmp_path / "sweep.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingError, match=error):
        asked_for((), read_plan(path)[0])


def test_a_setting_that_nothing_has_is_that_points_error():
    assert changed(BASE, {}) == BASE
    with pytest.raises(SettingError, match=r"sample.nothing"):
        changed(BASE, {"sample.nothing": 1})
    assert {"network.rank", "subset.flip_aug", "train.seed", "sample.steps"} <= settings().keys()

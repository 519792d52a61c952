"""sd-scripts' command line: its flags, their words, and that none is ever dropped."""

# ruff: noqa: E501 (tables of cases)

import dataclasses
from pathlib import Path

import pytest

from anima_core.cli import build_parser, main
from anima_core.compat import dataset_config, docs
from anima_core.compat.arguments import parse, request_from
from anima_core.compat.dataset_config import read_dataset_config
from anima_core.compat.flags import MAPPED, OTHER_DEFAULTS, known_names, mapped_flags
from anima_core.compat.unmapped import IGNORED, REFUSED
from anima_core.errors import SettingError
from anima_core.settings import DatasetConfig, SubsetConfig, TrainConfig, walk

REQUIRED = ["--anima_transformer", "t.safetensors", "--vae", "v", "--qwen", "q", "--t5_tokenizer_dir", "t5"]
FOLDER = ["--train_data_dir", "pics"]


def request(*argv: str):
    return request_from(parse(build_parser(), ["train", *argv]))


def config(*argv: str) -> TrainConfig:
    return request(*REQUIRED, *FOLDER, *argv).config


def test_a_flag_starts_from_its_settings_default_unless_a_reason_is_given():
    c = config()
    assert (c.network.rank, c.network.alpha, c.max_train_steps, c.memory) == (4, 1.0, 1600, "recompute")
    here = {found.name: found.value for found in walk(c)}
    there = {found.name: found.value for found in walk(TrainConfig(c.model, (DatasetConfig((SubsetConfig("pics"),)),)))}
    named = {flag.name: flag.setting for flag in mapped_flags()}
    assert {name for name in here if here[name] != there[name]} == {named[flag] for flag in OTHER_DEFAULTS}
    assert all(reason for _, reason in OTHER_DEFAULTS.values())


def test_a_dataset_file_starts_from_the_same_defaults_but_for_kohyas(tmp_path):
    path = tmp_path / "d.toml"
    path.write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'pics'\n", encoding="utf-8")
    (dataset,), _ = read_dataset_config(path, {})
    assert dataset == DatasetConfig((SubsetConfig("pics", folder_numbers=False),), **dataset_config.OTHER_DEFAULTS)


@pytest.mark.parametrize(
    "argv, read",
    [
        (["--network_args", "exclude_patterns=['.*mlp.*']", "include_patterns=['.*mlp.layer1']"], lambda n: n.exclude == ("re:^(?:.*mlp.*)$",) and n.include == ("re:^(?:.*mlp.layer1)$",)),
        (["--network_args", "network_reg_dims=.*self_attn.*=16,.*mlp.*=0"], lambda n: n.ranks == ("re:^(?:.*self_attn.*)$=16", "re:^(?:.*mlp.*)$=0")),
        (["--network_args", "network_reg_lrs=.*mlp.*=1e-5"], lambda n: n.learning_rates == ("re:^(?:.*mlp.*)$=1e-5",)),
        (["--network_args", "target_modules=re:self_attn,mlp.*"], lambda n: n.targets == "" and n.include == ("re:self_attn", "mlp.*")),
        (["--network_args", "train_llm_adapter=true", "train_norm=True"], lambda n: n.targets == "attn+mlp+llm_adapter" and n.train_norm),
        (["--network_args", "loraplus_lr_ratio=4", "rank_dropout=0.1", "module_dropout=0.2"], lambda n: (n.loraplus_lr_ratio, n.rank_dropout, n.module_dropout) == (4.0, 0.1, 0.2)),
        (["--network_module", "networks.lokr_anima", "--network_args", "lokr_full_matrix=true", "lokr_decompose_both=1", "lokr_factor=-1"], lambda n: n.full_matrix and n.decompose_both and n.factor == -1),
        (["--network_module", "networks.lokr_anima", "--network_dim", "100000", "--network_alpha", "100000"], lambda n: n.rank == 100000 and n.alpha == 0),
    ],
)  # fmt: skip
def test_network_args(argv, read):
    assert read(config(*argv).network)


@pytest.mark.parametrize(
    "argv, text",
    [
        (["--network_args", "conv_dim=4"], "network_args: unknown conv_dim; known are target_modules"),
        (["--network_args", "train_norm=maybe"], "train_norm=maybe: must be true or false"),
        (["--network_args", "exclude_patterns=.*mlp.*"], "write it as"),
        (["--network_args", "lokr_factor=x"], "lokr_factor=x: must be int"),
        (["--fp8_base"], "--fp8_base: 8-bit base weights are not available"),
        (["--scale_weight_norms", "1"], "--scale_weight_norms: weight norms are not limited here"),
        (["--deepspeed"], "--deepspeed"),
        (
            ["--optimizer_type", "RAdam_ScheduleFree", "--lr_warmup_steps", "5"],
            "optimizer=RAdamScheduleFree requires lr_warmup_steps=0",
        ),
        (
            ["--optimizer_type", "radam_schedulefree", "--lr_warmup_ratio", "0.1"],
            "optimizer=RAdamScheduleFree requires lr_warmup_ratio=0",
        ),
        (
            ["--optimizer_type", "radam_schedulefree", "--lr_scheduler", "cosine"],
            "optimizer=RAdamScheduleFree requires lr_scheduler=constant",
        ),
        (
            ["--optimizer_type", "AdamWScheduleFree", "--lr_scheduler", "linear"],
            "optimizer=AdamWScheduleFree requires lr_scheduler=constant",
        ),
        (["--dim_from_weights"], "dim_from_weights: needs --network_weights"),
        (["--network_dims", "4"], "unknown flag --network_dims; did you mean --network_dim?"),
    ],
)
def test_refusals(argv, text):
    with pytest.raises(SettingError) as refused:
        config(*argv)
    assert text in str(refused.value)


def test_schedule_free_is_refused_before_any_file_is_opened(capsys):
    argv = [
        "train",
        *REQUIRED,
        "--dataset_config",
        "missing.toml",
        "--optimizer_type",
        "radam_schedulefree",
        "--lr_scheduler",
        "cosine",
    ]
    assert main(argv) == 2
    assert "requires lr_scheduler=constant" in capsys.readouterr().err


def test_every_flag_of_sd_scripts_has_an_answer():
    """The names that both trainers' parsers define; each is mapped, ignored with a reason, or refused with a way out."""
    listed = (Path(__file__).parent / "sd_scripts_flags.txt").read_text(encoding="utf-8").split()
    assert len(listed) > 250
    assert sorted(set(listed) - set(known_names())) == []
    assert all(reason for _, reason in (*IGNORED.values(), *REFUSED.values()))
    names = known_names()
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)


def test_ignored_flags_are_told_once_with_their_reason():
    notes = request(*REQUIRED, *FOLDER, "--xformers", "--lowram", "--max_data_loader_n_workers", "4", "--clip_skip", "2").notes
    assert len(notes) == 4 and any(n.startswith("--xformers has no effect: ") for n in notes)


def test_the_docs_table_is_the_code():
    written = (Path(__file__).parents[1] / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == docs.document()
    for flag in mapped_flags():
        assert f"`--{flag.name}`" in written
    assert set(MAPPED) == {"models", "data", "network", "optimizer", "training", "output"}


def test_adafactor_and_prodigy_rules():
    assert (
        config(
            "--optimizer_type", "Adafactor", "--optimizer_args", "relative_step=False", "scale_parameter=False"
        ).optimizer.args
        == ()
    )
    with pytest.raises(SettingError, match="relative_step=True: Adafactor's step is learning_rate here"):
        config("--optimizer_type", "Adafactor", "--optimizer_args", "relative_step=True")
    with pytest.raises(SettingError, match="optimizer.type=Prodigy takes one learning rate"):
        config("--optimizer_type", "Prodigy", "--network_args", "loraplus_lr_ratio=4")


@pytest.mark.parametrize(
    "argv, sampling, weighting, shift",
    [
        ([], "logit_normal", "none", 1.0),
        (["--timestep_sampling", "sigmoid", "--weighting_scheme", "uniform"], "logit_normal", "none", 1.0),
        (["--timestep_sampling", "shift", "--discrete_flow_shift", "3"], "shift", "none", 3.0),
        (["--anima_timestep_sampling", "uniform"], "uniform", "none", 1.0),
        (["--anima_flow_shift", "3"], "shift", "none", 3.0),
        (["--timestep_sampling", "flux_shift", "--weighting_scheme", "cosmap"], "resolution_shift", "cosmap", 1.0),
        (["--timestep_sampling", "sigma", "--weighting_scheme", "logit_normal"], "logit_normal", "none", 1.0),
        (["--timestep_sampling", "sigma"], "uniform", "none", 1.0),
    ],
)
def test_timesteps_in_sd_scripts_words(argv, sampling, weighting, shift):
    flow = config(*argv).flow
    assert (flow.timestep_sampling, flow.weighting, flow.shift) == (sampling, weighting, shift)


def test_prompts_take_their_own_flags(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text(
        "# comment\na cat --n blurry, bad --w 777 --h 512 --d 5 --s 12 --l 3.5 --fs 2\n\na dog -- sitting\n", encoding="utf-8"
    )
    samples = config("--sample_prompts", str(path), "--sample_every_n_epochs", "2").samples
    cat, dog = samples.requests()
    assert (cat.prompt, cat.negative, cat.width, cat.height, cat.seed, cat.steps, cat.cfg, cat.shift) == (
        "a cat",
        "blurry, bad",
        768,
        512,
        5,
        12,
        3.5,
        2.0,
    )
    assert dog.prompt == "a dog -- sitting" and dog.width == 1024 and samples.every_n_epochs == 2
    with pytest.raises(SettingError, match="--w needs a number"):
        dataclasses.replace(samples, prompts=("x --w wide",))

"""sd-scripts' command line: its flags, their words, and that none is ever dropped."""

# ruff: noqa: E501 (tables of cases)

import dataclasses
import inspect
from pathlib import Path

import pytest
import torch

from anima_core.cli import build_parser, main
from anima_core.compat import dataset_config, docs
from anima_core.compat.arguments import parse, request_from
from anima_core.compat.dataset_config import read_dataset_config
from anima_core.compat.flags import MAPPED, OTHER_DEFAULTS, known_names, mapped_flags
from anima_core.compat.optimizers import WORDS
from anima_core.compat.unmapped import IGNORED, REFUSED
from anima_core.errors import SettingError
from anima_core.settings import DatasetConfig, OptimizerConfig, SubsetConfig, TrainConfig, walk
from anima_core.settings.optimizer import OPTIMIZERS, READ_BY, SCHEDULES
from anima_core.training.optimizers import optimizer_class
from anima_core.training.schedules import lr_factor

REQUIRED = ["--anima_transformer", "t.safetensors", "--vae", "v", "--qwen", "q", "--t5_tokenizer_dir", "t5"]
FOLDER = ["--train_data_dir", "pics"]


def request(*argv: str):
    return request_from(parse(build_parser(), ["train", *argv]))


def config(*argv: str) -> TrainConfig:
    return request(*REQUIRED, *FOLDER, *argv).config


def test_a_flag_starts_from_its_settings_default_unless_a_reason_is_given():
    c = config()
    assert (c.network.rank, c.network.alpha, c.max_train_steps, c.memory) == (4, 1.0, 1600, "auto")
    here = {found.name: found.value for found in walk(c)}
    there = {found.name: found.value for found in walk(TrainConfig(c.model, (DatasetConfig((SubsetConfig("pics"),)),)))}
    named = {flag.name: flag.setting for flag in mapped_flags()}
    of_the_library = {"optimizer.betas"}  # AdamW's, see the next test
    assert {name for name in here if here[name] != there[name]} == {named[flag] for flag in OTHER_DEFAULTS} | of_the_library
    assert all(reason for _, reason in OTHER_DEFAULTS.values())


@pytest.mark.parametrize(
    "typed, memory",
    [((), "auto"), (("--gradient_checkpointing",), "recompute"), (("--no-gradient_checkpointing",), "keep")]
    + [((flag,), "offload") for flag in ("--cpu_offload_checkpointing", "--unsloth_offload_checkpointing")],
    ids=lambda value: "".join(value),
)
def test_a_run_plans_what_it_recomputes_unless_a_flag_says_all_or_none(typed, memory):
    assert (config(*typed).memory, config(*typed, "--memory_gb", "10").memory_gb) == (memory, 10.0)
    assert (config(*typed).blocks_to_swap, config(*typed, "--blocks_to_swap", "20").blocks_to_swap) == (0, 20)


@pytest.mark.parametrize(
    "argv, said",
    [
        (
            ["--cpu_offload_checkpointing", "--no-gradient_checkpointing"],
            "gradient_checkpointing=false has no effect: cpu_offload_checkpointing recomputes every block",
        ),
        (["--network_args", "lokr_factor=4"], "network_args lokr_factor has no effect: a lora has none"),
        (
            ["--network_module", "lycoris.kohya", "--network_args", "algo=loha", "factor=4"],
            "network_args factor has no effect: a loha has none",
        ),
    ],
)
def test_what_is_overruled_or_of_another_type_is_said(argv, said):
    assert said in request(*REQUIRED, *FOLDER, *argv).notes
    heard = (["--cpu_offload_checkpointing"], ["--network_module", "networks.lokr_anima", "--network_args", "lokr_factor=4"])
    assert not [note for argv in heard for note in request(*REQUIRED, *FOLDER, *argv).notes if "no effect" in note]


@pytest.mark.parametrize("kind", OPTIMIZERS, ids=lambda kind: kind.name)
def test_without_optimizer_args_an_optimizer_starts_from_its_librarys_values(kind):
    """As sd-scripts does, which hands nothing on; the settings' own defaults are the graph's."""
    optimizer = config("--optimizer_type", kind.name).optimizer
    assert (optimizer.betas, optimizer.weight_decay) == (
        kind.library.get("betas", OptimizerConfig().betas),
        kind.library.get("weight_decay", OptimizerConfig().weight_decay),
    )
    try:
        parameters = inspect.signature(optimizer_class(kind)).parameters
    except SettingError:
        pytest.skip(f"{kind.package} is not installed")
    theirs = {name: parameter.default for name, parameter in parameters.items()}
    assert optimizer.weight_decay == theirs["weight_decay"]
    if "betas" in kind.takes:
        assert optimizer.betas == theirs[kind.takes["betas"]] and optimizer.eps == theirs.get("eps", optimizer.eps)
    if "beta1" in kind.takes:
        assert optimizer.betas[0] == theirs[kind.takes["beta1"]]


def test_optimizer_args_win_over_the_librarys_values():
    args = ("--optimizer_args", "weight_decay=0.1", "betas=(0.5,0.6)")
    optimizer = config("--optimizer_type", "Prodigy", *args).optimizer
    assert (optimizer.betas, optimizer.weight_decay) == ((0.5, 0.6), 0.1)


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
        (["--network_module", "networks.lokr"], lambda n: (n.type, n.factor) == ("lokr", -1)),
        (["--network_module", "networks.lokr", "--network_args", "factor=8"], lambda n: n.factor == 8),
        (["--network_module", "lycoris.kohya"], lambda n: n.type == "lora"),
        (["--network_module", "lycoris.kohya", "--network_args", "algo=LoCon", "preset=attn-mlp", "conv_dim=16", "conv_alpha=1"], lambda n: n.type == "lora"),
        (["--network_module", "lycoris.kohya", "--network_args", "algo=lokr", "factor=undefined", "dora_wd=False", "full_matrix=True"], lambda n: (n.type, n.factor, n.full_matrix) == ("lokr", -1, True)),
    ],
)  # fmt: skip
def test_network_args(argv, read):
    assert read(config(*argv).network)


@pytest.mark.parametrize(
    "argv, text",
    [
        (["--network_args", "conv_dims=4", "x=1"], "network_args: unknown conv_dims, x; known are target_modules"),
        (["--network_args", "train_block_indices=0-5"], "train_block_indices=0-5: use exclude_patterns"),
        (["--lr_warmup_steps", "inf"], "lr_warmup_steps=inf: must be a number of steps"),
        (["--lr_decay_steps", "nan"], "lr_decay_steps=nan: must be a number of steps"),
        (["--lr_scheduler", "adafactor"], "lr_scheduler=adafactor belongs to a step size that Adafactor finds itself"),
        (["--lr_scheduler", "piecewise_constant"], "step_rules='': write factor:step"),
        (
            ["--network_module", "networks.lora"],
            "Unsupported network module: networks.lora. Expected one of: ('networks.lokr_anima', 'networks.lora_anima')",
        ),
        (["--network_module", "networks.oft"], "Unsupported network module: networks.oft. Expected one of: ("),
        (
            ["--network_module", "lycoris.kohya", "--network_args", "algo=boft"],
            "Unsupported network module: lycoris.kohya with algo=boft. Expected",
        ),
        (
            ["--network_dims", "4", "--sede", "1"],
            "unknown flag --network_dims; did you mean --network_dim?; unknown flag --sede; did you mean --seed?",
        ),
        (["--network_args", "train_norm=maybe"], "train_norm=maybe: must be true or false"),
        (["--network_args", "exclude_patterns=.*mlp.*"], "write it as"),
        (["--network_args", "lokr_factor=x"], "lokr_factor=x: must be a whole number"),
        (["--optimizer_args", "weight_decay=abc"], "optimizer_args: weight_decay=abc: write a number"),
        (["--optimizer_args", "eps="], "optimizer_args: eps=: write a number"),
        (["--optimizer_args", "betas=0.9;0.99"], "optimizer_args: betas=0.9;0.99: write two numbers, such as 0.9,0.99"),
        (["--lr_warmup_steps", "ten"], "'ten': must be a number of steps, a share below 1, or 10%"),
        (["--network_dim", "x"], "'x': must be a whole number"),
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


def test_sd_scripts_words_for_compiling_mean_compiled_blocks_and_its_choices_are_told():
    asked = request(*REQUIRED, *FOLDER, "--torch_compile", "--dynamo_backend", "inductor", "--compile_mode", "max-autotune")
    assert asked.config.compile and config("--compile").compile and not config().compile
    told = [note for note in asked.notes if "compile" in note]
    assert [note.partition(" ")[0] for note in told] == ["--dynamo_backend", "--compile_mode"]
    assert all("compile has one form here" in note for note in told)


def test_the_docs_table_is_the_code():
    written = (Path(__file__).parents[1] / "docs" / "flags.md").read_text(encoding="utf-8")
    assert written == docs.document()
    for flag in mapped_flags():
        assert f"`--{flag.name}`" in written
    assert set(MAPPED) == {"models", "data", "network", "optimizer", "training", "output"}


@pytest.mark.parametrize(
    "schedule, argv, said",
    [
        ("cosine", ["--lr_scheduler_num_cycles", "3"], "--lr_scheduler_num_cycles has no effect with lr_scheduler=cosine: "),
        ("cosine", ["--lr_scheduler_args", "step_rules=1:500,0.1"], "--lr_scheduler_args step_rules has no effect with lr_scheduler=cosine: piecewise_constant reads it"),
        ("linear", ["--lr_decay_steps", "10%"], "--lr_decay_steps has no effect with lr_scheduler=linear: warmup_stable_decay reads it"),
        ("cosine", ["--lr_scheduler_num_cycles", "1", "--lr_scheduler_power", "1"], ""),
        ("cosine_with_restarts", ["--lr_scheduler_num_cycles", "3"], ""),
    ],
)  # fmt: skip
def test_a_number_that_the_schedule_does_not_read_is_told(schedule, argv, said):
    notes = request(*REQUIRED, *FOLDER, "--lr_scheduler", schedule, *argv).notes
    assert [note.startswith(said) for note in notes] == ([True] if said else [])


@pytest.mark.parametrize("name", READ_BY)
def test_a_schedule_reads_exactly_the_numbers_that_it_is_said_to_read(name):
    """Another value changes the rate of those schedules at some step, and of no other."""
    rules, other = {"step_rules": "1:3,0.5"}, {"step_rules": "1:9,0.2", "min_lr_ratio": 0.5, "decay_ratio": 0.5}
    for schedule in SCHEDULES:
        before = OptimizerConfig(scheduler=schedule, **rules, decay_steps=0 if name == "decay_ratio" else 5)
        after = dataclasses.replace(before, **{name: other.get(name, 3)})
        rates = [[lr_factor(c, step, 20) for step in range(20)] for c in (before, after)]
        assert (rates[0] != rates[1]) == (schedule in READ_BY[name]), schedule


def test_adafactor_and_prodigy_rules():
    assert (
        config(
            "--optimizer_type", "Adafactor", "--optimizer_args", "relative_step=False", "scale_parameter=False"
        ).optimizer.args
        == ()
    )
    with pytest.raises(
        SettingError, match="scale_parameter=True: Adafactor's step is learning_rate here; .* relative_step=True"
    ):
        config("--optimizer_type", "Adafactor", "--optimizer_args", "scale_parameter=True")
    with pytest.raises(SettingError, match="lr_scheduler=adafactor belongs to a step size that Adafactor finds itself"):
        config("--optimizer_type", "Adafactor", "--lr_scheduler", "adafactor", "--optimizer_args", "relative_step=False")
    with pytest.raises(SettingError, match="optimizer.type=Prodigy takes one learning rate"):
        config("--optimizer_type", "Prodigy", "--network_args", "loraplus_lr_ratio=4")


@pytest.mark.parametrize(
    "argv, args",
    [
        (["Adafactor", "--lr_scheduler", "adafactor"], ()),
        (["Adafactor", "--optimizer_args", "relative_step=True", "warmup_init=True"], ("warmup_init=True",)),
        (["transformers.optimization.Adafactor", "--optimizer_args", "scale_parameter=False"], ("scale_parameter=False",)),
        (["AdafactorRelative", "--optimizer_args", "eps=(1e-30,1e-3)"], ("eps=(1e-30,1e-3)",)),
    ],
)
def test_sd_scripts_words_for_relative_steps(argv, args):
    """Its schedule stands for none, and any other one that a file names is left out, as there."""
    found = request(*REQUIRED, *FOLDER, "--optimizer_type", *argv)
    optimizer = found.config.optimizer
    assert (optimizer.type, optimizer.scheduler, optimizer.args) == ("AdafactorRelative", "constant", args)
    assert not [note for note in found.notes if "no effect" in note]
    scheduled = [word for word in argv if word not in ("--lr_scheduler", "adafactor")]
    notes = request(*REQUIRED, *FOLDER, "--optimizer_type", *scheduled, "--optimizer_args", "relative_step=True", "--lr_scheduler", "cosine",
                    "--lr_warmup_steps", "5").notes  # fmt: skip
    assert [note.partition(":")[0] for note in notes] == [
        "--lr_scheduler cosine has no effect",
        "--lr_warmup_steps 5 has no effect",
    ]


@pytest.mark.parametrize("word, meant", [(word, name) for word, (name, _) in WORDS.items()])
def test_sd_scripts_words_for_other_optimizers(word, meant, monkeypatch):
    """Their packages need not be there for that: the default of their weight decay is asked for first, and is stood in for."""
    monkeypatch.setattr("anima_core.training.optimizers.optimizer_class", lambda kind: torch.optim.SGD)
    optimizer = config("--optimizer_type", word.lower()).optimizer
    assert (optimizer.type, optimizer.weight_decay) == (meant, 0.0)
    assert optimizer.args == (("nesterov=True", "momentum=0.9") if "Nesterov" in word else ())


def test_an_optimizer_of_ones_own_keeps_its_arguments_and_its_weight_decay():
    argv = ("--optimizer_type", "torch.optim.NAdam", "--optimizer_args", "betas=0.8,0.9", "momentum_decay=0.1")
    assert config(*argv).optimizer == OptimizerConfig(
        type="torch.optim.NAdam", weight_decay=0.0, args=("betas=0.8,0.9", "momentum_decay=0.1")
    )
    assert config("--optimizer_type", "torch.optim.adamw.AdamW").optimizer == config().optimizer, "it is one of the table"
    assert config(*argv[:2], "--optimizer_args", "weight_decay=0.2").optimizer.weight_decay == 0.2


@pytest.mark.parametrize(
    "betas, ours, args", [("0.8,0.9", (0.8, 0.9), ()), ("0.8,0.9,0.99", (0.9, 0.999), ("betas=0.8,0.9,0.99",))]
)
def test_came_takes_two_betas_or_three(betas, ours, args):
    optimizer = config("--optimizer_type", "pytorch_optimizer.CAME", "--optimizer_args", f"betas={betas}", "eps=1e-8").optimizer
    assert (optimizer.type, optimizer.betas, optimizer.args) == ("CAME", ours, args)


def test_a_package_that_is_missing_is_named_before_any_file_is_looked_at():
    with pytest.raises(
        SettingError, match=r"no_such_package.X: no package that is installed has no_such_package; check its spelling"
    ):
        config("--optimizer_type", "no_such_package.X")


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
        (["--timestep_sampling", "sigma", "--weighting_scheme", "mode"], "mode", "none", 1.0),
        (
            ["--timestep_sampling", "sigma", "--weighting_scheme", "logit_normal", "--discrete_flow_shift", "3"],
            "shift",
            "none",
            3.0,
        ),
        (["--timestep_sampling", "sigma", "--discrete_flow_shift", "3"], "mode", "none", 3.0),
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

"""Files of other programs: precedence, mapping, words, and that no key is ever dropped."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anima_core.cli import main
from anima_core.compat.arguments import config_from_file, write_config
from anima_core.compat.flags import setting_words
from anima_core.errors import SettingError, in_words
from anima_core.settings import (
    DatasetConfig,
    FlowConfig,
    ModelConfig,
    NetworkConfig,
    OptimizerConfig,
    OutputConfig,
    SampleConfig,
    SubsetConfig,
    TrainConfig,
    from_dict,
    to_dict,
)
from anima_core.settings.toml_file import read_toml

from .test_flags import REQUIRED, request

ROOT = """
[model]
transformer_path = "anima.safetensors"
vae_path = "vae.safetensors"
text_encoder_path = "qwen"
t5_tokenizer_dir = "t5"

[dataset]
data_dir = "train/10_subject"
repeats = 10
resolution = 1024
min_reso = 512
max_reso = 2048
reso_step = 64
max_ar = 3.0
shuffle_caption = true
caption_extension = ".txt"
keep_tokens = 1
flip_augment = true
cache_latents = true

[training]
epochs = 10
batch_size = 4
grad_accum = 2
learning_rate = 0.0002
mixed_precision = "bf16"
grad_checkpoint = true
num_workers = 2
xformers = true
seed = 7
seq_len = 256
lr_scheduler = "cosine"
lr_min_ratio = 0.1
lr_warmup_steps = 20

[lora]
network_type = "lokr"
lora_rank = 100000
lora_alpha = 100000
lokr_factor = 4

[optimizer]
type = "adamw_schedulefree_no"
weight_decay = 0.02
beta1 = 0.9
beta2 = 0.95

[output]
output_dir = "out"
output_name = "mine"
save_every = 200
save_state = true
""".replace("adamw_schedulefree_no", "AdamW")


@pytest.fixture
def root(tmp_path) -> Path:
    path = tmp_path / "root.toml"
    path.write_text(ROOT, encoding="utf-8")
    return path


def test_a_sectioned_file_maps_whole(root):
    for flag in ("--config", "--config_file"):
        answer = request(flag, str(root))
        c = answer.config
        assert c.model == ModelConfig("anima.safetensors", "vae.safetensors", "qwen", "t5", dtype="bf16")
        (dataset,) = c.datasets
        assert dataset.batch_size == 4 and dataset.enable_bucket and dataset.max_bucket_reso == 2048
        (subset,) = dataset.subsets
        assert (subset.image_dir, subset.num_repeats, subset.flip_aug, subset.keep_tokens) == ("train/10_subject", 10, True, 1)
        assert c.network == NetworkConfig(type="lokr", rank=100000, alpha=0.0, factor=4)
        assert c.optimizer.scheduler == "cosine_with_min_lr" and c.optimizer.min_lr_ratio == 0.1
        assert c.optimizer.betas == (0.9, 0.95) and c.optimizer.weight_decay == 0.02 and c.optimizer.warmup_steps == 20
        assert c.max_train_epochs == 10 and c.gradient_accumulation_steps == 2 and c.seed == 7
        assert (c.output.dir, c.output.name, c.output.save_every_n_steps, c.output.save_state) == ("out", "mine", 200, True)
        told = " ".join(answer.notes)
        assert all(
            key in told for key in ("dataset.max_ar", "training.seq_len", "--xformers has no effect", "training.num_workers")
        )


@pytest.mark.parametrize(
    "flag, value, read",
    [
        ("--network_dim", "4", lambda c: c.network.rank == 4),  # the default, typed: still wins
        ("--learning_rate", "0.0001", lambda c: c.optimizer.learning_rate == 1e-4),
        ("--seed", "42", lambda c: c.seed == 42),
        ("--gradient_accumulation_steps", "1", lambda c: c.gradient_accumulation_steps == 1),
        ("--output_name", "other", lambda c: c.output.name == "other"),
        ("--lr_scheduler", "constant", lambda c: c.optimizer.scheduler == "constant"),
        ("--network_args", "lokr_factor=16", lambda c: c.network.factor == 16),
    ],
)
def test_the_command_line_wins_even_with_a_default(root, flag, value, read):
    assert read(request("--config", str(root), flag, value).config)


def test_typed_dataset_config_wins_over_the_inline_one(root, tmp_path):
    data = tmp_path / "data.toml"
    data.write_text("[[datasets]]\nresolution = 512\n[[datasets.subsets]]\nimage_dir = 'elsewhere'\n", encoding="utf-8")
    answer = request("--config", str(root), "--dataset_config", str(data))
    assert answer.config.datasets[0].subsets[0].image_dir == "elsewhere"
    assert any("--dataset_config wins" in note for note in answer.notes)


def edited(root: Path, old: str, new: str) -> str:
    assert old in ROOT
    root.write_text(ROOT.replace(old, new), encoding="utf-8")
    return str(root)


@pytest.mark.parametrize(
    "old, new, text",
    [
        ("lora_rank = 100000", "lora_rnak = 8", "line 39: unknown key lora.lora_rnak; did you mean lora_rank?"),
        ("seed = 7", 'seed = "seven"', "line 31: training.seed='seven': must be a whole number"),
        ("grad_checkpoint = true", "grad_checkpoint = 1", "training.grad_checkpoint=1: must be true or false"),
        ('network_type = "lokr"', 'network_type = "oft"', "lora.network_type='oft': must be one of loha, lokr, lora"),
        ('t5_tokenizer_dir = "t5"', "", "Input config is missing model.t5_tokenizer_dir/model.t5_tokenizer_path."),
        ("[output]", "[ouput]", "unknown table [ouput]"),
        ("[model]", "[model", "not valid TOML"),
    ],
)
def test_mistakes_in_a_file_name_their_place(root, old, new, text):
    from anima_core.errors import AnimaError

    with pytest.raises(AnimaError) as refused:
        request("--config", edited(root, old, new))
    assert text in str(refused.value)


def test_a_switch_of_a_sectioned_file_that_says_false_as_text_is_off(root):
    targets = [
        request("--config", edited(root, "[lora]", f"[lora]\ntrain_llm_adapter = '{word}'")).config.network.targets
        for word in ("false", "true")
    ]
    assert [("llm_adapter" in text) for text in targets] == [False, True]


def test_empty_keys_of_a_sectioned_file_are_not_set(root):
    text = ROOT.replace("weight_decay = 0.02\nbeta1 = 0.9\nbeta2 = 0.95", 'weight_decay = ""\nbeta1 = ""\nbeta2 = ""')
    root.write_text(text.replace("seed = 7", 'seed = ""\nnoise_offset = ""'), encoding="utf-8")
    c = request("--config", str(root)).config
    assert (c.optimizer.weight_decay, c.optimizer.betas, c.seed, c.flow.noise_offset) == (0.01, (0.9, 0.999), 42, 0.0)


def test_a_file_that_is_not_sectioned_is_refused_as_config(tmp_path):
    path = tmp_path / "flat.toml"
    path.write_text("seed = 3\n", encoding="utf-8")
    with pytest.raises(SettingError, match="Input config is not a valid root-style Anima TOML. Expected sections"):
        request("--config", str(path))


def test_flat_files(tmp_path):
    path = tmp_path / "args.toml"
    path.write_text(
        """
anima_transformer = "t"
vae = "v"
qwen = "q"
t5_tokenizer_dir = "t5"
train_data_dir = "pics"
[network]
network_module = "networks.lokr_anima"
network_dim = 100000
network_alpha = 100000
[training]
max_train_epochs = 3
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.95"]
xformers = true
save_model_as = "safetensors"
resolution = [512, 768]
""",
        encoding="utf-8",
    )
    answer = request("--config_file", str(path))
    assert answer.config.network.alpha == 0.0 and answer.config.optimizer.type == "AdamW8bit"
    assert answer.config.optimizer.betas == (0.9, 0.95) and answer.config.datasets[0].resolutions == ((512, 768),)
    assert any("line 16: xformers has no effect" in note or "xformers has no effect" in note for note in answer.notes)
    path.write_text(path.read_text(encoding="utf-8") + "netwrok_dropout = 0.1\n", encoding="utf-8")
    with pytest.raises(SettingError, match=r"line 18: unknown key netwrok_dropout; did you mean network_dropout\?"):
        request("--config_file", str(path))


DATA = """
[general]
shuffle_caption = true
caption_extension = ".caption"
color_aug = true

[[datasets]]
resolution = [768, 512]
batch_size = 2

  [[datasets.subsets]]
  image_dir = 'a'
  num_repeats = 3
  shuffle_caption = false

  [[datasets.subsets]]
  image_dir = 'reg'
  is_reg = true
  class_tokens = "a person"

[[datasets]]
enable_bucket = true
prior_loss_weight = 0.5
  [[datasets.subsets]]
  image_dir = 'b'
  is_reg = true
"""


def test_dataset_config_levels(tmp_path):
    path = tmp_path / "data.toml"
    path.write_text(DATA, encoding="utf-8")
    answer = request(*REQUIRED, "--dataset_config", str(path), "--resolution", "1024", "--prior_loss_weight", "0.25")
    first, second = answer.config.datasets
    assert first.resolutions == ((768, 512),) and second.resolutions == ((1024, 1024),)
    assert not first.enable_bucket and second.enable_bucket  # kohya's default is off
    a, reg = first.subsets
    assert not a.shuffle_caption and reg.shuffle_caption and a.caption_extension == ".caption" and a.num_repeats == 3
    assert (a.loss_weight, reg.loss_weight, second.subsets[0].loss_weight) == (1.0, 0.25, 0.5)
    assert any("line 5: color_aug has no effect" in note for note in answer.notes)


@pytest.mark.parametrize(
    "old, new, text",
    [
        ("num_repeats = 3", "num_repaets = 3", "line 13: unknown key num_repaets; did you mean num_repeats?"),
        ("batch_size = 2", 'batch_size = "two"', "batch_size='two': must be a whole number"),
        ("image_dir = 'a'", "", "without image_dir"),
        ("resolution = [768, 512]", "resolution = 'big'", "write 1024 or [1024, 768]"),
    ],
)
def test_dataset_config_mistakes(tmp_path, old, new, text):
    path = tmp_path / "data.toml"
    path.write_text(DATA.replace(old, new), encoding="utf-8")
    with pytest.raises(SettingError) as refused:
        request(*REQUIRED, "--dataset_config", str(path))
    assert text in str(refused.value)


def data_notes(path: Path, *argv: str) -> list[str]:
    path.write_text(DATA, encoding="utf-8")
    return [note for note in request(*REQUIRED, "--dataset_config", str(path), *argv).notes if note.startswith("--")]


def test_flags_that_a_dataset_file_overrides_are_told(tmp_path):
    path = tmp_path / "data.toml"
    typed = ("--train_batch_size", "9", "--resolution", "128", "--num_repeats", "7", "--caption_prefix", "x")
    words = [("train_batch_size", "batch_size"), ("dataset_repeats", "num_repeats"), ("resolution", "resolution")]
    expected = {f"--{flag} has no effect where {path} has its own {key}" for flag, key in words}
    assert set(data_notes(path, *typed)) == expected
    assert data_notes(path) == []


def test_folders_beside_a_dataset_file_are_told(root, tmp_path):
    folders = ("--train_data_dir", "x", "--reg_data_dir", "y")
    told = [f"--{flag} has no effect: --dataset_config names the folders" for flag in ("train_data_dir", "reg_data_dir")]
    assert data_notes(tmp_path / "data.toml", *folders) == told
    inline = request("--config", str(root), "--train_data_dir", "x", "--train_batch_size", "9").notes
    assert "--train_data_dir has no effect: [dataset] names the folders" in inline
    assert "--train_batch_size has no effect where [dataset] has its own batch_size" in inline


def test_a_missing_folder_names_every_place_that_may_have_given_it():
    said = in_words("check `subset.image_dir`", setting_words())
    assert said == "check --train_data_dir, --reg_data_dir or the dataset file's image_dir"


def test_output_config_writes_a_file_that_is_the_same_run(root, tmp_path):
    assert main(["train", "--config", str(root), "--output_dir", str(tmp_path), "--output_config"]) == 0
    written = tmp_path / "mine.toml"
    again = request("--config", str(written)).config
    assert again == request("--config", str(root), "--output_dir", str(tmp_path)).config
    with pytest.raises(SettingError, match="--seed: .* is a run's frozen config"):
        request("--config", str(written), "--seed", "1")
    assert request("--config", str(written), "--output_name", "new").config.output.name == "new"


words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=20)
rates = st.floats(0, 0.9, allow_nan=False)
subsets = st.builds(
    SubsetConfig,
    image_dir=words.filter(bool),
    num_repeats=st.integers(1, 50),
    caption_prefix=words,
    class_tokens=words,
    caption_dropout_rate=rates,
    shuffle_caption=st.booleans(),
    loss_weight=st.floats(0, 5),
)
sides = st.integers(4, 128).map(lambda n: 16 * n)
datasets = st.builds(
    DatasetConfig,
    subsets=st.lists(subsets, min_size=1, max_size=3).map(tuple),
    resolutions=st.lists(st.tuples(sides, sides), min_size=1, max_size=3).map(tuple),
    batch_size=st.integers(1, 64),
    bucket_no_upscale=st.booleans(),
)
configs = st.builds(
    TrainConfig,
    model=st.builds(ModelConfig, words, words, words, words),
    datasets=st.lists(datasets, min_size=1, max_size=3).map(tuple),
    network=st.builds(
        NetworkConfig, rank=st.integers(1, 512), alpha=st.floats(0, 1e4), include=st.lists(words, max_size=3).map(tuple)
    ),
    optimizer=st.builds(OptimizerConfig, learning_rate=st.floats(1e-12, 10), eps=st.floats(1e-12, 1e-3)),
    flow=st.builds(FlowConfig, shift=st.floats(0.01, 20), noise_offset=rates),
    samples=st.builds(SampleConfig, cfg=st.floats(0, 20), negative=words),
    output=st.builds(OutputConfig, comment=words),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs)
def test_any_config_survives_its_file(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("toml") / "c.toml"
    write_config(config, path)
    assert from_dict(TrainConfig, read_toml(path)) == config
    assert to_dict(from_dict(TrainConfig, to_dict(config))) == to_dict(config)


def test_one_file_of_any_dialect_is_a_run(root, tmp_path):
    sectioned, notes = config_from_file(root)
    assert sectioned == request("--config", str(root)).config and notes
    write_config(sectioned, tmp_path / "frozen.toml")
    assert config_from_file(tmp_path / "frozen.toml") == (sectioned, ())
    flat = tmp_path / "flat.toml"
    flat.write_text(
        'anima_transformer = "t"\nvae = "v"\nqwen = "q"\nt5_tokenizer_dir = "t5"\ntrain_data_dir = "p"\n', encoding="utf-8"
    )
    assert config_from_file(flat)[0].model.transformer == "t"

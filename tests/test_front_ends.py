"""Files that front ends write: read whole, in their own words; and what is said of files that are not read."""

from pathlib import Path

import pytest

from anima_core.compat import front_ends
from anima_core.compat.arguments import config_from_file
from anima_core.compat.flags import known_names
from anima_core.compat.optimizers import PRODIGY
from anima_core.errors import SettingError
from anima_core.settings import NetworkConfig, TrainConfig

from .test_flags import REQUIRED, config, request

FILES = Path(__file__).parent / "front_ends"
MODELS = "anima_transformer = 't'\nvae = 'v'\nqwen = 'q'\nt5_tokenizer_dir = 't5'\ntrain_data_dir = 'p'\n"


def read(name: str) -> tuple[TrainConfig, str]:
    found, notes = config_from_file(FILES / f"{name}.toml")
    return found, "\n".join(notes)


def flat(folder, text: str, models: str = MODELS):
    path = folder / "flat.toml"
    path.write_text(models + text, encoding="utf-8")
    return request("--config_file", str(path))


def test_kohya_ss():
    c, notes = read("kohya_ss")
    assert (c.max_train_steps, c.max_train_epochs) == (1200, 0) and c.output.save_every_n_epochs == 1
    assert (c.network.type, c.network.rank, c.network.alpha, c.datasets[0].bucket_no_upscale) == ("lora", 32, 16, True)
    assert (c.optimizer.type, c.optimizer.betas, c.optimizer.args) == ("AdamW8bit", (0.9, 0.999), ())
    (preview,) = c.samples.requests()
    assert (preview.prompt, preview.width, preview.height, preview.cfg) == ("1girl, solo", 832, 1216, 5.0)
    for key in ("epoch", "noise_offset_type", "stop_text_encoder_training", "qwen_image_vae_2d", "compile_mode"):
        assert f": {key} has no effect" in notes


def test_anima_standalone_trainer():
    c, notes = read("anima_standalone_trainer")
    assert (c.flow.timestep_sampling, c.flow.shift, c.flow.weighting) == ("logit_normal", 3.0, "none")
    assert "discrete_flow_shift=3 has no effect with timestep_sampling=logit_normal" in notes
    assert "flash_attn" not in notes and "timestep_bias_strategy" not in notes, "what is off is not worth a line"
    assert (c.max_train_epochs, c.network.rank, c.optimizer.weight_decay) == (15, 16, 0.01)
    assert c.samples.warnings(), "it asks for previews and has no prompts"


def test_lora_scripts_next_page():
    c, _ = read("next_page")
    (preview,) = c.samples.requests()
    assert preview.prompt.startswith("Stella, 1girl") and preview.negative.startswith("worst quality")
    assert (preview.width, preview.seed, preview.steps, preview.cfg) == (1024, 42, 40, 4.5)
    assert (c.optimizer.learning_rate, c.samples.every_n_epochs, c.samples.at_first) == (3e-5, 4, True)
    assert (c.datasets[0].subsets[0].keep_tokens, c.network.dropout, c.seed) == (1, 0.05, 3139060772)


def test_lora_scripts_next_presets_and_templates():
    c, notes = read("next_preset")
    assert c.network.rank == 16 and "metadata" not in notes
    c, _ = read("next_benchmark_fast")
    assert c.datasets[0].subsets[0].image_dir == "pictures" and not c.cache_latents
    c, _ = read("next_template")
    assert (c.gradient_accumulation_steps, c.optimizer.warmup_steps, c.samples.steps) == (2, 50, 40)


def test_lora_scripts_next_lokr():
    c, _ = read("next_lokr")
    assert (c.network.type, c.network.factor, c.network.rank) == ("lokr", -1, 16)
    assert c.samples.prompts == () and c.samples.warnings() == []


def test_lora_scripts_anima():
    c, _ = read("lora_scripts_anima")
    assert c.samples.requests()[0].seed == 2333 and c.optimizer.weight_decay == 0.01 and c.network.ranks == ()


def test_previews_that_are_switched_off_stay_off(tmp_path):
    text = "enable_preview = false\npositive_prompts = 'x'\nsample_every_n_epochs = 2\nsample_at_first = true\n"
    samples = flat(tmp_path, text).config.samples
    assert samples.prompts == () and not samples.at_first and samples.every_n_epochs == 0


def test_a_prompt_file_wins_over_the_pages_prompt(tmp_path):
    (tmp_path / "p.txt").write_text("from the file\n", encoding="utf-8")
    text = f"positive_prompts = 'x'\nprompt_file = '{(tmp_path / 'p.txt').as_posix()}'\n"
    assert flat(tmp_path, text).config.samples.prompts == ("from the file",)


def test_numbers_and_lists_may_come_as_text(tmp_path):
    text = """
learning_rate = "5e-5"
network_dim = "16"
max_train_steps = 500.0
lr_warmup_steps = "10%"
lr_scheduler = "linear"
optimizer_args = "weight_decay=0.1, betas=(0.9, 0.95)"
network_args = "loraplus_lr_ratio=4,rank_dropout=0.1"
"""
    c = flat(tmp_path, text).config
    assert (c.optimizer.learning_rate, c.network.rank, c.max_train_steps, c.optimizer.warmup_ratio) == (5e-5, 16, 500, 0.1)
    assert (c.optimizer.weight_decay, c.optimizer.betas) == (0.1, (0.9, 0.95))
    assert (c.network.loraplus_lr_ratio, c.network.rank_dropout) == (4.0, 0.1)


@pytest.mark.parametrize("key", ["network_args_custom", "optimizer_args_custom"])
@pytest.mark.parametrize("value", ["5", "true", "[1]"])
def test_a_front_ends_list_that_is_none_is_refused_with_its_line(tmp_path, key, value):
    with pytest.raises(SettingError, match=rf"flat.toml, line 6: {key}=.*: must be a list of name=value"):
        flat(tmp_path, f"{key} = {value}\n")


def test_a_front_ends_list_is_read_as_the_flags(tmp_path):
    c = flat(tmp_path, 'optimizer_args_custom = "weight_decay=0.1, betas=(0.9, 0.95)"\n').config
    assert (c.optimizer.weight_decay, c.optimizer.betas) == (0.1, (0.9, 0.95))


def test_prodigys_keys_are_the_same_in_every_kind_of_file(tmp_path):
    text = "optimizer_type = 'Prodigy'\n" + "".join(f"{key} = '2'\n" for key in PRODIGY)
    assert set(flat(tmp_path, text).config.optimizer.args) == {f"{name}=2" for name in PRODIGY.values()}


@pytest.mark.parametrize("name", ["CAME", "pytorch_optimizer.CAME"])
def test_cames_keys_are_its_arguments_and_else_noted(tmp_path, name):
    keys = "came_clip_threshold = 2\ncame_weight_decouple = true\ncame_eps1 = ''\n"
    found = flat(tmp_path, f"optimizer_type = '{name}'\n" + keys)
    assert found.config.optimizer.type == "CAME" and not [note for note in found.notes if "came_" in note]
    assert set(found.config.optimizer.args) == {"clip_threshold=2", "weight_decouple=True"}
    others = flat(tmp_path, "optimizer_type = 'AdamW'\n" + keys)
    assert others.config.optimizer.args == () and len([note for note in others.notes if "came_" in note]) == 2


def test_prodigys_keys_that_prodigy_with_averages_has_too(tmp_path):
    text = "optimizer_type = 'prodigyplus.ProdigyPlusScheduleFree'\nprodigy_d_coef = '2'\nprodigy_safeguard_warmup = true\n"
    optimizer = flat(tmp_path, text).config.optimizer
    assert (optimizer.type, optimizer.args) == ("ProdigyPlusScheduleFree", ("d_coef=2",))


def test_numbers_of_a_dataset_file_may_come_as_text_too(tmp_path):
    path = tmp_path / "data.toml"
    text = "[[datasets]]\nbatch_size = '4'\nmin_bucket_reso = ''\n[[datasets.subsets]]\nimage_dir = 'p'\nnum_repeats = '3'\n"
    path.write_text(text + "caption_dropout_rate = '5e-2'\nkeep_tokens = ''\ncaption_prefix = ''\n", encoding="utf-8")
    (dataset,) = request(*REQUIRED, "--dataset_config", str(path)).config.datasets
    (subset,) = dataset.subsets
    assert (dataset.batch_size, dataset.min_bucket_reso) == (4, 256)
    assert (subset.num_repeats, subset.caption_dropout_rate, subset.keep_tokens) == (3, 0.05, 0)


def test_switches_of_files_may_come_as_text_too(tmp_path):
    path = tmp_path / "data.toml"
    subset = "[[datasets.subsets]]\nimage_dir = 'p'\nis_reg = 'false'\nflip_aug = 'True'\n"
    path.write_text(f"[[datasets]]\nenable_bucket = 'true'\nprior_loss_weight = 0.5\n{subset}", encoding="utf-8")
    (dataset,) = request(*REQUIRED, "--dataset_config", str(path)).config.datasets
    (subset,) = dataset.subsets
    assert (dataset.enable_bucket, subset.is_reg, subset.flip_aug, subset.loss_weight) == (True, False, True, 1.0)
    text = "enable_bucket = 'false'\nenable_preview = 'False'\npositive_prompts = 'x'\n"
    flat_run = flat(tmp_path, text).config
    assert not flat_run.datasets[0].enable_bucket and flat_run.samples.prompts == ()


@pytest.mark.parametrize(
    "line, expected",
    [
        ("enable_bucket = 'perhaps'", "true or false"),
        ("lr_warmup_steps = 'ten'", "a number of steps, a share below 1, or 10%"),
        ("learning_rate = 'fast'", "a number"),
    ],
)
def test_what_a_key_expects_is_said_in_plain_words(tmp_path, line, expected):
    with pytest.raises(SettingError) as refused:
        flat(tmp_path, line + "\n")
    assert str(refused.value).endswith(f": must be {expected}")


@pytest.mark.parametrize("value", ['"many"', "true", "1.5", "[1]", '"nan"'])
def test_a_text_that_is_no_number_is_refused_with_its_line(tmp_path, value):
    with pytest.raises(SettingError, match=r"line 6: network_dim=.*: must be a whole number"):
        flat(tmp_path, f"network_dim = {value}\n")


def test_what_is_empty_is_not_set(tmp_path):
    empty = [name for name in known_names() if name not in ("config", "config_file", "anima_transformer", "vae", "qwen")]
    keys = [*empty, *front_ends.KEYS]
    text = "\n".join(f"{key} = ''" for key in keys if key not in MODELS and key not in ("t5_tokenizer_path", "qwen3"))
    assert flat(tmp_path, text).config == flat(tmp_path, "").config
    lists = "network_args = []\noptimizer_args = []\nlr_scheduler_args = []\nbase_weights = []\n"
    assert flat(tmp_path, lists).config == flat(tmp_path, "").config


def test_what_is_typed_empty_is_not_set_either(tmp_path):
    assert config("--optimizer_type", "", "--unet_lr", "", "--lr_scheduler", "", "--network_weights", "") == config()
    path = tmp_path / "flat.toml"
    path.write_text(MODELS + "network_dim = 7\n", encoding="utf-8")
    assert request("--config_file", str(path), "--network_dim", "").config.network.rank == 4


def test_all_unknown_keys_of_a_file_are_named_at_once(tmp_path):
    with pytest.raises(SettingError) as refused:
        flat(tmp_path, "netwrok_dim = 4\nseed = 1\n[training]\nzzz = 1\nlearning_rat = 1e-4\n")
    assert str(refused.value).endswith(
        "flat.toml, line 6: unknown key netwrok_dim; did you mean network_dim?; line 9: unknown key zzz; "
        "line 10: unknown key learning_rat; did you mean learning_rate?"
    )


def test_all_unknown_keys_of_a_sectioned_file_are_named_at_once(tmp_path):
    path = tmp_path / "root.toml"
    path.write_text("[model]\nvea_path = 'v'\n[training]\nseeds = 3\n[loras]\n[x.y]\n", encoding="utf-8")
    with pytest.raises(SettingError) as refused:
        request("--config", str(path))
    assert str(refused.value).endswith(
        "root.toml, line 2: unknown key model.vea_path; did you mean vae_path?; line 4: unknown key training.seeds; did you "
        "mean seed?; line 5: unknown table [loras]; did you mean lora?; line 6: unknown table [x]"
    )


def test_all_unknown_keys_of_a_dataset_file_are_named_at_once(tmp_path):
    path = tmp_path / "data.toml"
    text = "[general]\nshufle_caption = true\n[[datasets]]\nbatch_sise = 1\n[[datasets.subsets]]\nimage_dirs = 'p'\n"
    path.write_text(text + "num_repeat = 2\n[[datasets.subsets]]\nimage_dir = 'p'\nnum_repeat = 3\n[other]\n", encoding="utf-8")
    with pytest.raises(SettingError) as refused:
        request(*REQUIRED, "--dataset_config", str(path))
    assert str(refused.value).endswith(
        "data.toml, line 11: unknown table [other]; line 2: unknown key shufle_caption; did you mean shuffle_caption?; line 4: "
        "unknown key batch_sise; did you mean batch_size?; line 6: unknown key image_dirs; did you mean image_dir?; line 7: "
        "unknown key num_repeat; did you mean num_repeats?"
    )


@pytest.mark.parametrize(
    "text, said",
    [
        ("lora_type = 'vera'\n", "line 6: lora_type='vera': only lora, locon, dora, tlora, loha, lokr are trained"),
        ("model_train_type = 'anima-finetune'\n", "line 6: model_train_type=anima-finetune: only adapters are trained"),
        ("conditioning = true\n", "line 6: conditioning: image editing is not trained here"),
        ("log_with = 'tensorbord'\n", "line 6: log_with='tensorbord': must be one of tensorboard, wandb, all"),
        ("lr_scheduler = 'cosin'\n", "line 6: lr_scheduler='cosin': must be one of constant, "),
        ("[subsets]\n[train_mode]\nx = 1\n", "line 7: [train_mode]: a file of LoRA_Easy_Training_Scripts, which is not read"),
        ("[model]\ntype = 'anima'\n[adapter]\nrank = 4\n", "line 6: [model]: a file of diffusion-pipe"),
    ],
)
def test_what_is_not_read_is_named(tmp_path, text, said):
    with pytest.raises(SettingError) as refused:
        flat(tmp_path, text)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    "text, network",
    [
        ("lora_type = 'loha'\nnetwork_dim = 8\n", NetworkConfig(type="loha", rank=8, alpha=1)),
        ("lora_type = 'dora'\ndora_wd = false\nnetwork_dim = 8\n", NetworkConfig(rank=8, alpha=1, dora=True)),
        ("lora_type = 'lora'\ntlora_min_rank = 1\nnetwork_dim = 8\n", NetworkConfig(rank=8, alpha=1)),
        (
            "lora_type = 'tlora'\ntlora_min_rank = '2'\ntlora_rank_schedule = 'linear'\ntlora_orthogonal_init = false\n",
            NetworkConfig(rank=4, alpha=1, tlora_min_rank=2),
        ),
        (
            "network_module = 'networks.tlora_anima'\ntlora_min_rank = 2\n",
            NetworkConfig(rank=4, alpha=1, tlora_min_rank=2, tlora_schedule="cosine"),
        ),
        (
            "network_module = 'lycoris.kohya'\nlycoris_algo = 'loha'\ndora_wd = true\n",
            NetworkConfig(type="loha", rank=4, alpha=1, dora=True),
        ),
    ],
)
def test_the_types_of_a_page(tmp_path, text, network):
    """Fields of T-LoRA stand there for every type, and count for one."""
    assert flat(tmp_path, text).config.network == network


def test_a_dora_says_whose_lengths_it_trains(tmp_path):
    notes = flat(tmp_path, "network_module = 'lycoris.kohya'\ndora_wd = true\n").notes
    assert any("the lengths are those of the inputs, as with wd_on_output=False" in note for note in notes)
    assert not flat(tmp_path, "network_args = ['dora_wd=True', 'wd_on_output=False']\n").notes


def test_what_is_refused_only_where_it_is_asked_for(tmp_path):
    text = "fp8_base = false\nscale_weight_norms = 0\nconditioning = false\nllm_adapter_path = ''\npissa_init = false\n"
    text += "llm_adapter_lr = 0\nfreeze_llm_adapter = true\n"  # as Anima-Standalone-Trainer says that it is not trained
    assert flat(tmp_path, text).config == flat(tmp_path, "").config
    assert config("--scale_weight_norms", "0", "--llm_adapter_path", "") == config()
    assert flat(tmp_path, "llm_adapter_path = 'a'\n").config.model.llm_adapter == "a"


def test_comfyuis_folder_is_offered_after_the_seeds_words(monkeypatch):
    from anima_core.compat import translate

    words = "T5 tokenizer directory is required. Set --t5_tokenizer_dir."
    for found, more in ((None, ""), (("qwen", "c/t5_tokenizer"), " ComfyUI's own is c/t5_tokenizer.")):
        monkeypatch.setattr(translate, "comfyui_tokenizers", lambda found=found: found)
        with pytest.raises(SettingError) as refused:
            config("--t5_tokenizer_dir", "")
        assert str(refused.value) == words + more

"""Prompts of previews: the three kinds of file, prompts given themselves, and the flags of a prompt."""

import json

import pytest

from anima_core.compat.prompts import names_file, read_prompts
from anima_core.errors import FileError, SettingError
from anima_core.sampling import samplers
from anima_core.settings import SampleConfig
from anima_core.settings.samples import SAMPLERS, preview_request, sampler_named
from anima_core.training.previews import check_samples

from .test_flags import FOLDER, REQUIRED, config, request


def samples_of(*flags: str) -> SampleConfig:
    return config(*flags).samples


def written(folder, name: str, text: str, encoding: str = "utf-8") -> str:
    (folder / name).write_bytes(text.encode(encoding))
    return str(folder / name)


def test_a_json_file_holds_lines_and_objects(tmp_path):
    entries = [
        "a cat --w 640",
        {"prompt": "a\ndog", "negative_prompt": "dark", "width": 768, "scale": 3.5, "seed": 5, "enum": 0},
    ]
    path = written(tmp_path, "p.json", json.dumps(entries))
    cat, dog = samples_of("--sample_prompts", path).requests()
    assert (cat.prompt, cat.width) == ("a cat", 640)
    assert (dog.prompt, dog.negative, dog.width, dog.cfg, dog.seed) == ("a dog", "dark", 768, 3.5, 5)


def test_a_toml_file_holds_what_is_shared_and_one_table_a_prompt(tmp_path):
    text = "[prompt]\nwidth = 768\nsample_steps = 9\n[[prompt.subset]]\nprompt = 'a fox'\n"
    text += "[[prompt.subset]]\nprompt = 'an owl'\nwidth = 512\n"
    fox, owl = samples_of("--sample_prompts", written(tmp_path, "p.toml", text)).requests()
    assert (fox.prompt, fox.width, fox.steps, owl.prompt, owl.width, owl.steps) == ("a fox", 768, 9, "an owl", 512, 9)


@pytest.mark.parametrize("encoding, note", [("utf-8", False), ("utf-8-sig", False), ("gbk", True), ("utf-16", True)])
def test_a_text_file_in_any_encoding_that_old_editors_write(tmp_path, encoding, note):
    path = written(tmp_path, "p.txt", "# 注释\n一个女孩，单人，蓝色的眼睛\r\n\n1girl, solo\n", encoding)
    answer = request(*REQUIRED, *FOLDER, "--sample_prompts", path)
    assert answer.config.samples.prompts == ("一个女孩，单人，蓝色的眼睛", "1girl, solo")
    assert any("p.txt: read as " in text for text in answer.notes) == note


@pytest.mark.parametrize("encoding", ["utf-8-sig", "gbk", "utf-16"])
def test_a_toml_file_too(tmp_path, encoding):
    text = "# 注释\n[prompt]\nwidth = 768\n[[prompt.subset]]\nprompt = '一个女孩，单人，蓝色的眼睛'\n"
    found, notes = read_prompts(written(tmp_path, "p.toml", text, encoding))
    assert found == ("一个女孩，单人，蓝色的眼睛 --w 768",) and len(notes) == (encoding != "utf-8-sig")


@pytest.mark.parametrize("prompt", ["1girl, solo", "a/b, c --w 512", "two\nlines", "1girl", "(masterpiece:1.2), .hack"])
def test_a_prompt_may_stand_in_the_flag_itself(prompt):
    assert not names_file(prompt) and read_prompts(prompt) == (tuple(prompt.splitlines()), [])


@pytest.mark.parametrize(
    "path", ["prompts.txt", "x/p.JSON", "p.toml", "/data/prompts", "\\\\server\\share\\prompts", "~/prompts"]
)
def test_a_path_is_no_prompt_even_where_nothing_is(path):
    assert names_file(path)
    with pytest.raises(FileError, match="cannot be read"):
        read_prompts(path)


def test_a_file_without_an_ending_is_still_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "prompts", "a cat\n")
    assert read_prompts("prompts") == (("a cat",), [])


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("p.json", "{", "not valid JSON"),
        ("p.json", '["a cat \\ud83d"]', r"not valid JSON: half a character \(.ud83d\)"),
        ("p.json", '{"prompt": "x"}', "must be a list of prompts"),
        ("p.json", "[1]", "1: a prompt must be a text, or keys with prompt among them"),
        ("p.json", '[{"prompt": "x", "widht": 1, "x": 2}]', "unknown keys: widht, x; known are prompt, negative_prompt, width"),
        ("p.toml", "a = 1", r"no \[\[prompt.subset\]\]"),
        ("p.toml", "[prompt", "not valid TOML"),
        ("p.txt", "\0\0", "cannot be read"),
    ],
)
def test_a_prompt_file_that_is_not_what_it_is_called(tmp_path, name, text, said):
    with pytest.raises(FileError, match=said):
        read_prompts(written(tmp_path, name, text))


@pytest.mark.parametrize(
    "name, text", [("p.txt", ""), ("p.txt", "# none yet\n"), ("p.json", "[]"), ("p.toml", "[prompt]\nsubset = []\n")]
)
def test_a_prompt_file_without_a_prompt_is_named(tmp_path, name, text):
    path = written(tmp_path, name, text)
    answer = request(*REQUIRED, *FOLDER, "--sample_prompts", path, "--sample_every_n_epochs", "1")
    assert answer.notes == (f"{path}: is empty: it holds no prompt, so no previews are drawn",)
    (told,) = answer.config.samples.warnings()
    assert told.endswith("there is no prompt in `sample.prompts`: add one")


def test_flags_of_a_prompt_that_do_nothing_are_cut_and_told():
    line = "a cat --g 3 --ss ddim --sch karras --cn x.png --ctr 0.5 --rcfg 1 --zz top --L 3 --w 512"
    samples = SampleConfig(prompts=(line, "a dog --ss euler", "a cat --g 3"))
    told = samples.warnings()
    assert [text.split()[0] for text in told] == ["--g", "--ss", "--sch", "--cn", "--ctr", "--rcfg", "--zz"]
    assert "known are --n --w --h --d --s --l --fs --ss --sch" in told[-1]
    assert told[1] == f"--ss ddim in a prompt has no effect: there are {', '.join(SAMPLERS)}"
    cat = samples.requests()[0]
    assert (cat.prompt, cat.cfg, cat.width) == ("a cat", 3.0, 512)
    assert (cat.sampler, cat.scheduler) == ("euler", "simple")


@pytest.mark.parametrize(
    "word, sampler",
    [
        *(("er_sde", "er_sde"), ("euler_a", "euler_ancestral"), ("k_euler", "euler"), ("dpmsolver++", "dpmpp_2m")),
        *(("DPM++ 2M SDE", "dpmpp_2m_sde"), ("Euler a", "euler_ancestral"), ("heun", ""), ("", "")),
    ],
)
def test_a_sampler_by_the_words_of_other_programs(word, sampler):
    assert sampler_named(word) == sampler
    (drawn,) = SampleConfig(prompts=(f"a cat --ss {word} --sch Beta --w 512",), sampler="res_multistep").requests()
    assert (drawn.sampler, drawn.scheduler, drawn.width) == (sampler or "res_multistep", "beta", 512)


def test_samplers_of_flags_and_of_files(tmp_path):
    drawn = samples_of("--sample_sampler", "euler_a", "--sample_scheduler", "beta", "--sample_prompts", "a cat").requests()[0]
    assert (drawn.sampler, drawn.scheduler) == ("euler_ancestral", "beta")
    answer = request(*REQUIRED, *FOLDER, "--sample_sampler", "ddim", "--sample_scheduler", "karras")
    assert (answer.config.samples.sampler, answer.config.samples.scheduler) == ("euler", "simple")
    assert [text.partition(":")[0] for text in answer.notes] == [
        "sample_sampler=ddim has no effect",
        "sample_scheduler=karras has no effect",
    ]
    entry = {"prompt": "a cat", "sample_sampler": "er_sde", "sample_scheduler": "normal"}
    path = written(tmp_path, "p.json", json.dumps([entry]))
    (cat,) = samples_of("--sample_prompts", path).requests()
    assert (cat.sampler, cat.scheduler) == ("er_sde", "normal")


def test_a_sampler_without_its_package_is_refused_before_anything_loads(monkeypatch):
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    assert check_samples(SampleConfig(prompts=("x --g 3",), sampler="er_sde"))[0].startswith("--g in a prompt")
    with pytest.raises(SettingError, match="sample.sampler=dpmpp_2m_sde: needs the package torchsde"):
        check_samples(SampleConfig(prompts=("x --ss dpmpp_2m_sde",)))


def test_a_seed_by_chance_is_the_previews_own():
    assert preview_request("x --d -1", SampleConfig(seed=9)).seed == 9
    with pytest.raises(SettingError, match="--d must be at least -1"):
        preview_request("x --d -2", SampleConfig())


@pytest.mark.parametrize("asked", [{"every_n_steps": 5}, {"every_n_epochs": 1}, {"at_first": True}, {"at_end": True}])
def test_previews_without_a_prompt_are_told(asked):
    (name,) = asked
    assert f"`sample.{name}` asks for previews, but there is no prompt" in SampleConfig(**asked).warnings()[0]
    assert SampleConfig(**asked, prompts=("x",)).warnings() == [] == SampleConfig().warnings()


def test_the_command_line_keeps_the_cadence_without_prompts_so_that_it_is_told():
    assert samples_of("--sample_every_n_epochs", "2").warnings() and not samples_of().warnings()

"""`python -m anima_core plan`: what a run would take, said without loading a model."""

import pytest

from anima_core.cli import main
from anima_core.demo.pictures import write_pictures
from anima_core.training import loop
from anima_core.training.forecast import forecast, forecast_on

from .tiny import train_config


@pytest.fixture(scope="module")
def flags(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    paths = ["--anima_transformer", model.transformer, "--vae", model.vae, "--qwen", model.qwen]
    data = ["--t5_tokenizer_dir", model.t5_tokenizer_dir, "--train_data_dir", str(folder), "--resolution", "128"]
    return [*paths, *data, "--output_dir", str(folder / "output"), "--train_batch_size", "2"]


def test_a_plan_is_told_for_a_card_that_is_not_here(flags, capsys, monkeypatch):
    monkeypatch.delattr("anima_core.training.loop.load_transformer")
    monkeypatch.delattr("anima_core.training.prepare.load_vae")
    assert main(["plan", *flags, "--card", "rtx 3060 12gb"]) == 0
    first, *sizes, transformer, vae, qwen = capsys.readouterr().out.splitlines()
    assert transformer == "transformer: Anima, 2 blocks, fp32, 0.01 GB"
    assert vae.startswith("VAE: Qwen-Image VAE, fp32") and qwen.startswith("text encoder: Qwen3, 2 layers of 64, fp32")
    assert first.startswith("RTX 3060 12 GB: 2 of 2 blocks keep, peak 0.0 of 11.4 GB, about 0.0")
    assert all(line.startswith("largest batch: 2 pictures of ") and line.endswith(", 512 rows of text") for line in sizes)


def test_a_prefix_of_every_caption_is_planned_for(flags, capsys):
    assert main(["plan", *flags, "--card", "12gb", "--caption_prefix", "one, " * 400]) == 0
    rows = [
        int(line.rpartition(", ")[2].split()[0]) for line in capsys.readouterr().out.splitlines() if line.startswith("largest")
    ]
    assert rows and min(rows) > 800, rows


def test_without_a_card_it_is_for_this_machine(flags, capsys):
    """On the CPU, where nothing limits it."""
    assert main(["plan", *flags, "--device", "cpu"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "cpu: 2 of 2 blocks keep"


def test_a_run_that_does_not_fit_is_told_what_would(flags, capsys):
    assert main(["plan", *flags, "--card", "12gb", "--memory_gb", "0.501"]) == 0
    first, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith("CARD 12 GB: ") and "s/step" not in first
    assert second == "this does not fit: use a smaller --train_batch_size, --resolution or --network_dim"


def test_an_unknown_card_is_a_refused_setting(flags, capsys):
    assert main(["plan", *flags, "--card", "voodoo"]) == 2
    assert "anima: --card='voodoo': not in the table" in capsys.readouterr().err


def test_it_is_the_plan_that_the_run_itself_makes(model, tmp_path):
    """What stays on the card, and what a step takes, as it is counted with and without a model."""
    folder = tmp_path / "pictures"
    write_pictures(folder, 4)
    config = train_config(model, folder, tmp_path, memory="auto", memory_gb=8.0, ema_decay=0.9)
    with loop.opened(config) as run:
        live, counter = run.fit.budget, run.fit.counter
    away, levels = forecast_on(counter, 12e9, on_card=False)
    assert away.resident == pytest.approx(live.resident, rel=0.01) and away.costs == live.costs
    assert levels == ("keep", "keep") and forecast(config, None)[0] == "cpu: 2 of 2 blocks keep, peak 0.0 of 8.0 GB"
    assert forecast_on(counter, 12e9)[0].resident < 0.2 * live.resident, "on a card the LLM adapter leaves"

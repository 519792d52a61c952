"""What a run makes of words that only training can honour: input noise, warm-up, previews that were asked for."""

import dataclasses

import pytest
import torch

from anima_core import seeds
from anima_core.demo.pictures import write_pictures
from anima_core.settings import FlowConfig, OptimizerConfig, SampleConfig
from anima_core.training.feed import Batch, Feed
from anima_core.training.loop import train
from anima_core.training.preflight import preflight
from anima_core.training.ranks import Ranks

from .tiny import prepared, train_changed, train_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


def batches(config, count: int = 3) -> list[Batch]:
    data, _, _ = prepared(config)
    with Feed(data, preflight(config), 0, 10, Ranks()) as feed:
        return [next(feed) for _ in range(count)]


def test_input_noise_leaves_every_other_draw_alone(model, pictures, tmp_path):
    plain = train_config(model, pictures, tmp_path)
    perturbed = dataclasses.replace(plain, flow=FlowConfig(ip_noise_gamma=0.2))
    for before, now in zip(batches(plain), batches(perturbed), strict=True):
        assert torch.equal(before.noise, now.noise) and torch.equal(before.t, now.t) and before.names == now.names
        assert before.input_noise is None and now.input_noise is not None
        drawn = torch.randn(now.noise.shape, generator=seeds.generator(plain.seed, "input noise", now.number))
        assert torch.allclose(now.input_noise, now.noise + 0.2 * drawn)


def test_the_model_sees_the_input_noise_and_the_target_does_not(model, pictures, tmp_path):
    """Given zeros as its input's noise, the model is shown (1 - t) times the latents."""
    seen = []

    def watch(run):
        batch = batches(train_config(model, pictures, tmp_path / "data"), 1)[0]
        batch = dataclasses.replace(batch, input_noise=torch.zeros_like(batch.noise))
        hook = run.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].float()))
        run.forward(batch)
        hook.remove()
        assert torch.allclose(seen[0], (1 - batch.t.view(-1, 1, 1, 1)) * batch.latents, atol=1e-2)

    train_changed(train_config(model, pictures, tmp_path, max_train_steps=1), watch)
    assert seen


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2)}, "`optimizer.warmup_steps`=2: the run has 2 steps"),
        ({"samples": SampleConfig(every_n_steps=1)}, "`sample.every_n_steps` asks for previews, but there is no prompt"),
        ({"samples": SampleConfig(prompts=("x --zz 1",))}, "--zz in a prompt has no effect"),
        ({}, ""),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_a_warning_of_the_run(model, pictures, tmp_path, changes, told):
    warned = []
    train(
        train_config(model, pictures, tmp_path, max_train_steps=2, **changes),
        lambda event: warned.append(event["text"]) if event["event"] == "warning" else None,
    )
    assert len([text for text in warned if told and told in text]) == bool(told)
    assert told or not [text for text in warned if "warm" in text or "preview" in text]

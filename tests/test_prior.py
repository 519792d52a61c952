"""Prior preservation: what it asks of the base model, that it is learnt, and that nothing else depends on it."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from anima_core import train
from anima_core.compat import arguments
from anima_core.data.class_captions import check_prior, class_caption
from anima_core.demo.pictures import write_pictures
from anima_core.errors import SettingError
from anima_core.models.transformer import load_transformer
from anima_core.settings import FlowConfig, NetworkConfig, OutputConfig, PriorConfig, TrainConfig
from anima_core.speed.counting import Meter
from anima_core.training import flow
from anima_core.training.feed import Batch
from anima_core.training.loop import Run, opened
from anima_core.training.prepare import all_captions
from anima_core.training.prior import with_kept

from .conftest import relative_error
from .test_training_words import batches
from .tiny import prepared, same_tensors, train_config

CIRCLES = PriorConfig(weight=0.5, trigger="circle", class_words="shape")
BOTH = dataclasses.replace(CIRCLES, masked=0.7)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Of one size, so that some batches have circles beside other shapes; masks beside, one picture has none."""
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder / "p", 6)
    for name in ("masks", "white"):
        (folder / name).mkdir()
    for path in sorted((folder / "p").glob("*.png")):
        with Image.open(path) as picture:
            picture.resize((64, 64)).save(path)
        Image.new("L", (64, 64), "white").save(folder / "white" / path.name)
        if not path.name.startswith("003"):
            Image.linear_gradient("L").resize((64, 64)).save(folder / "masks" / path.name)
    return folder


def config_of(model, pictures, folder, masks: str = "masks", **changes) -> TrainConfig:
    subset = {"mask_dir": str(pictures / masks)} if masks else {}
    shared = {"subset": subset, "dataset": {"batch_size": 3}, "cache_dir": str(pictures / "cache")}
    return train_config(model, pictures / "p", folder, **(shared | changes))


def moved(run: Run) -> None:
    """Let a run's adapter be one that has learnt something."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in run.state.network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def step_of(run: Run, batch: Batch) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradients of a step of one micro-batch."""
    run.state.gradient.zero()
    loss = run.accumulate(iter([dataclasses.replace(batch, divisor=1.0, ends_step=True)]), [])
    return loss, [parameter.grad.clone() for parameter in run.state.network.parameters()]


@pytest.mark.parametrize(
    "prior, caption, wanted",
    [
        (PriorConfig(trigger="sks", class_words="woman"), "sks, hat", None),  # its weight is 0
        (
            PriorConfig(weight=1, trigger="sks", class_words="woman"),
            "a photo of sks, sks's hat",
            "a photo of woman, woman's hat",
        ),
        (PriorConfig(weight=1, trigger="sks", class_words="woman"), "a photo of a cat", None),
        (PriorConfig(weight=1, trigger="sks"), "sks, hat", "hat"),
        (PriorConfig(weight=1, class_words="woman"), "sks, hat", "woman"),
        (PriorConfig(weight=1), "sks, hat", ""),
        (PriorConfig(weight=1), "", None),  # a caption that was dropped: the picture itself is learnt under it
    ],
)
def test_the_class_takes_the_place_of_the_trigger(prior, caption, wanted):
    assert class_caption(caption, prior) == wanted


def test_what_has_no_effect_is_said_and_what_can_have_none_is_refused(model, pictures, tmp_path):
    found, bare = (prepared(config_of(model, pictures, tmp_path, masks))[0].items for masks in ("masks", ""))
    group, without = [item.picture for item in found], [item.picture for item in bare]
    assert check_prior(PriorConfig(), [group]) == [] == check_prior(PriorConfig(masked=1, weight=1), [group])
    assert check_prior(PriorConfig(masked=1), [without]) == [
        "`prior.masked`=1 has no effect: no picture has a mask (`subset.mask_dir`)"
    ]
    (said,) = check_prior(CIRCLES, [group])
    circles = sum("circle" in picture.caption for picture in group)
    assert said.startswith(f"`prior.trigger`='circle': {6 - circles} of 6 pictures do not have it in their caption") and circles
    assert "has no effect: `prior.weight` is 0" in check_prior(PriorConfig(trigger="circle"), [group])[0]
    with pytest.raises(SettingError, match="prior.trigger='sks': all 6 pictures do not have it in their caption; write it"):
        check_prior(PriorConfig(weight=1, trigger="sks"), [group])
    with pytest.raises(SettingError, match="prior.class_words='sks': is the same as prior.trigger"):
        PriorConfig(trigger="sks", class_words="sks")


def test_class_captions_are_cached_once_and_only_pictures_that_have_one_are_asked(model, pictures, tmp_path):
    config = config_of(model, pictures, tmp_path, prior=CIRCLES, cache_dir=str(tmp_path))
    data = prepared(config)[0]
    cached = [caption for caption in all_captions(data.items, config, 1) if "shape" in caption]
    assert cached and all(data.embeddings.texts.cache.has(data.embeddings._key(caption)) for caption in cached)
    for plain, batch in zip(batches(config_of(model, pictures, tmp_path)), batches(config), strict=True):
        assert torch.equal(plain.noise, batch.noise) and torch.equal(plain.t, batch.t) and plain.names == batch.names
        assert plain.class_weight is None and plain.class_text == {}
        circles = [float("circle" in name) for name in batch.names]
        assert batch.class_weight is None if not any(circles) else batch.class_weight.tolist() == circles


def slow(run: Run, batch: Batch, base: torch.nn.Module) -> Tensor:
    """The loss of a batch as its formula says, picture by picture."""
    prior, total = run.plan.config.prior, torch.zeros(())
    for i, (x0, eps, t, weight) in enumerate(zip(batch.latents, batch.noise, batch.t, batch.weight)):
        mask = torch.ones_like(x0[:1]) if batch.mask is None else batch.mask[i]
        xt = ((1 - t) * x0 + t * eps)[None]
        text = run.data.embeddings.place({name: tensor[i : i + 1] for name, tensor in batch.text.items()})
        velocity, kept = run.model(xt, t[None], *text)[0], base(xt, t[None], *text)[0].detach()
        trained = ((velocity - (eps - x0)).square() * mask).sum() / (mask.sum() * len(x0))
        total = total + weight * (trained + prior.masked * ((velocity - kept).square() * (1 - mask)).mean())
        if batch.class_weight is not None and batch.class_weight[i]:
            text = run.data.embeddings.place({name: tensor[i : i + 1] for name, tensor in batch.class_text.items()})
            missed = run.model(xt, t[None], *text)[0] - base(xt, t[None], *text)[0].detach()
            total = total + weight * prior.weight * missed.square().mean()
    return total / len(batch.latents)


def test_the_command_line_says_it_too():
    paths = {"anima_transformer": "t", "vae": "v", "qwen": "q", "t5_tokenizer_dir": "t5", "train_data_dir": "pictures"}
    given = {"masked_weight": "0.7", "class_weight": "0.5", "trigger": "circle", "class_words": "shape"}
    words = [word for name, value in paths.items() for word in (f"--{name}", value)]
    more = [word for name, value in given.items() for word in (f"--prior_{name}", value)]
    assert arguments.config_of(words).prior == PriorConfig()
    assert arguments.config_of([*words, *more]).prior == BOTH


@pytest.mark.parametrize("parts", [1, 2])
def test_loss_and_gradient_are_the_formulas(model, pictures, tmp_path, parts):
    config = config_of(model, pictures, tmp_path, prior=BOTH)
    base = load_transformer(model.transformer)
    with opened(config) as run:
        moved(run)
        run.state.network.train()
        asked = [batch for batch in batches(config) if batch.class_weight is not None]
        run.fit.parts = parts
        for batch in asked:
            loss, gradients = step_of(run, batch)
            expected = slow(run, batch, base)
            wanted = torch.autograd.grad(expected, list(run.state.network.parameters()))
            assert relative_error(loss, expected.detach()) < 1e-5
            for ours, theirs in zip(gradients, wanted):
                assert relative_error(ours, theirs) < 1e-3 or theirs.norm() < 1e-6
            assert relative_error(torch.cat([g.flatten() for g in gradients]), torch.cat([g.flatten() for g in wanted])) < 1e-5
        assert len(asked) > 0 and {0.0, 1.0} == {w for batch in asked for w in batch.class_weight.tolist()}


def test_at_the_start_nothing_has_to_be_kept(model, pictures, tmp_path):
    """The adapter is the base model still, so the loss is the plain one, to the bit."""
    config = config_of(model, pictures, tmp_path, prior=BOTH)
    with opened(config) as run:
        for batch in batches(config):
            plain = run.forward(batch)
            assert torch.equal(step_of(run, batch)[0], plain.detach())


def test_with_white_masks_it_is_the_plain_training(model, pictures, tmp_path):
    losses = []
    for name, prior in (("plain", PriorConfig()), ("prior", PriorConfig(masked=1.0))):
        output = OutputConfig(str(tmp_path / name), "test", save_dtype="fp32")
        losses.append(train(config_of(model, pictures, tmp_path, "white", prior=prior, output=output, max_train_steps=3)))
    assert same_tensors(*(load_file(result.adapter_path) for result in losses))
    assert losses[0].losses == losses[1].losses


def test_a_trained_llm_adapter_is_switched_off_too(model, pictures, tmp_path):
    network = NetworkConfig(rank=2, alpha=2, targets="attn+llm_adapter")
    config = config_of(model, pictures, tmp_path, prior=BOTH, network=network)
    base = load_transformer(model.transformer)
    with opened(config) as run:
        moved(run)
        (batch, *_) = batches(config)
        velocity, embeddings = run.prior.velocity(batch), run.data.embeddings
        run.model.llm_adapter, kept = base.llm_adapter, run.model.llm_adapter  # that of a model without a network
        wanted = base(batch.noisy, batch.t, *embeddings.place(batch.text))
        run.model.llm_adapter = kept
        assert relative_error(velocity, wanted.detach()) < 1e-5 and not velocity.requires_grad
        assert relative_error(run.model(batch.noisy, batch.t, *embeddings.place(batch.text)).detach(), wanted) > 1e-3


def test_no_number_depends_on_what_blocks_keep_or_where_weights_lie(model, pictures, tmp_path):
    found = []
    for name, where in (("keep", {"memory": "keep"}), ("offload", {"memory": "offload", "blocks_to_swap": 1})):
        output = OutputConfig(str(tmp_path / name), "test", save_dtype="fp32")
        config = config_of(
            model, pictures, tmp_path, prior=BOTH, output=output, max_train_steps=3, **{"memory": "keep"} | where
        )
        found.append(load_file(train(config).adapter_path))
    assert same_tensors(*found)


@pytest.mark.parametrize("level", ["keep", "recompute"])
def test_a_step_takes_no_more_memory_than_without(model, pictures, tmp_path, level):
    """But for the base velocities, of the latents' size, and the text of the class."""
    peaks, own = [], 0
    for prior in (PriorConfig(), BOTH):
        config = config_of(model, pictures, tmp_path, prior=prior, memory=level)
        with opened(config) as run:
            batch = next(b for b in batches(dataclasses.replace(config, prior=BOTH)) if b.class_weight is not None)
            own = 3 * batch.latents.nbytes + sum(text.nbytes for text in batch.class_text.values())
            if not prior.weight:
                batch = dataclasses.replace(batch, class_text={}, class_weight=None)
            step_of(run, batch)
            with Meter() as meter:
                step_of(run, batch)
            peaks.append(meter.peak)
    assert peaks[1] <= peaks[0] + own


def drift(run: Run, captions: list[str], base: torch.nn.Module) -> float:
    """Mean of |velocity - base velocity|² for captions, at fixed noise and t."""
    generator = torch.Generator().manual_seed(11)
    noise, t = torch.randn(len(captions), 16, 8, 8, generator=generator), torch.linspace(0.2, 0.9, len(captions))
    text = run.data.embeddings.place(run.data.embeddings.fetch(captions))
    with torch.no_grad():
        return (run.model(noise, t, *text) - base(noise, t, *text)).square().mean().item()


def test_what_the_base_model_draws_for_the_class_stays(model, pictures, tmp_path):
    """And the pictures are learnt nevertheless."""
    base, drifts, learnt = load_transformer(model.transformer), [], []
    drawings = PriorConfig(weight=1.0, trigger="drawing", class_words="picture")
    captions = [f"{colour} circle, white background, picture" for colour in ("red", "green", "blue", "yellow")]
    for name, prior in (("plain", PriorConfig()), ("kept", drawings)):
        output, network = OutputConfig(str(tmp_path / name), "test"), NetworkConfig(rank=8, alpha=8, targets="all")
        config = config_of(model, pictures, tmp_path, "", prior=prior, output=output, network=network, max_train_steps=25)
        with opened(config) as run, torch.no_grad():
            asked = batches(config, 2)
            before = sum(run.forward(batch).item() for batch in asked)
            with torch.enable_grad():
                run.go()
            drifts.append(drift(run, captions, base))
            learnt.append(sum(run.forward(batch).item() for batch in asked) / before)
    assert drifts[1] < 0.5 * drifts[0]
    assert learnt[1] < 0.8


def test_the_loss_of_the_run_is_that_of_what_is_kept_as_well():
    """Of another loss than mse, weighed by t."""
    generator = torch.Generator().manual_seed(0)
    velocity, base = (torch.randn(2, 16, 4, 4, generator=generator) for _ in range(2))
    mask, t = torch.rand(2, 1, 4, 4, generator=generator), torch.tensor([0.3, 0.8])
    place = dict(names=["a", "b"], divisor=1.0, step_batches=1, ends_step=True, next_position={})
    weight = torch.tensor([1.0, 0.5])
    batch = Batch(0, velocity, velocity, None, t, mask, weight, {}, **place, base=base)
    config = SimpleNamespace(flow=FlowConfig(loss="l1", weighting="cosmap"), prior=PriorConfig(masked=2.0))
    added = with_kept(torch.zeros(2), velocity, batch, config)
    wanted = (
        2
        * weight
        * flow.loss_weight(t, FlowConfig(weighting="cosmap"))
        * ((velocity - base).abs() * (1 - mask)).mean(dim=(1, 2, 3))
    )
    assert torch.allclose(added, wanted, rtol=1e-5)

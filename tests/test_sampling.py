"""The preview sampler against exact solutions, and against ComfyUI's own schedule, noise and KSampler."""

from itertools import pairwise, product

import pytest
import torch

from anima_core.errors import SettingError
from anima_core.sampling import noise_for, preview_image, sample, simple_sigmas
from anima_core.sampling.samplers import SAMPLERS
from anima_core.sampling.schedules import SCHEDULES, sigmas_of

from .conftest import relative_error

SEED = 7


def formula(x, timesteps, context):
    """tests/comfyui/oracle_sampling.py has the same one."""
    t = timesteps.view(-1, 1, 1, 1)
    word = context.mean(dim=(1, 2)).view(t.shape)
    return torch.sin(3 * x) * (1 + t) + word * x + t


class Recorder:
    """Calls `model` and keeps what it was given."""

    def __init__(self, model=formula) -> None:
        self.model, self.calls = model, []

    def __call__(self, x, t, context):
        self.calls.append((x.clone(), t.clone(), context.clone()))
        return self.model(x, t, context)


def prompts(*lengths: int, batch: int = 1) -> list[torch.Tensor]:
    return [torch.randn(batch, length, 1024) for length in lengths]


def test_sigmas_fall_from_1_to_0():
    sigmas = simple_sigmas(30)
    assert sigmas.shape == (31,) and sigmas.dtype == torch.float32
    assert sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    assert simple_sigmas(4, shift=3.0).tolist() == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert simple_sigmas(4, shift=1.0).tolist() == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    with pytest.raises(SettingError, match="sample steps=0"):
        simple_sigmas(0)


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_euler_is_exact_on_a_straight_path(steps):
    x0, noise = torch.randn(2, 16, 4, 6), torch.randn(2, 16, 4, 6)
    text = prompts(512, batch=2)[0]
    latents = sample(lambda x, t, c: noise - x0, text, noise, simple_sigmas(steps))
    assert torch.allclose(latents, x0, atol=1e-5)


def test_euler_finds_the_picture_that_the_velocity_points_to():
    """(x - x0) / t is the velocity of every path that ends at x0."""
    x0, noise = torch.randn(1, 16, 4, 4), torch.randn(1, 16, 4, 4)
    latents = sample(lambda x, t, c: (x - x0) / t.view(-1, 1, 1, 1), prompts(8)[0], noise, simple_sigmas(9))
    assert torch.allclose(latents, x0, atol=1e-5)


def test_the_model_sees_each_sigma_once_as_t():
    model, sigmas, steps = Recorder(), simple_sigmas(5), []
    noise = torch.randn(2, 16, 4, 4)
    sample(model, prompts(8, batch=2)[0], noise, sigmas, on_step=steps.append)
    assert steps == [1, 2, 3, 4, 5]
    assert torch.equal(model.calls[0][0], noise)
    assert [t.tolist() for _, t, _ in model.calls] == [[s, s] for s in sigmas[:-1].tolist()]
    assert all(t.dtype == torch.float32 for _, t, _ in model.calls)


@pytest.mark.parametrize("lengths, calls", [((512, 512), 3), ((600, 512), 6)])
def test_guidance_is_that_of_two_separate_predictions(lengths, calls):
    positive, negative = prompts(*lengths)
    noise, sigmas, cfg = torch.randn(1, 16, 4, 4), simple_sigmas(3), 4.5
    model = Recorder()
    latents = sample(model, positive, noise, sigmas, negative=negative, cfg=cfg)
    assert len(model.calls) == calls, "equal lengths go through the model as one batch"
    x = noise
    for sigma, following in pairwise(sigmas):
        t = sigma.expand(1)
        x0_positive, x0_negative = x - sigma * formula(x, t, positive), x - sigma * formula(x, t, negative)
        x0 = x0_negative + cfg * (x0_positive - x0_negative)
        x = x + (x - x0) / sigma * (following - sigma)
    assert relative_error(latents, x) < 1e-5


def test_cfg_1_never_asks_for_the_negative():
    positive, negative = prompts(8, 8)
    noise, sigmas = torch.randn(1, 16, 4, 4), simple_sigmas(2)
    model = Recorder()
    with_negative = sample(model, positive, noise, sigmas, negative=negative, cfg=1.0)
    assert all(torch.equal(context, positive) for _, _, context in model.calls)
    assert torch.equal(with_negative, sample(formula, positive, noise, sigmas))


def test_cfg_0_is_the_negative_alone():
    positive, negative = prompts(8, 8)
    noise, sigmas = torch.randn(1, 16, 4, 4), simple_sigmas(4)
    guided = sample(formula, positive, noise, sigmas, negative=negative, cfg=0.0)
    assert torch.allclose(guided, sample(formula, negative, noise, sigmas), atol=1e-5)


@pytest.mark.parametrize("lengths", [(8, 8), (8, 5)])
def test_one_prompt_serves_a_batch_as_it_serves_each_picture(lengths):
    positive, negative = prompts(*lengths)
    noise, sigmas = torch.randn(3, 16, 4, 4), simple_sigmas(4)
    together = sample(formula, positive, noise, sigmas, negative=negative, cfg=3.0)
    for i in range(3):
        alone = sample(formula, positive, noise[i : i + 1], sigmas, negative=negative, cfg=3.0)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-5)


def test_sampling_keeps_fp32_and_no_graph():
    weight = torch.nn.Parameter(torch.ones(1))
    noise = torch.randn(1, 16, 4, 4)
    model = lambda x, t, c: (x * weight).bfloat16()  # noqa: E731
    latents = sample(model, prompts(8)[0], noise.bfloat16(), simple_sigmas(2))
    assert latents.dtype == torch.float32 and not latents.requires_grad


@pytest.mark.parametrize("settings, message", [({"sampler": "ddim"}, "sampler=ddim: must"), ({"cfg": 4.0}, r"cfg=4\.0: needs")])
def test_refusals_name_the_setting(settings, message):
    with pytest.raises(SettingError, match=message):
        sample(formula, prompts(8)[0], torch.randn(1, 16, 4, 4), simple_sigmas(2), **settings)


def test_noise_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    noise = noise_for(7, 64, 96)
    assert noise.shape == (1, 16, 12, 8) and torch.equal(torch.get_rng_state(), state)
    assert torch.equal(noise, noise_for(7, 64, 96)) and not torch.equal(noise, noise_for(8, 64, 96))


def test_preview_image_maps_minus_1_to_black_and_1_to_white():
    class Painter:
        def decode(self, latents, tile):
            picture = torch.zeros(len(latents), 3, 8, 16)
            picture[:, 0], picture[:, 1], picture[:, 2, :, 8:] = -1.5, 1.0, -1.0
            return picture

    image = preview_image(torch.zeros(2, 16, 1, 2), Painter())
    assert image.size == (16, 8) and image.mode == "RGB"
    assert image.getpixel((0, 0)) == (0, 255, 127) and image.getpixel((15, 7)) == (0, 255, 0)


SEEDS = (0, 42, 2**32 + 5, 2**64 - 1)
STEPS = (*range(1, 101), 152, 999, 1000, 1500)  # 38, 76 and 152 are where a careless index is off by one
FEWER = (*range(1, 13), 20, 25, 28, 30, 38, 40, 50, 76, 100, 152, 700)  # of the other schedules
SHIFTS = (1.0, 3.0, 5.5)
CFGS = (1.0, 4.5)
WITH_PACKAGES = [name for name, sampler in SAMPLERS.items() if sampler.package]  # which ComfyUI has
TABLE = [*product(SAMPLERS, SCHEDULES, CFGS, (1.0, 3.0))]


@pytest.fixture(scope="module")
def answered(comfyui_oracle):
    torch.manual_seed(0)
    positive, negative, short = (0.5 * t + i for i, t in enumerate(prompts(512, 512, 256, batch=2)))
    tensors = {"noise": torch.randn(2, 16, 6, 4), "positive": positive, "negative": negative, "short": short}
    seeds = [str(seed) for seed in SEEDS]
    params = dict(shifts=SHIFTS, steps=STEPS, fewer=FEWER, seeds=seeds, width=96, height=64, cfgs=CFGS, schedulers=[*SCHEDULES])
    params |= dict(table=TABLE, seed=SEED, here=WITH_PACKAGES)
    return tensors, comfyui_oracle("oracle_sampling.py", tensors, **params)


@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_sigmas_are_comfyuis(answered, scheduler):
    _, theirs = answered
    assert theirs["shift"] == 3.0
    for shift in SHIFTS:
        for steps in STEPS if scheduler == "simple" else FEWER:
            found = theirs[f"sigmas.{scheduler}.{shift}.{steps}"]
            assert torch.equal(sigmas_of(scheduler, steps, shift=shift), found), (steps, shift)


def test_noise_is_comfyuis(answered):
    _, theirs = answered
    for seed in SEEDS:
        assert torch.equal(noise_for(seed, 96, 64), theirs[f"noise.{seed}"])


def test_euler_is_comfyuis(answered):
    tensors, theirs = answered
    ours = sample(formula, tensors["positive"], tensors["noise"], simple_sigmas(12))
    assert relative_error(ours, theirs["euler"]) < 1e-5


@pytest.mark.parametrize("cfg", CFGS)
@pytest.mark.parametrize("which", ["negative", "short"])
def test_a_whole_run_is_ksamplers(answered, cfg, which):
    """Noise, schedule, guidance and steps, through comfy.sample.sample as the node runs it."""
    tensors, theirs = answered
    ours = sample(formula, tensors["positive"], tensors["noise"], simple_sigmas(12), negative=tensors[which], cfg=cfg)
    assert relative_error(ours, theirs[f"ksampler.{cfg}.{which}"]) < 1e-5


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_and_schedule_is_ksamplers(answered, sampler):
    tensors, theirs = answered
    errors = {}
    for name, scheduler, cfg, shift in TABLE:
        if name != sampler:
            continue
        place = f"{sampler}.{scheduler}.{cfg}.{shift}"
        ours = theirs.get(f"ours.{place}")
        if ours is None:
            how = dict(negative=tensors["negative"], cfg=cfg, sampler=sampler, shift=shift, seed=SEED)
            ours = sample(formula, tensors["positive"], tensors["noise"], sigmas_of(scheduler, 12, shift), **how)
        errors[place] = relative_error(ours, theirs[place])
    worst = [
        max(errors[f"{sampler}.{scheduler}.{cfg}.{shift}"] for cfg in CFGS for shift in (1.0, 3.0)) for scheduler in SCHEDULES
    ]
    print("\n| " + " | ".join([sampler, *(f"{error:.1e}" for error in worst)]) + " |")  # a row of benchmarks/README.md, by -s
    assert len(errors) == 16 and max(errors.values()) < 1e-5

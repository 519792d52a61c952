"""Flow maths against slow, obvious references; the distributions of t; masks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anima_core.settings import FlowConfig
from anima_core.settings.flow import TIMESTEP_SAMPLINGS
from anima_core.training.flow import flow_loss, input_noise, interpolate, noise_like, sample_timesteps, velocity_target

MANY = 200_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draws(tokens: int = 4096, **settings) -> torch.Tensor:
    return sample_timesteps(MANY, FlowConfig(**settings), seeded(), tokens=tokens)


@pytest.mark.parametrize(
    "settings, mean, median",
    [
        ({}, 0.5, 0.5),
        ({"timestep_sampling": "uniform"}, 0.5, 0.5),
        ({"timestep_sampling": "shift", "shift": 3.0}, 0.714, 0.75),
        ({"timestep_sampling": "shift", "shift": 1.0}, 0.5, 0.5),
        ({"shift": 3.0}, 0.5, 0.5),  # the shift belongs to its own mode
        ({"timestep_sampling": "mode"}, 0.5, 0.5),
        ({"timestep_sampling": "mode", "mode_scale": 0.0, "shift": 3.0}, 0.676, 0.75),
    ],
)
def test_mean_and_median_of_t(settings, mean, median):
    t = draws(**settings)
    assert t.dtype == torch.float32 and t.device.type == "cpu"
    assert t.mean().item() == pytest.approx(mean, abs=0.004)
    assert t.median().item() == pytest.approx(median, abs=0.004)


def test_logit_normal_is_normal_in_logits():
    for mean, scale in ((0.0, 0.5), (0.0, 1.0), (-1.0, 2.0)):
        z = torch.logit(draws(logit_mean=mean, sigmoid_scale=scale).double())
        assert z.mean().item() == pytest.approx(mean, abs=0.02)
        assert z.std().item() == pytest.approx(scale, rel=0.01)


def test_what_is_new_of_t_changes_no_draw_that_was():
    z = torch.randn(64, generator=seeded())
    assert torch.equal(sample_timesteps(64, FlowConfig(sigmoid_scale=1.3), seeded()), torch.sigmoid(1.3 * z))
    even = FlowConfig(timestep_sampling="mode", mode_scale=0.0)
    assert torch.equal(sample_timesteps(64, even, seeded()), torch.rand(64, generator=seeded()))


def test_uniform_fills_ten_bins_evenly():
    counts = torch.histc(draws(timestep_sampling="uniform"), 10, 0, 1)
    assert (counts / MANY - 0.1).abs().max() < 0.003


@pytest.mark.parametrize("tokens, mu", [(256, 0.5), (1024, 0.63), (4096, 1.15)])
def test_resolution_shift_moves_the_median_with_the_picture(tokens, mu):
    t = draws(tokens=tokens, timestep_sampling="resolution_shift")
    assert t.median().item() == pytest.approx(1 / (1 + math.exp(-mu)), abs=0.004)


@given(
    mode=st.sampled_from(TIMESTEP_SAMPLINGS),
    scale=st.floats(0.01, 50),
    mean=st.floats(-20, 20),
    bump=st.floats(-1, 1.75),
    shift=st.floats(0.01, 100),
    tokens=st.integers(1, 70000),
    seed=st.integers(0, 2**62),
)
@settings(max_examples=60, deadline=None)
def test_t_stays_inside_0_and_1(mode, scale, mean, bump, shift, tokens, seed):
    flow = FlowConfig(timestep_sampling=mode, sigmoid_scale=scale, logit_mean=mean, mode_scale=bump, shift=shift)
    t = sample_timesteps(256, flow, seeded(seed), tokens=tokens)
    assert t.shape == (256,) and bool(((t > 0) & (t < 1)).all())


def test_draws_come_from_the_generator_alone():
    latents = torch.empty(2, 16, 4, 4)
    first = sample_timesteps(4, FlowConfig(), seeded(3)), noise_like(latents, seeded(3), 0.1)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    expected = torch.get_rng_state()
    second = sample_timesteps(4, FlowConfig(), seeded(3)), noise_like(latents, seeded(3), 0.1)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert torch.equal(torch.get_rng_state(), expected), "the global generator was used"
    torch.set_rng_state(state)


def test_noise_is_fp32_on_the_cpu_whatever_the_latents():
    noise = noise_like(torch.empty(1, 16, 8, 8, dtype=torch.bfloat16, device="meta"), seeded())
    assert noise.dtype == torch.float32 and noise.device.type == "cpu"
    assert torch.equal(noise, torch.randn(1, 16, 8, 8, generator=seeded()))


def test_noise_offset_is_one_draw_per_sample_and_channel():
    latents = torch.empty(400, 16, 2, 2)
    shared = noise_like(latents, seeded(), 0.5) - noise_like(latents, seeded())
    assert (shared - shared[:, :, :1, :1]).abs().max() < 1e-6
    assert shared[:, :, 0, 0].std().item() == pytest.approx(0.5, rel=0.03)


def test_input_noise_is_the_noise_and_a_second_draw():
    noise = noise_like(torch.empty(4, 16, 16, 16), seeded())
    further = input_noise(noise, seeded(5), 0.3) - noise
    assert torch.allclose(further, 0.3 * noise_like(noise, seeded(5)), atol=1e-6)
    assert further.std().item() == pytest.approx(0.3, rel=0.03)
    assert (further * noise).mean().item() == pytest.approx(0, abs=0.01)


def test_interpolation_ends_at_the_picture_and_at_the_noise():
    x0, eps = torch.randn(3, 16, 4, 6), torch.randn(3, 16, 4, 6)
    t = torch.tensor([0.0, 0.25, 1.0])
    x = interpolate(x0, eps, t)
    assert torch.equal(x[0], x0[0]) and torch.equal(x[2], eps[2])
    assert torch.allclose(x[1], 0.75 * x0[1] + 0.25 * eps[1])
    # the target is the path's slope, so walking back along it from x_t reaches x0
    assert torch.allclose(x - t.view(-1, 1, 1, 1) * velocity_target(x0, eps), x0, atol=1e-6)


PIXEL_LOSSES = {
    "mse": lambda e, d: e * e,
    "l1": lambda e, d: abs(e),
    "huber": lambda e, d: 2 * d * (math.sqrt(e * e + d * d) - d),
    "smooth_l1": lambda e, d: 2 * (math.sqrt(e * e + d * d) - d),
}
WEIGHTS = {
    "none": lambda t: 1.0,
    "sigma_sqrt": lambda t: t**-2,
    "cosmap": lambda t: 2 / (math.pi * (1 - 2 * t + 2 * t * t)),
}


@pytest.mark.parametrize("loss", PIXEL_LOSSES)
@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("masked", [False, True])
def test_losses_against_python_loops(loss, weighting, masked):
    prediction, target = torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)
    t, weight = torch.tensor([0.2, 0.9]), torch.tensor([1.0, 0.25])
    mask = torch.rand(2, 1, 2, 4) if masked else None
    flow = FlowConfig(loss=loss, weighting=weighting, huber_delta=0.3)
    losses = flow_loss(prediction, target, t, flow, mask=mask, weight=weight)
    assert losses.shape == (2,) and losses.dtype == torch.float32
    for b in range(2):
        total = area = 0.0
        for y in range(2):
            for x in range(4):
                m = 1.0 if mask is None else mask[b, 0, y, x].item()
                area += 3 * m
                for c in range(3):
                    total += m * PIXEL_LOSSES[loss]((prediction[b, c, y, x] - target[b, c, y, x]).item(), 0.3)
        expected = total / area * WEIGHTS[weighting](t[b].item()) * weight[b].item()
        assert losses[b].item() == pytest.approx(expected, rel=1e-5)


def test_huber_keeps_its_precision_near_zero():
    error = torch.full((1, 1, 1, 1), 1e-5)
    loss = flow_loss(error, torch.zeros_like(error), torch.tensor([0.5]), FlowConfig(loss="huber"))
    assert loss.item() == pytest.approx(1e-10, rel=1e-3)


def test_bf16_predictions_are_compared_in_fp32():
    prediction = torch.full((1, 1, 64, 64), 1.0, dtype=torch.bfloat16)
    target = torch.full((1, 1, 64, 64), 1.001)
    loss = flow_loss(prediction, target, torch.tensor([0.5]), FlowConfig())
    assert loss.item() == pytest.approx(1e-6, rel=1e-3)


def test_a_small_mask_weighs_as_much_as_a_large_one_and_hides_the_rest():
    prediction, target = torch.ones(1, 16, 8, 8, requires_grad=True), torch.zeros(1, 16, 8, 8)
    small = torch.zeros(1, 1, 8, 8)
    small[..., :2, :2] = 1
    t = torch.tensor([0.5])
    loss = flow_loss(prediction, target, t, FlowConfig(), mask=small)
    whole = flow_loss(prediction, target, t, FlowConfig(), mask=torch.ones(1, 1, 8, 8))
    assert loss.item() == whole.item() == 1.0
    loss.sum().backward()
    assert prediction.grad[..., 2:, :].abs().max() == 0 and prediction.grad[..., :2, :2].min() > 0


def test_an_empty_mask_gives_zero_and_a_zero_gradient():
    prediction = torch.randn(1, 16, 4, 4, requires_grad=True)
    loss = flow_loss(prediction, torch.zeros(1, 16, 4, 4), torch.tensor([0.5]), FlowConfig(), mask=torch.zeros(1, 1, 4, 4))
    loss.sum().backward()
    assert loss.item() == 0 and prediction.grad.abs().max() == 0

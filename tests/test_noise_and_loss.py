"""Ranges and offsets of t, coarser noise, a second scale, weights by t: each beside its slow form."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from anima_core.errors import SettingError
from anima_core.settings import DatasetConfig, FlowConfig, SubsetConfig
from anima_core.settings.flow import TIMESTEP_SAMPLINGS, WITH_OFFSET
from anima_core.training import flow as flow_module
from anima_core.training.flow import (
    draw_noise,
    draw_timesteps,
    flow_loss,
    loss_weight,
    noise_like,
    sample_timesteps,
    trains_smaller,
)

MANY = 50_000
LEVELS = torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def subset(**changes) -> SubsetConfig:
    return SubsetConfig("x", **changes)


@pytest.mark.parametrize("sampling", TIMESTEP_SAMPLINGS)
def test_subsets_at_their_defaults_change_no_draw(sampling):
    flow = FlowConfig(timestep_sampling=sampling, shift=3.0, sigmoid_scale=1.3, logit_mean=0.2)
    assert torch.equal(draw_timesteps([subset()] * 64, flow, seeded(), 1024), sample_timesteps(64, flow, seeded(), 1024))


@pytest.mark.parametrize("sampling", TIMESTEP_SAMPLINGS)
def test_a_range_is_the_whole_distribution_scaled_into_it(sampling):
    flow = FlowConfig(timestep_sampling=sampling, shift=3.0)
    t = draw_timesteps([subset(min_timestep=0.2, max_timestep=0.6)] * MANY, flow, seeded(1))
    whole = draw_timesteps([subset()] * MANY, flow, seeded(2))
    assert t.min() >= 0.2 and t.max() <= 0.6
    assert torch.allclose(torch.quantile(t, LEVELS), 0.2 + 0.4 * torch.quantile(whole, LEVELS), atol=0.006)


def test_each_picture_of_a_batch_has_the_range_and_the_offset_of_its_subset():
    subsets = [subset(max_timestep=0.3), subset(timestep_offset=-0.5), subset(), subset(min_timestep=0.4, max_timestep=0.4)]
    flow = FlowConfig(sigmoid_scale=1.5, logit_mean=0.1)
    z = torch.randn(4, generator=seeded()).tolist()
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    slow = [0.3 * sigmoid(0.1 + 1.5 * z[0]), sigmoid(0.1 + 1.5 * (z[1] - 0.5)), sigmoid(0.1 + 1.5 * z[2]), 0.4]
    assert draw_timesteps(subsets, flow, seeded()).tolist() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("offset", [-1.0, 0.5])
@pytest.mark.parametrize("sampling, shift", [("logit_normal", 1.0), ("shift", 3.0)])
def test_an_offset_moves_every_quantile_in_logits(sampling, shift, offset):
    """The shift of t, s t / (1 + (s - 1) t), adds log s to its logit."""
    flow = FlowConfig(timestep_sampling=sampling, shift=shift, sigmoid_scale=2.0)
    logits = torch.logit(draw_timesteps([subset(timestep_offset=offset)] * MANY, flow, seeded()))
    normal = torch.distributions.Normal(2.0 * offset + math.log(shift), 2.0)
    assert torch.allclose(torch.quantile(logits, LEVELS), normal.icdf(LEVELS), atol=0.04)


def test_what_draws_no_normal_number_has_no_offset_and_says_so():
    for sampling in set(TIMESTEP_SAMPLINGS) - set(WITH_OFFSET):
        flow = FlowConfig(timestep_sampling=sampling)
        moved = draw_timesteps([subset(timestep_offset=2.0)] * 8, flow, seeded())
        assert torch.equal(moved, draw_timesteps([subset()] * 8, flow, seeded()))
        assert told(flow, subset(timestep_offset=2.0)) == [
            f"`subset.timestep_offset`=2 has no effect: `flow.timestep_sampling`={sampling} does not read it; use one of "
            "logit_normal, shift, resolution_shift"
        ]
    assert told(FlowConfig(), subset(timestep_offset=2.0)) == []


@pytest.mark.parametrize(
    "alone, beside",
    [
        (dict(snr_gamma=3.0), dict(weighting="min_snr")),
        (dict(multires_noise_discount=0.1), dict(multires_noise_iterations=6)),
        (dict(lowres_above=0.5), dict(lowres_scale=0.75)),
        (dict(lowres_below=0.9), dict(lowres_scale=0.75)),
    ],
)
def test_a_setting_that_only_acts_beside_another_is_told(alone, beside):
    (name,) = alone
    (said,) = told(FlowConfig(**alone), subset())
    assert said.startswith(f"`flow.{name}`=") and f"`flow.{next(iter(beside))}`" in said
    assert told(FlowConfig(**alone, **beside), subset()) == []


def told(flow: FlowConfig, one: SubsetConfig, side: int = 1024) -> list[str]:
    @dataclasses.dataclass
    class Config:
        flow: FlowConfig
        datasets: tuple[DatasetConfig, ...]

    return flow_module.warnings(Config(flow, (DatasetConfig((one,), resolutions=((side, side),)),)))


@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(min_timestep=0.6, max_timestep=0.5), "`subset.min_timestep`=0.6: must not be above `subset.max_timestep`=0.5"),
        (dict(max_timestep=0.0), "`subset.max_timestep`=0.0: must be at most 1 and above 0"),
        (dict(min_timestep=300), "`subset.min_timestep`=300: must be at least 0 and below 1"),
    ],
)
def test_ranges_that_are_none_are_refused(wrong, said):
    with pytest.raises(SettingError) as error:
        subset(**wrong)
    assert error.value.text.startswith(said)


# --- noise


def slow_multires(noise, generator, iterations, discount):
    """sd-scripts' loop, one picture and channel at a time."""
    height, width = noise.shape[2:]
    found = noise.clone()
    for i in range(iterations):
        r = (2 + 2 * torch.rand((), generator=generator).item()) ** i
        size = max(1, int(height / r)), max(1, int(width / r))
        drawn = torch.randn(*noise.shape[:2], *size, generator=generator)
        for b in range(len(noise)):
            for c in range(noise.shape[1]):
                up = torch.nn.Upsample(size=(height, width), mode="bilinear")(drawn[b, c][None, None])[0, 0]
                found[b, c] += up * discount**i
        if 1 in size:
            break
    return torch.stack([one / one.std() for one in found])


def test_multires_noise_against_loops():
    latents, flow = torch.empty(2, 3, 12, 20), FlowConfig(multires_noise_iterations=6, multires_noise_discount=0.4)
    fast, generator = draw_noise(latents, flow, seeded()), seeded()
    slow = slow_multires(noise_like(latents, generator), generator, 6, 0.4)
    assert torch.allclose(fast, slow, atol=1e-5)
    assert fast.std(dim=(1, 2, 3)).tolist() == pytest.approx([1, 1], abs=1e-5)
    neighbours = F.cosine_similarity(fast[..., 1:].flatten(), fast[..., :-1].flatten(), dim=0)
    assert neighbours > 0.02, "coarse layers make neighbours alike"


def test_one_coarse_layer_at_a_time_and_none_without_iterations():
    latents = torch.empty(1, 16, 64, 64)
    assert torch.equal(draw_noise(latents, FlowConfig(), seeded()), noise_like(latents, seeded()))
    blocks = [
        F.avg_pool2d(
            draw_noise(latents, FlowConfig(multires_noise_iterations=n, multires_noise_discount=0.8), seeded()), 8
        ).std()
        for n in (0, 1, 3)
    ]
    assert blocks[0].item() == pytest.approx(1 / 8, rel=0.1) and blocks[1].item() == pytest.approx(1 / 8, rel=0.1)
    assert blocks[2] > 2 * blocks[0], "what is coarse outlives the mean of a block"


# --- losses


def pooled(field, y, x):
    return sum(field[2 * y + j][2 * x + i] for j in (0, 1) for i in (0, 1)) / 4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("loss", ["mse", "l1"])
def test_the_second_scale_against_python_loops(masked, loss):
    height, width, weight = 104, 128, 0.7  # sqrt(104 * 128) = 115.4 latent rows, just above 115.2
    prediction, target = torch.randn(1, 2, height, width), torch.randn(1, 2, height, width)
    mask = torch.rand(1, 1, height, width) if masked else None
    flow = FlowConfig(loss=loss, multiscale_loss_weight=weight)
    fast = flow_loss(prediction, target, torch.tensor([0.3]), flow, mask=mask, weight=torch.tensor([0.5])).item()
    first = flow_loss(prediction, target, torch.tensor([0.3]), FlowConfig(loss=loss), mask=mask).item()
    errors, shades = (
        (prediction - target)[0].tolist(),
        torch.ones(height, width).tolist() if mask is None else mask[0, 0].tolist(),
    )
    total = area = 0.0
    for y in range(height // 2):
        for x in range(width // 2):
            shade = pooled(shades, y, x)
            area += 2 * shade
            total += shade * sum(pooled(channel, y, x) ** 2 for channel in errors)
    assert fast == pytest.approx(0.5 * (first + weight * total / area) / (1 + weight), rel=1e-4)


def test_small_pictures_have_one_scale_and_a_run_of_them_says_so():
    prediction, target, t = torch.randn(1, 2, 104, 126), torch.randn(1, 2, 104, 126), torch.tensor([0.3])
    flow = FlowConfig(multiscale_loss_weight=1.0)
    assert torch.equal(flow_loss(prediction, target, t, flow), flow_loss(prediction, target, t, FlowConfig()))
    assert told(flow, subset(), side=768) == [
        "`flow.multiscale_loss_weight`=1 has no effect: it is for pictures of 922 px a side, and these have 768"
    ]
    assert told(flow, subset()) == [] and told(FlowConfig(), subset(), side=512) == []


SLOW_WEIGHTS = {
    "min_snr": lambda t: min(1.0, 5.0 / ((1 - t) / t) ** 2),
    "detail_inv_t": lambda t: min(5.0, 1 / t),
}


@pytest.mark.parametrize("weighting", SLOW_WEIGHTS)
def test_weights_by_t_are_the_published_formulas(weighting):
    t = torch.cat([torch.linspace(0.01, 0.99, 99), torch.tensor([1e-5, 1 - 1e-5])])
    found = loss_weight(t, FlowConfig(weighting=weighting))
    assert found.tolist() == pytest.approx([SLOW_WEIGHTS[weighting](x) for x in t.tolist()], rel=1e-3)
    assert found.isfinite().all()


def test_gamma_is_the_ratio_from_which_on_min_snr_lowers():
    t = torch.tensor([0.25, 0.5])  # ratios of 9 and 1
    assert loss_weight(t, FlowConfig(weighting="min_snr", snr_gamma=9.0)).tolist() == pytest.approx([1, 1])
    assert loss_weight(t, FlowConfig(weighting="min_snr", snr_gamma=3.0)).tolist() == pytest.approx([1 / 3, 1])


@pytest.mark.parametrize(
    "changes, side", [({"weighting": "min_snr"}, 8), ({"weighting": "detail_inv_t"}, 8), ({"multiscale_loss_weight": 1.0}, 116)]
)
def test_each_loss_leads_to_the_target(changes, side):
    """Adam takes a velocity to the target, from every noise level, in 60 steps."""
    target, t = torch.randn(4, 1, side, side), torch.tensor([0.02, 0.3, 0.6, 0.98])
    velocity = torch.zeros_like(target, requires_grad=True)
    optimizer = torch.optim.Adam([velocity], lr=0.1)
    for _ in range(60):
        optimizer.zero_grad()
        flow_loss(velocity, target, t, FlowConfig(**changes)).mean().backward()
        optimizer.step()
    assert ((velocity - target).square().mean(dim=(1, 2, 3)) < 0.05).all()


# --- smaller pictures for noisy draws


def test_the_window_of_smaller_pictures():
    t = torch.tensor([0.5, 0.65, 0.66, 0.94, 0.95, 0.99])
    assert trains_smaller(t, FlowConfig(lowres_scale=0.75)).tolist() == [False, False, True, True, False, False]
    assert not trains_smaller(t, FlowConfig()).any()
    with pytest.raises(SettingError, match="flow.lowres_above=0.9: must be below flow.lowres_below=0.8"):
        FlowConfig(lowres_above=0.9, lowres_below=0.8)

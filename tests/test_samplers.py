"""Samplers and schedules against solutions that are known: of a model that is exact for pictures from a normal distribution."""

import math
from dataclasses import replace

import pytest
import torch

from anima_core.errors import SettingError
from anima_core.sampling import sample, samplers
from anima_core.sampling.drawing import begun_below_noise
from anima_core.sampling.samplers import SAMPLERS, fresh_noise, sampler_of
from anima_core.sampling.schedules import SCHEDULES, beta_quantile, sigmas_of, simple_sigmas
from anima_core.settings import samples as settings

MEAN, SPREAD = 0.7, 0.4  # of the pictures' distribution
STOCHASTIC = ("euler_ancestral", "er_sde", "dpmpp_2m_sde")
FIRST_ORDER = ("euler", "euler_ancestral")
TEXT = torch.zeros(1, 8, 1024)


def width(sigma):
    """The standard deviation of x = (1 - sigma) picture + sigma noise."""
    return ((1 - sigma) ** 2 * SPREAD**2 + sigma**2) ** 0.5


def exact(x, t, context):
    """The velocity (x - x0) / sigma, with x0 the mean of the pictures that x may be of: Bayes for two normal distributions."""
    sigma = t.view(-1, 1, 1, 1).double()
    x0 = MEAN + SPREAD**2 * (1 - sigma) / width(sigma) ** 2 * (x.double() - (1 - sigma) * MEAN)
    return (x.double() - x0) / sigma


def solved(noise, begin, end):
    """Follow the flow exactly: x keeps its place within the distribution of its level."""
    return (1 - end) * MEAN + width(end) * noise, (1 - begin) * MEAN + width(begin) * noise


@pytest.fixture(autouse=True)
def without_packages(monkeypatch):
    """Stochastic samplers with torch's noise, also where ComfyUI draws it otherwise."""
    for name in STOCHASTIC:
        monkeypatch.setitem(SAMPLERS, name, replace(SAMPLERS[name], noise=fresh_noise, package=""))


@pytest.mark.parametrize("sampler, order", [("euler", 1), ("dpmpp_2m", 2), ("res_multistep", 2)])
def test_a_solver_has_the_order_of_its_paper(sampler, order):
    begin, end = 0.9, 0.1
    after, before = solved(torch.randn(1, 16, 8, 8), begin, end)
    errors = []
    for steps in (20, 80):
        sigmas = torch.logspace(math.log10(begin), math.log10(end), steps + 1)
        found = sample(exact, TEXT, before / sigmas[0], sigmas, sampler=sampler)
        errors.append(float((found - after).abs().mean()))
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(order, abs=0.35)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "dpmpp_2m_sde_gpu"])
def test_what_is_drawn_has_the_distribution_of_the_pictures(sampler):
    noise, errors = torch.randn(1, 16, 32, 32), []
    for steps in (15, 120):
        found = sample(exact, TEXT, noise, simple_sigmas(steps), sampler=sampler, seed=5)
        assert float(found.mean()) == pytest.approx(MEAN, abs=0.02)
        errors.append(abs(float(found.std()) - SPREAD))
    assert errors[1] < errors[0] / 3 and errors[1] < (0.03 if sampler in FIRST_ORDER else 0.01)
    changed = sample(exact, TEXT, noise, simple_sigmas(8), sampler=sampler, seed=6)
    same = torch.equal(changed, sample(exact, TEXT, noise, simple_sigmas(8), sampler=sampler, seed=5))
    assert same == (sampler not in STOCHASTIC), "a seed is for what stochastic samplers draw"


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "dpmpp_2m_sde_gpu"])
def test_one_step_is_the_picture_that_the_model_foretells(sampler):
    noise = torch.randn(1, 16, 4, 4)
    found = sample(exact, TEXT, noise, simple_sigmas(1), sampler=sampler)
    assert torch.allclose(found, torch.full_like(found, MEAN), atol=1e-3)


def test_a_schedule_begins_below_noise_only_where_it_began_at_it():
    sigmas = simple_sigmas(3)
    begun = begun_below_noise(sigmas, 3.0)
    t = 1 - 1e-4
    assert float(begun[0]) == pytest.approx(3 * t / (1 + 2 * t), abs=1e-7) and torch.equal(begun[1:], sigmas[1:])
    assert torch.equal(begun_below_noise(sigmas[1:], 3.0), sigmas[1:])


def test_noise_is_that_of_the_seed_after_the_pictures():
    x = torch.zeros(2, 3)
    draw = fresh_noise(x, (), 2**64 - 1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        assert torch.equal(draw(1.0, 0.5), torch.randn(2, 3, generator=generator))


def test_a_package_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(samplers, "find_spec", lambda name: None)
    with pytest.raises(SettingError, match="sampler=dpmpp_2m_sde_gpu: needs the package torchsde: pip install torchsde"):
        sampler_of("dpmpp_2m_sde_gpu")


def test_settings_name_what_there_is():
    assert (tuple(SAMPLERS), tuple(SCHEDULES)) == (settings.SAMPLERS, settings.SCHEDULERS)


@pytest.mark.parametrize("scheduler", settings.SCHEDULERS)
def test_a_schedule_falls_from_1_to_0(scheduler):
    for steps in (1, 2, 30):
        sigmas = sigmas_of(scheduler, steps)
        assert sigmas.dtype == torch.float32 and sigmas.shape == (steps + 1,)
        assert sigmas[0] == 1 and sigmas[-1] == 0 and bool((sigmas.diff() < 0).all())
    with pytest.raises(SettingError, match="sample steps=0"):
        sigmas_of(scheduler, 0)
    assert len(sigmas_of("beta", 900)) < 901, "entries that two quantiles fall on are taken once"
    with pytest.raises(SettingError, match="scheduler=linear: must be one of simple, "):
        sigmas_of("linear", 3)


def test_a_beta_quantile_has_the_mass_below_it():
    """By the trapezoidal rule over theta, x = sin^2 theta, where the density x^-0.4 (1 - x)^-0.4 becomes 2 (sin cos)^0.2."""
    theta = torch.linspace(0, math.pi / 2, 2_000_001, dtype=torch.float64)
    density = 2 * (theta.sin() * theta.cos()).clamp(min=0) ** 0.2
    mass = torch.cumulative_trapezoid(density, theta)
    p = torch.tensor([0.001, 0.03, 0.25, 0.5, 0.8, 0.999], dtype=torch.float64)
    found = torch.searchsorted(theta[1:].sin() ** 2, beta_quantile(p))
    assert torch.allclose(mass[found] / mass[-1], p, atol=1e-6)
    assert beta_quantile(torch.tensor([1.0, 0.0])).tolist() == pytest.approx([1, 0], abs=1e-15)

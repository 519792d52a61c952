"""Beside sd-scripts' own functions: learning rates, prompts, densities of t and losses, as numbers recorded from them.

Recorded in November 2026 from sd-scripts 0.11.0 (its files as amenorira/lora-scripts-anima carries them; get_scheduler_fix
and load_prompts are the same at 48d368fa), called by hand with a config file's values over its parser's defaults: torch
2.13.0, transformers 5.24.0, diffusers 0.42.1. Nothing of it is in this repository.
"""

# ruff: noqa: E501 (recorded numbers)

import json
from pathlib import Path

import pytest
import torch

from anima_core.compat.arguments import config_from_file
from anima_core.settings import FlowConfig
from anima_core.training.flow import flow_loss, sample_timesteps
from anima_core.training.schedules import lr_factor

from .test_flags import config

FILES = Path(__file__).parent / "front_ends"
TOTAL, STEPS = 1000, (0, 1, 33, 49, 50, 100, 250, 499, 750, 950, 999)

# get_scheduler_fix with max_train_steps=1000: the learning rate of these steps
OF_FILES = {
    "anima_standalone_trainer": [1e-4, 9.99998e-5, 9.97315e-5, 9.94087e-5, 9.93844e-5, 9.75528e-5, 8.53553e-5, 5.01571e-5, 1.46447e-5, 6.15583e-7, 2.4674e-10],
    "kohya_ss": [0, 8.33333e-7, 2.75e-5, 4.08333e-5, 4.16667e-5, 8.33333e-5, 9.47113e-5, 6.08026e-5, 1.86265e-5, 7.9444e-7, 3.18621e-10],
    "lora_scripts_anima": [1e-4, 9.99001e-5, 9.67033e-5, 9.51049e-5, 9.5005e-5, 9.001e-5, 7.5025e-5, 5.01499e-5, 2.5075e-5, 5.095e-6, 1.999e-7],
    "next_benchmark_fast": [1e-4] * 11,
    "next_benchmark_kohya": [1e-4] * 11,
    "next_lokr": [5e-5, 4.99999e-5, 4.98658e-5, 4.97044e-5, 4.96922e-5, 4.87764e-5, 4.26777e-5, 2.50785e-5, 7.32233e-6, 3.07791e-7, 1.2337e-10],
    "next_page": [0, 3e-7, 9.9e-6, 1.47e-5, 1.5e-5, 3e-5, 2.25e-5, 9.4077e-7, 1.76047e-5, 9.04611e-7, 3.65539e-10],
    "next_preset": [1e-4] * 11,
    "next_template": [0, 2e-7, 6.6e-6, 9.8e-6, 1e-5, 9.72909e-6, 6.22743e-6, 7.37444e-8, 5.4129e-6, 2.70914e-7, 1.09358e-10],
    "sd_scripts_anima": [1e-4] * 11,
}  # fmt: skip
OF_FLAGS = {
    "--lr_scheduler warmup_stable_decay --lr_warmup_steps 0.05 --lr_decay_steps 0.2 --lr_scheduler_min_lr_ratio 0.1": [1e-5, 1.18e-5, 6.94e-5, 9.82e-5, 1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 2.31802e-5, 1.00056e-5],
    "--lr_scheduler inverse_sqrt --lr_warmup_steps 100": [0, 1e-6, 3.3e-5, 4.9e-5, 5e-5, 1e-4, 6.32456e-5, 4.47661e-5, 3.65148e-5, 3.24443e-5, 3.16386e-5],
    "--lr_scheduler inverse_sqrt --lr_scheduler_timescale 50": [1e-4, 9.90148e-5, 7.76151e-5, 7.10669e-5, 7.07107e-5, 5.7735e-5, 4.08248e-5, 3.01786e-5, 2.5e-5, 2.23607e-5, 2.18322e-5],
    "--lr_scheduler piecewise_constant --lr_scheduler_args step_rules='1:300,0.5:700,0.1'": [1e-4] * 7 + [5e-5] + [1e-5] * 3,
    "--lr_scheduler cosine_with_min_lr --lr_scheduler_num_cycles 3 --lr_scheduler_min_lr_ratio 0.1": [1e-4, 9.9998e-5, 9.7841e-5, 9.52861e-5, 9.50953e-5, 8.14503e-5, 2.31802e-5, 5.45759e-5, 8.68198e-5, 1.49047e-5, 1.0002e-5],
    "--lr_scheduler cosine --lr_scheduler_num_cycles 5 --lr_warmup_steps 3.33%": [0, 3.0303e-6, 1e-4, 9.99325e-5, 9.99238e-5, 9.88202e-5, 8.80809e-5, 5.28412e-5, 1.56049e-5, 6.58221e-7, 2.63868e-10],
    "--lr_scheduler polynomial --lr_scheduler_power 2": [1e-4, 9.98003e-5, 9.35154e-5, 9.04497e-5, 9.02598e-5, 8.1019e-5, 5.62938e-5, 2.5175e-5, 6.34375e-6, 3.4975e-7, 1.001e-7],
}  # fmt: skip
LOWEST = {"polynomial": 1.01e-7}  # where sd-scripts' ends; ours ends at 0, which docs/flags.md says


def rates(optimizer) -> list[float]:
    return [optimizer.learning_rate * lr_factor(optimizer, step, TOTAL) for step in STEPS]


@pytest.mark.parametrize("name", OF_FILES)
def test_learning_rates_of_front_ends_files(name):
    optimizer = config_from_file(FILES / f"{name}.toml")[0].optimizer
    assert rates(optimizer) == pytest.approx(OF_FILES[name], rel=2e-5, abs=LOWEST.get(optimizer.scheduler, 0))


@pytest.mark.parametrize("flags", OF_FLAGS)
def test_learning_rates_of_every_other_schedule(flags):
    optimizer = config(*flags.split(), "--learning_rate", "1e-4").optimizer
    assert rates(optimizer) == pytest.approx(OF_FLAGS[flags], rel=2e-5, abs=LOWEST.get(optimizer.scheduler, 0))


# load_prompts, in our words; what they give no value for is the previews' default in both
PROMPTS = {
    "1girl, solo --n lowres --w 832 --h 1216 --d 7 --s 28 --l 5": dict(
        prompt="1girl, solo", negative="lowres", width=832, height=1216, seed=7, steps=28, cfg=5.0
    ),
    "a cat, sitting --W 777 --H 1000 --g 3.5 --ss euler_a --cn c.png --ctr 0.25 --rcfg 1 --fs 2.5 --l 4": dict(
        prompt="a cat, sitting",
        width=768,
        height=992,
        shift=2.5,
        cfg=4.0,  # 777 and 1000, cut to multiples of 16 as there
    ),
    "a dog --n  --w 512 --s 50": dict(prompt="a dog", negative="", width=512, steps=50),
    "a bird --zz 3 --l 6.5 --d 12": dict(prompt="a bird", cfg=6.5, seed=12),
}
JSON = ["a cat --d 3", {"prompt": "a cat", "negative_prompt": "dog", "width": 640, "scale": 3.0, "seed": 5, "sample_steps": 12}]
FILE_PROMPTS = {
    "p.json": [dict(prompt="a cat", seed=3), dict(prompt="a cat", negative="dog", width=640, cfg=3.0, seed=5, steps=12)],
    "p.toml": [
        dict(prompt="a fox", width=768, height=1024, cfg=5.0, seed=3),
        dict(prompt="an owl", width=768, height=1024, cfg=5.0, negative="day"),
    ],
}


def given(request, names) -> dict:
    return {name: getattr(request, name) for name in names}


def test_prompts_of_a_text_file(tmp_path):
    (tmp_path / "p.txt").write_text("# c\n" + "\n".join(PROMPTS) + "\n\n", encoding="utf-8")
    read = config("--sample_prompts", str(tmp_path / "p.txt")).samples.requests()
    assert [given(request, names) for request, names in zip(read, PROMPTS.values(), strict=True)] == [*PROMPTS.values()]


@pytest.mark.parametrize("name", FILE_PROMPTS)
def test_prompts_of_json_and_toml_files(tmp_path, name):
    toml = "[prompt]\nwidth = 768\nheight = 1024\nscale = 5.0\n[[prompt.subset]]\nprompt = 'a fox'\nseed = 3\n"
    toml += "[[prompt.subset]]\nprompt = 'an owl'\nnegative_prompt = 'day'\n"
    (tmp_path / name).write_text(toml if name.endswith("toml") else json.dumps(JSON), encoding="utf-8")
    read = config("--sample_prompts", str(tmp_path / name)).samples.requests()
    assert [given(request, names) for request, names in zip(read, FILE_PROMPTS[name], strict=True)] == FILE_PROMPTS[name]


# t / 1000 of get_noisy_model_input_and_timesteps, sigma: mean, and quantiles 0.1 to 0.9, of 200,000 draws
SIGMA = {
    "--weighting_scheme uniform": (0.4997, [0.1, 0.25, 0.499, 0.749, 0.9]),
    "--weighting_scheme uniform --discrete_flow_shift 3": (0.6759, [0.25, 0.5, 0.7492, 0.8995, 0.9643]),
    "--weighting_scheme logit_normal": (0.5012, [0.219, 0.339, 0.501, 0.664, 0.784]),
    "--weighting_scheme logit_normal --logit_mean 1 --logit_std 0.5": (0.2803, [0.163, 0.209, 0.27, 0.341, 0.412]),
    "--weighting_scheme logit_normal --logit_mean 1 --logit_std 0.5 --discrete_flow_shift 3": (
        (0.5243, [0.3688, 0.4422, 0.526, 0.6082, 0.6776])
    ),
    "--weighting_scheme mode": (0.5009, [0.198, 0.385, 0.501, 0.618, 0.803]),
    "--weighting_scheme mode --mode_scale -0.5 --discrete_flow_shift 2": (0.6023, [0.1185, 0.3333, 0.6684, 0.8907, 0.968]),
}  # fmt: skip


@pytest.mark.parametrize("flags", SIGMA)
def test_densities_of_t_that_sigma_draws(flags):
    mean, quantiles = SIGMA[flags]
    flow = config("--timestep_sampling", "sigma", *flags.split()).flow
    t = sample_timesteps(200_000, flow, torch.Generator().manual_seed(0))
    assert t.mean().item() == pytest.approx(mean, abs=0.004)
    assert torch.quantile(t, torch.tensor([0.1, 0.25, 0.5, 0.75, 0.9])).tolist() == pytest.approx(quantiles, abs=0.006)


@pytest.mark.parametrize(
    "loss, values",
    [
        ("huber", [1.033425, 0.737823, 0.446418, 0.169857, 0, 0.169857, 0.446418, 0.737823, 1.033425]),
        ("smooth_l1", [3.44475, 2.459412, 1.488061, 0.56619, 0, 0.56619, 1.488061, 2.459412, 3.44475]),
    ],
)
def test_losses_of_errors_from_minus_2_to_2(loss, values):
    """conditional_loss with huber_c 0.15 and huber_scale 2, of its schedule `constant`."""
    flow = config("--loss_type", loss, "--huber_c", "0.15", "--huber_scale", "2").flow
    error = torch.linspace(-2, 2, 9).view(9, 1, 1, 1)
    assert flow == FlowConfig(loss=loss, huber_delta=0.3)
    assert flow_loss(error, torch.zeros_like(error), torch.full((9,), 0.5), flow).tolist() == pytest.approx(values, abs=2e-6)

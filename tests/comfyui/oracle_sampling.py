"""ComfyUI's flow schedules, noise, samplers and whole KSampler path, on a model that is a formula.

Samplers whose noise needs a package that only ComfyUI brings along are run here by our code, too.
"""

import comfy.k_diffusion.sampling
import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch
from comfy.supported_models import Anima

from anima_core.sampling import sample
from anima_core.sampling.schedules import sigmas_of


class Formula(torch.nn.Module):
    """tests/test_sampling.py has the same one."""

    def __init__(self, dtype=None, device=None, operations=None, **kwargs):
        super().__init__()
        self.dtype = torch.float32

    def forward(self, x, timesteps, context=None, **kwargs):
        t = timesteps.view(-1, *[1] * (x.ndim - 1))
        word = context.mean(dim=(1, 2)).view(t.shape)
        return torch.sin(3 * x) * (1 + t) + word * x + t


def anima_with_formula():
    config = Anima({"image_model": "anima"})
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.BaseModel(config, comfy.model_base.ModelType.FLOW, unet_model=Formula)
    return comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))


def denoiser(context):
    model = Formula()

    def denoised(x, sigma, **kwargs):
        return x - sigma.view(-1, 1, 1, 1) * model(x, sigma, context)

    return denoised


def run(tensors, params):
    answer = {}
    patcher = anima_with_formula()
    sampling = patcher.get_model_object("model_sampling")
    answer["shift"] = torch.tensor(float(sampling.shift))
    for shift in params["shifts"]:
        sampling.set_parameters(shift=shift, multiplier=1.0)
        for scheduler in params["schedulers"]:
            for steps in params["steps" if scheduler == "simple" else "fewer"]:
                found = comfy.samplers.calculate_sigmas(sampling, scheduler, steps)
                answer[f"sigmas.{scheduler}.{shift}.{steps}"] = found
    sampling.set_parameters(shift=3.0, multiplier=1.0)
    for seed in params["seeds"]:
        empty = torch.zeros(1, 16, 1, params["height"] // 8, params["width"] // 8)
        answer[f"noise.{seed}"] = comfy.sample.prepare_noise(empty, int(seed)).squeeze(2)
    sigmas = comfy.samplers.simple_scheduler(sampling, 12)
    start = sampling.noise_scaling(sigmas[0], tensors["noise"], torch.zeros_like(tensors["noise"]))
    answer["euler"] = comfy.k_diffusion.sampling.sample_euler(denoiser(tensors["positive"]), start, sigmas, disable=True)
    for cfg in params["cfgs"]:
        for which in ("negative", "short"):
            answer[f"ksampler.{cfg}.{which}"] = ksampler(patcher, tensors, cfg, which)
    for sampler, scheduler, cfg, shift in params["table"]:
        sampling.set_parameters(shift=shift, multiplier=1.0)
        name = f"{sampler}.{scheduler}.{cfg}.{shift}"
        answer[name] = ksampler(patcher, tensors, cfg, "negative", sampler, scheduler, params["seed"])
        if sampler in params["here"]:
            answer[f"ours.{name}"] = ours(tensors, cfg, sampler, scheduler, shift, params["seed"])
    return answer


def ksampler(patcher, tensors, cfg, which, sampler="euler", scheduler="simple", seed=0):
    noise = tensors["noise"].unsqueeze(2)
    positive, negative = ([[tensors[name], {}]] for name in ("positive", which))
    empty = torch.zeros_like(noise)
    latents = comfy.sample.sample(
        patcher, noise, 12, cfg, sampler, scheduler, positive, negative, empty, disable_pbar=True, seed=seed
    )
    return patcher.model.process_latent_in(latents).squeeze(2)


def ours(tensors, cfg, sampler, scheduler, shift, seed):
    sigmas, how = sigmas_of(scheduler, 12, shift), dict(sampler=sampler, shift=shift, seed=seed)
    return sample(Formula(), tensors["positive"], tensors["noise"], sigmas, negative=tensors["negative"], cfg=cfg, **how)

"""ComfyUI's flow schedule, noise, Euler sampler and whole KSampler path, on a model that is a formula."""

import comfy.k_diffusion.sampling
import comfy.model_base
import comfy.model_patcher
import comfy.sample
import comfy.samplers
import torch
from comfy.supported_models import Anima


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
        for steps in params["steps"]:
            answer[f"sigmas.{shift}.{steps}"] = comfy.samplers.simple_scheduler(sampling, steps)
    sampling.set_parameters(shift=3.0, multiplier=1.0)
    for seed in params["seeds"]:
        empty = torch.zeros(1, 16, 1, params["height"] // 8, params["width"] // 8)
        answer[f"noise.{seed}"] = comfy.sample.prepare_noise(empty, int(seed)).squeeze(2)
    sigmas = comfy.samplers.simple_scheduler(sampling, 12)
    start = sampling.noise_scaling(sigmas[0], tensors["noise"], torch.zeros_like(tensors["noise"]))
    answer["euler"] = comfy.k_diffusion.sampling.sample_euler(denoiser(tensors["positive"]), start, sigmas, disable=True)
    noise = tensors["noise"].unsqueeze(2)
    for cfg in params["cfgs"]:
        for which in ("negative", "short"):
            latents = comfy.sample.sample(
                patcher,
                noise,
                12,
                cfg,
                "euler",
                "simple",
                [[tensors["positive"], {}]],
                [[tensors[which], {}]],
                torch.zeros_like(noise),
                disable_pbar=True,
                seed=0,
            )
            answer[f"ksampler.{cfg}.{which}"] = patcher.model.process_latent_in(latents).squeeze(2)
    return answer

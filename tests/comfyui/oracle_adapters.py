"""ComfyUI's own LoRA loader and weight patching, on a model that has nothing but names and shapes."""

import comfy.lora
import comfy.lora_convert
import torch
from torch import nn


class Diffusion(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights

    def state_dict(self, *args, **kwargs):
        return {f"diffusion_model.{name}": tensor for name, tensor in self.weights.items()}


class FakeModel:
    """What comfy.lora.model_lora_keys_unet asks of a model: its keys."""

    def __init__(self, weights):
        from comfy.supported_models import Anima

        self.inner = Diffusion(weights)
        self.model_config = Anima.__new__(Anima)
        self.model_config.unet_config = {}

    def state_dict(self):
        return self.inner.state_dict()


def run(tensors, params):
    base = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("base.")}
    lora = {name[5:]: tensor for name, tensor in tensors.items() if name.startswith("lora.")}
    keys = comfy.lora.model_lora_keys_unet(FakeModel(base), {})
    unused = []
    comfy.lora.logging.warning = lambda text, *args: unused.append(text)
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(lora), keys)
    answer = {"unused": torch.tensor(len(unused))}
    for key, patch in patches.items():
        name = key.removeprefix("diffusion_model.")
        weight = base[name].clone()
        answer[name] = comfy.lora.calculate_weight([(params["strength"], patch, 1.0, None, None)], weight, key)
    return answer

"""The tensors of one all-in-one checkpoint, as ComfyUI's CheckpointSave names them, from those of three models."""

from types import SimpleNamespace

import comfy.model_base
import comfy.supported_models


def run(tensors, params):
    parts = {part: {} for part in ("transformer", "vae", "qwen")}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts[part][name] = tensor
    config = comfy.supported_models.Anima({"image_model": "anima"})
    model = SimpleNamespace(model_config=config, model_type=comfy.model_base.ModelType.FLOW)
    # CLIP.get_sd and VAE.get_sd: the state dicts of AnimaTEModel, which holds its Qwen as `qwen3_06b`, and of the VAE itself
    clip = {f"qwen3_06b.transformer.{name}": tensor for name, tensor in parts["qwen"].items()}
    return comfy.model_base.BaseModel.state_dict_for_saving(model, parts["transformer"], clip, parts["vae"])

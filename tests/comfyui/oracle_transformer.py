"""ComfyUI's MiniTrainDIT and LLMAdapter on given weights."""

import comfy.ops
import torch
from comfy.ldm.anima.model import Anima, LLMAdapter
from comfy.ldm.cosmos.predict2 import MiniTrainDIT

from benchmarks.comfyui_class import ANIMA

OPS = comfy.ops.disable_weight_init


class SmallAnima(Anima):
    """ComfyUI's Anima, with its methods, around an adapter of another size."""

    def __init__(self, adapter, **kwargs):
        MiniTrainDIT.__init__(self, **kwargs)
        self.llm_adapter = LLMAdapter(**adapter, operations=OPS)


def run(tensors, params):
    weights = {name[2:]: tensor for name, tensor in tensors.items() if name.startswith("w.")}
    model = SmallAnima(
        adapter=params["adapter"],
        **params["dit"],
        **ANIMA,
        operations=OPS,
    )
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected, unexpected
    assert all("pos_embedder" in name or "inv_freq" in name for name in missing), missing
    model.eval()
    answer = {}
    for index in range(params["captions"]):
        answer[f"text.{index}"] = model.preprocess_text_embeds(tensors[f"qwen.{index}"], tensors[f"ids.{index}"])
    for index in range(params["pictures"]):
        latents = tensors[f"latents.{index}"].unsqueeze(2)
        velocity = model(latents, tensors[f"t.{index}"], tensors[f"context.{index}"])
        answer[f"velocity.{index}"] = velocity.squeeze(2)
    return {name: tensor.to(torch.float32) for name, tensor in answer.items()}

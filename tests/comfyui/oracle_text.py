"""ComfyUI's Anima tokenizers on given prompts, and its Qwen3 class, cut down, on given weights."""

import torch
from comfy.text_encoders.anima import AnimaTokenizer, Qwen3_06BModel


def run(tensors, params):
    tokenizer = AnimaTokenizer()
    model = Qwen3_06BModel(dtype=torch.float32, model_options={"model_name": "small", "small_model_config": params["sizes"]})
    missing, unexpected = model.load_sd(tensors)
    assert not missing and not unexpected, (missing, unexpected)
    answer = {}
    for index, prompt in enumerate(params["prompts"]):
        tokens = tokenizer.tokenize_with_weights(prompt)
        answer[f"qwen.{index}"] = torch.tensor([id for id, _ in tokens["qwen3_06b"][0]])
        answer[f"t5.{index}"] = torch.tensor([id for id, _ in tokens["t5xxl"][0]])
        answer[f"hidden.{index}"] = model.encode_token_weights(tokens["qwen3_06b"])[0][0]
    return answer

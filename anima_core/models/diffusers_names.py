"""Diffusers' names of the tensors of Anima's models, put back to those of the released files. No tensor is changed.

Sources: diffusers' scripts/convert_anima_to_diffusers.py and convert_cosmos_to_diffusers.py. Shift and scale stand in the
same order in both. The names of the LLM adapter, there `text_conditioner`, and of Qwen3 are the same.
"""

import re

# The files of diffusers' folders; what lies beside them is another precision or another library's
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
LLM_ADAPTER = "text_conditioner"  # its folder
ROOT = "model_index.json", "modular_model_index.json"  # what a whole folder holds

TRANSFORMER = (
    (r"^transformer_blocks\.", "blocks."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"_attn\.to_([qkv])\.", r"_attn.\1_proj."),
    (r"_attn\.norm_([qk])\.", r"_attn.\1_norm."),
    (r"_attn\.to_out\.0\.", "_attn.output_proj."),
    (r"^(blocks\.\d+)\.norm1\.linear_", r"\1.adaln_modulation_self_attn."),
    (r"^(blocks\.\d+)\.norm2\.linear_", r"\1.adaln_modulation_cross_attn."),
    (r"^(blocks\.\d+)\.norm3\.linear_", r"\1.adaln_modulation_mlp."),
    (r"\.ff\.net\.0\.proj\.", ".mlp.layer1."),
    (r"\.ff\.net\.2\.", ".mlp.layer2."),
    (r"^patch_embed\.proj\.", "x_embedder.proj.1."),
    (r"^time_embed\.t_embedder\.", "t_embedder.1."),
    (r"^time_embed\.norm\.", "t_embedding_norm."),
    (r"^norm_out\.linear_", "final_layer.adaln_modulation."),
    (r"^proj_out\.", "final_layer.linear."),
    (rf"^{LLM_ADAPTER}\.", "llm_adapter."),
)

VAE = (
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
    (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
    (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
)
IN_A_RESBLOCK = (
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.(?=\w+$)(?<=\d\.conv1\.)", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.(?=\w+$)(?<=\d\.conv2\.)", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
UP = re.compile(r"^decoder\.up_blocks\.(\d+)\.(resnets|upsamplers)\.(\d+)\.")
UP_LENGTH = 4  # layers of a level of the decoder: three resblocks, and what makes the picture larger


def replaced(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for theirs, ours in table:
        name = re.sub(theirs, ours, name)
    return name


def transformer_name(name: str) -> str:
    """Return the released files' name of a tensor of a transformer; one that is so already stays."""
    return replaced(name, TRANSFORMER)


def vae_name(name: str) -> str:
    """Return Wan's name of a tensor of a VAE; one that is so already stays."""
    if found := UP.match(name):
        level, what, index = int(found[1]), found[2], int(found[3])
        place = UP_LENGTH * level + (index if what == "resnets" else UP_LENGTH - 1)
        name = f"decoder.upsamples.{place}.{name[found.end() :]}"
    elif not re.search(r"_conv\.|mid_block|down_blocks|(conv|norm)_(in|out)\.", name):
        return name
    return replaced(replaced(name, VAE), IN_A_RESBLOCK)

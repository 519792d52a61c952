"""Diffusers' names of the tensors of Anima's models, put back to those of the released files. No tensor is changed.

Sources: diffusers' scripts/convert_anima_to_diffusers.py and convert_cosmos_to_diffusers.py. Shift and scale stand in the
same order in both. The names of the LLM adapter, there `text_conditioner`, and of Qwen3 are the same.
"""

import re

# The files of diffusers' folders; what lies beside them is another precision or another library's
WEIGHTS = re.compile(r"(diffusion_pytorch_)?model(-\d+-of-\d+)?\.safetensors")
LLM_ADAPTER = "text_conditioner"  # its folder
ROOT = "model_index.json", "modular_model_index.json"  # what a whole folder holds

BLOCK = re.compile(r"transformer_blocks\.(\d+)\.(.+)")
ATTENTIONS, BRANCHES = ("self_attn", "cross_attn"), ("self_attn", "cross_attn", "mlp")
LEAVES = {  # a layer within a block -> ours
    **{
        f"attn{number}.{theirs}": f"{ours}.{name}"
        for number, ours in enumerate(ATTENTIONS, 1)
        for theirs, name in (
            *((f"to_{letter}", f"{letter}_proj") for letter in "qkv"),
            *((f"norm_{letter}", f"{letter}_norm") for letter in "qk"),
            ("to_out.0", "output_proj"),
        )
    },
    **{
        f"norm{number}.linear_{layer}": f"adaln_modulation_{branch}.{layer}"
        for number, branch in enumerate(BRANCHES, 1)
        for layer in (1, 2)
    },
    "ff.net.0.proj": "mlp.layer1",
    "ff.net.2": "mlp.layer2",
}
SINGLES = {  # a layer of no block -> ours
    "patch_embed.proj": "x_embedder.proj.1",
    "time_embed.t_embedder.linear_1": "t_embedder.1.linear_1",
    "time_embed.t_embedder.linear_2": "t_embedder.1.linear_2",
    "time_embed.norm": "t_embedding_norm",
    "norm_out.linear_1": "final_layer.adaln_modulation.1",
    "norm_out.linear_2": "final_layer.adaln_modulation.2",
    "proj_out": "final_layer.linear",
}

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
    layer, _, tensor = name.rpartition(".")
    if (found := BLOCK.fullmatch(layer)) and found[2] in LEAVES:
        return f"blocks.{found[1]}.{LEAVES[found[2]]}.{tensor}"
    if layer in SINGLES:
        return f"{SINGLES[layer]}.{tensor}"
    return f"llm_adapter.{name.removeprefix(f'{LLM_ADAPTER}.')}" if name.startswith(f"{LLM_ADAPTER}.") else name


def vae_name(name: str) -> str:
    """Return Wan's name of a tensor of a VAE; one that is so already stays."""
    if found := UP.match(name):
        level, what, index = int(found[1]), found[2], int(found[3])
        place = UP_LENGTH * level + (index if what == "resnets" else UP_LENGTH - 1)
        name = f"decoder.upsamples.{place}.{name[found.end() :]}"
    elif not re.search(r"_conv\.|mid_block|down_blocks|(conv|norm)_(in|out)\.", name):
        return name
    return replaced(replaced(name, VAE), IN_A_RESBLOCK)

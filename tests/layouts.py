"""Tiny models in the layouts of other programs: named as ComfyUI's and diffusers' savers do."""

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

State = dict[str, Tensor]

BRANCHES = "self_attn", "cross_attn", "mlp"

# The released names of a transformer's tensors -> diffusers', in the order of scripts/convert_cosmos_to_diffusers.py
TRANSFORMER = (
    ("t_embedder.1", "time_embed.t_embedder"),
    ("t_embedding_norm", "time_embed.norm"),
    ("blocks", "transformer_blocks"),
    *((f"adaln_modulation_{branch}.{k}", f"norm{n}.linear_{k}") for n, branch in enumerate(BRANCHES, 1) for k in (1, 2)),
    ("self_attn", "attn1"),
    ("cross_attn", "attn2"),
    ("q_proj", "to_q"),
    ("k_proj", "to_k"),
    ("v_proj", "to_v"),
    ("output_proj", "to_out.0"),
    ("q_norm", "norm_q"),
    ("k_norm", "norm_k"),
    ("mlp.layer1", "ff.net.0.proj"),
    ("mlp.layer2", "ff.net.2"),
    ("x_embedder.proj.1", "patch_embed.proj"),
    ("final_layer.adaln_modulation.1", "norm_out.linear_1"),
    ("final_layer.adaln_modulation.2", "norm_out.linear_2"),
    ("final_layer.linear", "proj_out"),
)  # fmt: skip
# Wan's names of a VAE's tensors -> diffusers'
RESBLOCK = (
    ("residual.0", "norm1"),
    ("residual.2", "conv1"),
    ("residual.3", "norm2"),
    ("residual.6", "conv2"),
    ("shortcut", "conv_shortcut"),
)
VAE = (
    ("middle.0", "mid_block.resnets.0"),
    ("middle.1", "mid_block.attentions.0"),
    ("middle.2", "mid_block.resnets.1"),
    ("head.0", "norm_out"),
    ("head.2", "conv_out"),
    ("encoder.downsamples", "encoder.down_blocks"),
)


def bare(state: State) -> State:
    return {name.removeprefix("net.").removeprefix("model."): tensor for name, tensor in state.items()}


def diffusers_transformer(state: State) -> tuple[State, State]:
    """The transformer and the text conditioner, from released names without a prefix."""
    own = {name: tensor for name, tensor in state.items() if not name.startswith("llm_adapter.")}
    other = {name.removeprefix("llm_adapter."): tensor for name, tensor in state.items() if name not in own}
    return {renamed(name, TRANSFORMER): tensor for name, tensor in own.items()}, other


def diffusers_vae(state: State) -> State:
    return {vae_name(name): tensor for name, tensor in state.items()}


def vae_name(name: str) -> str:
    first, _, rest = name.partition(".")
    if first in ("conv1", "conv2"):
        return f"{ {'conv1': 'quant_conv', 'conv2': 'post_quant_conv'}[first] }.{rest}"
    if rest.startswith("conv1."):
        return f"{first}.{rest.replace('conv1', 'conv_in', 1)}"
    if name.startswith("decoder.upsamples."):
        number, _, rest = name.removeprefix("decoder.upsamples.").partition(".")
        level, index = divmod(int(number), 4)
        name = f"decoder.up_blocks.{level}.{'upsamplers.0' if index == 3 else f'resnets.{index}'}.{rest}"
    return renamed(renamed(name, VAE), RESBLOCK)


def renamed(name: str, table: tuple[tuple[str, str], ...]) -> str:
    for ours, theirs in table:
        name = name.replace(ours, theirs)
    return name


def write_shards(state: State, folder: Path, name: str = "diffusion_pytorch_model", count: int = 2) -> None:
    """Write a folder's files as diffusers names them: one, or several."""
    folder.mkdir(parents=True)
    keys = sorted(state)
    for number in range(count):
        suffix = f"-{number + 1:05d}-of-{count:05d}" if count > 1 else ""
        save_file({key: state[key] for key in keys[number::count]}, folder / f"{name}{suffix}.safetensors")


def write_diffusers(folder: Path, transformer: str, vae: str, qwen: str, count: int = 2) -> Path:
    """Write a whole folder in diffusers' layout from three files."""
    own, conditioner = diffusers_transformer(bare(load_file(transformer)))
    write_shards(own, folder / "transformer", count=count)
    write_shards(conditioner, folder / "text_conditioner", count=1)
    write_shards(diffusers_vae(load_file(vae)), folder / "vae", count=1)
    write_shards(bare(load_file(qwen)), folder / "text_encoder", "model", count=count)
    (folder / "model_index.json").write_text("{}", encoding="utf-8")
    return folder


# What stands before the names of each part: as ComfyUI's CheckpointSave writes them, and as its older versions do
ALL_IN_ONE = {
    "comfyui": ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.qwen3_06b.transformer.model."),
    "comfyui with text_encoders": ("model.diffusion_model.", "vae.", "text_encoders.qwen3_06b.transformer.model."),
    "original": ("net.", "vae.", "text_encoder.model."),
}


def all_in_one(transformer: State, vae: State, qwen: State, kind: str = "comfyui") -> State:
    parts = zip(ALL_IN_ONE[kind], (bare(transformer), vae, bare(qwen)))
    return {f"{prefix}{name}": tensor for prefix, state in parts for name, tensor in state.items()}

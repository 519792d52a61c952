"""The Anima transformer: Cosmos-Predict2's MiniTrainDIT for single images, with its LLM adapter.

Read top to bottom: sizes, rotary positions, one block, the whole. Module names are the checkpoint's tensor names.
Source of every number: the released checkpoint's shapes, docs/model.md §2; ComfyUI's class is the oracle in tests.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import FileError, SettingError
from .kept import Store, as_stored, nothing
from .llm_adapter import MIN_TEXT_ROWS, LLMAdapter, LLMAdapterConfig
from .loading import Sources, all_by_name, check_fits, empty_like, load_strict, shapes_of, wrong_kind
from .ops import NORM_EPS, PLAIN, Ops, Rope, modulate, rope_table
from .transformer_files import LAYOUT, check_adapter, sources

PATCH = 2  # latent pixels per token side
ROPE_THETA = 10000.0
ROPE_EXTRAPOLATION = 4.0  # height and width, for the 16-channel model

# By number of blocks: models of the same layout whose captions another text encoder reads, so that they would learn from noise
OTHER_ANIMAS = {
    52: "Anima-3.8B (52 blocks), which reads captions with Qwen3.5-4B and not with Qwen3-0.6B; use a 28- or 40-block Anima",
}


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes, all read from the checkpoint. Released: 28 blocks, 2048 wide, heads of 128, MLP 8192, context 1024."""

    blocks: int
    width: int
    head_dim: int
    mlp_dim: int
    context_dim: int
    adaln_dim: int
    in_channels: int
    out_channels: int
    llm_adapter: LLMAdapterConfig


def infer_config(shapes: dict[str, tuple[int, ...]]) -> TransformerConfig:
    """Read the sizes from tensor shapes (names without prefix). Raises KeyError when a defining tensor is missing."""
    return TransformerConfig(
        blocks=_count(shapes, "blocks."),
        width=shapes["x_embedder.proj.1.weight"][0],
        head_dim=shapes["blocks.0.self_attn.q_norm.weight"][0],
        mlp_dim=shapes["blocks.0.mlp.layer1.weight"][0],
        context_dim=shapes["blocks.0.cross_attn.k_proj.weight"][1],
        adaln_dim=shapes["blocks.0.adaln_modulation_self_attn.1.weight"][0],
        in_channels=shapes["x_embedder.proj.1.weight"][1] // PATCH**2 - 1,  # one more channel is the padding mask
        out_channels=shapes["final_layer.linear.weight"][0] // PATCH**2,
        llm_adapter=LLMAdapterConfig(
            blocks=_count(shapes, "llm_adapter.blocks."),
            width=shapes["llm_adapter.out_proj.weight"][1],
            source_dim=shapes["llm_adapter.blocks.0.cross_attn.k_proj.weight"][1],
            target_dim=shapes["llm_adapter.out_proj.weight"][0],
            head_dim=shapes["llm_adapter.blocks.0.self_attn.q_norm.weight"][0],
            mlp_dim=shapes["llm_adapter.blocks.0.mlp.0.weight"][0],
            vocabulary=shapes["llm_adapter.embed.weight"][0],
        ),
    )


def _count(shapes: dict[str, tuple[int, ...]], prefix: str) -> int:
    """Count the blocks. Raises ValueError when there are none."""
    found = {int(name[len(prefix) :].split(".")[0]) for name in shapes if name.startswith(prefix)}
    if not found:
        raise ValueError
    return len(found)


def image_rope(height: int, width: int, head_dim: int, device: torch.device) -> Rope:
    """Make the rotary table of a height x width grid of tokens, any size, fp32: two of [height * width, 1, head_dim / 2].

    A head's pairs are split [time | height | width]; one image stands at time 0. NTK: theta * ratio^(d / (d - 2)).
    """
    side = head_dim // 6 * 2
    theta = ROPE_THETA * ROPE_EXTRAPOLATION ** (side / (side - 2))
    exponents = torch.arange(0, side, 2, device=device, dtype=torch.float32) / side
    frequencies = 1.0 / theta**exponents
    rows, columns = (torch.arange(n, device=device) for n in (height, width))
    cos_h, sin_h = (x[:, 0].repeat_interleave(width, 0) for x in rope_table(rows, frequencies))
    cos_w, sin_w = (x[:, 0].repeat(height, 1) for x in rope_table(columns, frequencies))
    still = cos_h.new_zeros(height * width, head_dim // 2 - side)
    cos = torch.cat([still + 1, cos_h, cos_w], dim=-1)
    sin = torch.cat([still, sin_h, sin_w], dim=-1)
    return cos.unsqueeze(1), sin.unsqueeze(1)


class Attention(nn.Module):
    """Multi-head attention with RMS-normalised queries and keys; no biases, so a zero context row is key 0, value 0."""

    def __init__(self, width: int, context_dim: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(context_dim, width, bias=False)
        self.v_proj = nn.Linear(context_dim, width, bias=False)
        self.output_proj = nn.Linear(width, width, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=NORM_EPS)
        self.k_norm = nn.RMSNorm(head_dim, eps=NORM_EPS)

    def forward(
        self, x: Tensor, context: Tensor, ops: Ops, rope: Rope | None = None, mask: Tensor | None = None, zeros: int = 0
    ) -> Tensor:
        """Let x [B, N, D] look at context [B, L, C], and at so many further rows of zeros -> [B, N, D]."""
        heads = (-1, self.head_dim)
        q = ops.norm_rope(self.q_proj(x).unflatten(-1, heads), self.q_norm.weight, rope)
        k = ops.norm_rope(self.k_proj(context).unflatten(-1, heads), self.k_norm.weight, rope)
        v = self.v_proj(context).unflatten(-1, heads)
        return self.output_proj(ops.attention(q, k, v, mask, zeros))


class MLP(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer1 = nn.Linear(width, hidden, bias=False)
        self.layer2 = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return self.layer2(ops.gelu(self.layer1(x)))


def modulation(width: int, hidden: int, chunks: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, hidden, bias=False), nn.Linear(hidden, chunks * width, bias=False))


Modulation = tuple[Tensor, Tensor, Tensor]  # of self-attention, cross-attention, MLP: [B, 1, 3D] each, shift | scale | gate


class Block(nn.Module):
    """x += gate * f(modulated norm of x), for f = self-attention, cross-attention, MLP."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.self_attn = Attention(width, width, config.head_dim)
        self.cross_attn = Attention(width, config.context_dim, config.head_dim)
        self.mlp = MLP(width, config.mlp_dim)
        self.adaln_modulation_self_attn = modulation(width, config.adaln_dim, 3)
        self.adaln_modulation_cross_attn = modulation(width, config.adaln_dim, 3)
        self.adaln_modulation_mlp = modulation(width, config.adaln_dim, 3)

    def adaln(self) -> tuple[nn.Module, nn.Module, nn.Module]:
        return self.adaln_modulation_self_attn, self.adaln_modulation_cross_attn, self.adaln_modulation_mlp

    def forward(
        self,
        x: Tensor,
        modulation: Modulation,
        context: Tensor,
        rope: Rope,
        mask: Tensor | None,
        zeros: int = 0,
        *,
        ops: Ops = PLAIN,
    ) -> Tensor:
        """Map x [B, N, D] (fp32 residual under fp16), context [B, L, C] and its further rows of zeros -> x."""
        (shift1, scale1, gate1), (shift2, scale2, gate2), (shift3, scale3, gate3) = (m.chunk(3, dim=-1) for m in modulation)
        y = ops.modulate(x, shift1, scale1)
        x = ops.gated_add(x, gate1, self.self_attn(y, y, ops, rope))
        y = ops.modulate(x, shift2, scale2)
        x = ops.gated_add(x, gate2, self.cross_attn(y, context, ops, mask=mask, zeros=zeros))
        y = ops.modulate(x, shift3, scale3)
        return ops.gated_add(x, gate3, self.mlp(y, ops))


# How a block is run: form(block, x, modulation, context, rope, mask, zeros) -> x. What it keeps is its own affair.
Form = Callable[..., Tensor]


def plain(block: Block, *inputs: Any) -> Tensor:
    return block(*inputs)


def modulations(blocks: Iterable[Block], emb: Tensor, adaln: Tensor) -> Iterator[Modulation]:
    """Yield what modulates each block: emb [B, 1, D] through its own layers, plus adaln [B, 1, 3D], which all share."""
    for block in blocks:
        first, second, third = (layers(emb) + adaln for layers in block.adaln())
        yield first, second, third


class Patchify(nn.Module):
    """[B, C, H, W] -> [B, H/2 * W/2, C * 4], a patch's values ordered channel, row, column."""

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        x = x.reshape(b, c, h // PATCH, PATCH, w // PATCH, PATCH)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // PATCH**2, c * PATCH**2)


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(Patchify(), nn.Linear((channels + 1) * PATCH**2, width, bias=False))

    @property
    def weight(self) -> Tensor:
        weight = self.proj[1].weight
        assert isinstance(weight, Tensor)
        return weight

    def forward(self, latents: Tensor) -> Tensor:
        padding_mask = torch.zeros_like(latents[:, :1])  # no part of a picture is padding
        return self.proj(torch.cat([latents, padding_mask], dim=1))


class Sinusoid(nn.Module):
    """t in [0, 1] -> [cos | sin] of t * 10000^(-i / half), fp32: [B] -> [B, 1, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pairs = width // 2

    def forward(self, t: Tensor) -> Tensor:
        index = torch.arange(self.pairs, device=t.device, dtype=torch.float32)
        angles = t.float()[:, None] * torch.exp(-math.log(10000.0) / self.pairs * index)
        return torch.cat([angles.cos(), angles.sin()], dim=-1).unsqueeze(1)


class TimestepEmbedding(nn.Module):
    """The MLP's output is the modulation all blocks share; the embedding itself is the sinusoid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, width, bias=False)
        self.linear_2 = nn.Linear(width, 3 * width, bias=False)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class FinalLayer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.width, config.out_channels * PATCH**2, bias=False)
        self.adaln_modulation = modulation(config.width, config.adaln_dim, 2)

    def forward(self, x: Tensor, emb: Tensor, adaln: Tensor) -> Tensor:
        shift, scale = (self.adaln_modulation(emb) + adaln[..., : 2 * x.shape[-1]]).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))


class AnimaTransformer(nn.Module):
    """Predicts the velocity eps - x0.

    `forms`, one a block, and `modulations` are plain functions; `anima_core.speed` has faster and smaller ones of the same
    numbers.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.forms: list[Form] = [plain] * config.blocks
        self.modulations: Callable[[Iterable[Block], Tensor, Tensor], Iterable[Modulation]] = modulations
        self.x_embedder = PatchEmbed(config.in_channels, config.width)
        self.t_embedder = nn.Sequential(Sinusoid(config.width), TimestepEmbedding(config.width))
        self.t_embedding_norm = nn.RMSNorm(config.width, eps=NORM_EPS)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.final_layer = FinalLayer(config)
        self.llm_adapter = LLMAdapter(config.llm_adapter)
        self._ropes: dict[tuple, Rope] = {}

    @property
    def dtype(self) -> torch.dtype:
        return self.x_embedder.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.x_embedder.weight.device

    def preprocess_text_embeds(
        self, qwen_hidden: Tensor, t5_ids: Tensor, qwen_mask: Tensor | None = None, t5_mask: Tensor | None = None
    ) -> Tensor:
        """Map [B, S, 1024] and [B, T] int -> [B, max(512, T), 1024]: the LLM adapter's output, zero rows appended, never cut.

        Masks are bool, True for real tokens, for batches of captions of different lengths: padding then changes nothing.
        Same numbers as ComfyUI's method of this name, which runs one caption at a time without padding.
        """
        out = self.llm_adapter(qwen_hidden.to(self.dtype), t5_ids, qwen_mask, t5_mask)
        return F.pad(out, (0, 0, 0, max(0, MIN_TEXT_ROWS - out.shape[1])))

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        text_embeds: Tensor,
        text_lengths: Tensor | None = None,
        text_zeros: int = 0,
    ) -> Tensor:
        """Map latents [B, 16, H/8, W/8], timesteps [B] in [0, 1], text_embeds [B, L, 1024] -> velocity, shaped as latents.

        text_lengths: int [B], the rows each sample looks at, when captions of over 512 tokens share a batch with shorter
        ones; None when all look at all L. text_zeros: how many rows of zeros that belong to the text were cut from its end;
        what they would have done is computed without them. Raises SettingError for sides that are not even.
        """
        _, _, h, w = latents.shape
        if h % PATCH or w % PATCH:
            raise SettingError(f"latents of {w}x{h}: sides must be even, that is pictures in multiples of 16 px")
        dtype = self.dtype
        x = self.x_embedder(latents.to(dtype))
        sinusoid = self.t_embedder[0](timesteps).to(dtype)
        adaln, emb = self.t_embedder[1](sinusoid), self.t_embedding_norm(sinusoid)
        context, mask = text_embeds.to(dtype), length_mask(text_lengths, text_embeds.shape[1])
        rope = self._rope(h // PATCH, w // PATCH, latents.device)
        if dtype == torch.float16:
            x = x.float()  # this model's residuals overflow fp16
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        for block, form, modulation in zip(blocks, self.forms, self.modulations(blocks, emb, adaln)):
            x = form(block, x, modulation, context, rope, mask, text_zeros)
        return unpatchify(self.final_layer(x, emb, adaln), h, w).to(latents.dtype)

    def _rope(self, h: int, w: int, device: torch.device) -> Rope:
        key = (h, w, device)
        if key not in self._ropes:
            if len(self._ropes) >= 64:  # as many as a run has buckets; a table is 2 MB at 1024 px
                self._ropes.clear()
            with torch.inference_mode(False):  # a preview may be first to ask, and training must be able to use it
                self._ropes[key] = image_rope(h, w, self.config.head_dim, device)
        return self._ropes[key]


def length_mask(lengths: Tensor | None, rows: int) -> Tensor | None:
    """Map [B] -> bool [B, 1, 1, rows], True for a sample's own rows; None when every sample owns all."""
    if lengths is None:
        return None
    return (torch.arange(rows, device=lengths.device) < lengths[:, None])[:, None, None]


def unpatchify(tokens: Tensor, h: int, w: int) -> Tensor:
    """Map [B, h/2 * w/2, 4 * C], a patch ordered row, column, channel -> [B, C, h, w]."""
    b = tokens.shape[0]
    x = tokens.reshape(b, h // PATCH, w // PATCH, PATCH, PATCH, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(b, -1, h, w)


def load_transformer(
    path: str | Path,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    store: Store = as_stored,
    on_host: Callable[[str], bool] = nothing,
    llm_adapter: str | Path = "",
) -> AnimaTransformer:
    """Load an Anima transformer: a file (safetensors or GGUF, any known prefix), an all-in-one checkpoint, or a folder.

    Sizes come from the file. Every weight is frozen. store: which of them stay in memory in another way than as tensors of
    `dtype`. on_host: tells by name which of them stay on the CPU. llm_adapter: where its LLM adapter is, empty where it
    comes with it. Raises FileError, naming the file and the first offending tensor, when it is missing, truncated,
    quantised in a way that is not read, a pickle, or not one.
    """
    files = sources(path, llm_adapter)
    model = plain_transformer(path, files)
    return load_strict(model, files, LAYOUT, dtype=dtype, device=device, store=store, on_host=on_host)


def check_transformer(path: str | Path, llm_adapter: str | Path = "") -> TransformerConfig:
    """Check by the headers that a file or folder is a whole Anima transformer, and return its sizes. Raises FileError."""
    files = sources(path, llm_adapter)
    model = plain_transformer(path, files)
    check_fits(shapes_of(model), files, LAYOUT)
    return model.config


def meta_transformer(
    path: str | Path, dtype: torch.dtype, store: Store = as_stored, llm_adapter: str | Path = ""
) -> AnimaTransformer:
    """Build what `load_transformer` would load on the meta device. Raises FileError."""
    files = sources(path, llm_adapter)
    return empty_like(plain_transformer(path, files), files, LAYOUT, store, dtype)


def plain_transformer(path: str | Path, files: Sources) -> AnimaTransformer:
    """Build a transformer of the files' sizes on the meta device. Raises FileError when it is not one, or not the right one."""
    config = transformer_config(path, files)
    if other := OTHER_ANIMAS.get(config.blocks):
        raise FileError(f"{path}: is {other}")
    with torch.device("meta"):
        return AnimaTransformer(config)


def transformer_config(path: str | Path, files: Sources) -> TransformerConfig:
    """Read the sizes from the headers. Raises FileError for what is no Anima transformer, or lacks its LLM adapter."""
    found = all_by_name(files, LAYOUT)
    check_adapter(path, found)
    try:
        return infer_config({name: stored.shape for name, stored in found.items()})
    except (KeyError, ValueError, IndexError) as error:
        missing = str(error.args[0]) if isinstance(error, KeyError) else "blocks"
        raise wrong_kind(path, "an Anima transformer", missing, files) from None

"""What a model's file is, told in a line by its headers: "Anima, 28 blocks, bf16, 4.18 GB"; before anything is loaded."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import FileError
from . import qwen, vae
from .checkpoint import FORMATS, TensorInfo
from .frozen import FloatWeight
from .kinds import parts_in
from .loading import Layout, Sources, all_by_name, part_folder
from .loading import sources as sources_of
from .quantised import Stored, read_stored
from .qwen import check_qwen
from .transformer import check_transformer
from .transformer_files import LAYOUT, sources
from .vae import check_vae

GB = 1e9
BLOCKS = {28: "Anima", 40: "Anima-2.9B"}  # released sizes; others are told by their blocks alone
SHORT = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}
QWEN = 1024, 28  # width and layers of Qwen3-0.6B


def described_transformer(path: str | Path, llm_adapter: str | Path = "") -> str:
    """Say what a transformer is. Raises FileError for what is none."""
    config = check_transformer(path, llm_adapter)
    what = f"{BLOCKS.get(config.blocks, 'Anima')}, {config.blocks} blocks"
    other = f"its LLM adapter from {Path(llm_adapter).name}" if llm_adapter else ""
    return line(path, what, sources(path, llm_adapter), LAYOUT, other)


def described_vae(path: str | Path) -> str:
    check_vae(path)
    return line(path, "Qwen-Image VAE", sources_of(path, vae.LAYOUT), vae.LAYOUT)


def described_qwen(path: str | Path) -> str:
    config = check_qwen(path)
    size = "Qwen3-0.6B" if (config.hidden, config.layers) == QWEN else "Qwen3"
    return line(path, f"{size}, {config.layers} layers of {config.hidden}", sources_of(path, qwen.LAYOUT), qwen.LAYOUT)


def line(path: str | Path, what: str, files: Sources, layout: Layout, more: str = "") -> str:
    """Join what there is to say: what it is, how it is stored, how large it is, and what it is a part of."""
    tensors = all_by_name(files, layout)
    size = sum(bytes_of(info) for stored in tensors.values() for info in stored.infos.values())
    told = [what, precision(tensors), f"{size / GB:.2f} GB", more, origin(path, files, layout)]
    return ", ".join(filter(None, told))


def bytes_of(info: TensorInfo) -> int:
    return math.prod(info.shape) * FORMATS[info.dtype].itemsize


def precision(tensors: Mapping[str, Stored]) -> str:
    """Say how most of the numbers are stored: "bf16", or "fp8 scaled (float8_e4m3fn) (264 of 685 tensors), bf16"."""
    kinds = Counter(stored.kind for stored in tensors.values() if stored.kind != FloatWeight.kind)
    plain: Counter[str] = Counter()
    for stored in tensors.values():
        if stored.kind == FloatWeight.kind:
            plain[stored.infos["weight"].dtype] += stored.shape.numel()
    quantised = [f"{kind}: {count} of {len(tensors)} tensors" for kind, count in kinds.most_common()]
    return ", ".join([*quantised, *(SHORT.get(dtype, dtype) for dtype, _ in plain.most_common(1))])


def origin(path: str | Path, files: Sources, layout: Layout) -> str:
    """Say what a model is a part of: "of an all-in-one checkpoint of 5.61 GB (transformer, VAE, text encoder)"."""
    if parts := parts_in(read_stored(files[0].file)):
        return f"of an all-in-one checkpoint of {files[0].file.stat().st_size / GB:.2f} GB ({', '.join(parts)})"
    count = f"{len(files)} files" if len(files) > 1 else "1 file"
    if part_folder(path, layout.folder) != Path(path):
        return f"{count} of a diffusers folder"
    return count if Path(path).is_dir() else ""


KINDS: dict[str, Callable[[str | Path], str]] = {
    "transformer": described_transformer,
    "vae": described_vae,
    "qwen": described_qwen,
}


def described(kind: str, path: str | Path) -> str:
    """Say what is at a path, or, where it is not the kind of model that is wanted, why not: the error's line."""
    try:
        return KINDS[kind](path)
    except FileError as error:
        return str(error)

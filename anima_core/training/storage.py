"""What there is to say about a run whose model files are quantised."""

import re
from collections import Counter
from pathlib import Path

from torch import nn

from ..models import qwen, transformer
from ..models.frozen import FloatWeight, frozen_linears
from ..models.int8 import TOO_COARSE
from ..models.kept import Store, all_plain, left_plain
from ..models.loading import Layout, how_stored
from ..models.quantised.fp8 import UNSCALED
from ..models.transformer import AnimaTransformer
from ..models.transformer_files import not_used
from ..settings import ModelConfig

OURS = re.compile(r"int8( in groups of \d+)?")  # not those that a file had
METADATA_KEY = "ss_base_quantization"


def notes(model: ModelConfig, store: Store) -> list[str]:
    """Say of each quantised file what stays so in memory, and what of a file is not used. Raises FileError.

    store: as the transformer is loaded with.
    """
    said = (_note(model.transformer, transformer.LAYOUT, store), _note(model.qwen, qwen.LAYOUT, all_plain))
    return [text for text in (*said, _adapter_note(model)) if text]


def _adapter_note(model: ModelConfig) -> str:
    if count := not_used(model.transformer, model.llm_adapter):
        name = Path(model.llm_adapter).name
        return f"`model.llm_adapter`={name}: {count} tensors of the transformer's own LLM adapter are not used"
    return ""


def _note(path: str, layout: Layout, store: Store) -> str:
    found = how_stored(path, layout, store)
    kinds = "; ".join(f"{kind}: {_counts(kept, plain)}" for kind, (kept, plain) in sorted(found.items()))
    return kinds and f"{Path(path).name} is quantised: {kinds}"


def _counts(kept: int, plain: int) -> str:
    stay, made = f"{kept} layers stay so in memory", f"{plain} {'others' if kept else 'tensors'} are made plain numbers"
    return ", ".join([stay] * bool(kept) + [made] * bool(plain))


def in_8_bits(model: AnimaTransformer) -> str:
    """Say how many weights of a model, just loaded, are kept in 8 bits, how finely, and how many are left."""
    kinds = Counter(layer.stored.kind for _, layer in frozen_linears(model) if OURS.fullmatch(layer.stored.kind))
    kept = ", ".join(f"{kind}: {count} layers" for kind, count in sorted(kinds.items()))
    left = left_plain(model, len(model.blocks))
    others = f"; {left} are left as they are, whose rounding would take more than {TOO_COARSE:.0%} of them" if left else ""
    return f"`model.dtype`=int8: {kept or 'no layer, since the outer two blocks stay as they are'}{others}"


def warnings(model: ModelConfig) -> list[str]:
    """Warn of 8-bit floats without scales, which are rounded ten times as coarsely as they need be. Raises FileError."""
    found = how_stored(model.transformer, transformer.LAYOUT)
    count = sum(sum(counts) for kind, counts in found.items() if kind.startswith(UNSCALED))
    if not count:
        return []
    why = f"{count} of its tensors are {UNSCALED}, and Anima's author says that training on such a file fails"
    return [f"{model.transformer}: {why}; use the bf16 file, or one in scaled fp8, int8 or GGUF Q8_0"]


def metadata(model: nn.Module) -> dict[str, str]:
    """Return what an adapter file says about the weights that it was trained on: how those in memory are stored, or none."""
    kinds = {layer.stored.kind for _, layer in frozen_linears(model)} - {FloatWeight.kind}
    return {METADATA_KEY: "; ".join(sorted(kinds)) or "none"}

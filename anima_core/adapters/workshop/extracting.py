"""What a trained model changes, as an adapter: the difference of two models, layer by layer."""

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from ...errors import FileError, SettingError
from ...models.checkpoint import read_header, read_in_order
from ..keys import Layers
from ..low_rank import Whole
from .conversion import block_of
from .loaded import LoadedAdapter, counted
from .models import plain_header, weights_in
from .resizing import Keep, Progress, lora_of, quiet

NOT_QUANTISED = "the rounding would be taken for what was trained; use both models in bf16, fp16 or fp32"
EMBEDDING = "llm_adapter.embed"


@torch.no_grad()
def extract(
    tuned: str | Path, base: str | Path, keep: Keep, dtype: torch.dtype = torch.float32, on_layer: Progress = quiet
) -> LoadedAdapter:
    """Return what the tuned model adds to the base as a LoRA. Of each model one tensor is in memory at a time.

    keep: the rank, or the share of the energy; without either every layer gets its whole rank. dtype: of the factors. Norms
    become differences of their weights. Raises FileError, SettingError for models that do not fit one another.
    """
    ours, theirs = (weights_in(plain_header(path, NOT_QUANTISED)) for path in (tuned, base))
    check_same(tuned, base, ours, theirs)
    names, layers, counts = list(ours), Layers(), Counter[str]()
    pairs = zip(read_in_order(tuned, ours.values()), read_in_order(base, (theirs[name] for name in names)), strict=True)
    for number, (name, ((_, after), (_, before))) in enumerate(zip(names, pairs, strict=True), 1):
        found = of_layer(name, after.float() - before.float(), keep, dtype)
        if found is None:
            counts["are left out: an embedding is no linear layer"] += 1
        else:
            counts["are the same in both models"] += not found
            layers |= {name: found} if found else {}
        on_layer(number, len(names))
    if not layers:
        raise SettingError(f"{tuned}: no weight differs from {base}; give the trained model, and the one that it began as")
    blocks = 1 + max((block for name in names if (block := block_of(name)) is not None), default=-1)
    metadata = {"ss_network_module": "networks.lora_anima", "ss_base_model_version": "anima", "ss_num_blocks": str(blocks)}
    start = LoadedAdapter(Path(tuned).name, {}, metadata)
    return start.done("extract", layers, counted(+counts), of=[Path(tuned).name, Path(base).name], **vars(keep))


def of_layer(name: str, delta: Tensor, keep: Keep, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """Return a difference as a layer of an adapter; empty where there is none, None where no adapter holds it."""
    if not delta.any():
        return {}
    if delta.ndim == 1:
        return {"w_norm": delta.to(dtype)}
    return None if name == EMBEDDING or delta.ndim != 2 else lora_of(Whole(delta), keep, dtype, name)


def check_same(tuned: str | Path, base: str | Path, ours: dict[str, str], theirs: dict[str, str]) -> None:
    """Check that two models have the same layers, of the same shapes. Raises FileError, SettingError."""
    if not ours:
        raise FileError(f"{tuned}: holds no layer of Anima's transformer; give a model of Anima")
    way_out = "give two models of one size"
    if apart := sorted(ours.keys() ^ theirs.keys()):
        raise SettingError(f"{tuned}: {len(apart)} layers are in one of both models only, first {apart[0]}; {way_out}")
    first, second = read_header(tuned), read_header(base)
    for name, key in ours.items():
        if first[key].shape != second[theirs[name]].shape:
            shapes = f"{list(first[key].shape)} and {list(second[theirs[name]].shape)}"
            raise SettingError(f"{tuned}: {name} has shapes {shapes} in the two models; {way_out}")

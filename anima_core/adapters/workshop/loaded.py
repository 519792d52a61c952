"""An adapter on the bench: read from a file or a graph, and written with a line about each thing that was done to it."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import FileError, SettingError
from ...models.checkpoint import load_tensors, read_metadata
from ...version import __version__
from ..analysis import made
from ..formats import BLOCK, RELEASED, check_adapter, check_finite, layers_of, save_adapter
from ..keys import TEXT_PREFIXES, Layers, join_key, parts_of, with_alphas
from ..layouts import KOHYA
from ..metadata import tensor_hash
from ..peft_config import with_config_alphas
from ..recognise import DORA, read_layers, type_of
from ..types import ADAPTER_TYPES

RECORD = "anima_trainer.workshop"  # metadata: a JSON list of what was done, the first first
LORA = ADAPTER_TYPES["lora"]
UNKNOWN_SIZE = "Dynamic"  # what sd-scripts' resize writes where layers differ


@dataclass(frozen=True)
class LoadedAdapter:
    """An adapter's layers: the transformer's by our names, the text encoder's by those of their file.

    key_format: of the keys that are written. said: what was left out or converted on the way, in lines.
    """

    name: str
    layers: Layers
    metadata: Mapping[str, str]
    key_format: str = "diffusion_model"
    said: tuple[str, ...] = ()

    @property
    def blocks(self) -> int:
        """How many blocks its model has: as its metadata says, else the release that has its last block, else up to that."""
        said = self.metadata.get("ss_num_blocks", "")
        if said.isdecimal() and len(said) < 5:
            return int(said)
        return next((blocks for blocks in sorted(RELEASED) if self.used <= blocks), self.used)

    @property
    def used(self) -> int:
        """How many blocks there are at least: up to the last that has a layer."""
        return max((int(found[1]) + 1 for layer in self.layers if (found := BLOCK.match(layer))), default=0)

    def done(self, what: str, layers: Layers, said: tuple[str, ...] = (), **facts: Any) -> "LoadedAdapter":
        """Return what an operation made of it. facts: of the operation, for the metadata."""
        before = json.loads(self.metadata.get(RECORD, "[]"))
        entry = {"did": what, **facts, "version": __version__}
        metadata = {**self.metadata, RECORD: json.dumps([*before, entry])}
        return replace(self, layers=layers, metadata=metadata, said=(*self.said, *said))

    def state(self) -> dict[str, Tensor]:
        """Return it as a file's tensors."""
        return {self._key(layer, name): t for layer, tensors in self.layers.items() for name, t in tensors.items()}

    def _key(self, layer: str, name: str) -> str:
        return f"{layer}.{name}" if layer.startswith(TEXT_PREFIXES) else join_key(layer, name, self.key_format)


def load_adapter(path: str | Path) -> LoadedAdapter:
    """Read an adapter file of any trainer. Raises FileError, SettingError."""
    check_adapter(path)
    metadata = read_metadata(path)
    check_record(path, metadata)
    return of_state(with_config_alphas(path, load_tensors(path)), metadata, str(path))


def check_record(path: str | Path, metadata: Mapping[str, str]) -> None:
    """Raise FileError for a record of what was done that is none."""
    try:
        whole = isinstance(json.loads(metadata.get(RECORD, "[]")), list)
    except (ValueError, RecursionError):
        whole = False
    if not whole:
        raise FileError(f"{path}: `{RECORD}` in its metadata is damaged; download it again")


def of_state(state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None, name: str = "adapter") -> LoadedAdapter:
    """Read an adapter's tensors. Alphas are added where there are none.

    Raises FileError, and SettingError for a layer whose tensors do not fit one another.
    """
    layers = layers_of(name, state) | {layer: dict(tensors) for layer, tensors in parts_of(state).text_encoder.items()}
    check_finite(name, layers)
    for layer, tensors in with_alphas(layers).items():
        if type_of(tensors):
            made(layer, plain(tensors), torch.empty(0))
    key_format = "lora_unet" if any(key.startswith(KOHYA) for key in state) else "diffusion_model"
    return LoadedAdapter(Path(name).name, layers, dict(metadata or {}), key_format)


def check_target(path: str | Path, force: bool = False) -> Path:
    """Check where a file is to be written, before anything is computed. Raises SettingError, FileError."""
    target = Path(path)
    if target.suffix != ".safetensors":
        raise SettingError(f"{target}: is to be a .safetensors file; name it so")
    if target.exists() and (not force or target.is_dir()):
        raise FileError(f"{target}: is there already; choose another name, or write over a file with --force")
    return target


def write_adapter(path: str | Path, adapter: LoadedAdapter, force: bool = False) -> None:
    """Write an adapter with its metadata, its hash and sizes as they are now. Raises SettingError, FileError."""
    target, state = check_target(path, force), adapter.state()
    if not state:
        raise SettingError(f"{target}: nothing is left of the adapter to write; see what was left out")
    metadata = {**adapter.metadata, **sizes(adapter.layers), "sshs_model_hash": tensor_hash(state)}
    if all(kind is None or kind is LORA for kind in map(type_of, adapter.layers.values())) and is_other(metadata):
        metadata["ss_network_module"] = LORA.modules[0]
        metadata.pop("ss_network_args", None)  # are of the type that it was
    save_adapter(target, state, metadata)


def is_other(metadata: Mapping[str, str]) -> bool:
    """Tell whether metadata names another type than LoRA."""
    return metadata.get("ss_network_module", LORA.modules[0]) not in LORA.modules


def sizes(layers: Layers) -> dict[str, str]:
    """Return rank and alpha as sd-scripts' metadata has them: `Dynamic` where layers differ; nothing for whole factors."""
    found = {
        size
        for tensors in layers.values()
        if (kind := type_of(tensors)) and (size := read_layers(kind, [tensors]).sizes[0]).rank
    }
    ranks, alphas = {size.rank for size in found}, {size.alpha for size in found}
    names = (("ss_network_dim", ranks), ("ss_network_alpha", alphas))
    return {name: str(next(iter(values))) if len(values) == 1 else UNKNOWN_SIZE for name, values in names if values}


def plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a layer without the lengths of a DoRA: what is added to a weight before its columns get theirs."""
    return {name: tensor for name, tensor in tensors.items() if name != DORA}


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """Return the widest dtype of a layer's factors: alphas and a DoRA's lengths are fp32 in any file."""
    found = [tensor.dtype for name, tensor in plain(tensors).items() if name != "alpha"]
    widest = found[0]
    for dtype in found[1:]:
        widest = torch.promote_types(widest, dtype)
    return widest


def counted(counts: Counter[str]) -> tuple[str, ...]:
    """Say in lines how many layers something was done to."""
    return tuple(f"{count} layer{'s' * (count > 1)} {what}" for what, count in counts.items())

"""Models out of files: every tensor that a model asks for is there and none besides, else the first is named."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import FileError
from .checkpoint import strip_prefix
from .frozen import FloatWeight, FrozenLinear, FrozenWeight, Scratch
from .kept import Store, all_plain, nothing
from .kinds import REAL_WEIGHTS, all_in_one, kind_of
from .quantised import Stored, read_stored, read_weights

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """How a model lies in files.

    what: its name in errors. rename: a file's key -> the model's, or None to leave the tensor out. transform: reshapes one
    tensor to the model's layout, by its model name. quantised: whether such files are read too.
    """

    what: str
    rename: Callable[[str], str | None] = strip_prefix
    transform: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    quantised: bool = False


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every parameter and persistent buffer of a model, which may be on the meta device."""
    return {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}


def check_fits(
    wanted: Mapping[str, tuple[int, ...]], path: str | Path | list[Path], layout: Layout
) -> dict[Path, dict[str, Stored]]:
    """Check by the headers that a file holds exactly the tensors that are wanted, a shape for each of the model's names.

    path: one file, or the shards of one model. Returns, of each file, how each tensor is stored, by the model's name. Every
    tensor that is wanted must be in the files and every tensor of theirs must be wanted, else a FileError names the first.
    """
    files = path if isinstance(path, list) else [Path(path)]
    sources = {file: _by_name(file, layout) for file in files}
    _check_names(files[0], layout.what, wanted.keys(), [name for names in sources.values() for name in names])
    for file, names in sources.items():
        for name, stored in names.items():
            shape = layout.transform(name, torch.empty(stored.shape, device="meta")).shape
            if shape != wanted[name]:
                shapes = f"{list(shape)}, expected {list(wanted[name])}"
                raise FileError(f"{file}: {stored.key} has shape {shapes}; is this the {layout.what}?")
    return sources


def _by_name(path: Path, layout: Layout) -> dict[str, Stored]:
    """Return how each tensor of a file is stored, by the model's name."""
    header = read_stored(path)
    check_one_model(path, header, layout.quantised)
    named = [(layout.rename(key), stored) for key, stored in header.items()]
    return {name: stored for name, stored in named if name is not None}


def load_strict(
    model: M,
    path: str | Path | list[Path],
    layout: Layout,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    store: Store = all_plain,
    on_host: Callable[[str], bool] = nothing,
) -> M:
    """Fill `model` (built on the meta device) from a file, tensor by tensor, straight to `device` in `dtype`.

    store: which weights of linear layers stay in memory in another way. on_host: tells by name which stay on the CPU. Raises
    FileError where `check_fits` does. Parameters come out frozen (`requires_grad=False`).
    """
    state, frozen = {}, {}
    for file, sources in check_fits(shapes_of(model), path, layout).items():
        names = {stored.key: name for name, stored in sources.items()}
        for key, weight in read_weights(file):
            if name := names.get(key):
                home = "cpu" if on_host(name) else device
                if kept := store(name, weight):
                    frozen[name] = kept.to(home)
                else:
                    state[name] = layout.transform(name, weight.numbers(dtype, home))
            del weight  # before the next one is read: only one is in memory twice
    model.load_state_dict(state, strict=False, assign=True)  # that all are there is seen already
    return with_frozen(model, frozen, Scratch(dtype, device)).requires_grad_(False)


def with_frozen(model: M, weights: Mapping[str, FrozenWeight], scratch: Scratch) -> M:
    """Put weights, by their names in a model, in the place of its linear layers' own."""
    for name, weight in weights.items():
        place = name.removesuffix(".weight")
        layer = model.get_submodule(place)
        assert isinstance(layer, nn.Linear)
        model.set_submodule(place, FrozenLinear(weight, scratch, layer.bias))
    return model


def empty_like(model: M, path: str | Path, layout: Layout, store: Store, dtype: torch.dtype) -> M:
    """Return a model on the meta device as `load_strict` would have filled it. Raises FileError."""
    kept = {name: store(name, stored.empty) for name, stored in _by_name(Path(path), layout).items()}
    frozen = {name: weight for name, weight in kept.items() if weight is not None}
    return with_frozen(model.to(dtype), frozen, Scratch(dtype, "meta")).requires_grad_(False)


def how_stored(path: str | Path, layout: Layout, store: Store = all_plain) -> dict[str, tuple[int, int]]:
    """Count the quantised tensors of a model by kind: how many stay so in memory, and how many do not. Raises FileError."""
    found: dict[str, tuple[int, int]] = {}
    for file in shards(path):
        for name, stored in _by_name(file, layout).items():
            if stored.kind != FloatWeight.kind:
                kept, plain = found.get(stored.kind, (0, 0))
                stays = store(name, stored.empty) is not None
                found[stored.kind] = (kept + stays, plain + (not stays))
    return found


def shards(path: str | Path) -> list[Path]:
    """List the safetensors files behind a path: itself, or those of a Hugging Face folder."""
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.safetensors"))
    if not found and (path / "text_encoder").is_dir():
        raise FileError(f"{path}: is a folder in diffusers' layout; name its sub-folder text_encoder")
    if not found:
        others = {"*.bin": ", only pickles, which are never opened", "*.gguf": "; name the .gguf file itself"}
        instead = next((what for kind, what in others.items() if any(path.glob(kind))), "; check the path")
        raise FileError(f"{path}: no .safetensors file in this folder{instead}")
    return found


def check_one_model(path: str | Path, header: Mapping[str, Stored], quantised: bool = False) -> None:
    """Refuse several models in one, and quantised files where they are not read. Raises FileError."""
    if several := all_in_one(header):
        raise FileError(f"{path}: is {several}")
    other = next((stored for stored in header.values() if stored.kind != FloatWeight.kind), None)
    if other and not quantised:
        raise FileError(f"{path}: is quantised ({other.key}, {other.kind}); {REAL_WEIGHTS}")


def _check_names(path: Path, what: str, wanted: Iterable[str], found: Iterable[str]) -> None:
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise FileError(f"{path}: {len(missing)} tensors of the {what} are missing, first {missing[0]}; use a whole file")
    if unexpected:
        count, way_out = len(unexpected), f"use a file of the {what} alone"
        raise FileError(f"{path}: {count} tensors do not belong to the {what}, first {unexpected[0]}; {way_out}")


def wrong_kind(path: str | Path, wanted: str, missing: str, header: Iterable[str]) -> FileError:
    """Return the error of a file that is not what its slot wants ("a VAE"), by what it lacks and what it is."""
    found = kind_of(header)
    if f"it is {wanted}:" in found:
        found = "it is only a part of one, or its names are others; use the file that comes with Anima"
    return FileError(f"{path}: not {wanted} (no {missing}); {found}")

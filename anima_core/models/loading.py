"""Models out of files: every tensor that a model asks for is there and none besides, else the first is named."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import FileError
from .checkpoint import strip_prefix
from .diffusers_names import ROOT, WEIGHTS
from .frozen import FloatWeight, FrozenLinear, FrozenWeight, Scratch, replace_module
from .kept import Store, all_plain, nothing
from .kinds import REAL_WEIGHTS, kind_of, part_of, parts_in
from .quantised import Stored, read_stored, read_weights

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Layout:
    """How a model lies in files.

    what: its name in errors. rename: a file's key -> the model's, or None to leave the tensor out. transform: reshapes one
    tensor to the model's layout, by its model name. quantised: whether such files are read too. part: what it is called as
    a part of an all-in-one checkpoint. folder: its own in diffusers' layout.
    """

    what: str
    rename: Callable[[str], str | None] = strip_prefix
    transform: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor
    quantised: bool = False
    part: str = "transformer"
    folder: str = "transformer"


@dataclass(frozen=True)
class Source:
    """A file that a model, or a piece of one, is read from. rename: as a layout's, in its stead."""

    file: Path
    rename: Callable[[str], str | None] | None = None


Sources = list[Source]


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shape of every parameter and persistent buffer of a model, which may be on the meta device."""
    return {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items()}


def check_fits(wanted: Mapping[str, tuple[int, ...]], files: Sources, layout: Layout) -> dict[Path, dict[str, Stored]]:
    """Check by the headers that files hold exactly the tensors that are wanted, a shape for each of the model's names.

    Returns, of each file, how each tensor is stored, by the model's name. Every tensor that is wanted must be in the files
    and every tensor of theirs must be wanted, else a FileError names the first.
    """
    found = {source.file: by_name(source, layout) for source in files}
    _check_names(files[0].file, layout.what, wanted.keys(), [name for names in found.values() for name in names])
    for file, names in found.items():
        for name, stored in names.items():
            shape = layout.transform(name, torch.empty(stored.shape, device="meta")).shape
            if shape != wanted[name]:
                shapes = f"{list(shape)}, expected {list(wanted[name])}"
                raise FileError(f"{file}: {stored.key} has shape {shapes}; is this the {layout.what}?")
    return found


def by_name(source: Source, layout: Layout) -> dict[str, Stored]:
    """Return how each tensor of a model in a file is stored, by the model's name. Raises FileError.

    Of an all-in-one checkpoint only what is that model's; the other parts may be stored in any way that can be read.
    """
    header, rename = read_stored(source.file), source.rename or layout.rename
    named = [(rename(bare), header[key]) for key, bare in part_of(header, layout.part).items()]
    found = {name: stored for name, stored in named if name is not None}
    other = next((stored for stored in found.values() if stored.kind != FloatWeight.kind), None)
    if other and not layout.quantised:
        raise FileError(f"{source.file}: is quantised ({other.key}, {other.kind}); {REAL_WEIGHTS}")
    return found


def all_by_name(files: Sources, layout: Layout) -> dict[str, Stored]:
    """Return how each tensor of a model is stored, by the model's name, of all its files. Raises FileError."""
    return {name: stored for source in files for name, stored in by_name(source, layout).items()}


def load_strict(
    model: M,
    files: Sources,
    layout: Layout,
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    store: Store = all_plain,
    on_host: Callable[[str], bool] = nothing,
) -> M:
    """Fill `model` (built on the meta device) from files, tensor by tensor, straight to `device` in `dtype`.

    store: which weights of linear layers stay in memory in another way. on_host: tells by name which stay on the CPU. Raises
    FileError where `check_fits` does. Parameters come out frozen (`requires_grad=False`).
    """
    state, frozen = {}, {}
    for file, found in check_fits(shapes_of(model), files, layout).items():
        names = {stored.key: name for name, stored in found.items()}
        for key, weight in read_weights(file, names):
            name = names[key]
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
        replace_module(model, place, FrozenLinear(weight, scratch, layer.bias))
    return model


def empty_like(model: M, files: Sources, layout: Layout, store: Store, dtype: torch.dtype) -> M:
    """Return a model on the meta device as `load_strict` would have filled it. Raises FileError."""
    kept = {name: store(name, stored.empty) for name, stored in all_by_name(files, layout).items()}
    frozen = {name: weight for name, weight in kept.items() if weight is not None}
    return with_frozen(model.to(dtype), frozen, Scratch(dtype, "meta")).requires_grad_(False)


def how_stored(path: str | Path, layout: Layout, store: Store = all_plain) -> dict[str, tuple[int, int]]:
    """Count the quantised tensors of a model by kind: how many stay so in memory, and how many do not. Raises FileError."""
    found: dict[str, tuple[int, int]] = {}
    for name, stored in all_by_name(sources(path, layout), layout).items():
        if stored.kind != FloatWeight.kind:
            kept, plain = found.get(stored.kind, (0, 0))
            stays = store(name, stored.empty) is not None
            found[stored.kind] = (kept + stays, plain + (not stays))
    return found


def sources(path: str | Path, layout: Layout) -> Sources:
    """List the files that a model is read from. path: a file, its folder, or diffusers' folder of all models."""
    place = part_folder(path, layout.folder)
    if any((place / name).is_file() for name in ROOT):
        raise FileError(f"{path}: a folder in diffusers' layout without its sub-folder {layout.folder}; download it whole")
    return [Source(file) for file in shards(place)]


def part_folder(path: str | Path, folder: str) -> Path:
    """Return where a model's files are: a folder of all models, in diffusers' layout, has a sub-folder for each."""
    path = Path(path)
    return path / folder if path.is_dir() and (path / folder).is_dir() else path


def shards(path: str | Path) -> list[Path]:
    """List the safetensors files behind a path: itself, or those of a folder in Hugging Face's layout. Raises FileError.

    Files with other names than diffusers' and transformers' own count only where there are none of these.
    """
    path = Path(path)
    if not path.is_dir():
        return [path]
    found = sorted(path.glob("*.safetensors"))
    found = [file for file in found if WEIGHTS.fullmatch(file.name)] or found
    if not found:
        others = {"*.bin": ", only pickles, which are never opened", "*.gguf": "; name the .gguf file itself"}
        instead = next((what for kind, what in others.items() if any(path.glob(kind))), "; check the path")
        raise FileError(f"{path}: no .safetensors file in this folder{instead}")
    return found


def _check_names(path: Path, what: str, wanted: Iterable[str], found: Iterable[str]) -> None:
    missing, unexpected = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    if missing:
        raise FileError(f"{path}: {len(missing)} tensors of the {what} are missing, first {missing[0]}; use a whole file")
    if unexpected:
        count, way_out = len(unexpected), f"use a file of the {what} alone"
        raise FileError(f"{path}: {count} tensors do not belong to the {what}, first {unexpected[0]}; {way_out}")


def wrong_kind(path: str | Path, wanted: str, missing: str, files: Sources) -> FileError:
    """Return the error of a file that is not what its slot wants ("a VAE"), by what it lacks and what it is."""
    header = [key for source in files for key in read_stored(source.file)]
    found = kind_of(header)
    if parts := parts_in(header):
        found = f"it is an all-in-one checkpoint that holds {' and '.join(parts)}: give {wanted} of its own"
    elif f"it is {wanted}" in found:
        found = "it is only a part of one, or its names are others; use the file that comes with Anima"
    return FileError(f"{path}: not {wanted} (no {missing}); {found}")

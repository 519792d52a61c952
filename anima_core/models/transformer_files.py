"""Where the tensors of an Anima transformer and of its LLM adapter are: one file, or the folders of diffusers' layout."""

from collections.abc import Callable, Mapping
from pathlib import Path

from ..errors import FileError
from .checkpoint import strip_prefix
from .diffusers_names import LLM_ADAPTER, transformer_name
from .kinds import kind_of, part_of
from .loading import Layout, Source, Sources, part_folder, shards
from .loading import sources as sources_of
from .quantised import read_stored

ADAPTER = "llm_adapter."  # before its tensors' names in the transformer


def own_name(key: str) -> str:
    return transformer_name(strip_prefix(key))


LAYOUT = Layout("Anima transformer", own_name, quantised=True)


def sources(path: str | Path, llm_adapter: str | Path = "") -> Sources:
    """List what a transformer is read from. llm_adapter: the file or folder of its LLM adapter, where that is not its own.

    Without one, of a folder in diffusers' layout that beside the transformer's. Raises FileError.
    """
    own = sources_of(path, LAYOUT)
    other = llm_adapter or adapter_beside(path)
    if not other:
        return own
    files = shards(part_folder(other, LLM_ADAPTER))
    return [Source(source.file, without_adapter) for source in own] + [Source(file, adapter_names(file)) for file in files]


def adapter_beside(path: str | Path) -> Path | None:
    """Find the LLM adapter of a transformer in diffusers' layout, which has no room for one: the folder beside its own."""
    place = part_folder(path, LAYOUT.folder)
    folder = (place if place.is_dir() else place.parent).absolute()  # "." has no name
    beside = folder.with_name(LLM_ADAPTER)
    return beside if folder.name == LAYOUT.folder and beside.is_dir() else None


def without_adapter(key: str) -> str | None:
    name = own_name(key)
    return None if name.startswith(ADAPTER) else name


def adapter_names(file: Path) -> Callable[[str], str | None]:
    """Return how the tensors of an LLM adapter are called in a file: of a whole transformer, or of it alone. FileError."""
    names = [own_name(bare) for bare in part_of(read_stored(file), LAYOUT.part).values()]
    if any(name.startswith(ADAPTER) for name in names):
        return lambda key: name if (name := own_name(key)).startswith(ADAPTER) else None
    if "blocks.0.norm_cross_attn.weight" not in names:
        raise FileError(f"{file}: no LLM adapter for `model.llm_adapter`; {kind_of(names)}")
    return lambda key: f"{ADAPTER}{strip_prefix(key)}"


def not_used(path: str | Path, llm_adapter: str | Path) -> int:
    """Count the tensors of the LLM adapter in a transformer's own files that another stands in for. Raises FileError."""
    if not llm_adapter:
        return 0
    headers = [part_of(read_stored(source.file), LAYOUT.part) for source in sources_of(path, LAYOUT)]
    return sum(own_name(bare).startswith(ADAPTER) for header in headers for bare in header.values())


def check_adapter(path: str | Path, names: Mapping[str, object]) -> None:
    """Refuse a transformer that came without its LLM adapter. Raises FileError."""
    if "x_embedder.proj.1.weight" in names and not any(name.startswith(ADAPTER) for name in names):
        way_out = "set `model.llm_adapter` to an Anima file that holds one, or to diffusers' text_conditioner"
        raise FileError(f"{path}: a transformer without its LLM adapter; {way_out}")

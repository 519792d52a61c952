"""Which of many files are the model that is wanted: told by their headers, remembered for as long as they stay the same."""

from collections.abc import Callable
from pathlib import Path

from ..files import Stamp, stamp
from . import qwen, transformer, vae
from .checkpoint import raw_header
from .kinds import parts_in
from .loading import Layout, how_stored, part_folder, sources
from .quantised import read_stored
from .quantised.gguf_file import is_gguf
from .qwen import check_qwen
from .transformer import check_transformer
from .vae import check_vae

Rank = Callable[[str], int | None]  # path -> the less, the sooner it is meant; None or an error for what is no such model


BUNDLED = 2  # a model among others, in an all-in-one checkpoint or a diffusers folder: a file of its own is meant sooner


def transformer_rank(path: str) -> int | None:
    if not mentions(path, transformer.LAYOUT, b"x_embedder.proj.1.", b"time_embed.t_embedder."):
        return None
    check_transformer(path)
    return later(path, transformer.LAYOUT)


def vae_rank(path: str) -> int | None:
    if not mentions(path, vae.LAYOUT, b"decoder.middle.0.residual", b"decoder.mid_block.resnets.0.norm1.gamma"):
        return None
    check_vae(path)
    return later(path, vae.LAYOUT)


def qwen_rank(path: str) -> int | None:
    """Return the width of a Qwen3, a multiple of 4: Anima's, of 0.6 billion weights, is the smallest that there is."""
    if not mentions(path, qwen.LAYOUT, b"self_attn.q_norm"):
        return None
    return check_qwen(path).hidden + later(path, qwen.LAYOUT)


def later(path: str, layout: Layout) -> int:
    """Rank a file behind those that are meant sooner: quantised ones only where there is no other."""
    files = [source.file for source in sources(path, layout)]
    bundled = part_folder(path, layout.folder) != Path(path) or any(parts_in(read_stored(file)) for file in files)
    return bool(how_stored(path, layout)) + BUNDLED * bundled


def mentions(path: str, layout: Layout, *marks: bytes) -> bool:
    """Tell whether a header holds a word: what is none of ours is done with in a tenth of the time that reading it takes.

    GGUF files are read in any case: they are few, and have other words.
    """
    files = [source.file for source in sources(path, layout)]
    return any(is_gguf(file) or any(mark in raw_header(file) for mark in marks) for file in files)


class Candidates:
    """Paths that may be one kind of model. rank: how they are told apart."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._known: dict[str, tuple[Stamp | None, int | None]] = {}

    def rank(self, path: str) -> int | None:
        """Return a path's rank, None for what is no such model. It is read again only when its size or time has changed."""
        try:
            when = stamp(Path(path))
            if path not in self._known or self._known[path][0] != when:
                self._known[path] = when, None  # also when it cannot be read
                self._known[path] = when, self._rank(path)
            return self._known[path][1]
        except Exception:  # whatever an odd file raises, it is not the one that is wanted
            return None

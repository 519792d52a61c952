"""Which of many files are the model that is wanted: told by their headers, remembered for as long as they stay the same."""

from collections.abc import Callable
from pathlib import Path

from ..files import Stamp, stamp
from . import qwen, transformer
from .checkpoint import raw_header
from .loading import Layout, how_stored, shards
from .quantised.gguf_file import is_gguf
from .qwen import check_qwen
from .transformer import check_transformer
from .vae import check_vae

Rank = Callable[[str], int | None]  # path -> the less, the sooner it is meant; None or an error for what is no such model


def transformer_rank(path: str) -> int | None:
    if not mentions(path, b"llm_adapter."):
        return None
    check_transformer(path)
    return int(is_quantised(path, transformer.LAYOUT))


def vae_rank(path: str) -> int | None:
    if not mentions(path, b"decoder.middle.0.residual"):
        return None
    check_vae(path)
    return 0


def qwen_rank(path: str) -> int | None:
    """Return the width of a Qwen3, an even number: Anima's, of 0.6 billion weights, is the smallest that there is."""
    if not mentions(path, b"self_attn.q_norm"):
        return None
    return check_qwen(path).hidden + is_quantised(path, qwen.LAYOUT)


def is_quantised(path: str, layout: Layout) -> bool:
    """Tell a file that is meant only where there is no other."""
    return bool(how_stored(path, layout))


def mentions(path: str, mark: bytes) -> bool:
    """Tell whether a header holds a word: what is none of ours is done with in a tenth of the time that reading it takes.

    GGUF files are read in any case: they are few, and have other words.
    """
    return any(is_gguf(file) or mark in raw_header(file) for file in shards(path))


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

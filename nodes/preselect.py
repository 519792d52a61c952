"""The order of a dropdown of model files: first those that are what its node wants, so that the node starts with one.

ComfyUI asks for a node's inputs often, and from the thread that answers everybody. So headers are read in a thread of their
own, for which an answer waits a moment; what is found later is seen when the page looks again.
"""

import threading
import time
from collections.abc import Sequence

from server import PromptServer

from ..anima_core.models.candidates import Candidates, Rank, qwen_rank, transformer_rank, vae_rank
from .model_names import names_of, path_of

PATIENCE = 0.5  # seconds that answers wait for one reading; 500 headers take a fifth of it where they lie in memory
PAUSE = 5.0  # seconds in which the same names are not looked at again: one page asks several nodes
LIKELY = "anima", "qwen"  # in names of files that are read first; they stand in front no more than others do
LAST = float("inf")


class Dropdown:
    """The names of one of ComfyUI's folders of models, and which of them are the model that is wanted."""

    def __init__(self, kind: str, rank: Rank) -> None:
        self._kind = kind
        self._candidates = Candidates(rank)
        self._ranks: dict[str, int | None] = {}
        self._lock = threading.Lock()
        self._reader: threading.Thread | None = None
        self._patience = 0.0  # that is left for this reader
        self._looked_at: tuple[list[str], float] = [], 0.0  # when

    def order(self, names: Sequence[str]) -> list[str]:
        """Return the names of such models by their rank, then all others, both in the order in which they are given."""
        self.look(names)
        began, reader = time.monotonic(), self._reader
        if reader is not None:
            reader.join(self._patience)
            self._patience = max(0.0, self._patience - (time.monotonic() - began))
        ranks = {name: rank for name in names if (rank := self._ranks.get(name)) is not None}
        return sorted(names, key=lambda name: ranks.get(name, LAST))

    def best(self, names: Sequence[str]) -> str | None:
        """Return the first of such models in that order, None where nothing is known to be one."""
        first = next(iter(self.order(names)), None)
        return first if self._ranks.get(first or "") is not None else None

    def look(self, names: Sequence[str]) -> None:
        """Begin to read the headers of what has these names, unless that is being done, or was a moment ago."""
        with self._lock:
            before, when = self._looked_at
            is_read = before == list(names) and time.monotonic() <= when + PAUSE
            if is_read or (self._reader is not None and self._reader.is_alive()):
                return
            self._patience = PATIENCE
            self._reader = threading.Thread(target=self._read, args=(list(names),), name="anima-headers", daemon=True)
            self._reader.start()

    def _read(self, names: list[str]) -> None:
        for name in sorted(names, key=lambda name: not any(word in name.lower() for word in LIKELY)):
            path = path_of(self._kind, name)
            self._ranks[name] = self._candidates.rank(path) if path else None
        self._looked_at = names, time.monotonic()


_dropdowns = {
    kind: Dropdown(kind, rank)
    for kind, rank in (("diffusion_models", transformer_rank), ("vae", vae_rank), ("text_encoders", qwen_rank))
}
_answering = threading.Event()  # set when the server has started: nothing is read while ComfyUI loads its packs


def wanted_first(kind: str, names: Sequence[str]) -> list[str]:
    """Return the names of a dropdown, those in front that its node can use."""
    return _dropdowns[kind].order(names) if _answering.is_set() else list(names)


def wanted(kind: str, names: Sequence[str]) -> str | None:
    """Return the name that a template's own gives way to where that is not there (web/anima_trainer.js)."""
    return _dropdowns[kind].best(names) if _answering.is_set() else None


def read_all() -> None:
    for kind, dropdown in _dropdowns.items():
        dropdown.look(names_of(kind))


def begin_with_the_server() -> None:
    """Read headers from the moment on when the server starts, so that the first page finds them read."""

    async def begin(app: object) -> None:
        _answering.set()
        threading.Thread(target=read_all, name="anima-headers", daemon=True).start()

    if PromptServer.instance is not None:
        PromptServer.instance.app.on_startup.append(begin)

"""Text embeddings of captions, what the transformer looks at: the LLM adapter's output for Qwen's states and T5's ids.

While the LLM adapter is frozen, its outputs are cached too, and no step runs it (`CachedEmbeddings`). When it is trained, or
captions are new in every step, each step runs it, with gradient (`LiveEmbeddings`).
"""

import hashlib
import math
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from ..models.checkpoint import tensor_bytes
from ..models.llm_adapter import MIN_TEXT_ROWS
from ..models.transformer import AnimaTransformer
from ..tensors import to_device
from .cache import cache_key, encoded_at_once, everything
from .text import Entry, TextStore, in_halves

Progress = Callable[[int, int], None]

TRIMMED_TO = 64  # rows of text are kept in multiples of this: few shapes
EMBED_BATCH = 16  # captions: at one, the device waits for its next kernel most of the time


class TextEmbeddings(Protocol):
    """Captions -> text embeddings. Each caption owns max(512, its T5 tokens) rows, whatever the rest of its batch owns.

    trim: whether rows at the end that are zero in the whole batch are left to the transformer, see its `text_zeros`.
    """

    trim: bool

    def fetch(self, captions: list[str]) -> Entry:
        """Return what `place` needs of a batch, stacked, on the CPU; safe to call ahead of time from another thread."""
        ...

    def place(self, batch: Entry) -> tuple[Tensor, Tensor | None, int]:
        """Return [B, L, 1024] on the model's device; int [B] row counts where they differ, else None; how many were cut."""
        ...

    def take_notes(self) -> list[str]:
        """Return what was found damaged and made again since the last call."""
        ...


class LiveEmbeddings:
    """Runs the model's LLM adapter in each step."""

    def __init__(self, texts: TextStore, model: AnimaTransformer, trim: bool = False) -> None:
        self.texts, self.model, self.trim = texts, model, trim

    def fetch(self, captions: list[str]) -> Entry:
        entries = [self.texts.entry(caption) for caption in captions]
        return padded("hidden", entries) | padded("ids", entries) | row_counts([len(e["ids"]) for e in entries])

    def place(self, batch: Entry) -> tuple[Tensor, Tensor | None, int]:
        batch = placed(batch, self.model.device)
        hidden, ids = batch["hidden"], batch["ids"].long()
        embeds = self.model.preprocess_text_embeds(hidden, ids, batch.get("hidden mask"), batch.get("ids mask"))
        rows = kept_rows(ids.shape[1], self.trim)
        return embeds[:, :rows].contiguous(), batch.get("rows"), embeds.shape[1] - rows

    def take_notes(self) -> list[str]:
        return taken(self.texts.notes)


class CachedEmbeddings:
    """Keeps the frozen LLM adapter's output of each caption, [T, 1024] in the text's dtype, beside the text that it is of."""

    def __init__(self, texts: TextStore, model: AnimaTransformer, trim: bool = False) -> None:
        self.texts, self.model, self.trim = texts, model, trim
        self.identity = module_identity(model.llm_adapter)
        self.notes: list[str] = []

    def fill(self, captions: Iterable[str], progress: Progress, mine: Callable[[str], bool] = everything) -> None:
        """Run the LLM adapter over the captions that the cache lacks. mine: which keys are this process' share."""
        keys = {c: self._key(c) for c in captions}
        todo = [c for c, key in keys.items() if mine(key) and not self.texts.cache.has(key)]
        todo.sort(key=len)  # equal lengths together: little padding
        at_once = encoded_at_once(self.device, EMBED_BATCH)
        for start in range(0, len(todo), at_once):
            some = todo[start : start + at_once]
            in_halves(self._embed, some, "LLM adapter")
            progress(start + len(some), len(todo))

    def fetch(self, captions: list[str]) -> Entry:
        rows = [self._entry(caption)["embeds"] for caption in captions]
        return {"embeds": stack_rows(rows, self.trim)} | row_counts([len(r) for r in rows])

    def place(self, batch: Entry) -> tuple[Tensor, Tensor | None, int]:
        batch = placed(batch, self.model.device)
        embeds = batch["embeds"]
        return embeds, batch.get("rows"), max(0, MIN_TEXT_ROWS - embeds.shape[1])

    def release(self) -> None:
        """Take the LLM adapter off the device: every caption is cached. One that is lost is embedded where it then is."""
        self.model.llm_adapter.to("cpu")

    def take_notes(self) -> list[str]:
        return taken(self.texts.notes) + taken(self.notes)

    def _entry(self, caption: str) -> Entry:
        found = self.texts.cache.get(self._key(caption))
        if found is None:
            (found,) = self._embed([caption])
            gone = f"the cached text embeddings of {caption[:80]!r} have vanished or are damaged"
            self.notes.append(f"{gone}; made again")
        return found

    @property
    def device(self) -> torch.device:
        """Where the LLM adapter is, which leaves the transformer's device when all is cached."""
        return next(self.model.llm_adapter.parameters()).device

    @torch.no_grad()
    def _embed(self, captions: list[str]) -> list[Entry]:
        """Embed and cache captions, each as it would be alone."""
        entries = [self.texts.entry(caption) for caption in captions]
        batch = placed(padded("hidden", entries) | padded("ids", entries), self.device)
        hidden, ids = batch["hidden"], batch["ids"].long()
        embeds = self.model.preprocess_text_embeds(hidden, ids, batch.get("hidden mask"), batch.get("ids mask"))
        embeds = embeds.to("cpu", self.texts.dtype)
        found = [{"embeds": rows[: len(entry["ids"])].clone()} for rows, entry in zip(embeds, entries)]
        for caption, entry in zip(captions, found):
            self.texts.cache.put(self._key(caption), entry)
        return found

    def _key(self, caption: str) -> str:
        return cache_key(kind="embeds", caption=caption, adapter=self.identity, **self.texts.sources)


def taken(notes: list[str]) -> list[str]:
    """Empty a list that another thread appends to; return what it held."""
    return [notes.pop(0) for _ in range(len(notes))]


def placed(batch: Entry, device: torch.device) -> Entry:
    return {name: to_device(tensor, device) for name, tensor in batch.items()}


def padded(name: str, entries: list[Entry]) -> Entry:
    """Pad one tensor of all entries with zeros to a common length; add the bool mask of real rows where lengths differ."""
    rows = [entry[name] for entry in entries]
    lengths = torch.tensor([len(r) for r in rows])
    found = {name: nn.utils.rnn.pad_sequence(rows, batch_first=True)}
    if len(set(lengths.tolist())) > 1:
        found[f"{name} mask"] = torch.arange(found[name].shape[1]) < lengths[:, None]
    return found


def kept_rows(longest: int, trim: bool) -> int:
    """Return how many rows of text a batch has whose longest caption has so many T5 tokens; all beyond are zero in each."""
    own = max(MIN_TEXT_ROWS, longest)
    return min(own, max(1, math.ceil(longest / TRIMMED_TO)) * TRIMMED_TO) if trim else own


def stack_rows(rows: list[Tensor], trim: bool = False) -> Tensor:
    """Stack LLM adapter outputs [T_i, 1024] as [B, max(512, max T), 1024], zero rows appended: fewer if they are trimmed."""
    kept = kept_rows(max(len(r) for r in rows), trim)
    batch = rows[0].new_zeros(len(rows), kept, rows[0].shape[1])
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
    return batch


def row_counts(lengths: list[int]) -> Entry:
    """Return the rows each caption owns as {"rows": int [B]}, or nothing when all own the same number."""
    counts = [max(MIN_TEXT_ROWS, n) for n in lengths]
    return {} if len(set(counts)) == 1 else {"rows": torch.tensor(counts)}


def module_identity(module: nn.Module) -> str:
    """Return the SHA-256 of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()

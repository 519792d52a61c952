"""Captions become what the transformer looks at: Qwen hidden states + T5 ids -> text embeddings, cached by content.

Two stages, so that Qwen and the transformer need not be in memory together: `encode` runs Qwen over every caption that
is not cached yet; `embed` runs the LLM adapter over the results. When the adapter itself is trained the second stage is
left out and `batch` runs it in every step, with gradient.
"""

import hashlib
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from .data.cache import TensorCache, cache_key, encoded_at_once
from .errors import RunError, is_out_of_memory
from .models.llm_adapter import MIN_TEXT_ROWS
from .models.qwen import AnimaQwen
from .models.tokenizers import T5Tokenizer
from .models.transformer import AnimaTransformer

Progress = Callable[[int, int], None]

ENCODE_BATCH = 8


class Conditioner:
    """Text embeddings of captions. `qwen_identity` and `t5_identity` are content hashes of the files behind them."""

    def __init__(self, cache: TensorCache, t5: T5Tokenizer, qwen_identity: str, t5_identity: str, dtype: torch.dtype):
        self.cache = cache
        self.t5 = t5
        self.dtype = dtype
        self.sources = {"qwen": qwen_identity, "t5": t5_identity, "dtype": str(dtype)}
        self.qwen: AnimaQwen | None = None  # kept only while captions are encoded on the fly
        self.rescue: Callable[[], AnimaQwen] | None = None  # loads one for an entry that is found damaged while training
        self.notes: list[str] = []  # what was made again
        self.adapter_identity = ""  # set by `embed`; empty: the adapter runs live

    def encode(
        self, captions: Iterable[str], qwen: Callable[[], AnimaQwen], progress: Progress = lambda done, all: None
    ) -> int:
        """Run Qwen and T5 over the captions that the cache lacks; `qwen` is called only if there are any. Returns how many."""
        todo = [c for c in dict.fromkeys(captions) if not self.cache.has(self._hidden_key(c))]
        if todo:
            model = qwen()
            todo.sort(key=len)  # equal lengths together: little padding
            at_once = encoded_at_once(model.model.device, ENCODE_BATCH)
            for start in range(0, len(todo), at_once):
                self._encode_batch(todo[start : start + at_once], model)
                progress(min(start + at_once, len(todo)), len(todo))
        return len(todo)

    def _encode_batch(self, captions: list[str], qwen: AnimaQwen) -> None:
        """Out of memory, half as many at once are tried."""
        try:
            entries = self._encode_now(captions, qwen)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if len(captions) == 1:
                raise RunError("Qwen: out of memory even at one caption; free memory on the device") from None
            entries = None
        if entries is None:  # outside of the handler, which would keep the failed tensors alive
            middle = len(captions) // 2
            self._encode_batch(captions[:middle], qwen)
            self._encode_batch(captions[middle:], qwen)
            return
        for caption, entry in zip(captions, entries):
            self.cache.put(self._hidden_key(caption), entry)

    def _encode_now(self, captions: list[str], qwen: AnimaQwen) -> list[dict[str, Tensor]]:
        texts = zip(qwen.encode(captions), self.t5.encode(captions))
        return [{"hidden": h.to("cpu", self.dtype), "ids": torch.tensor(i, dtype=torch.int32)} for h, i in texts]

    def embed(self, captions: Iterable[str], model: AnimaTransformer, progress: Progress = lambda done, all: None) -> None:
        """Run the frozen LLM adapter over captions that were encoded, so that no step has to."""
        self.adapter_identity = module_identity(model.llm_adapter)
        todo = [c for c in dict.fromkeys(captions) if not self.cache.has(self._embeds_key(c))]
        for done, caption in enumerate(todo, start=1):
            self._embed_one(caption, model)
            progress(done, len(todo))

    def fetch(self, captions: list[str], model: AnimaTransformer) -> list[dict[str, Tensor]]:
        """What `place` needs of each caption, on the CPU; safe to call ahead of time from another thread."""
        if self.adapter_identity:
            return [{"embeds": self._embeds(caption, model)} for caption in captions]
        return [self._hidden(caption) for caption in captions]

    def place(self, entries: list[dict[str, Tensor]], model: AnimaTransformer) -> tuple[Tensor, Tensor | None]:
        """-> text embeddings [B, L, 1024] on the model's device, and int [B] row counts when they differ, else None.

        Each caption owns max(512, its T5 tokens) rows: its conditioning does not depend on the rest of the batch.
        """
        if self.adapter_identity:
            return stack_rows([e["embeds"] for e in entries], model.device)
        hidden, hidden_mask = pad([e["hidden"] for e in entries], model.device)
        ids, ids_mask = pad([e["ids"] for e in entries], model.device)
        embeds = model.preprocess_text_embeds(hidden, ids.long(), hidden_mask, ids_mask)
        return embeds, row_counts([len(e["ids"]) for e in entries], model.device)

    def _hidden(self, caption: str) -> dict[str, Tensor]:
        entry = self.cache.get(self._hidden_key(caption))
        if entry is not None:
            return entry
        if self.qwen is not None:
            return self._encode_now([caption], self.qwen)[0]  # a shuffled caption: used once, not worth keeping
        gone = f"the cached text of {caption[:80]!r} has vanished or is damaged"
        if self.rescue is None:
            raise RunError(f"{gone}; start again to rebuild it")
        entry = self._encode_now([caption], self.rescue())[0]
        self.cache.put(self._hidden_key(caption), entry)
        self.notes.append(f"{gone}; made again")
        return entry

    def _embeds(self, caption: str, model: AnimaTransformer) -> Tensor:
        entry = self.cache.get(self._embeds_key(caption))
        if entry is not None:
            return entry["embeds"]
        self.notes.append(f"the cached text embeddings of {caption[:80]!r} have vanished or are damaged; made again")
        return self._embed_one(caption, model)

    @torch.no_grad()
    def _embed_one(self, caption: str, model: AnimaTransformer) -> Tensor:
        entry = self._hidden(caption)
        hidden, ids = entry["hidden"][None].to(model.device), entry["ids"][None].long().to(model.device)
        rows = model.preprocess_text_embeds(hidden, ids)[0, : ids.shape[1]].to("cpu", self.dtype)
        self.cache.put(self._embeds_key(caption), {"embeds": rows})
        return rows

    def _hidden_key(self, caption: str) -> str:
        return cache_key(kind="text", caption=caption, **self.sources)

    def _embeds_key(self, caption: str) -> str:
        return cache_key(kind="embeds", caption=caption, adapter=self.adapter_identity, **self.sources)


def pad(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Tensors of different lengths -> one padded with zeros, and the bool mask of real rows; None when all are equal."""
    lengths = torch.tensor([len(r) for r in rows])
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device, non_blocking=True)
    if len(set(lengths.tolist())) == 1:
        return padded, None
    return padded, (torch.arange(padded.shape[1]) < lengths[:, None]).to(device, non_blocking=True)


def stack_rows(rows: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Adapter outputs [T_i, 1024] -> [B, max(512, max T), 1024] with zero rows appended, and `row_counts`."""
    longest = max(MIN_TEXT_ROWS, *(len(r) for r in rows))
    batch = rows[0].new_zeros(len(rows), longest, rows[0].shape[1])
    for i, row in enumerate(rows):
        batch[i, : len(row)] = row
    return batch.to(device, non_blocking=True), row_counts([len(r) for r in rows], device)


def row_counts(lengths: list[int], device: torch.device) -> Tensor | None:
    """The rows each caption owns, or None when all own the same number."""
    counts = [max(MIN_TEXT_ROWS, n) for n in lengths]
    return None if len(set(counts)) == 1 else torch.tensor(counts).to(device, non_blocking=True)


def module_identity(module: nn.Module) -> str:
    """SHA-256 of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()

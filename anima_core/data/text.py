"""Captions as Qwen's hidden states and T5's ids, cached by content: Qwen need not be in memory while the transformer is."""

import functools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ..errors import RunError, is_out_of_memory
from ..models.qwen import AnimaQwen
from ..models.tokenizers import T5Tokenizer
from .cache import TensorCache, cache_key, encoded_at_once, everything

Progress = Callable[[int, int], None]
Entry = dict[str, Tensor]

ENCODE_BATCH = 8


class TextStore:
    """Encoded captions: {"hidden": [S, 1024] in dtype, "ids": [T] int32} each.

    qwen_identity, t5_identity: content hashes of the files behind them. resident: a Qwen that stays in memory, for captions
    that are new in every step. reload: loads one for an entry that is found damaged while training; notes: what was encoded
    again so.
    """

    def __init__(
        self,
        cache: TensorCache,
        t5: T5Tokenizer,
        qwen_identity: str,
        t5_identity: str,
        dtype: torch.dtype,
        resident: AnimaQwen | None = None,
        reload: Callable[[], AnimaQwen] | None = None,
    ) -> None:
        self.cache = cache
        self.t5 = t5
        self.dtype = dtype
        self.sources = {"qwen": qwen_identity, "t5": t5_identity, "dtype": str(dtype)}
        self.resident = resident
        self.notes: list[str] = []
        self._reload = None if reload is None else functools.cache(reload)

    def fill(
        self,
        captions: Iterable[str],
        qwen: Callable[[], AnimaQwen],
        progress: Progress = lambda done, total: None,
        mine: Callable[[str], bool] = everything,
    ) -> int:
        """Encode the captions that the cache lacks; Qwen is loaded only if there are any. Return how many. Raises RunError.

        mine: which keys are this process' share.
        """
        keys = {c: self._key(c) for c in captions}
        todo = [c for c, key in keys.items() if mine(key) and not self.cache.has(key)]
        if todo:
            model = self.resident or qwen()
            todo.sort(key=len)  # equal lengths together: little padding
            at_once = encoded_at_once(model.model.device, ENCODE_BATCH)
            for start in range(0, len(todo), at_once):
                some = todo[start : start + at_once]
                for caption, entry in zip(some, in_halves(lambda part: self._encode(part, model), some, "Qwen")):
                    self.cache.put(keys[caption], entry)
                progress(start + len(some), len(todo))
        return len(todo)

    def entry(self, caption: str) -> Entry:
        """Return a caption's hidden states and ids, on the CPU. Raises RunError for one that is lost for good."""
        found = self.cache.get(self._key(caption))
        if found is not None:
            return found
        if self.resident is not None:
            return self._encode([caption], self.resident)[0]  # a shuffled caption is met once: not worth keeping
        gone = f"the cached text of {caption[:80]!r} has vanished or is damaged"
        if self._reload is None:
            raise RunError(f"{gone}; start again to encode it again")
        found = self._encode([caption], self._reload())[0]
        self.cache.put(self._key(caption), found)
        self.notes.append(f"{gone}; encoded again")
        return found

    def _encode(self, captions: list[str], qwen: AnimaQwen) -> list[Entry]:
        hidden = qwen.encode(captions)
        for caption, rows in zip(captions, hidden):
            if not rows.isfinite().all():
                raise RunError(f"the text of {caption[:80]!r} is not finite; download the Qwen file (`model.qwen`) again")
        texts = zip(hidden, self.t5.encode(captions))
        return [{"hidden": h.to("cpu", self.dtype), "ids": torch.tensor(i, dtype=torch.int32)} for h, i in texts]

    def _key(self, caption: str) -> str:
        return cache_key(kind="text", caption=caption, **self.sources)


def in_halves(encode: Callable[[list[str]], list[Entry]], captions: list[str], what: str) -> list[Entry]:
    """Encode captions at once; out of memory, half as many are tried. Raises RunError, naming `what`, where one is too much."""
    try:
        return encode(captions)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(captions) == 1:
            raise RunError(f"{what}: out of memory even at one caption; free memory on the device") from None
    middle = len(captions) // 2  # outside of the handler, which would keep the failed tensors alive
    return in_halves(encode, captions[:middle], what) + in_halves(encode, captions[middle:], what)

"""Captions on an accelerator: many at once through Qwen and the LLM adapter, each as it would be alone; fewer out of memory."""

import pytest
import torch

from anima_core.data import embeddings as embeddings_module
from anima_core.data import text as text_module
from anima_core.data.cache import TensorCache
from anima_core.data.embeddings import CachedEmbeddings
from anima_core.data.text import TextStore, in_halves
from anima_core.errors import RunError
from anima_core.models.qwen import load_qwen
from anima_core.models.tokenizers import load_t5_tokenizer
from anima_core.models.transformer import load_transformer

from .conftest import relative_error

CAPTIONS = ["red circle", "", "a", "blue square, " * 9, "green triangle on grey", "red " * 40, "\n"]
PROGRESS = (lambda done, total: None,)


@pytest.fixture
def at_once(monkeypatch):
    """Let the CPU take several captions at once, as an accelerator does. Returns how to say how many."""

    def say(count: int) -> None:
        for module in (embeddings_module, text_module):
            monkeypatch.setattr(module, "encoded_at_once", lambda device, wanted: count)

    return say


def encoded(model, qwen, transformer) -> dict[str, torch.Tensor]:
    """Every caption's text embeddings, from empty caches."""
    texts = TextStore(TensorCache(None), load_t5_tokenizer(model.t5_tokenizer_dir), "qwen", "t5", torch.float32)
    texts.fill(CAPTIONS, lambda: qwen)
    embeddings = CachedEmbeddings(texts, transformer)
    embeddings.fill(CAPTIONS, *PROGRESS)
    return {caption: texts.cache.get(embeddings._key(caption))["embeds"] for caption in CAPTIONS}


def test_a_batch_of_captions_gives_what_each_gives_alone(model, at_once):
    qwen, transformer = load_qwen(model.qwen), load_transformer(model.transformer)
    batches = []
    transformer.llm_adapter.register_forward_hook(lambda module, inputs, out: batches.append(len(out)))
    at_once(1)
    alone = encoded(model, qwen, transformer)
    assert batches == [1] * len(CAPTIONS)
    at_once(4)
    together = encoded(model, qwen, transformer)
    assert batches[len(CAPTIONS) :] == [4, 3]
    assert len({len(rows) for rows in alone.values()}) > 3
    for caption, rows in alone.items():
        assert rows.shape == together[caption].shape and relative_error(together[caption], rows) < 1e-5
        assert together[caption].untyped_storage().nbytes() == together[caption].nbytes, "the whole batch stays in memory"


def test_the_llm_adapter_takes_fewer_captions_where_memory_runs_out(model, at_once, monkeypatch):
    qwen, transformer = load_qwen(model.qwen), load_transformer(model.transformer)
    at_once(1)
    alone, whole, tried = encoded(model, qwen, transformer), transformer.preprocess_text_embeds, []

    def limited(hidden, ids, *masks):
        tried.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(hidden, ids, *masks)

    monkeypatch.setattr(transformer, "preprocess_text_embeds", limited)
    at_once(7)
    found = encoded(model, qwen, transformer)
    assert tried == [7, 3, 1, 2, 4, 2, 2]
    assert all(relative_error(found[caption], rows) < 1e-5 for caption, rows in alone.items())


def test_one_caption_that_does_not_fit_is_an_error_that_names_the_model():
    def full(captions):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RunError, match="LLM adapter: out of memory even at one caption"):
        in_halves(full, ["a", "b"], "LLM adapter")

    def broken(captions):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        in_halves(broken, ["a", "b"], "LLM adapter")

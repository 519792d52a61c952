"""Text without its rows of zeros: every number is what it is with them, and there is less to compute."""

import dataclasses
import functools
import math

import pytest
import torch
import torch.nn.functional as F

from anima_core import train
from anima_core.adapters.network import AdapterNetwork
from anima_core.data.cache import TensorCache
from anima_core.data.embeddings import CachedEmbeddings, LiveEmbeddings, kept_rows
from anima_core.data.text import TextStore
from anima_core.demo.pictures import write_pictures
from anima_core.demo.random_transformer import REAL, TINY
from anima_core.models.ops import PLAIN
from anima_core.models.qwen import load_qwen
from anima_core.models.tokenizers import load_t5_tokenizer
from anima_core.models.transformer import AnimaTransformer, load_transformer
from anima_core.settings import NetworkConfig
from anima_core.speed.attention import CANDIDATES
from anima_core.speed.counting import Meter, cuda_kernels
from anima_core.speed.forms import LEVELS, make_lean, make_plain
from anima_core.speed.lean import LEAN
from anima_core.speed.trim import KERNELS, Kernels, Trimmed, cpu, cpu_backward
from anima_core.training import loop
from anima_core.training.previews import prompt_embeds

from .conftest import relative_error
from .test_recompute import NETWORKS, adapted
from .tiny import train_config, write

CPU = KERNELS["sdpa", "cpu"]
ROWS = (1, 64, 65, 448, 511)
TOKENS = (0, 1, 64, 65, 511, 512, 600)
Numbers = list[torch.Tensor]


def passes(attend, dtype: torch.dtype, rows: int, queries: int = 50) -> Numbers:
    """Output and gradients of q, k and v at random numbers: two pictures, three heads of 16."""
    generator, zeros = torch.Generator().manual_seed(rows), 512 - rows
    sizes = ((2, queries, 3, 16), (2, rows, 3, 16), (2, rows, 3, 16), (2, queries, 48))
    *qkv, g = (torch.randn(size, generator=generator, dtype=torch.float64).to(dtype) for size in sizes)
    own = [x.requires_grad_(True) for x in qkv]
    out = attend(*own, None, zeros)
    return [out.detach(), *torch.autograd.grad(out, own, g)]


def trimmed(q, k, v, mask, zeros, kernels=CPU):
    return Trimmed.apply(q, k, v, zeros, kernels)


# One attention


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("attend", [trimmed, CANDIDATES["sdpa"], CANDIDATES["flash"], CANDIDATES["chunked"]])
def test_it_is_exact(attend, rows):
    for ours, theirs in zip(passes(attend, torch.float64, rows), passes(PLAIN.attention, torch.float64, rows)):
        assert relative_error(ours, theirs) < 1e-12
    for ours, theirs in zip(passes(attend, torch.float32, rows), passes(PLAIN.attention, torch.float32, rows)):
        assert relative_error(ours, theirs) < 2e-6


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", ROWS)
def test_in_half_precision_it_is_as_near_to_the_truth(rows, dtype):
    truth = passes(PLAIN.attention, torch.float64, rows)
    for ours, theirs, true in zip(passes(trimmed, dtype, rows), passes(PLAIN.attention, dtype, rows), truth):
        assert relative_error(ours, true) < 1.25 * relative_error(theirs, true)


def filled_up(lse: torch.Tensor) -> torch.Tensor:
    """As the memory-efficient kernel returns it: rows up to a multiple of 32, infinite so that they have no share."""
    return F.pad(lse, (0, -lse.shape[-1] % 32), value=math.inf)


@pytest.mark.parametrize(
    "there, back",
    [(filled_up, lambda lse: lse[..., :50]), (lambda lse: lse.unsqueeze(-1), lambda lse: lse.squeeze(-1))],
    ids=["efficient", "cudnn"],
)
def test_each_backends_own_shape_of_lse_is_given_back_as_it_came(there, back):
    def forward(q, k, v):
        out, lse, rest = cpu(q, k, v)
        return out, there(lse), rest

    def backward(g, q, k, v, out, lse, rest):
        return cpu_backward(g, q, k, v, out, back(lse), rest)

    attend = functools.partial(trimmed, kernels=Kernels(forward, backward))
    for ours, theirs in zip(passes(attend, torch.float64, 65), passes(PLAIN.attention, torch.float64, 65)):
        assert relative_error(ours, theirs) < 1e-12


@pytest.mark.parametrize("backend", ["flash", "efficient", "cudnn"])
def test_the_kernels_of_cards_are_called_as_they_take_it(backend):
    """On the meta device, which knows their arguments and the shapes of what they return."""
    kernels = KERNELS[backend, "cuda"]
    q, k, v = (torch.empty(2, n, 3, 64, device="meta", dtype=torch.bfloat16, requires_grad=True) for n in (130, 64, 64))
    out = Trimmed.apply(q, k, v, 448, kernels)
    out.backward(torch.empty_like(out))
    assert out.shape == (2, 130, 192) and all(x.grad.shape == x.shape for x in (q, k, v))


def test_a_gradient_whose_numbers_lie_in_one_place():
    found = []
    for attend in (trimmed, PLAIN.attention):
        q, k, v = (torch.randn(1, 20, 2, 16, generator=torch.Generator().manual_seed(i)) for i in range(3))
        own = q.requires_grad_(True)
        attend(own, k, v, None, 492).sum().backward()
        found.append(own.grad)
    assert relative_error(*found) < 2e-6


# The model


def inputs(rows: int) -> tuple[torch.Tensor, ...]:
    """Two pictures whose text has so many rows, the second's fewer."""
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, rows, TINY.context_dim, generator=generator)
    text[1, rows // 2 :] = 0
    return torch.randn(2, 16, 6, 4, generator=generator), torch.rand(2, generator=generator), text


def results(model: AnimaTransformer, network: AdapterNetwork, rows: int, trim: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Velocity and the adapter's gradients."""
    latents, t, text = inputs(rows)
    zeros = 512 - rows
    text = text if trim else F.pad(text, (0, 0, 0, zeros))
    network.zero_grad()
    velocity = model(latents, t, text, None, zeros if trim else 0)
    velocity.square().mean().backward()
    return velocity.detach(), torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.slow
@pytest.mark.parametrize("network", [name for name in NETWORKS if name != "dropout"])
def test_velocity_and_gradients_are_those_of_the_whole_text(network):
    model, adapters = adapted(NETWORKS[network])
    make_lean(model)
    whole = results(model, adapters, 65, trim=False)
    ops = dataclasses.replace(LEAN, attention=CANDIDATES["sdpa"])
    found = []
    for level in LEVELS:
        make_lean(model, [level] * len(model.blocks), ops)
        found.append(results(model, adapters, 65, trim=True))
        assert torch.equal(found[-1][0], found[0][0]) and torch.equal(found[-1][1], found[0][1]), level
    make_plain(model)
    found.append(results(model, adapters, 65, trim=True))
    for ours in found:
        assert relative_error(ours[0], whole[0]) < 1e-6 and relative_error(ours[1], whole[1]) < 1e-6
    assert whole[1].count_nonzero() > 0


def flops_of_a_step(rows: int) -> int:
    """Of the real model's sizes at 1024 px, two blocks, an adapter on k and v among others: on the meta device."""
    with torch.device("meta"):
        model = AnimaTransformer(dataclasses.replace(REAL, blocks=2)).to(torch.bfloat16).requires_grad_(False)
    AdapterNetwork.inject(model, NetworkConfig(rank=32, alpha=32), 0)

    def attention(q, k, v, mask, zeros):
        return Trimmed.apply(q, k, v, zeros, KERNELS["flash", "cuda"]) if zeros else PLAIN.attention(q, k, v, mask)

    make_lean(model, ops=dataclasses.replace(LEAN, attention=attention))
    latents, t, text = (torch.empty(size, device="meta") for size in ((1, 16, 128, 128), (1,), (1, rows, 1024)))
    with cuda_kernels(), Meter() as meter:
        model(latents, t, text, None, 512 - rows).square().mean().backward()
    return meter.flops


def test_there_is_less_to_compute():
    """Of a row of text: four products in attention forwards, ten backwards, of k and v and of their adapter."""
    n, d, context, rank, cut = 4096, 2048, 1024, 32, 384
    attention = 3.5 * 4 * n * cut * d
    linears = 2 * 2 * cut * context * d + 2 * 3 * 2 * cut * rank * (context + d)
    saved = flops_of_a_step(512) - flops_of_a_step(512 - cut)
    assert saved == pytest.approx(2 * (attention + linears), rel=0.01)
    assert saved / flops_of_a_step(512) > 0.025


# Captions


@pytest.mark.parametrize("tokens, rows", zip(TOKENS, (64, 64, 64, 128, 512, 512, 600)))
def test_rows_are_kept_in_multiples_of_64(tokens, rows):
    assert kept_rows(tokens, trim=True) == rows and kept_rows(tokens, trim=False) == max(512, tokens)


@pytest.fixture(scope="module")
def texts(model):
    """Captions of just so many T5 tokens, by that number."""
    store = TextStore(TensorCache(None), load_t5_tokenizer(model.t5_tokenizer_dir), "qwen", "t5", torch.float32)
    store.fill([str(n) for n in TOKENS], lambda: load_qwen(model.qwen))
    entry = store.entry

    def of_length(caption: str) -> dict[str, torch.Tensor]:
        count = int(caption)
        generator = torch.Generator().manual_seed(count)
        return entry(caption) | {"ids": torch.randint(1, 30, (count,), generator=generator, dtype=torch.int32)}

    store.entry = of_length
    return store


BATCHES = [(1,), (0, 1), (65, 1), (64, 64), (511, 1), (512, 65), (600, 64), (600,), (600, 600)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", [CachedEmbeddings, LiveEmbeddings])
@pytest.mark.parametrize("tokens", BATCHES)
def test_captions_of_any_lengths_give_the_same_velocity(model, texts, kind, tokens):
    transformer = load_transformer(model.transformer)
    captions, found = [str(n) for n in tokens], []
    for trim in (False, True):
        embeddings = kind(texts, transformer, trim)
        with torch.no_grad():
            text, lengths, zeros = embeddings.place(embeddings.fetch(captions))
            g = torch.Generator().manual_seed(0)
            latents, t = torch.randn(len(tokens), 16, 4, 4, generator=g), torch.rand(len(tokens), generator=g)
            found.append(transformer(latents, t, text, lengths, zeros))
        assert text.shape[1] == kept_rows(max(tokens), trim) and text.shape[1] + zeros == max(512, *tokens)
        assert (lengths is None) == (len({max(512, n) for n in tokens}) == 1)
        assert not (zeros and lengths is not None)
    assert relative_error(found[1], found[0]) < 1e-6


def test_an_llm_adapter_that_is_trained_gets_the_same_gradient(model, texts):
    transformer = load_transformer(model.transformer)
    transformer.llm_adapter.requires_grad_(True)
    found = []
    for trim in (False, True):
        embeddings = LiveEmbeddings(texts, transformer, trim)
        text, lengths, zeros = embeddings.place(embeddings.fetch(["65", "1"]))
        transformer.zero_grad()
        transformer(torch.ones(2, 16, 4, 4), torch.rand(2, generator=torch.Generator()), text, lengths, zeros).mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in transformer.llm_adapter.parameters() if p.grad is not None]))
    assert found[0].count_nonzero() > 0 and relative_error(found[1], found[0]) < 1e-5


# Runs


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 3)
    write(folder, "long.png", caption="red circle, " * 300)  # of over 512 tokens: its batches are not trimmed
    return folder


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("changes", [{}, dict(caption_variants=0, subset=dict(shuffle_caption=True))], ids=["cached", "live"])
def test_a_run_loses_and_learns_the_same(model, pictures, tmp_path, changes):
    losses, rows = {}, []
    for trim in (False, True):
        events: list[dict] = []
        config = train_config(model, pictures, tmp_path / str(trim), trim_text=trim, max_train_steps=8, **changes)
        with loop.opened(config, events.append) as run:
            run.model.register_forward_pre_hook(lambda _, inputs: rows.append((inputs[2].shape[1], inputs[4])))
            losses[trim] = torch.tensor(run.go().losses)
        notes = [event["text"] for event in events if event["event"] == "note" and event["text"].startswith("attention: ")]
        assert len(notes) == trim and all("trimmed" in note for note in notes)
    assert {zeros for _, zeros in rows[:8]} == {0} and {row for row, zeros in rows[8:] if zeros} == {64}
    assert relative_error(losses[True], losses[False]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("trim", [True, False])
def test_a_run_that_goes_on_may_trim_from_there_or_not(model, pictures, tmp_path, trim):
    whole = train(train_config(model, pictures, tmp_path / "whole", trim_text=True))
    config = train_config(model, pictures, tmp_path / "half", trim_text=True, max_train_steps=3)
    train(dataclasses.replace(config, output=dataclasses.replace(config.output, save_state=True)))
    output, events = dataclasses.replace(config.output, resume="latest"), []
    result = train(dataclasses.replace(config, max_train_steps=6, trim_text=trim, output=output), events.append)
    assert result.steps == 6 and result.losses == pytest.approx(whole.losses, rel=1e-5)
    said = [event["text"] for event in events if event["event"] == "note" and event["text"].startswith("attention: ")]
    assert len(said) == trim and all(text.endswith(" trimmed, as before") for text in said)


@pytest.mark.slow
def test_previews_look_at_the_whole_text(model, pictures, tmp_path):
    config = train_config(model, pictures, tmp_path, trim_text=True)
    with loop.opened(config) as run:
        embeds = prompt_embeds(run.previews.embeddings, "")
        assert embeds.shape[1] == 512 and not embeds[:, 64:].any()

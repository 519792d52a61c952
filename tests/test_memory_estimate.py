"""Whether activations are kept: what a block keeps, counted, and what auto makes of it on cards that are not here."""

import dataclasses
import math
import types

import pytest
import torch

from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.pictures import write_pictures
from anima_core.demo.random_transformer import REAL
from anima_core.models.checkpoint import read_metadata
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import NetworkConfig
from anima_core.speed.forms import recomputes_blocks
from anima_core.training import loop, memory, preflight
from anima_core.training.memory import kept_bytes, recomputes

from .tiny import train_config

GB = 1e9
CUDA = torch.device("cuda", 0)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


NETWORKS = {
    "lora": NetworkConfig(rank=32, alpha=32),
    "lokr": NetworkConfig(type="lokr", rank=100000, factor=8),
    "adaln": NetworkConfig(rank=32, alpha=32, targets="+adaln"),
}
RESIDENT = 4.18 * GB  # the released weights
PEAKS = [  # docs/model.md §10.2: network, side in px, pictures, peak in GB of a step that keeps all activations
    ("lora", 512, 1, 8.4),
    ("lora", 768, 1, 12.3),
    ("lora", 1024, 1, 17.7),
    ("lora", 1024, 2, 30.4),
    ("lora", 1536, 1, 33.3),
    ("lokr", 1024, 1, 22.6),
]


class Released:
    """The released model's sizes on a card, with a network's parameters and none of the bytes."""

    def __init__(self, network: str, blocks: int = 28) -> None:
        with torch.device("meta"):
            self.inner = AnimaTransformer(dataclasses.replace(REAL, blocks=blocks)).to(torch.bfloat16).requires_grad_(False)
        self.network = AdapterNetwork.inject(self.inner, NETWORKS[network], 0)
        self.config, self.dtype, self.device = self.inner.config, torch.bfloat16, CUDA
        self.trained = sum(p.numel() for p in self.network.parameters())

    def named_parameters(self):
        return self.inner.named_parameters()


@pytest.fixture(scope="module")
def released():
    return {name: Released(name) for name in NETWORKS}


def asked(network: str, choice: str = "auto") -> types.SimpleNamespace:
    return types.SimpleNamespace(network=NETWORKS[network], memory=choice)


@pytest.mark.parametrize("network, side, pictures, peak", PEAKS)
def test_the_estimate_is_the_measured_peak(released, network, side, pictures, peak):
    """Weights, numbers with gradients and moments, and what the blocks keep: within a twentieth of the table."""
    model = released[network]
    kept = kept_bytes(asked(network), model, pictures * side * side)
    assert RESIDENT + 16 * model.trained + kept == pytest.approx(peak * GB, rel=0.05)


@pytest.mark.parametrize(
    "card, network, side, pictures, recompute",
    [
        (24, "lora", 1024, 1, False),
        (24, "lora", 1024, 2, True),
        (24, "lora", 1536, 1, True),
        (22, "lokr", 1024, 1, True),
        (32, "lokr", 1024, 1, False),
        (16, "lora", 1024, 1, True),
        (16, "lora", 768, 1, False),
        (16, "lora", 512, 1, False),
        (8, "lora", 512, 1, True),
        (20, "lora", 1024, 1, False),
        (20, "adaln", 1024, 1, True),
    ],
)
def test_auto_goes_by_network_size_and_batch(released, monkeypatch, card, network, side, pictures, recompute):
    """card: GB that are free before the weights are loaded."""
    model = released[network]
    monkeypatch.setattr(memory, "free_bytes", lambda device: card * GB - RESIDENT - 8 * model.trained)
    decided, reason = recomputes(asked(network), model, model.trained, pictures * side * side)
    assert decided == recompute and f"blocks are {'' if recompute else 'not '}recomputed" in reason


def test_fewer_blocks_keep_less(released):
    one, two = (kept_bytes(asked("lora"), Released("lora", blocks), 1024**2) for blocks in (1, 2))
    assert two == 2 * one and 28 * one == kept_bytes(asked("lora"), released["lora"], 1024**2)


@pytest.mark.parametrize("choice, recompute", [("recompute", True), ("keep", False)])
def test_what_was_set_is_done_without_a_look(released, monkeypatch, choice, recompute):
    monkeypatch.delattr(memory, "free_bytes")
    assert recomputes(asked("lora", choice), released["lora"], 1, 1) == (recompute, "")


def test_free_is_what_the_card_has_and_what_torch_holds_unused(monkeypatch):
    """What other programs hold counts too, ComfyUI's own models among them where it keeps them on the card."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 100))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 10)
    assert memory.free_bytes(CUDA) == 25


def test_it_is_decided_when_the_model_is_loaded_for_the_largest_batch(model, pictures, tmp_path, monkeypatch):
    """Not in preflight, which ComfyUI runs before it lets go of its own models."""
    seen = []

    def decide(config, transformer, trained, pixels):
        seen.append((transformer.blocks[0].mlp.layer1.weight.device.type, trained, pixels))
        return True, "because"

    monkeypatch.setattr(loop, "recomputes", decide)
    config = dataclasses.replace(train_config(model, pictures, tmp_path, dataset=dict(batch_size=3)), memory="auto")
    preflight.preflight(config)
    assert seen == []
    events = []
    with loop.opened(config, events.append) as run:
        buckets = [item.bucket for item in run.data.items]
        largest = max(math.prod(size) * min(3, buckets.count(size)) for size in buckets)
        assert seen == [("cpu", 0, largest)], "AdamW's moments are there by then"
        assert recomputes_blocks(run.model) and "because" in [e.get("text") for e in events]
        result = run.go()
    assert read_metadata(result.adapter_path)["ss_gradient_checkpointing"] == "True"

"""T-LoRA: which ranks of a LoRA a picture trains, by its noise."""

import pytest
import torch

from anima_core.adapters.dropouts import Part
from anima_core.adapters.formats import adapter_state
from anima_core.adapters.network import AdapterNetwork
from anima_core.adapters.noise_ranks import NoiseRanks
from anima_core.errors import SettingError
from anima_core.settings import NetworkConfig
from anima_core.speed.forms import LEVELS, make_lean

from .conftest import relative_error
from .test_fused import gradients, loss_of, model, network_of
from .tiny import same_tensors

CONFIG = NetworkConfig(rank=4, alpha=2, targets="+adaln+embedders", tlora_min_rank=1)
T = torch.tensor([0.9, 0.1])


def of(t: list[float], **settings) -> list[int]:
    ranks = NoiseRanks(NetworkConfig(rank=16, tlora_min_rank=2, **settings))
    return ranks.of(16, torch.tensor(t)).int().tolist()


def test_ranks_rise_as_noise_falls():
    assert of([1.0, 0.75, 0.5, 0.25, 0.0]) == [2, 5, 9, 12, 16]
    assert of([1.0, 0.75, 0.5, 0.25, 0.0], tlora_alpha=2.0) == [2, 2, 5, 9, 16]
    assert of([1.0, 0.75, 0.5, 0.25, 0.0], tlora_schedule="cosine") == [2, 4, 9, 13, 16]


def test_the_linear_rule_is_lycoris_own():
    mask = pytest.importorskip("lycoris.modules.tlora").compute_timestep_mask
    for alpha in (0.5, 1.0, 2.0):
        ours = of([step / 1000 for step in range(1000)], tlora_alpha=alpha)
        theirs = [int(mask(step, 1000, 16, 2, alpha).sum()) for step in range(1000)]
        assert sum(a != b for a, b in zip(ours, theirs)) <= 3, "t / 1000 in fp32 is not always what (1000 - t) / 1000 leaves"


def test_a_layer_of_few_ranks_trains_all():
    ranks = NoiseRanks(NetworkConfig(rank=16, tlora_min_rank=4))
    with ranks.of_pictures(T):
        assert ranks.mask(4, torch.empty(2, 3)) is None and ranks.mask(2, torch.empty(2, 3)) is None
        assert ranks.mask(8, torch.empty(2, 3)).tolist() == [[1] * 4 + [0] * 4, [1] * 7 + [0]]
    assert ranks.mask(8, torch.empty(2, 3)) is None


def masked_gradients(t: torch.Tensor | None, fused: bool = True, dtype: torch.dtype = torch.float32) -> AdapterNetwork:
    network = network_of(CONFIG, dtype)
    network.fused = fused
    with network.micro_batch(0, t=t):
        loss_of(network).backward()
    return network


@pytest.mark.parametrize("fused", [True, False])
def test_only_the_ranks_below_get_a_gradient(fused):
    """With 0.9 and 0.1 of noise one picture trains 1 rank, the other 3; the fourth is untouched."""
    network = masked_gradients(T, fused)
    for module in network.linears:
        grads = module.adapter.lora_down.grad, module.adapter.lora_up.grad.T
        assert all(not grad[3].any() for grad in grads) and all(grad[:3].any(dim=1).all() for grad in grads)
    alone = masked_gradients(torch.tensor([0.99, 0.99]), fused).linears[0].adapter
    assert alone.lora_up.grad[:, 0].any() and not alone.lora_up.grad[:, 1:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_forms_are_the_same(dtype):
    fast, slow = (masked_gradients(T, fused, dtype) for fused in (True, False))
    for a, b in zip(fast.parameters(), slow.parameters(), strict=True):
        assert relative_error(a.grad, b.grad) < (5e-5 if dtype == torch.float32 else 0.05)


def test_each_picture_has_its_own_ranks():
    """A layer on two pictures is the layer on each, with the ranks of each."""
    network = network_of(CONFIG)
    layer, x = network.linears[0], torch.randn(2, 5, network.linears[0].base.in_features)
    for layer.fused in (True, False):
        with network.micro_batch(0, t=T):
            both = layer(x)
        for number in range(2):
            with network.micro_batch(0, Part(slice(number, number + 1), 2), T[number : number + 1]):
                assert relative_error(layer(x[number : number + 1]), both[number : number + 1]) < 1e-6


def test_without_noise_all_ranks_count():
    """As in previews, in other programs, and where nobody says how much there is."""
    network, plain = network_of(CONFIG), network_of(NetworkConfig(rank=4, alpha=2, targets="+adaln+embedders"))
    assert torch.equal(loss_of(network), loss_of(plain))
    with network.micro_batch(0, t=T):
        masked = loss_of(network)
        network.eval()
        assert torch.equal(loss_of(network), loss_of(plain)) and not torch.equal(masked, loss_of(plain))
    assert same_tensors(adapter_state(network), adapter_state(plain))
    network.train()
    assert all(torch.equal(a, b) for a, b in zip(gradients(network), gradients(plain.train())))


def test_at_every_level_of_recomputation_the_same_bits():
    found = []
    for level in LEVELS:
        network = network_of(CONFIG, torch.bfloat16)
        make_lean(network.model, [level] * 2)
        with network.micro_batch(0, t=T):
            loss_of(network).backward()
        found.append([p.grad for p in network.parameters()])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_with_dropout_too():
    network = AdapterNetwork.inject(model(), NetworkConfig(rank=4, tlora_min_rank=1, rank_dropout=0.2, dropout=0.1), 0).train()
    for module in network.linears:
        torch.nn.init.normal_(module.adapter.lora_up)
    with network.micro_batch(0, t=torch.tensor([0.99, 0.99])):
        loss_of(network).backward()
    assert not any(module.adapter.lora_down.grad[1:].any() for module in network.linears)


@pytest.mark.parametrize(
    "settings, text",
    [
        (dict(type="lokr"), "network.tlora_min_rank=2: only the ranks of a plain lora can follow the noise; set it to 0"),
        (dict(dora=True), "follow the noise; set it to 0 or network.dora to false"),
        (dict(rank=1), "network.tlora_min_rank=2: must be at most the rank, 1"),
        (dict(tlora_schedule="geometric"), "network.tlora_schedule=geometric: must be one of linear, cosine"),
    ],
)
def test_what_does_not_go_together_is_refused(settings, text):
    with pytest.raises(SettingError, match=text):
        NetworkConfig(**dict(rank=4, tlora_min_rank=2) | settings)

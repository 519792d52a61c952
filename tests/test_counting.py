"""The meter: launches, bytes and FLOPs of small known things exactly, of a step of the real model by the analytic numbers."""

import gc

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from anima_core.adapters.network import AdapterNetwork
from anima_core.demo.random_transformer import REAL
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import NetworkConfig
from anima_core.speed.counting import Meter, Work, cuda_kernels
from anima_core.speed.forms import make_lean

D, MLP, CONTEXT, ROWS, BLOCKS = 2048, 8192, 1024, 512, 28


def analytic(px: int, rank: int, recomputed: bool) -> float:
    """FLOPs of a step of one picture, from the sizes alone (docs/model.md §10.1). The last product of a block runs once."""
    n = (px // 16) ** 2
    linears, text = 2 * n * (6 * D * D + 2 * D * MLP), 2 * ROWS * 2 * CONTEXT * D
    attention = 4 * n * (n + ROWS) * D
    lora = 2 * rank * (n * (12 * D + 2 * (D + MLP)) + ROWS * 2 * (CONTEXT + D))
    forward = linears + text + attention + lora
    again = recomputed * (forward - 2 * n * D * MLP)
    return BLOCKS * (forward + again + linears + 2.5 * attention + 2 * lora)


def counted_step(px: int, rank: int, recompute: bool) -> Meter:
    """Forward and backward of the real model on the meta device, and all that lives."""
    with torch.device("meta"):
        model = AnimaTransformer(REAL).to(torch.bfloat16).requires_grad_(False)
    network = AdapterNetwork.inject(model, NetworkConfig(rank=rank, alpha=rank), 0)
    make_lean(model, ["checkpoint" if recompute else "keep"] * BLOCKS)
    inputs = ((1, 16, px // 8, px // 8), (1,), (1, ROWS, CONTEXT))
    with cuda_kernels(), Meter() as meter:
        meter.watch([*model.parameters(), *network.parameters()])
        loss = model(*(torch.empty(shape, device="meta") for shape in inputs)).square().mean()
        loss.backward()
    return meter


@pytest.mark.slow
@pytest.mark.parametrize("px, recompute, published", [(1024, False, 43.22e12), (1024, True, 57.62e12)])
def test_flops_of_a_step_are_the_analytic_ones(px, recompute, published):
    flops = counted_step(px, 32, recompute).flops
    assert flops == pytest.approx(analytic(px, 32, recompute), rel=0.01)
    assert flops == pytest.approx(published, rel=0.01)


def test_a_product_reads_two_and_writes_one():
    a, b = torch.zeros(3, 4), torch.zeros(4, 5)
    with Meter() as meter:
        a @ b
    assert meter.work == Work(launches=1, bytes=4 * (12 + 20 + 15), flops=2 * 3 * 4 * 5)


@pytest.mark.parametrize("name", ["mm", "addmm", "addmm_", "bmm", "baddbmm", "baddbmm_"])
def test_every_kind_of_product_has_its_flops(name):
    batch = (2,) if "bmm" in name else ()
    sum_, a, b = torch.zeros(*batch, 3, 5), torch.zeros(*batch, 3, 4), torch.zeros(*batch, 4, 5)
    with Meter() as meter:
        getattr(torch, name)(a, b) if name in ("mm", "bmm") else getattr(sum_, name)(a, b)
        torch.matmul(a, b, out=sum_)
    assert meter.flops == 2 * (2 if batch else 1) * 2 * 3 * 4 * 5


def test_views_and_empty_memory_cost_nothing():
    x = torch.zeros(2, 3, 4)
    with Meter() as meter:
        x.transpose(0, 1)[:, 1:].unflatten(-1, (2, 2)).chunk(2, dim=-1)
        x.view(6, 4).expand(2, 6, 4).detach()
        torch.empty_like(x)
        x.new_empty(5)
    assert meter.work == Work(0, 0, 0)


def test_bytes_of_what_is_changed_in_place_written_over_repeated_or_in_a_list():
    x, y, row = torch.zeros(4, 8), torch.ones(4, 8), torch.ones(8)
    size = {
        "x.add_(1)": (lambda: x.add_(1), 2 * 128),
        "x.zero_()": (lambda: x.zero_(), 128),
        "x.copy_(y)": (lambda: x.copy_(y), 2 * 128),
        "out": (lambda: torch.mul(x, y, out=x), 3 * 128),
        "a repeated row is read once": (lambda: x + row.expand(4, 8), 128 + 32 + 128),
        "cat": (lambda: torch.cat([x, y]), 2 * 128 + 256),
        "foreach": (lambda: torch._foreach_mul_([x, y], 2.0), 4 * 128),
        "narrower": (lambda: x.to(torch.bfloat16), 128 + 64),
    }
    for name, (operation, expected) in size.items():
        with Meter() as meter:
            operation()
        assert (name, meter.bytes, meter.launches) == (name, expected, 1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_forward_and_backward(device):
    """5 products backward for 2 forward, as the scores are made again."""
    q = torch.zeros(2, 3, 16, 8, device=device, requires_grad=True)
    k = torch.zeros(2, 3, 24, 8, device=device, requires_grad=True)
    forward = 4 * 2 * 3 * 16 * 24 * 8
    with cuda_kernels(), Meter() as meter:
        out = F.scaled_dot_product_attention(q, k, k).sum()
        assert meter.flops == forward
        out.backward()
    assert meter.flops == 3.5 * forward


def test_cudas_kernels_are_for_meta_tensors_and_for_a_while():
    """One kernel each way for RMS norm and masked attention; the CPU's numbers are its own, and afterwards all is as before."""
    weight, mask = torch.rand(8), torch.ones(1, 1, 1, 16, dtype=torch.bool)
    x = torch.rand(1, 2, 16, 8)
    expected = F.rms_norm(x, (8,), weight)
    with cuda_kernels():
        assert torch.equal(F.rms_norm(x, (8,), weight), expected)
        far = x.to("meta").requires_grad_()
        with Meter() as meter:
            F.rms_norm(far, (8,), weight.to("meta"), 1e-6).sum().backward()
            y = F.scaled_dot_product_attention(far, far, far, attn_mask=mask.to("meta"))
    assert y.shape == x.shape
    assert meter.ops["native_layer_norm"] == meter.ops["native_layer_norm_backward"] == 1
    assert meter.ops["_scaled_dot_product_efficient_attention"] == 1 and "bmm" not in meter.ops
    with Meter() as meter:
        F.rms_norm(x.to("meta"), (8,), weight.to("meta"))
        F.scaled_dot_product_attention(far, far, far)
    assert "native_layer_norm" not in meter.ops and "_scaled_dot_product_flash_attention" not in meter.ops


@pytest.mark.parametrize("mode", ["real", "meta", "fake"])
def test_live_and_peak_bytes_follow_storages_whatever_views_there_are(mode):
    device = "meta" if mode == "meta" else "cpu"
    with FakeTensorMode(allow_non_fake_inputs=True) if mode == "fake" else Meter():
        with Meter() as meter:
            before = torch.zeros(100, device=device)
            view = before.view(10, 10)[2:]
            sum_ = view + 1
            assert meter.live == 400 + 320
            del before
            assert meter.live == 400 + 320  # its view holds it
            del view
            assert (meter.live, meter.peak) == (320, 720)
            meter.reset_peak()
            del sum_
            assert (meter.live, meter.peak) == (0, 320)


def test_what_was_there_before_counts_when_watched_once():
    weight = torch.zeros(10)
    with Meter() as meter:
        meter.watch([weight, weight[:5]])
        assert meter.live == meter.peak == 40
    del weight
    gc.collect()
    assert meter.live == 0


def test_what_was_there_before_does_not_count_for_being_looked_at_or_changed():
    weight = torch.zeros(10)
    with Meter() as meter:
        row = weight[:5].add_(1).unsqueeze(0)
        assert row.shape == (1, 5) and meter.live == 0


def test_saved_tensors_of_a_graph_live_until_backward():
    x = torch.rand(8, 8, requires_grad=True)
    x.grad = torch.zeros_like(x)
    with Meter() as meter:
        loss = x.sin().exp().sum()  # sin keeps x, exp keeps its own output
        assert meter.live == 256 + 4
        loss.backward()
        assert meter.live == 4
    assert meter.peak >= 3 * 256

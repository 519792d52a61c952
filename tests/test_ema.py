"""The moving average against a loop over numbers."""

import pytest
import torch

from anima_core.training.ema import EMA


def parameters(dtype=torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.randn(3, 2).to(dtype)), torch.nn.Parameter(torch.randn(4).to(dtype))]


def move(params: list[torch.nn.Parameter]) -> None:
    with torch.no_grad():
        for p in params:
            p.add_(torch.randn_like(p))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.999])
def test_updates_against_a_loop(decay):
    params = parameters()
    ema = EMA(params, decay)
    expected = [p.detach().double().clone() for p in params]
    for n in range(60):
        move(params)
        ema.update()
        d = min(decay, (1 + n) / (10 + n))
        expected = [d * e + (1 - d) * p.detach().double() for e, p in zip(expected, params)]
    for shadow, e in zip(ema.shadow, expected):
        assert shadow.dtype == torch.float32
        assert torch.allclose(shadow.double(), e, atol=1e-5)


def test_the_shadow_is_fp32_beside_bf16_parameters():
    params = parameters(torch.bfloat16)
    ema = EMA(params, 0.9)
    before = ema.shadow[0].clone()
    move(params)
    ema.update()
    assert ema.shadow[0].dtype == torch.float32
    assert torch.allclose(ema.shadow[0], before.lerp(params[0].detach().float(), 0.9), atol=1e-6)


def test_swapped_shows_the_averages_and_gives_the_values_back_even_after_an_error():
    params = parameters()
    ema = EMA(params, 0.9)
    move(params)
    ema.update()
    own = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="inside"), ema.swapped():
        assert all(torch.equal(p, s) for p, s in zip(params, ema.shadow))
        assert not torch.equal(params[0], own[0])
        raise RuntimeError("inside")
    assert all(torch.equal(p, o) for p, o in zip(params, own))


def test_state_goes_on_where_it_stopped():
    params = parameters()
    ema = EMA(params, 0.999)
    for _ in range(5):
        move(params)
        ema.update()
    other = EMA(params, 0.999)
    other.load_state_dict({name: tensor.clone() for name, tensor in ema.state_dict().items()})
    move(params)
    ema.update()
    other.update()
    assert other.updates == 6
    assert all(torch.equal(a, b) for a, b in zip(ema.shadow, other.shadow))

"""DoRA of each type: ComfyUI's weights at every strength, LyCORIS' forward, the paper's gradient, and nothing kept for it."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from anima_core.adapters.casts import Casts
from anima_core.adapters.dora import SCALE, DoRALinear, decompose, lengths
from anima_core.adapters.formats import adapter_state, load_into, save_adapter
from anima_core.adapters.inspection import summarise
from anima_core.adapters.network import AdapterNetwork, layer_delta, merge
from anima_core.adapters.types import ADAPTER_TYPES
from anima_core.adapters.types.loha import LoHa
from anima_core.adapters.types.lokr import LoKr
from anima_core.adapters.types.lora import LoRA
from anima_core.errors import SettingError
from anima_core.models.frozen import FrozenLinear, Scratch
from anima_core.models.int8 import rounded
from anima_core.settings import NetworkConfig
from anima_core.speed.counting import Meter

from .conftest import relative_error
from .test_adapters import inputs, model, trained
from .tiny import layer as layer_of

TYPES = {
    "lora": lambda layer: LoRA(layer, 3.0),
    "lokr": lambda layer: LoKr(layer, 3.0, 8, False, False),
    "lokr, whole": lambda layer: LoKr(layer, 3.0, 8, True, False),
    "loha": lambda layer: LoHa(layer, 3.0),
}
NETWORKS = {
    "lora": NetworkConfig(rank=4, alpha=2, dora=True),
    "lokr": NetworkConfig(type="lokr", rank=3, alpha=1, factor=4, dora=True),
    "loha": NetworkConfig(type="loha", rank=2, alpha=1, dora=True),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def adapted(name: str, base: nn.Linear | None = None, move: bool = True) -> DoRALinear:
    base = nn.Linear(48, 80).requires_grad_(False) if base is None else base
    adapter = TYPES[name](layer_of(48, 80, 3))
    decompose(adapter, base)
    for number, parameter in enumerate(adapter.parameters() if move else ()):
        parameter.data.add_(0.2 * random(*parameter.shape, seed=number))
    return DoRALinear(base, adapter)


def dense(layer: DoRALinear) -> Tensor:
    """The correction of the base weight as one matrix: what an adapter makes of the unit vectors, with gradient."""
    eye = torch.eye(layer.base.in_features)
    return layer.adapter(eye, torch.empty(0)).T


def paper(layer: DoRALinear, x: Tensor) -> Tensor:
    """m V / ‖V‖ with V = W + D, the norm over outputs and without gradient."""
    whole = layer.base.weight + dense(layer)
    norm = whole.detach().norm(dim=0, keepdim=True)
    return F.linear(x, layer.adapter.get_parameter(SCALE) * whole / norm, layer.base.bias)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", TYPES)
def test_values_and_gradients_are_the_papers(name, fused):
    layer, x, g = adapted(name), random(2, 3, 48).requires_grad_(), random(2, 3, 80, seed=9)
    layer.fused, sources = fused, [x, *layer.adapter.parameters()]
    ours, wanted = layer(x), paper(layer, x)
    assert relative_error(ours, wanted) < 1e-5
    for a, b in zip(torch.autograd.grad(ours, sources, g), torch.autograd.grad(wanted, sources, g), strict=True):
        assert a.shape == b.shape and relative_error(a, b) < 1e-5


@pytest.mark.parametrize("name, algorithm", [("lora", "locon"), ("lokr", "lokr"), ("loha", "loha")])
def test_the_forward_is_lycoris_own(name, algorithm):
    """Theirs with wd_on_out=False, alpha as the rank: two of its types scale twice otherwise."""
    module = pytest.importorskip(f"lycoris.modules.{algorithm}")
    kind = getattr(module, {"locon": "LoConModule", "lokr": "LokrModule", "loha": "LohaModule"}[algorithm])
    layer = adapted(name)
    other = {"factor": 8} if name == "lokr" else {}
    theirs = kind("x", copy.deepcopy(layer.base), 1.0, 3, 3.0, weight_decompose=True, wd_on_out=False, **other)
    own = dict(layer.adapter.named_parameters())
    for place, parameter in theirs.named_parameters():
        if not place.startswith("org_module"):
            parameter.data.copy_(own[place.removesuffix(".weight")])
    theirs.dora_scale.data.copy_(own[SCALE])
    x = random(5, 48)
    theirs.eval()
    assert relative_error(layer(x), theirs(x)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", TYPES)
def test_the_start_is_the_base_layer_to_the_bit(name, fused, dtype):
    layer, x = adapted(name, nn.Linear(48, 80).to(dtype).requires_grad_(False), move=False), random(5, 48).to(dtype)
    layer.fused = fused
    assert torch.equal(layer(x), layer.base(x))


@pytest.mark.parametrize("strength", [1.0, 0.5, 0.0, -0.3])
@pytest.mark.parametrize("name", NETWORKS)
def test_at_every_strength_the_live_model_is_what_comfyui_patches(name, strength, comfyui_oracle):
    network, base = trained(NETWORKS[name]), model().state_dict()
    tensors = {f"base.{k}": v for k, v in base.items()} | {f"lora.{k}": v for k, v in adapter_state(network).items()}
    theirs = comfyui_oracle("oracle_adapters.py", tensors, strength=strength)
    assert theirs.pop("unused") == 0
    network.multiplier = strength
    live = network.model(*inputs())
    patched = merge(network, strength)
    weights = patched.state_dict()
    for key, weight in theirs.items():
        assert relative_error(weight, weights[key]) < 1e-5
    assert relative_error(live, patched(*inputs())) < 2e-5


def test_a_file_of_the_outputs_lengths_is_applied_by_comfyui_as_another_model(comfyui_oracle):
    """Why such are not trained: the norm there is that of the base weight alone."""
    network, base = trained(NETWORKS["lora"]), model().state_dict()
    name = "blocks.0.mlp.layer1"
    weight = base[f"{name}.weight"]
    plain = layer_delta(trained(replace(NETWORKS["lora"], dora=False)), network.adapted[name])
    whole, magnitude = weight + plain, 1.1 * weight.norm(dim=1, keepdim=True)
    state = {k: v for k, v in adapter_state(network).items() if name in k} | {f"diffusion_model.{name}.{SCALE}": magnitude}
    tensors = {f"base.{k}": v for k, v in base.items()} | {f"lora.{k}": v for k, v in state.items()}
    theirs = comfyui_oracle("oracle_adapters.py", tensors, strength=1.0)[f"{name}.weight"]
    assert relative_error(theirs, magnitude * whole / whole.norm(dim=1, keepdim=True)) > 1e-2


@pytest.mark.parametrize("shape", [(-1, 1), (-1,)])
def test_a_file_of_the_outputs_lengths_is_understood_as_it_was_trained(shape):
    """LyCORIS' [out, 1] and PEFT's [out], for whoever looks at such a file, or merges it."""
    general = pytest.importorskip("lycoris.functional.general")
    weight, adapter = random(40, 24), LoRA(layer_of(24, 40, 3), 3.0)
    torch.nn.init.normal_(adapter.lora_up)
    tensors = {f"{name}.weight": parameter.detach() for name, parameter in adapter.named_parameters()}
    plain = ADAPTER_TYPES["lora"].delta(tensors, weight)
    magnitude = 1 + random(40, 1, seed=3).abs()
    theirs = general.weight_decompose(weight + plain, magnitude, 1, True, backend="torch")
    ours = ADAPTER_TYPES["lora"].delta(tensors | {SCALE: magnitude.view(shape)}, weight)
    assert relative_error(weight + ours, theirs) < 1e-6


def test_a_files_lengths_are_fp32_whatever_it_is_saved_as():
    network = trained(NETWORKS["lora"])
    state = adapter_state(network, dtype=torch.bfloat16)
    kept = {key: tensor.dtype for key, tensor in state.items() if key.endswith(SCALE)}
    assert len(kept) == 20 and set(kept.values()) == {torch.float32}
    assert {tensor.dtype for key, tensor in state.items() if "lora_" in key} == {torch.bfloat16}


def test_a_dora_is_not_started_from_what_is_none_and_the_other_way_round(tmp_path):
    save_adapter(tmp_path / "d.safetensors", adapter_state(trained(NETWORKS["lora"])), {})
    save_adapter(tmp_path / "l.safetensors", adapter_state(trained(NetworkConfig(rank=4, alpha=2))), {})
    assert summarise(tmp_path / "d.safetensors")["types"] == {"dora (lora)": "20 layers, rank 4, alpha 2"}
    with pytest.raises(SettingError, match="is a DoRA, this network is none; set network.dora as for the file"):
        load_into(AdapterNetwork.inject(model(), NetworkConfig(rank=4), 0), tmp_path / "d.safetensors")
    with pytest.raises(SettingError, match="is no DoRA, this network is one"):
        load_into(AdapterNetwork.inject(model(), NETWORKS["lora"], 0), tmp_path / "l.safetensors")


def test_a_dora_of_the_outputs_lengths_is_refused_with_the_reason(tmp_path):
    state = adapter_state(trained(NETWORKS["lora"]))
    state = {key: torch.ones(64, 1) if key.endswith(SCALE) else tensor for key, tensor in state.items()}
    save_file(state, tmp_path / "o.safetensors")
    with pytest.raises(SettingError, match=r"a length for each output, which ComfyUI applies wrongly.*wd_on_output=False"):
        load_into(AdapterNetwork.inject(model(), NETWORKS["lora"], 0), tmp_path / "o.safetensors")


@pytest.mark.parametrize("name", TYPES)
def test_on_a_stored_weight_as_on_the_numbers_it_writes(name):
    """It is asked for them each time: what they are written into is another layer's in between."""
    frozen = FrozenLinear(rounded(random(80, 48), 3), Scratch(torch.float32, "cpu"))
    plain = nn.Linear(48, 80, bias=False).requires_grad_(False)
    plain.weight.data.copy_(frozen.weight)
    found = []
    for base in (frozen, plain):
        layer, x = adapted(name, base), random(3, 48).requires_grad_()
        y = layer(x)
        frozen.scratch.room.fill_(float("nan"))
        found.append([y.detach(), *torch.autograd.grad(y, [x, *layer.adapter.parameters()], random(3, 80, seed=2))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_the_norm_is_taken_once_in_a_micro_batch_and_anew_in_the_next():
    layer, x = adapted("lora"), random(3, 48)
    casts = Casts([layer.adapter], (), torch.float32)
    with casts.in_use(), Meter() as meter:
        first, again = layer(x), layer(x)
    assert meter.ops["linalg_vector_norm"] == 1 and torch.equal(first, again)
    layer.adapter.lora_up.data.mul_(2)
    with casts.in_use():
        assert torch.equal(layer(x), layer(x)) and layer.adapter.norm is not None and not torch.equal(layer(x), first)
    assert layer.adapter.norm is None


def test_a_column_without_length_stays_finite():
    base = nn.Linear(48, 80).requires_grad_(False)
    base.weight[:, 5] = 0
    layer = adapted("lora", base, move=False)
    x = random(3, 48).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.isfinite().all() and all(p.grad.isfinite().all() for p in layer.adapter.parameters())
    assert lengths(base.weight)[5] > 0

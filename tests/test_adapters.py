"""LoRA and LoKr: their formulas, their place in a model, their files; LyCORIS and ComfyUI as oracles."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.checkpoint import checkpoint

from anima_core.adapters.adapter_type import Adapter, AdapterType
from anima_core.adapters.dropouts import Dropouts
from anima_core.adapters.formats import adapter_state, load_into, read_adapter, save_adapter
from anima_core.adapters.inspection import summarise
from anima_core.adapters.keys import convert_keys
from anima_core.adapters.layers import AdaptedNorm
from anima_core.adapters.layouts import locate
from anima_core.adapters.metadata import build_metadata
from anima_core.adapters.network import AdapterNetwork, merge
from anima_core.adapters.targets import linear_names, select_targets
from anima_core.adapters.types import lokr as lokr_type
from anima_core.adapters.types import lora as lora_type
from anima_core.adapters.types.loha import LoHa
from anima_core.adapters.types.lokr import LoKr, factorization
from anima_core.adapters.types.lora import LoRA
from anima_core.demo.random_transformer import REAL, TINY, random_state
from anima_core.errors import FileError, SettingError
from anima_core.models.transformer import AnimaTransformer
from anima_core.settings import NetworkConfig

from .conftest import relative_error
from .tiny import layer as layer_of
from .tiny import same_tensors, train_config

LAYOUTS = {
    "lora": NetworkConfig(rank=4, alpha=2),
    "lora without alpha": NetworkConfig(rank=4, alpha=0),
    "lora all norms": NetworkConfig(rank=4, alpha=4, targets="all", train_norm=True),
    "lokr full": NetworkConfig(type="lokr", rank=100000, alpha=0, factor=8),
    "lokr low rank": NetworkConfig(type="lokr", rank=3, alpha=1, factor=4),
    "lokr low rank alpha 0": NetworkConfig(type="lokr", rank=3, alpha=0, factor=4),
    "lokr both": NetworkConfig(type="lokr", rank=2, alpha=3, factor=-1, decompose_both=True, targets="+adaln"),
    "lokr whole by rank": NetworkConfig(type="lokr", rank=64, alpha=16, factor=8),
    "loha": NetworkConfig(type="loha", rank=3, alpha=1, targets="+adaln"),
    "loha of a high rank": NetworkConfig(type="loha", rank=8, alpha=0),
    "dora of lora, norms": NetworkConfig(rank=4, alpha=2, dora=True, train_norm=True),
    "dora of lokr": NetworkConfig(type="lokr", rank=3, alpha=1, factor=4, dora=True),
    "dora of lokr both": NetworkConfig(type="lokr", rank=2, alpha=3, factor=-1, decompose_both=True, dora=True),
    "dora of loha": NetworkConfig(type="loha", rank=2, alpha=1, dora=True),
    "t-lora": NetworkConfig(rank=4, alpha=2, tlora_min_rank=1),
}


def model() -> AnimaTransformer:
    with torch.device("meta"):
        transformer = AnimaTransformer(TINY)
    transformer.load_state_dict(random_state(TINY, torch.Generator().manual_seed(0)), assign=True)
    return transformer.requires_grad_(False)


def trained(config: NetworkConfig, seed: int = 1) -> AdapterNetwork:
    """A network whose zero factors have moved, as training would move them."""
    network = AdapterNetwork.inject(model(), config, seed)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return network


def inputs():
    g = torch.Generator().manual_seed(2)
    return torch.randn(2, 16, 8, 6, generator=g), torch.rand(2, generator=g), torch.randn(2, 512, 64, generator=g)


@pytest.mark.parametrize(
    "dimension, expected",
    [
        (1024, {8: (8, 128), 4: (4, 256), 16: (16, 64), -1: (32, 32)}),
        (2048, {8: (8, 256), 4: (4, 512), 16: (16, 128), -1: (32, 64)}),
        (8192, {8: (8, 1024), 4: (4, 2048), 16: (16, 512), -1: (64, 128)}),
        (68, {8: (4, 17), -1: (4, 17)}),
        (7, {4: (1, 7)}),
    ],
)
def test_factorization(dimension, expected):
    assert {factor: factorization(dimension, factor) for factor in expected} == expected


@pytest.mark.parametrize("dimension", [1, 12, 64, 68, 96, 1000, 1024, 6144])
@pytest.mark.parametrize("factor", [-1, 1, 3, 4, 8, 16, 50])
def test_factorization_is_lycoris_own(dimension, factor):
    lycoris = pytest.importorskip("lycoris.functional.general")
    assert factorization(dimension, factor) == tuple(lycoris.factorization(dimension, factor))


def delta(adapter: Adapter, kind: AdapterType) -> torch.Tensor:
    """What merging adds to the base weight, from the tensors that a file would hold, with gradient."""
    named = {f"{n}.weight" if f"{n}.weight" in kind.tensors else n: p for n, p in adapter.named_parameters()}
    return kind.delta(named | {"alpha": torch.tensor(adapter.alpha)}, torch.empty(0))


def correct(adapter: Adapter, x: torch.Tensor) -> torch.Tensor:
    """What an adapter adds for x; neither type looks at the base layer's output."""
    return adapter(x, torch.empty(0))


def lokr(rank, alpha, factor, full=False, both=False, inputs=24, outputs=40) -> LoKr:
    layer = LoKr(layer_of(inputs, outputs, rank), alpha, factor, full, both)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(parameter.numel()))
    return layer


KRON = [
    (lokr(2, 2, 4), "w1 whole, w2 rank 2"),
    (lokr(2, 1, 4), "alpha below rank"),
    (lokr(2, 0, 8), "alpha 0"),
    (lokr(64, 8, 4), "both whole by rank"),
    (lokr(5, 8, 4, full=True), "full matrix"),
    (lokr(1, 3, -1, both=True), "both of rank 1"),
    (lokr(2, 3, 7, both=True, inputs=35, outputs=22), "odd sizes"),
]


@pytest.mark.parametrize("layer", [layer for layer, _ in KRON], ids=[name for _, name in KRON])
def test_lokr_product_is_kron(layer):
    """Forward and every gradient equal those of the dense matrix."""
    x = torch.randn(3, 5, layer.shape[2] * layer.shape[3], requires_grad=True)
    wanted = x @ delta(layer, lokr_type.TYPE).T
    ours = correct(layer, x)
    assert relative_error(ours, wanted) < 1e-5
    g = torch.randn_like(wanted)
    sources = [x, *layer.parameters()]
    for a, b in zip(torch.autograd.grad(ours, sources, g), torch.autograd.grad(wanted, sources, g)):
        assert relative_error(a, b) < 1e-5


@pytest.mark.parametrize("layer", [layer for layer, _ in KRON], ids=[name for _, name in KRON])
def test_lokr_delta_is_lycoris_own(layer):
    lycoris = pytest.importorskip("lycoris.functional.lokr")
    own = dict(layer.named_parameters())
    w1 = own.get("lokr_w1"), own.get("lokr_w1_a"), own.get("lokr_w1_b")
    w2 = own.get("lokr_w2"), own.get("lokr_w2_a"), own.get("lokr_w2_b")
    whole = w1[1] is None and w2[1] is None  # their gamma is alpha, divided by the rank of a factor that has one
    theirs = lycoris.diff_weight(*w1, *w2, None, gamma=1.0 if whole else layer.alpha, backend="torch")
    assert relative_error(delta(layer, lokr_type.TYPE), theirs) < 1e-6


def test_lora_is_the_formula():
    layer = LoRA(layer_of(6, 9, 3), 1.5)
    assert layer.lora_up.abs().max() == 0 and layer.lora_down.abs().max() <= 6**-0.5
    torch.nn.init.normal_(layer.lora_up)
    x = torch.randn(4, 6)
    assert relative_error(correct(layer, x), 0.5 * x @ layer.lora_down.T @ layer.lora_up.T) < 1e-6
    assert relative_error(correct(layer, x), x @ delta(layer, lora_type.TYPE).T) < 1e-6


def test_full_lokr_stores_alpha_as_rank_never_the_sentinel():
    layer = LoKr(layer_of(64, 64, 100000), 0, 8, True, False)
    assert layer.scale == 1.0 and layer.alpha == layer.rank == 8.0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_start_is_the_base_model_and_eject_leaves_no_trace(layout):
    base = model()
    before, wanted = copy.deepcopy(base.state_dict()), base(*inputs())
    network = AdapterNetwork.inject(base, LAYOUTS[layout], 0)
    assert torch.equal(base(*inputs()), wanted)
    assert all(p.dtype == torch.float32 for p in network.parameters()) and len(network.state_dict()) > 0
    assert network.eject() is base
    assert same_tensors(dict(base.state_dict()), dict(before))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_switching_off_and_merging(layout):
    network = trained(LAYOUTS[layout])
    live = network._model[0]
    with network.disabled():
        assert torch.equal(live(*inputs()), model()(*inputs()))
    velocity = live(*inputs())
    assert relative_error(velocity, model()(*inputs())) > 1e-2
    assert relative_error(merge(network)(*inputs()), velocity) < 1e-5


@pytest.mark.parametrize("key_format", ["diffusion_model", "lora_unet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_comfyui_patches_the_same_weights(layout, key_format, comfyui_oracle):
    """Every key of the file is used, and the patched weight is base + our delta."""
    network = trained(LAYOUTS[layout])
    base = model().state_dict()
    state = adapter_state(network, key_format)
    tensors = {f"base.{k}": v for k, v in base.items()} | {f"lora.{k}": v for k, v in state.items()}
    theirs = comfyui_oracle("oracle_adapters.py", tensors, strength=1.0)
    assert theirs.pop("unused") == 0
    ours = merge(network).state_dict()
    changed = {name for name in ours if not torch.equal(ours[name], base[name])}
    assert changed == set(theirs)
    for name in changed:
        assert relative_error(theirs[name] - base[name], ours[name] - base[name]) < 1e-5


@pytest.mark.parametrize("key_format", ["diffusion_model", "lora_unet"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trip_is_bit_exact(layout, key_format, tmp_path):
    network = trained(LAYOUTS[layout])
    state = adapter_state(network, key_format)
    save_adapter(tmp_path / "a.safetensors", state, {"ss_x": "y"})
    other = AdapterNetwork.inject(model(), LAYOUTS[layout], seed=77)
    load_into(other, tmp_path / "a.safetensors")
    assert same_tensors(dict(other.state_dict()), dict(network.state_dict()))
    assert same_tensors(adapter_state(other, key_format), state)
    assert same_tensors(convert_keys(convert_keys(state, "lora_unet"), key_format), state)


def test_another_alpha_keeps_the_files_effect(tmp_path):
    network = trained(NetworkConfig(rank=4, alpha=1))
    save_adapter(tmp_path / "a.safetensors", adapter_state(network), {})
    other = AdapterNetwork.inject(model(), NetworkConfig(rank=4, alpha=8), 0)
    load_into(other, tmp_path / "a.safetensors")
    assert relative_error(other._model[0](*inputs()), network._model[0](*inputs())) < 1e-5


def test_peft_names_are_read(tmp_path):
    state = adapter_state(trained(NetworkConfig(rank=4, alpha=4)))
    peft = {k.replace("lora_down", "lora_A").replace("lora_up", "lora_B"): v for k, v in state.items() if "alpha" not in k}
    save_file(peft, tmp_path / "p.safetensors")
    modules = read_adapter(tmp_path / "p.safetensors")
    assert set(modules["blocks.0.mlp.layer1"]) == {"lora_down.weight", "lora_up.weight"}


@pytest.mark.parametrize(
    "config, text",
    [
        (NetworkConfig(rank=8, alpha=4), "has shape"),
        (NetworkConfig(type="lokr", rank=4), "is a lora, this network a lokr; train a lora"),
        (NetworkConfig(rank=4, targets="+adaln"), "is not in the file"),
        (NetworkConfig(rank=4, targets="attn"), "of the file is not trained"),
    ],
)
def test_files_that_do_not_fit_say_why(config, text, tmp_path):
    save_adapter(tmp_path / "a.safetensors", adapter_state(trained(NetworkConfig(rank=4, alpha=4))), {})
    with pytest.raises(SettingError, match=text):
        load_into(AdapterNetwork.inject(model(), config, 0), tmp_path / "a.safetensors")


def test_every_layer_name_survives_underscores():
    with torch.device("meta"):
        real = AnimaTransformer(REAL)
    names = [name for name, m in real.named_modules() if isinstance(m, nn.Linear | nn.RMSNorm)]
    assert len(names) > 500 and [locate(f"lora_unet_{n.replace('.', '_')}").layer for n in names] == names
    assert [locate(name).layer for name in names] == names and locate("lora_unet_down_blocks_0_attentions_1") is None


def test_presets_of_the_released_model():
    with torch.device("meta"):
        real = AnimaTransformer(REAL)

    def count(**settings):
        return len(select_targets(real, NetworkConfig(**settings)))

    assert count() == 280
    assert count(targets="+llm_adapter") == 340
    assert count(targets="+adaln") == 280 + 28 * 6 + 2
    assert count(targets="attn") == 28 * 8 and count(targets="mlp") == 28 * 2
    assert count(targets="all") == len(linear_names(real))
    assert count(targets="", include=("re:^blocks\\.(0|1)\\.mlp,?",)) == 4
    assert count(exclude=("blocks.1*.self_attn.*",)) == 280 - 4 * 11
    assert count(exclude=("mlp.layer1",), include=("blocks.3.mlp.layer1",)) == 280 - 28 + 1
    ranks = select_targets(real, NetworkConfig(ranks=("re:self_attn=16", "*cross_attn*=0")))
    assert len(ranks) == 280 - 28 * 4 and ranks["blocks.5.self_attn.q_proj"] == 16 and ranks["blocks.5.mlp.layer2"] == 32


@pytest.mark.parametrize(
    "settings, text",
    [
        (dict(targets="attn+mpl"), "unknown mpl"),
        (dict(include=("blocks.99.mlp.layer1",)), "include 'blocks.99.mlp.layer1': matches no layer; names look like"),
        (dict(exclude=("nothing",)), "exclude 'nothing'"),
        (dict(ranks=("re:xyz=4",)), "ranks 're:xyz'"),
        (dict(learning_rates=("xyz=1e-4",)), "learning_rates 'xyz'"),
        (dict(include=("re:(",)), "not a regular expression"),
    ],
)
def test_patterns_that_match_nothing_are_errors(settings, text):
    with pytest.raises(SettingError) as refused:
        AdapterNetwork.inject(model(), NetworkConfig(**settings), 0)
    assert text in str(refused.value)


def test_groups_by_learning_rate_and_lora_plus():
    config = NetworkConfig(rank=2, learning_rates=("re:self_attn=1e-5", "mlp.layer1=0"), loraplus_lr_ratio=4)
    network = AdapterNetwork.inject(model(), config, 0)
    groups = {round(g["lr"], 9): len(g["params"]) for g in network.parameter_groups(1e-4, 0.1)}
    assert groups == {1e-5: 8, 4e-5: 8, 1e-4: 2 * 5, 4e-4: 2 * 5}
    frozen = [p for name, m in network.trained() if name.endswith("layer1") for p in m.parameters()]
    assert not any(p.requires_grad for p in frozen) and len(network.zero_init_parameters()) == 18


def test_same_seed_same_start_whatever_else_is_trained():
    few = AdapterNetwork.inject(model(), NetworkConfig(rank=4, targets="mlp"), 5)
    many = AdapterNetwork.inject(model(), NetworkConfig(rank=4), 5)
    a, b = dict(few.trained()), dict(many.trained())
    assert all(torch.equal(a[name].lora_down, b[name].lora_down) for name in a)
    other = dict(AdapterNetwork.inject(model(), NetworkConfig(rank=4), 6).trained())
    assert not torch.equal(b["blocks.0.mlp.layer1"].lora_down, other["blocks.0.mlp.layer1"].lora_down)


@pytest.mark.parametrize("kind", ["lora", "lokr", "loha"])
def test_dropout_repeats_within_a_step_and_changes_between(kind):
    config = NetworkConfig(type=kind, rank=2, factor=4, dropout=0.3, rank_dropout=0.3, module_dropout=0.2)
    network = trained(config)
    live = network._model[0]
    network.train()
    with network.micro_batch(1):
        first, again = live(*inputs()), live(*inputs())
    with network.micro_batch(2):
        second = live(*inputs())
    network.eval()
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert torch.equal(live(*inputs()), live(*inputs()))


@pytest.mark.parametrize("kind", [LoRA, LoHa])
def test_dropout_keeps_the_mean(kind):
    off, on = Dropouts(0, 0, 0, 0), Dropouts(0, 0.2, 0.2, 0.0)
    layers = [kind(layer_of(16, 8, 4, dropouts), 4) for dropouts in (off, on)]
    for layer in layers:
        torch.nn.init.normal_(getattr(layer, kind.zero_init), generator=torch.Generator().manual_seed(1))
    x = torch.randn(1, 16)
    total = torch.zeros(1, 8)
    for draw in range(3000):
        on.micro_batch = draw
        total += correct(layers[1], x).detach()
    assert relative_error(total / 3000, correct(layers[0], x)) < 0.05


def test_recomputed_blocks_drop_the_same():
    config = NetworkConfig(rank=4, dropout=0.5)
    network = trained(config)
    layer = dict(network.adapted)["blocks.0.mlp.layer1"]
    network.train()
    x = torch.randn(5, 64, requires_grad=True)
    plain = torch.autograd.grad(layer(x).square().sum(), x)[0]
    again = torch.autograd.grad(checkpoint(layer, x, use_reentrant=False).square().sum(), x)[0]
    assert torch.equal(plain, again)


def test_bf16_base_keeps_fp32_adapters():
    network = AdapterNetwork.inject(model().to(torch.bfloat16), NetworkConfig(rank=4), 0)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert network._model[0](*inputs()).dtype == torch.float32


def test_a_trained_norm_gives_its_weight_with_the_difference():
    norm = AdaptedNorm(nn.RMSNorm(16, eps=1e-6).to(torch.bfloat16).requires_grad_(False))
    norm.w_norm.data.normal_(generator=torch.Generator().manual_seed(0))
    norm.multiplier = 0.5
    assert norm.weight.dtype == torch.bfloat16
    assert torch.equal(norm.weight, (norm.base.weight.float() + 0.5 * norm.w_norm).to(torch.bfloat16))
    x = torch.randn(3, 16, dtype=torch.bfloat16)
    assert torch.equal(norm(x), torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-6))
    norm.weight.sum().backward()
    assert norm.w_norm.grad.any()


def test_large_alphas_stay_finite_in_fp16():
    state = adapter_state(trained(NetworkConfig(rank=4, alpha=90000)), dtype=torch.float16)
    assert state["diffusion_model.blocks.0.mlp.layer1.alpha"].item() == 90000


def test_summary_and_metadata(tmp_path):
    from anima_core.settings import ModelConfig

    network = trained(NetworkConfig(rank=4, alpha=2))
    secret = str(tmp_path / "somebody")
    config = train_config(
        ModelConfig(f"{secret}/anima.safetensors", f"{secret}/v", f"{secret}/q", f"{secret}/t"), tmp_path / "p", tmp_path
    )
    state = adapter_state(network)
    metadata = build_metadata(config, {"ss_steps": "6"}, state)
    save_adapter(tmp_path / "a.safetensors", state, metadata)
    shown = summarise(tmp_path / "a.safetensors")
    assert shown["types"] == {"lora": "20 layers, rank 4, alpha 2"} and shown["dtype"] == "F32"
    assert shown["places"] == {"attn": "16 layers", "mlp": "4 layers"} and "not read by ComfyUI" not in shown
    assert metadata["ss_sd_model_name"] == "anima.safetensors" and metadata["ss_network_module"] == "networks.lora_anima"
    assert metadata["modelspec.architecture"] == "anima-preview/lora"
    assert json.loads(metadata["anima_trainer.config"])["network"]["rank"] == 4
    assert str(tmp_path) not in json.dumps(shown["metadata"]) and "somebody" not in json.dumps(metadata)


def test_unwritable_file_leaves_nothing(tmp_path):
    (tmp_path / "x").write_text("", encoding="utf-8")
    with pytest.raises(FileError, match="cannot be written"):
        save_adapter(tmp_path / "x" / "a.safetensors", {"a": torch.zeros(1)}, {})
    save_adapter(tmp_path / "a.safetensors", {"a": torch.zeros(1)}, {})
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.safetensors", "x"]
    assert load_file(tmp_path / "a.safetensors")["a"].shape == (1,)

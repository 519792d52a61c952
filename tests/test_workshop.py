"""The adapter workshop: what is done to adapters against the deltas themselves, linear algebra's functions, and ComfyUI."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core.adapters.formats import adapter_state, save_adapter
from anima_core.adapters.low_rank import Kron, Low, Whole, delta_of, sketched, total
from anima_core.adapters.recognise import type_of
from anima_core.adapters.workshop.block_weights import BlockWeights
from anima_core.adapters.workshop.loaded import RECORD, LoadedAdapter, load_adapter, of_state, write_adapter
from anima_core.adapters.workshop.merging import Part, merge
from anima_core.adapters.workshop.resizing import Keep, lora_of, resize, shortened
from anima_core.adapters.workshop.scaling import scale, scaled
from anima_core.errors import FileError, SettingError
from anima_core.settings import NetworkConfig

from .conftest import relative_error
from .test_adapters import model as tiny_transformer
from .test_adapters import trained
from .test_analysis import FORMS, NETWORKS, numbers
from .tiny import same_tensors

BASE = {name.removesuffix(".weight"): weight for name, weight in tiny_transformer().state_dict().items()}


def adapter(kind: str = "lora", seed: int = 1, **changes) -> LoadedAdapter:
    config = NETWORKS[kind] if kind in NETWORKS else NetworkConfig(**changes)
    return of_state(adapter_state(trained(config, seed)), {"ss_num_blocks": "2"}, f"{kind}.safetensors")


def delta(tensors: dict[str, torch.Tensor], name: str = "") -> torch.Tensor:
    """The whole matrix, as its type makes it."""
    return type_of(tensors).delta(tensors, BASE[name].float() if name else torch.empty(0))


def deltas(found: LoadedAdapter) -> dict[str, torch.Tensor]:
    return {name: delta(tensors, name) for name, tensors in found.layers.items()}


# ---- the largest singular values


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("count", [1, 3, 24])
def test_the_largest_singular_values_of_each_form_are_those_of_the_matrix(form, count):
    small = FORMS[form](1)
    left, values, right = small.largest(count)
    u, s, v = torch.linalg.svd(small.whole(), full_matrices=False)
    count = min(count, len(values))
    assert torch.allclose(values, s[:count], atol=1e-4 * float(s[0]))
    best = (u[:, :count] * s[:count]) @ v[:count]
    assert (small.whole() - (left * values) @ right).norm() <= (small.whole() - best).norm() + 1e-4 * s[0]
    assert torch.allclose(left.T @ left, torch.eye(count), atol=1e-4)


def test_a_sketch_is_nearly_as_near_as_the_best_and_always_the_same():
    matrix = numbers(300, 200)  # all singular values alike: the worst case
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = Whole(matrix).largest(16)
    best = (matrix - (u[:, :16] * s[:16]) @ v[:16]).norm()
    assert (matrix - (found.left * found.values) @ found.right).norm() < 1.002 * best
    assert torch.equal(Whole(matrix).largest(16).left, found.left)
    low = numbers(300, 4) @ numbers(4, 200)
    exact = sketched(low, 8)
    assert relative_error((exact.left * exact.values) @ exact.right, low) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_sums_and_multiples_are_those_of_the_matrices(form):
    first, second = FORMS[form](1), FORMS[form](2)
    assert relative_error(first.times(-0.5).whole(), -0.5 * first.whole()) < 1e-6
    assert relative_error(total([first, second, first]).whole(), 2 * first.whole() + second.whole()) < 1e-5
    assert isinstance(total([Low(numbers(4, 2), numbers(2, 3))] * 2), Low)


# ---- resize


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_whole_rank_is_the_same_delta(kind):
    whole = adapter(kind)
    found = resize(whole, Keep(rank=1000))
    assert found.layers.keys() == whole.layers.keys()
    for name, tensors in found.layers.items():
        assert type_of(tensors).name == "lora" and relative_error(delta(tensors), delta(whole.layers[name])) < 1e-5
    assert bool(found.said) == (kind != "lora")


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_rank_is_the_best_of_that_rank(kind):
    whole = adapter(kind)
    for name, tensors in resize(whole, Keep(rank=2)).layers.items():
        u, s, v = torch.linalg.svd(delta(whole.layers[name]), full_matrices=False)
        assert tensors["lora_down.weight"].shape[0] == 2
        assert relative_error(delta(tensors), (u[:, :2] * s[:2]) @ v[:2]) < 1e-3


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.999])
def test_each_layer_gets_the_fewest_ranks_that_hold_the_energy(energy):
    whole = adapter("loha")
    for name, tensors in resize(whole, Keep(energy=energy)).layers.items():
        values = torch.linalg.svdvals(delta(whole.layers[name])).double().square()
        rank = tensors["lora_down.weight"].shape[0]
        share = values.cumsum(0) / values.sum()
        assert share[rank - 1] >= energy - 1e-4 and (rank == 1 or share[rank - 2] <= energy + 1e-4)


def test_energy_is_found_beyond_the_ranks_that_are_tried_first():
    matrix = numbers(300, 200)
    found = shortened(Whole(matrix), Keep(energy=0.8))
    values = torch.linalg.svdvals(matrix).double().square().cumsum(0)
    assert abs(len(found.values) - int((values < 0.8 * values[-1]).sum()) - 1) <= 1 and len(found.values) > 64


def test_nothing_keeps_no_rank_and_what_is_broken_is_refused():
    assert lora_of(Whole(torch.zeros(6, 4)), Keep(2), torch.float32) == {}
    with pytest.raises(SettingError, match="NaN or infinity"):
        shortened(Whole(torch.full((6, 4), math.nan)), Keep(2))
    with pytest.raises(SettingError, match="neither a rank nor a share"):
        resize(adapter(), Keep())
    for wrong in ({"rank": -1}, {"energy": 0.0}, {"energy": 1.5}, {"energy": math.nan}):
        with pytest.raises(SettingError):
            Keep(**wrong)


def test_a_dora_keeps_its_lengths_and_dtypes_stay():
    dora = adapter("", rank=4, alpha=2, dora=True)
    found = resize(dora, Keep(rank=100))
    for name, tensors in found.layers.items():
        assert torch.equal(tensors["dora_scale"], dora.layers[name]["dora_scale"])
        assert relative_error(delta(tensors, name), delta(dora.layers[name], name)) < 1e-4
    halves = {key: tensor.bfloat16() for key, tensor in adapter().state().items()}
    assert {t.dtype for k, t in resize(of_state(halves), Keep(2)).state().items() if "alpha" not in k} == {torch.bfloat16}


# ---- merge


def test_side_by_side_is_the_sum_of_deltas_and_ranks():
    first, second = adapter(seed=1), adapter("", seed=2, rank=3, alpha=5)
    found = merge([Part(first, 0.7), Part(second, -0.4)])
    for name, tensors in found.layers.items():
        assert tensors["lora_down.weight"].shape[0] == 7 == tensors["alpha"]
        wanted = 0.7 * delta(first.layers[name]) - 0.4 * delta(second.layers[name])
        assert relative_error(delta(tensors), wanted) < 1e-5


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_sum_of_any_types_is_the_nearest_of_a_rank(kind):
    first, second = adapter(kind, seed=1), adapter(seed=2)
    found = merge([Part(first, 0.5), Part(second)], Keep(rank=200))
    for name, tensors in found.layers.items():
        assert relative_error(delta(tensors), 0.5 * delta(first.layers[name]) + delta(second.layers[name])) < 1e-4
    if kind != "lora":
        with pytest.raises(SettingError, match=f"of {'.*'.join(sorted([kind.split(',')[0], 'lora']))}.*; give a rank"):
            merge([Part(first), Part(second)])


def test_layers_of_one_adapter_stay_as_they_are_and_weights_of_blocks_count():
    first, second = adapter("lokr"), adapter(seed=2)
    some = LoadedAdapter("b", {n: t for n, t in second.layers.items() if n.startswith("blocks.1.")}, {})
    parts = [Part(first, blocks=BlockWeights({1: 0.0})), Part(some)]
    found = merge(parts)
    for name, tensors in found.layers.items():
        assert same_tensors(tensors, (some if name.startswith("blocks.1.") else first).layers[name])
    assert found.said == ("20 layers are of one adapter alone",)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nothing_broken_goes_in_and_no_weight_that_is_no_number(bad):
    state = adapter().state()
    state[next(key for key in state if "lora_up" in key)][0, 0] = bad
    with pytest.raises(FileError, match="x: blocks.0.* holds NaN or infinity; use a file that is not broken"):
        of_state(state, name="x")
    with pytest.raises(SettingError, match="is no number to multiply by"):
        Part(adapter(), bad)
    with pytest.raises(SettingError, match="is no number to multiply by"):
        scale(adapter(), bad)


def test_a_dora_is_added_up_over_its_base(tmp_path):
    save_file({f"net.{k}": v.contiguous() for k, v in tiny_transformer().state_dict().items()}, tmp_path / "base.safetensors")
    dora, plain = adapter("", rank=4, alpha=2, dora=True), adapter(seed=2)
    found = merge([Part(dora, 0.5), Part(plain)], Keep(rank=200), tmp_path / "base.safetensors")
    assert list(found.layers) == list(dora.layers)
    for name, tensors in found.layers.items():
        wanted = 0.5 * delta(dora.layers[name], name) + delta(plain.layers[name])
        assert relative_error(delta(tensors), wanted) < 1e-4
    with pytest.raises(SettingError, match="a DoRA, whose sum needs the base weights; give the model's file .merge --base"):
        merge([Part(dora, 0.5), Part(plain)], Keep(rank=200))


def test_what_does_not_fit_is_said_in_one_line():
    other = of_state({"diffusion_model.blocks.0.mlp.layer1.lora_down.weight": numbers(2, 5),
                      "diffusion_model.blocks.0.mlp.layer1.lora_up.weight": numbers(7, 2)})  # fmt: skip
    with pytest.raises(SettingError, match=r"^blocks.0.mlp.layer1: the adapters do not fit one another \(shapes"):
        merge([Part(adapter()), Part(other)])
    oft = of_state({"diffusion_model.blocks.0.mlp.layer1.oft_blocks": numbers(2, 5)})
    with pytest.raises(SettingError, match=r"^blocks.0.mlp.layer1: a oft, which cannot be merged"):
        merge([Part(adapter()), Part(oft)])
    with pytest.raises(SettingError, match="1 adapter; give two"):
        merge([Part(adapter())])


@pytest.mark.parametrize(
    "tensors",
    [
        {"lora_down.weight": (2, 6)},
        {"lora_up.weight": (6, 2)},
        {"lora_down.weight": (2, 6), "lora_up.weight": (6, 3)},
        {"lora_down.weight": (2, 6, 1, 1), "lora_up.weight": (6, 2, 1, 1)},
        {"lokr_w1": (2, 2)},
        {"lokr_w1": (2, 2), "lokr_w2_a": (2, 2)},
        {"hada_w1_a": (6, 2), "hada_w1_b": (2, 6), "hada_w2_a": (6, 2)},
    ],
)
def test_a_damaged_layer_is_named(tensors):
    state = {f"diffusion_model.blocks.0.mlp.layer1.{name}": numbers(*shape) for name, shape in tensors.items()}
    with pytest.raises(SettingError, match="do not fit"):
        of_state(state)


def test_metadata_that_is_the_same_is_kept_and_all_that_was_done():
    first = scale(LoadedAdapter("a", adapter().layers, {"x": "1", "y": "2"}), 0.5)
    second = LoadedAdapter("b", adapter(seed=2).layers, {"x": "1", "y": "3"})
    found = merge([Part(first), Part(second)])
    assert found.metadata.keys() == {"x", RECORD}
    assert [(e["did"], e.get("of")) for e in json.loads(found.metadata[RECORD])] == [("scale", None), ("merge", ["a", "b"])]


# ---- scale


@pytest.mark.parametrize("factor", [0.3, -2.0, 1.0])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_scaled_layer_is_its_delta_times_the_factor(kind, factor):
    whole = adapter(kind)
    found = scale(whole, factor)
    for name, tensors in found.layers.items():
        assert tensors.keys() == whole.layers[name].keys()
        assert relative_error(delta(tensors), factor * delta(whole.layers[name])) < 1e-6


def test_norms_are_scaled_blocks_of_weight_0_are_left_out_and_a_dora_is_refused():
    norm = {"w_norm": torch.tensor([1.0, 2.0])}
    assert torch.equal(scaled("n", norm, 0.5)["w_norm"], torch.tensor([0.5, 1.0]))
    found = scale(adapter(), 2.0, BlockWeights({0: 0.0}))
    assert {name.split(".")[1] for name in found.layers} == {"1"} and found.said == (
        "10 layers are left out: their weight is 0",
    )
    with pytest.raises(SettingError, match="has lengths of columns, which no factor scales"):
        scale(adapter("", rank=4, alpha=2, dora=True), 0.5)


# ---- files


def test_a_file_is_written_with_what_was_done(tmp_path):
    path = tmp_path / "a.safetensors"
    text = {
        "lora_te_layers_0_self_attn_q_proj.lora_down.weight": numbers(2, 6),
        "lora_te_layers_0_self_attn_q_proj.lora_up.weight": numbers(6, 2),
    }
    save_adapter(path, adapter_state(trained(NETWORKS["lora"]), "lora_unet") | text, {"ss_network_dim": "4", "kept": "yes"})
    whole = load_adapter(path)
    assert len(whole.layers) == 21
    found = resize(whole, Keep(energy=0.9))
    write_adapter(tmp_path / "b.safetensors", found)
    again = load_adapter(tmp_path / "b.safetensors")
    assert same_tensors(again.state(), found.state()) and set(again.metadata) >= {"kept", "sshs_model_hash"}
    assert again.metadata["ss_network_dim"] == "Dynamic"
    (entry,) = json.loads(again.metadata[RECORD])
    assert (entry["did"], entry["energy"]) == ("resize", 0.9)
    assert all(key.startswith(("lora_unet_", "lora_te_")) for key in load_file(tmp_path / "b.safetensors"))
    lokr = LoadedAdapter("x", adapter("lokr").layers, {"ss_network_module": "networks.lokr", "ss_network_args": "{}"})
    for made, module in ((scale(lokr, 0.5), "networks.lokr"), (resize(lokr, Keep(2)), "networks.lora_anima")):
        write_adapter(tmp_path / "x.safetensors", made, force=True)
        assert load_adapter(tmp_path / "x.safetensors").metadata["ss_network_module"] == module
    with pytest.raises(FileError, match="is there already; choose another name, or write over a file with --force"):
        write_adapter(tmp_path / "b.safetensors", found)
    write_adapter(tmp_path / "b.safetensors", whole, force=True)
    assert len(load_adapter(tmp_path / "b.safetensors").layers) == 21
    save_adapter(tmp_path / "c.safetensors", whole.state(), {RECORD: "x"})
    with pytest.raises(FileError, match="damaged"):
        load_adapter(tmp_path / "c.safetensors")
    with pytest.raises(SettingError, match="nothing is left"):
        write_adapter(tmp_path / "d.safetensors", scale(whole, 0.0))


def test_deltas_are_the_types_own():
    whole = adapter("lokr")
    for name, tensors in whole.layers.items():
        found = delta_of(type_of(tensors), tensors, torch.empty(0))
        assert isinstance(found, Kron) and relative_error(found.whole(), deltas(whole)[name]) < 1e-6

"""Analysis of adapters: each small form against the whole matrix, what is measured against linear algebra's own functions."""

import math

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from anima_core.adapters.adapter_type import AdapterType, InFile, Size
from anima_core.adapters.analysis import ENERGY, Analysis, Fact, analyse, ranks_used
from anima_core.adapters.findings import sentence, table
from anima_core.adapters.formats import adapter_state, save_adapter
from anima_core.adapters.low_rank import Kron, Low, Whole, delta_of, of_loha
from anima_core.adapters.network import layer_delta
from anima_core.adapters.types import ADAPTER_TYPES
from anima_core.cli import main
from anima_core.errors import FileError, SettingError
from anima_core.report.heat_map import ABSENT, CELL, HEAD, LINE, MARGIN, NAMES, heat_map
from anima_core.settings import NetworkConfig

from . import layouts
from .conftest import relative_error
from .test_adapters import model as tiny_transformer
from .test_adapters import trained
from .test_foreign_adapters import diffusers_name


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


FORMS = {
    "low rank": lambda s: Low(numbers(40, 3, seed=s), numbers(3, 24, seed=s)),
    "higher rank than sides": lambda s: Low(numbers(40, 30, seed=s), numbers(30, 24, seed=s)),
    "kron": lambda s: Kron(Whole(numbers(4, 3, seed=s)), Whole(numbers(10, 8, seed=s))),
    "kron of low ranks": lambda s: Kron(
        Low(numbers(4, 2, seed=s), numbers(2, 3, seed=s)), Low(numbers(10, 2, seed=s), numbers(2, 8, seed=s))
    ),
    "kron split otherwise": lambda s: Kron(Whole(numbers(8, 6, seed=s)), Whole(numbers(5, 4, seed=s))),
    "whole, tall": lambda s: Whole(numbers(40, 24, seed=s)),
}


@pytest.mark.parametrize("form", FORMS)
def test_singular_values_of_each_form_are_those_of_the_matrix(form):
    delta = FORMS[form](1)
    assert delta.shape == tuple(delta.whole().shape) == (40, 24)
    found, wanted = delta.singular_values(), torch.linalg.svdvals(delta.whole())
    count = min(len(found), len(wanted))
    assert torch.allclose(found[:count], wanted[:count], atol=2e-3 * float(wanted[0]))
    assert relative_error(found.square().sum(), delta.whole().square().sum()) < 1e-5


@pytest.mark.parametrize("first", FORMS)
@pytest.mark.parametrize("second", FORMS)
def test_inner_products_of_all_pairs_of_forms_are_those_of_the_matrices(first, second):
    a, b = FORMS[first](1), FORMS[second](2)
    wanted = (a.whole().double() * b.whole().double()).sum()
    scale = float(a.whole().norm() * b.whole().norm())
    assert a.inner(b) == pytest.approx(float(wanted), abs=1e-5 * scale) and b.inner(a) == pytest.approx(
        a.inner(b), abs=1e-5 * scale
    )


def test_a_loha_is_one_product():
    tensors = {
        f"hada_{n}": numbers(*shape)
        for n, shape in (("w1_a", (40, 3)), ("w1_b", (3, 24)), ("w2_a", (40, 3)), ("w2_b", (3, 24)))
    }
    wanted = (tensors["hada_w1_a"] @ tensors["hada_w1_b"]) * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])
    assert relative_error(of_loha(tensors, 0.5).whole(), 0.5 * wanted) < 1e-5


NETWORKS = {
    "lora": NetworkConfig(rank=4, alpha=2),
    "lokr": NetworkConfig(type="lokr", rank=3, alpha=1, factor=4),
    "lokr, both": NetworkConfig(type="lokr", rank=2, alpha=3, factor=8, decompose_both=True),
    "lokr, whole": NetworkConfig(type="lokr", rank=100000, alpha=0, factor=8),
    "loha": NetworkConfig(type="loha", rank=3, alpha=1),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_small_forms_are_what_the_types_make_of_the_same_tensors(kind):
    network = trained(NETWORKS[kind])
    for module in network.linears[:4]:
        tensors = {name: p.detach() for name, p in network.tensors(module.adapter).items()}
        small = delta_of(network.kind, tensors | {"alpha": torch.tensor(module.adapter.alpha)}, module.weight)
        assert not isinstance(small, Whole) and relative_error(small.whole(), layer_delta(network, module)) < 1e-5


def test_a_type_without_a_small_form_is_made_whole():
    sums = AdapterType(
        "sums", ("x",), frozenset({"s"}), None, lambda layers: InFile([Size(None, None)], {}), lambda t, w: t["s"] + w
    )
    found = delta_of(sums, {"s": numbers(6, 4)}, numbers(6, 4, seed=5))
    assert isinstance(found, Whole) and torch.equal(found.whole(), numbers(6, 4) + numbers(6, 4, seed=5))


@pytest.mark.parametrize("values, used", [([3.0, 0, 0], 1), ([1.0] * 20, 19), ([], 0), ([0.0, 0.0], 0), ([2.0, 1.0, 0.1], 2)])
def test_ranks_that_hold_the_energy(values, used):
    assert ENERGY == 0.95 and ranks_used(torch.tensor(values)) == used


def test_a_dora_is_measured_with_the_weight_that_it_turns():
    network = trained(NetworkConfig(rank=4, alpha=2, dora=True))
    module = network.linears[0]
    tensors = {name: p.detach() for name, p in network.tensors(module.adapter).items()} | {"alpha": torch.tensor(2.0)}
    assert relative_error(delta_of(network.kind, tensors, module.weight).whole(), layer_delta(network, module)) < 1e-6


@pytest.fixture
def files(tmp_path):
    """An adapter, another that is half of it and half something else, and the base model under diffusers' names."""
    base = tiny_transformer().state_dict()
    save_file({key: tensor.contiguous() for key, tensor in base.items()}, tmp_path / "base.safetensors")
    for name, seed, kind in (("a", 1, "lora"), ("b", 2, "lokr")):
        save_adapter(tmp_path / f"{name}.safetensors", adapter_state(trained(NETWORKS[kind], seed)), {})
    return tmp_path


def test_strength_and_likeness_are_those_of_the_whole_matrices(files):
    first, second = trained(NETWORKS["lora"], 1), trained(NETWORKS["lokr"], 2)
    deltas = {n: layer_delta(first, m).detach() for n, m in first.adapted.items()}
    others = {n: layer_delta(second, m).detach() for n, m in second.adapted.items()}
    found = analyse(files / "a.safetensors", files / "b.safetensors", files / "base.safetensors")
    assert [fact.name for fact in found.facts] == list(deltas) and found.relative  # in the model's order
    for fact in found.facts:
        weight = tiny_transformer().get_submodule(fact.name).weight
        assert fact.strength == pytest.approx(float(deltas[fact.name].norm() / weight.norm()), rel=1e-4)
        cosine = torch.cosine_similarity(deltas[fact.name].flatten(), others[fact.name].flatten(), dim=0)
        assert fact.like == pytest.approx(float(cosine), abs=1e-4) and fact.rank == 4 and 1 <= fact.used <= 4
    whole = [torch.cat([d[name].flatten() for name in deltas]) for d in (deltas, others)]
    assert found.like == pytest.approx(float(torch.cosine_similarity(*whole, dim=0)), abs=1e-4)
    alone = analyse(files / "a.safetensors")
    root = float(deltas["blocks.1.mlp.layer2"].square().mean().sqrt())
    assert {f.name: f.strength for f in alone.facts}["blocks.1.mlp.layer2"] == pytest.approx(root, rel=1e-4)
    assert not alone.relative and alone.like is None
    assert analyse(files / "a.safetensors", files / "a.safetensors").like == pytest.approx(1)


def in_fp8(name: str, base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    weight, most = base[f"{name}.weight"], torch.finfo(torch.float8_e4m3fn).max
    scale = weight.abs().amax() / most
    return {f"net.{name}.weight": (weight / scale).to(torch.float8_e4m3fn), f"net.{name}.weight_scale": scale}


def test_the_base_may_have_any_names_and_must_be_whole(files):
    base = tiny_transformer().state_dict()
    linears = {key.removesuffix(".weight") for key in base if ".q_proj" in key or "mlp." in key or "_proj." in key}
    renamed = {f"{diffusers_name(name)}.weight": base[f"{name}.weight"] for name in linears if name.startswith("blocks.")}
    save_file(renamed, files / "d.safetensors")
    found, wanted = (analyse(files / "a.safetensors", base=files / name) for name in ("d.safetensors", "base.safetensors"))
    assert found.facts == wanted.facts
    own, conditioner = layouts.diffusers_transformer(base)
    layouts.write_shards(own, files / "pipe" / "transformer")
    layouts.write_shards(conditioner, files / "pipe" / "text_conditioner", count=1)
    assert analyse(files / "a.safetensors", base=files / "pipe").facts == wanted.facts
    save_file({key: renamed[key] for key in list(renamed)[:5]}, files / "few.safetensors")
    with pytest.raises(FileError, match=r"holds no weight of .* layers\); give the model that it was made for"):
        analyse(files / "a.safetensors", base=files / "few.safetensors")
    quantised = {key: part for name in linears if name.startswith("blocks.") for key, part in in_fp8(name, base).items()}
    save_file(quantised, files / "fp8.safetensors")
    near = analyse(files / "a.safetensors", base=files / "fp8.safetensors")
    assert [fact.strength for fact in near.facts] == pytest.approx([fact.strength for fact in wanted.facts], rel=0.01)
    save_file({key: torch.zeros(3, 3) for key in renamed}, files / "other.safetensors")
    with pytest.raises(SettingError, match="its tensors do not fit"):
        analyse(files / "a.safetensors", base=files / "other.safetensors")


def test_what_cannot_be_measured_is_said(tmp_path):
    save_adapter(tmp_path / "n.safetensors", adapter_state(trained(NetworkConfig(rank=4, train_norm=True))), {})
    found = analyse(tmp_path / "n.safetensors")
    assert len(found.facts) == 20 and found.left_out[0].endswith("layers are left out: norm")
    save_file({"diffusion_model.blocks.0.mlp.layer1.diff": torch.zeros(4, 4)}, tmp_path / "d.safetensors")
    with pytest.raises(SettingError, match=r"nothing in it can be measured \(1 layers are left out: difference of weights\)"):
        analyse(tmp_path / "d.safetensors")
    halves = {f"diffusion_model.blocks.0.mlp.layer1.{name}.weight": torch.zeros(4, 5) for name in ("lora_up", "lora_down")}
    save_file(halves, tmp_path / "h.safetensors")
    with pytest.raises(SettingError, match="its tensors do not fit"):
        analyse(tmp_path / "h.safetensors")


def analysis(relative=False, like=None, other="", **changes) -> Analysis:
    """Forty even layers; changes: of those whose kind or block is named, as kind_mlp or block_3."""
    facts = []
    for block in range(8):
        for kind in ("q", "k", "v", "o", "mlp"):
            fact = dict(strength=0.01, rank=8, used=6) | changes.get(f"kind_{kind}", {}) | changes.get(f"block_{block}", {})
            facts.append(Fact(f"blocks.{block}.{kind}", kind, block, **(fact | changes.get("all", {}))))
    return Analysis("x.safetensors", tuple(facts), relative, other, like)


@pytest.mark.parametrize(
    "found, text",
    [
        (analysis(), "Nothing stands out: all blocks and kinds of layers are changed alike."),
        (analysis(block_3=dict(strength=0.05)), "block 3 is changed most, 5.0 times as much as the middle one."),
        (analysis(kind_mlp=dict(strength=0.03)), "mlp is changed most, 3.0 times as much as the middle one."),
        (analysis(all=dict(used=2)), "95% of the effect lies in 2 of 8 ranks."),
        (analysis(all=dict(strength=0.0)), "No layer changes anything: the adapter was never trained."),
        (analysis(block_2=dict(strength=0.0)), "5 of 40 layers change nothing."),
        (analysis(block_2=dict(strength=math.nan)), "5 layers hold NaN or infinity, first blocks.2.q: the adapter is broken."),
        (
            analysis(True, block_1=dict(strength=0.5)),
            "5 layers change their weights by more than a third, most blocks.1.q by 50%.",
        ),
        (analysis(like=0.97, other="o"), "changed alike; it is nearly the same as o (cosine 0.97)."),
        (analysis(like=0.01, other="o"), "changed alike; it is unrelated to o (cosine 0.01)."),
        (analysis(like=-0.8, other="o"), "changed alike; it is the opposite of o (cosine -0.80)."),
        (analysis(other="o"), "changed alike; no layer is also in o."),
    ],
)
def test_one_sentence_says_what_stands_out(found, text):
    said = sentence(found)
    assert said.endswith(text) and said.count(".") <= 6 and "\n" not in said


def test_the_heat_map_has_a_cell_for_each_layer_and_is_grey_where_none_is():
    found = analysis(block_3=dict(strength=0.05), block_5=dict(strength=math.nan))
    picture = heat_map(found)
    top = MARGIN + 2 * LINE + HEAD

    def at(block: int, row: int) -> tuple[int, ...]:
        return picture.getpixel((MARGIN + NAMES + block * CELL + CELL // 2, top + row * CELL + CELL // 2))

    assert at(3, 0) == (253, 231, 37) and at(5, 2) == ABSENT and at(0, 0) == at(7, 4) != at(3, 4)
    two = heat_map(analysis(like=0.5, other="o", all=dict(like=1.0)))
    assert two.size[1] > picture.size[1] and two.getpixel((MARGIN + NAMES + 5, two.size[1] - MARGIN - LINE - MARGIN - 30)) == (
        33,
        102,
        172,
    )


def test_the_command_prints_a_table_and_writes_the_picture(files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    assert main(["analyse", "a.safetensors", "--with", "b.safetensors", "--base", "base.safetensors"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["kind", "of", "layer", "layers", "of", "its", "weight", "ranks", "used", "alike"]
    row = next(line.split() for line in lines if line.startswith("mlp.layer1"))
    assert row[1] == "2" and row[2].endswith("%") and row[4:6] == ["of", "4"]
    assert sum(line.startswith("block ") for line in lines) == 2 and "cosine" in lines[-2]
    assert lines[-1] == "picture: a-analysis.png" and Image.open("a-analysis.png").format == "PNG"
    assert main(["analyse", "a.safetensors"]) == 0 and Image.open("a-analysis-2.png")
    for output, status in (("a.safetensors", 2), ("a-analysis.png", 2)):
        assert main(["analyse", "a.safetensors", "--output", output]) == status
    assert "name it so" in (told := capsys.readouterr().err) and "is there already" in told
    assert len(table(analyse("a.safetensors"))) == 1 + 10 + 2


def test_every_type_has_its_analysis(tmp_path):
    for kind in ADAPTER_TYPES:
        path = tmp_path / f"{kind.name}.safetensors"
        save_adapter(path, adapter_state(trained(NetworkConfig(type=kind.name, rank=4, alpha=4))), {})
        found = analyse(path)
        assert len(found.facts) == 20 and all(fact.strength > 0 and fact.used for fact in found.facts)

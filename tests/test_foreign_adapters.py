"""Adapters of other trainers, continued with nothing said but their file: before the first step the effect is the file's."""

import json
import logging
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anima_core import train
from anima_core.adapters.formats import adapter_state, convert_file, load_into, notes_of, read_adapter, save_adapter
from anima_core.adapters.from_file import network_to_continue
from anima_core.adapters.inspection import summarise
from anima_core.adapters.network import AdapterNetwork, layer_delta
from anima_core.cli import main
from anima_core.compat.arguments import Parser, add_arguments, config_of, parse, request_from
from anima_core.errors import FileError, SettingError
from anima_core.settings import NetworkConfig

from .conftest import relative_error
from .test_adapters import model as tiny_transformer
from .test_adapters import trained
from .tiny import same_tensors, write

DIFFUSERS = {  # OneTrainer's and diffusers' names of what Anima's checkpoints call …
    "self_attn.q_proj": "attn1.to_q",
    "self_attn.k_proj": "attn1.to_k",
    "self_attn.v_proj": "attn1.to_v",
    "self_attn.output_proj": "attn1.to_out.0",
    "cross_attn.q_proj": "attn2.to_q",
    "cross_attn.k_proj": "attn2.to_k",
    "cross_attn.v_proj": "attn2.to_v",
    "cross_attn.output_proj": "attn2.to_out.0",
    "mlp.layer1": "ff.net.0.proj",
    "mlp.layer2": "ff.net.2",
    "adaln_modulation_self_attn.1": "norm1.linear_1",
    "adaln_modulation_self_attn.2": "norm1.linear_2",
    "adaln_modulation_cross_attn.1": "norm2.linear_1",
    "adaln_modulation_cross_attn.2": "norm2.linear_2",
    "adaln_modulation_mlp.1": "norm3.linear_1",
    "adaln_modulation_mlp.2": "norm3.linear_2",
    "x_embedder.proj.1": "patch_embed.proj",
    "t_embedder.1.linear_1": "time_embed.t_embedder.linear_1",
    "t_embedder.1.linear_2": "time_embed.t_embedder.linear_2",
    "final_layer.adaln_modulation.1": "norm_out.linear_1",
    "final_layer.adaln_modulation.2": "norm_out.linear_2",
    "final_layer.linear": "proj_out",
}


def diffusers_name(layer: str) -> str:
    """The name of a layer in diffusers' model."""
    if layer.startswith("llm_adapter."):
        return layer.replace("llm_adapter.", "text_conditioner.")
    found = re.match(r"blocks\.(\d+)\.(.+)", layer)
    return f"transformer_blocks.{found[1]}.{DIFFUSERS[found[2]]}" if found else DIFFUSERS[layer]


def underscored(layer: str) -> str:
    return layer.replace(".", "_")


PEFT = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight", "alpha": ""}  # which keeps no alpha
LAYOUTS = {  # what stands before a layer, the layer in their model, the names of its tensors; what inspect says
    "sd-scripts": (("lora_unet_", underscored, {}), "Anima's own after lora_unet_ (sd-scripts)"),
    "bare": (("", str, {}), "Anima's own alone"),
    "checkpoint's": (("net.", str, {}), "Anima's own after net. (OneTrainer, Anima's checkpoints)"),
    "diffusion-pipe": (("diffusion_model.", str, PEFT), "Anima's own after diffusion_model. (ComfyUI, diffusion-pipe"),
    "PEFT": (("base_model.model.", str, PEFT), "Anima's own after base_model.model. (PEFT)"),
    "ComfyUI's checkpoint": (("model.diffusion_model.", str, {}), "Anima's own after model.diffusion_model."),
    "OneTrainer": (("transformer.", diffusers_name, {}), "diffusers' after transformer. (diffusers, OneTrainer, SimpleTuner)"),
    "diffusers": (("transformer.", diffusers_name, PEFT), "diffusers' after transformer."),
    "OneTrainer, underscores": (
        ("lora_transformer_", lambda layer: underscored(diffusers_name(layer)), {}),
        "diffusers' after lora_transformer_ (OneTrainer)",
    ),
    "SimpleTuner": (
        ("transformer.core.", diffusers_name, PEFT),
        "diffusers' after transformer.core.",
    ),
    "SimpleTuner, LyCORIS": (
        ("lycoris_core_", lambda layer: underscored(diffusers_name(layer)), {}),
        "diffusers' after lycoris_core_ (LyCORIS in SimpleTuner)",
    ),
    "ai-toolkit's wrapper": (("transformer.transformer.", diffusers_name, PEFT), "diffusers' after transformer.transformer."),
}


def foreign_state(network: AdapterNetwork, prefix: str, name_of, tensors: dict[str, str]) -> dict[str, Tensor]:
    """A network's tensors under another trainer's keys."""
    state = adapter_state(network)
    layers = {layer: f"{prefix}{name_of(layer)}" for layer in network.adapted}
    keys = {f"diffusion_model.{layer}.{name}": (layer, name) for layer in layers for name in names_in(state, layer)}
    found = {}
    for key, (layer, name) in keys.items():
        if theirs := tensors.get(name, name):
            found[f"{layers[layer]}.{theirs}"] = state[key]
    return found


def names_in(state: dict[str, Tensor], layer: str) -> list[str]:
    before = f"diffusion_model.{layer}."
    return [key.removeprefix(before) for key in state if key.startswith(before)]


def flags(model, path, *more: str) -> list[str]:
    paths = ["--anima_transformer", model.transformer, "--vae", model.vae, "--qwen", model.qwen, "--train_data_dir", "x"]
    return [*paths, "--t5_tokenizer_dir", model.t5_tokenizer_dir, "--network_weights", str(path), *more]


def notes_on(given: list[str]) -> str:
    parser = Parser(prog="train", allow_abbrev=False)
    add_arguments(parser)
    return "\n".join(request_from(parse(parser, given)).notes)


def continued(model, path, *more: str) -> AdapterNetwork:
    """The network before its first step, of a command line that names the file."""
    network = AdapterNetwork.inject(tiny_transformer(), config_of(flags(model, path, *more)).network, 5)
    load_into(network, path)
    return network


def deltas(network: AdapterNetwork) -> dict[str, Tensor]:
    return {name: layer_delta(network, module).detach() for name, module in network.adapted.items()}


def assert_same_effect(network: AdapterNetwork, wanted: dict[str, Tensor]) -> None:
    found = deltas(network)
    assert found.keys() == wanted.keys() and len(found) > 1
    for name, delta in wanted.items():
        assert relative_error(found[name], delta) < 1e-5, name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_trainers_layers_are_found_continued_and_converted(layout, model, tmp_path, capsys):
    """All kinds of layers; their tensors are those of the network that the file was made from, also after `convert`."""
    (prefix, name_of, tensors), said = LAYOUTS[layout]
    network = trained(NetworkConfig(rank=4, alpha=4 if tensors else 2, targets="all"))
    path, converted = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(foreign_state(network, prefix, name_of, tensors), path)
    assert len(read_adapter(path)) == len(network.adapted) == 59
    assert summarise(path)["names"].startswith(said)
    assert_same_effect(continued(model, path), deltas(network))
    assert main(["convert", str(path), "--to", "diffusion_model", "--output", str(converted)]) == 0
    assert same_tensors(load_file(converted), adapter_state(network))


def test_what_is_taken_from_a_file_is_said_and_what_is_typed_wins(model, tmp_path):
    path = tmp_path / "somebody.safetensors"
    save_adapter(path, adapter_state(trained(NetworkConfig(type="lokr", rank=2, alpha=1, factor=4, targets="attn"))), {})
    read = config_of(flags(model, path)).network
    assert (read.type, read.rank, read.alpha, read.factor, len(read.include)) == ("lokr", 2, 1.0, 4, 8)
    said = notes_on(flags(model, path))
    assert (
        "network_weights: taken from somebody.safetensors: type lokr, rank 2, alpha 1, factor 4, include of 8 patterns" in said
    )
    assert str(tmp_path) not in said
    typed = config_of(flags(model, path, "--network_dim", "8", "--network_module", "networks.lora_anima")).network
    assert (typed.type, typed.rank, typed.alpha) == ("lora", 8, 1.0)
    typed = config_of(flags(model, path, "--network_alpha", "8", "--network_args", "factor=8", "targets=mlp")).network
    assert (typed.rank, typed.alpha, typed.factor, typed.targets, typed.include) == (2, 8.0, 8, "mlp", ())
    both = config_of(flags(model, path, "--network_dim", "8", "--dim_from_weights")).network
    assert both.rank == 2


def test_a_run_goes_on_from_another_trainers_file_and_writes_our_own_form(model, tmp_path):
    """Typed is the file alone; what is saved after a step too small to see is the file's effect, as lora_down and lora_up."""
    network = trained(NetworkConfig(rank=4, alpha=0, targets="attn", ranks=("*cross_attn*=2",)))
    save_file(foreign_state(network, "transformer.", diffusers_name, PEFT), tmp_path / "theirs.safetensors")
    write(tmp_path / "x", "a.png")
    given = flags(model, tmp_path / "theirs.safetensors", "--output_dir", str(tmp_path), "--learning_rate", "1e-7")
    given += ["--train_data_dir", str(tmp_path / "x"), "--resolution", "64", "--max_train_steps", "1"]
    path = train(
        config_of([*given, "--min_bucket_reso", "32", "--bucket_reso_steps", "16", "--save_precision", "fp32"])
    ).adapter_path
    saved, wanted = load_file(path), adapter_state(network)
    assert saved.keys() == wanted.keys() and not same_tensors(saved, wanted)
    assert all(torch.allclose(saved[key], wanted[key], atol=1e-6) for key in saved)


OWN_SIZES = {
    "ranks and alphas of layers": NetworkConfig(
        rank=4, alpha=2, ranks=("*mlp*=8", "blocks.0.self_attn.q_proj=2"), alphas=("*mlp*=3", "blocks.1.cross_attn.k_proj=16")
    ),
    "alphas alone": NetworkConfig(rank=4, alpha=2, alphas=("*layer2=0",)),
    "one block": NetworkConfig(rank=4, alpha=1, targets="", include=("re:^blocks.1.",)),
    "lokr": NetworkConfig(type="lokr", rank=3, alpha=1, factor=4, alphas=("*mlp*=6",)),
    "dora of loha": NetworkConfig(type="loha", rank=3, alpha=1, dora=True, alphas=("*mlp*=6",)),
}


@pytest.mark.parametrize("case", OWN_SIZES)
def test_each_layer_keeps_its_own_rank_and_alpha(case, model, tmp_path):
    network = trained(OWN_SIZES[case])
    save_adapter(tmp_path / "a.safetensors", adapter_state(network), {})
    assert same_tensors(adapter_state(continued(model, tmp_path / "a.safetensors")), adapter_state(network))


@pytest.mark.parametrize("case", OWN_SIZES)
def test_a_form_is_filled_in_as_the_file_has_it(case, tmp_path):
    """Whatever stands in its fields; what no file knows, as a dropout, stays."""
    network = trained(OWN_SIZES[case])
    save_adapter(tmp_path / "a.safetensors", adapter_state(network), {})
    form = NetworkConfig(
        type="lokr", rank=7, alpha=3, factor=2, targets="all", exclude=("*mlp*",), dora=True, full_matrix=True, dropout=0.1
    )
    found, said = network_to_continue(form, tmp_path / "a.safetensors")
    assert found.dropout == 0.1 and found.weights == str(tmp_path / "a.safetensors") and f"rank {OWN_SIZES[case].rank}" in said
    again = AdapterNetwork.inject(tiny_transformer(), found, 5)
    load_into(again, found.weights)
    assert same_tensors(adapter_state(again), adapter_state(network))
    assert network_to_continue(found, found.weights)[1] == ""


def fused(state: dict[str, Tensor], names: dict[str, str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Layers that share one A, as a trainer of fused layers has them: in one, and apart."""
    g = torch.Generator().manual_seed(3)
    whole, apart = {}, {}
    for block in (0, 1):
        for leaf, parts in (("self_attn.qkv_proj", "qkv"), ("cross_attn.kv_proj", "kv")):
            inputs = state[f"diffusion_model.blocks.{block}.{leaf.split('.')[0]}.k_proj.lora_down.weight"].shape[1]
            down, ups = torch.randn(4, inputs, generator=g), [torch.randn(64, 4, generator=g) for _ in parts]
            stem = f"blocks.{block}.{leaf}"
            whole[f"{names.get(leaf, stem).format(block)}.lora_down.weight"] = down
            whole[f"{names.get(leaf, stem).format(block)}.lora_up.weight"] = torch.cat(ups)
            whole[f"{names.get(leaf, stem).format(block)}.alpha"] = torch.tensor(2.0)
            for letter, up in zip(parts, ups):
                apart[f"blocks.{block}.{leaf.split('.')[0]}.{letter}_proj"] = 0.5 * up @ down
    return whole, apart


@pytest.mark.parametrize(
    "names",
    [
        {},
        {
            "self_attn.qkv_proj": "lora_unet_blocks_{}_self_attn_qkv_proj",
            "cross_attn.kv_proj": "lora_unet_blocks_{}_cross_attn_kv_proj",
        },
        {"self_attn.qkv_proj": "transformer.transformer_blocks.{}.attn1.to_qkv", "cross_attn.kv_proj": ""},
    ],
    ids=["bare", "anima_lora", "diffusers"],
)
def test_fused_layers_share_their_a_and_have_their_own_rows_of_b(names, model, tmp_path):
    names = names | (
        {"cross_attn.kv_proj": "transformer.transformer_blocks.{}.attn2.to_kv"} if names.get("cross_attn.kv_proj") == "" else {}
    )
    whole, apart = fused(adapter_state(trained(NetworkConfig(rank=4))), names)
    path = tmp_path / "a.safetensors"
    save_file(whole, path)
    assert "4 layers are several of Anima's in one" in summarise(path)["names"]
    assert_same_effect(continued(model, path), apart)
    assert notes_of(path) == ["`network.weights`: 4 layers are q, k and v in one, and are trained apart"]
    convert_file(path, tmp_path / "b.safetensors", "lora_unet")
    assert len(load_file(tmp_path / "b.safetensors")) == 3 * 10
    assert_same_effect(continued(model, tmp_path / "b.safetensors"), apart)


def test_fused_layers_that_no_cut_divides_are_refused(tmp_path):
    g = torch.Generator().manual_seed(3)
    state = {"lokr_w1": torch.randn(8, 4, generator=g), "lokr_w2": torch.randn(24, 16, generator=g)}
    save_file({f"blocks.0.self_attn.qkv_proj.{name}": tensor for name, tensor in state.items()}, tmp_path / "a.safetensors")
    with pytest.raises(
        SettingError, match="a lokr of 3 layers in one, whose lokr_w1 cannot be cut; save it with q, k and v apart"
    ):
        read_adapter(tmp_path / "a.safetensors")
    state["lokr_w1"] = torch.randn(12, 4, generator=g)
    save_file({f"blocks.0.self_attn.qkv_proj.{name}": tensor for name, tensor in state.items()}, tmp_path / "b.safetensors")
    rows = torch.kron(state["lokr_w1"], state["lokr_w2"]).chunk(3)
    for letter, wanted in zip("qkv", rows):
        found = read_adapter(tmp_path / "b.safetensors")[f"blocks.0.self_attn.{letter}_proj"]
        assert torch.equal(torch.kron(found["lokr_w1"], found["lokr_w2"]), wanted)


# Other people's code makes the file


LYCORIS = {
    "lora": dict(algo="lora", linear_dim=4, linear_alpha=2),
    "lokr": dict(algo="lokr", linear_dim=3, linear_alpha=1, factor=4),
    "lokr, balanced": dict(algo="lokr", linear_dim=2, linear_alpha=4, factor=-1),
    "lokr, both of a rank": dict(algo="lokr", linear_dim=1, linear_alpha=3, factor=8, decompose_both=True),
    "lokr, whole": dict(algo="lokr", linear_dim=64, linear_alpha=2, factor=8, full_matrix=True),
    "lokr, some factors whole": dict(algo="lokr", linear_dim=12, linear_alpha=3, factor=4),
    "loha": dict(algo="loha", linear_dim=3, linear_alpha=2),
    "dora": dict(algo="lora", linear_dim=4, linear_alpha=2, dora_wd=True, wd_on_output=False),
    "dora of lokr": dict(algo="lokr", linear_dim=2, linear_alpha=1, factor=4, dora_wd=True, wd_on_output=False),
}


@pytest.mark.parametrize("case", LYCORIS)
def test_what_lycoris_made_is_continued(case, model, tmp_path):
    lycoris = pytest.importorskip("lycoris")
    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    lycoris.LycorisNetwork.apply_preset({"enable_conv": False, "target_module": ["Attention", "MLP"], "target_name": []})
    base = tiny_transformer()
    theirs = lycoris.create_lycoris(base, 1.0, **LYCORIS[case])
    theirs.apply_to()
    filled(theirs)
    save_file({key: tensor.contiguous() for key, tensor in theirs.state_dict().items()}, tmp_path / "a.safetensors")
    names = {underscored(name): name for name, module in tiny_transformer().named_modules() if isinstance(module, nn.Linear)}
    wanted = {names[layer.lora_name.removeprefix("lycoris_")]: of_lycoris(layer) for layer in theirs.loras}
    assert_same_effect(continued(model, tmp_path / "a.safetensors"), wanted)


@torch.no_grad()
def of_lycoris(layer) -> Tensor:
    """What a layer of LyCORIS adds to its weight when the model is called; its own `get_diff_weight` scales a LoKr twice."""
    weight = layer.org_module[0].weight
    inputs = torch.eye(weight.shape[1])
    return (layer(inputs) - inputs @ weight.T).T


def filled(network: nn.Module) -> None:
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=g))


PEFT_CASES = {
    "scale 1": dict(r=4, lora_alpha=4),
    "an alpha": dict(r=4, lora_alpha=8),
    "of some layers": dict(
        r=4, lora_alpha=2, rank_pattern={"mlp.layer1": 2}, alpha_pattern={"blocks.0.mlp.layer1": 3, "cross_attn.q_proj": 16}
    ),
    "rank-stabilised": dict(r=4, lora_alpha=4, use_rslora=True),
}


@pytest.mark.parametrize("case", PEFT_CASES)
def test_what_peft_made_is_continued(case, model, tmp_path):
    """With the alphas of its configuration, which lies beside the file; the file alone has a scale of 1."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj", "mlp.layer1"], exclude_modules=".*llm_adapter.*", **PEFT_CASES[case])
    theirs = peft.get_peft_model(tiny_transformer(), config)
    filled(theirs)
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    layers = {
        name.removeprefix("base_model.model."): module
        for name, module in theirs.named_modules()
        if isinstance(module, peft.tuners.lora.LoraLayer)
    }
    wanted = {name: module.get_delta_weight("default").detach() for name, module in layers.items()}
    assert_same_effect(continued(model, path), wanted)
    assert f"its alpha is {PEFT_CASES[case]['lora_alpha']} by its configuration" in notes_of(path)[0]
    convert_file(path, tmp_path / "c.safetensors", "lora_unet")
    assert_same_effect(continued(model, tmp_path / "c.safetensors"), wanted)
    alone = tmp_path / "renamed.safetensors"
    path.rename(alone)
    plain = {name: layer.lora_B["default"].weight @ layer.lora_A["default"].weight for name, layer in layers.items()}
    assert_same_effect(continued(model, alone), {name: delta.detach() for name, delta in plain.items()})


def test_what_diffusers_keeps_in_the_header_is_read(model, tmp_path):
    network = trained(NetworkConfig(rank=4, alpha=4, targets="attn"))
    state = foreign_state(network, "transformer.", diffusers_name, PEFT)
    config = {
        "transformer.r": 4,
        "transformer.lora_alpha": 2,
        "transformer.alpha_pattern": {"transformer_blocks.0.attn1.to_q": 8},
    }
    save_file(state, tmp_path / "a.safetensors", metadata={"lora_adapter_metadata": json.dumps(config)})
    wanted = {name: delta * (2 if name == "blocks.0.self_attn.q_proj" else 0.5) for name, delta in deltas(network).items()}
    assert_same_effect(continued(model, tmp_path / "a.safetensors"), wanted)
    for damaged in ("{", "[]", '{"lora_alpha": "x"}', '{"lora_alpha": NaN}', '{"lora_alpha": 1, "alpha_pattern": {"a": []}}'):
        save_file(state, tmp_path / "b.safetensors", metadata={"lora_adapter_metadata": damaged})
        with pytest.raises(FileError, match="lora_adapter_metadata"):
            read_adapter(tmp_path / "b.safetensors")

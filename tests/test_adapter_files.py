"""Adapter files of other trainers: shown for what they are, renamed, and started from as far as they go."""

import dataclasses

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from anima_core.adapters.formats import adapter_state, convert_file, load_into, notes_of, read_adapter, save_adapter
from anima_core.adapters.from_file import default_layers, glob_of, network_of
from anima_core.adapters.inspection import summarise
from anima_core.adapters.keys import convert_keys, read_key
from anima_core.adapters.network import AdapterNetwork
from anima_core.adapters.targets import select_targets
from anima_core.cli import main
from anima_core.compat.arguments import config_of
from anima_core.errors import FileError, SettingError
from anima_core.settings import NetworkConfig
from anima_core.training.preflight import preflight

from .test_adapters import model as tiny_transformer
from .test_adapters import trained
from .tiny import same_tensors, train_config, write

LAYER = "lora_unet_blocks_0_self_attn_q_proj"
TEXT = "lora_te_layers_0_self_attn_q_proj"


def tensors(names: str, layer: str = LAYER, rank: int = 4) -> dict[str, Tensor]:
    """A layer's tensors, by their names in a file."""
    return {f"{layer}.{name}": torch.tensor(2.0) if name == "alpha" else torch.zeros(rank, rank) for name in names.split()}


@pytest.mark.parametrize(
    "state, types",
    [
        (tensors("lora_down.weight lora_up.weight alpha"), {"lora": "1 layers, rank 4, alpha 2"}),
        (tensors("lora_A.weight lora_B.weight", "base_model.model.blocks.0.mlp.layer1"), {"lora": "1 layers, rank 4"}),
        (
            tensors("lora_A.default.weight lora_B.default.weight", "diffusion_model.blocks.1.mlp.layer2"),
            {"lora": "1 layers, rank 4"},
        ),
        (tensors("hada_w1_a hada_w1_b hada_w2_a hada_w2_b alpha"), {"loha": "1 layers, rank 4, alpha 2"}),
        (tensors("lora_down.weight lora_up.weight dora_scale"), {"dora (lora)": "1 layers, rank 4"}),
        (tensors("hada_w1_a hada_w1_b hada_w2_a hada_w2_b dora_scale"), {"dora (loha)": "1 layers, rank 4"}),
        (tensors("lokr_w1 lokr_w2 alpha"), {"lokr": "1 layers, whole factors"}),
        (tensors("lokr_w1 lokr_w2_a lokr_w2_b alpha"), {"lokr": "1 layers, rank 4, alpha 2"}),
        (tensors("oft_blocks rescale alpha"), {"oft": "1 layers"}),
        (tensors("weight on_input"), {"ia3": "1 layers"}),
        (tensors("diff diff_b", "diffusion_model.llm_adapter.out_proj"), {"difference of weights": "1 layers"}),
        (tensors("set_weight", "diffusion_model.x_embedder.proj.1"), {"replaced weights": "1 layers"}),
        (tensors("lora_down.weight lora_up.weight", TEXT), {"lora of the text encoder": "1 layers, rank 4"}),
        (tensors("lora_ups"), {"hydra (several lora_ups and a router)": "1 layers"}),
        (
            tensors("lora_down.weight lora_up.weight", "lora_unet_down_blocks_0_attentions_1"),
            {"lora of no layer of Anima": "1 layers, rank 4"},
        ),
    ],
)
def test_inspect_names_the_type(tmp_path, state, types):
    save_file(state, tmp_path / "a.safetensors")
    assert summarise(tmp_path / "a.safetensors")["types"] == types


def test_inspect_counts_layers_by_type_and_place_and_spans_mixed_ranks(tmp_path):
    state = tensors("lora_down.weight lora_up.weight alpha") | tensors("w_norm", "diffusion_model.blocks.0.self_attn.q_norm")
    state |= tensors("lora_down.weight lora_up.weight alpha", "lora_unet_blocks_1_mlp_layer1", rank=32)
    state |= tensors("lora_down.weight lora_up.weight alpha", TEXT, rank=8)
    save_file(state, tmp_path / "a.safetensors")
    shown = summarise(tmp_path / "a.safetensors")
    assert shown["types"] == {
        "lora": "2 layers, rank 4 to 32, alpha 2",
        "norm": "1 layers",
        "lora of the text encoder": "1 layers, rank 8, alpha 2",
    }
    assert shown["places"] == {"attn": "1 layers", "mlp": "1 layers", "norms": "1 layers", "text encoder": "1 layers"}


def test_inspect_says_which_keys_comfyui_passes_over(tmp_path):
    save_file(tensors("lora_A.weight lora_B.weight", "transformer.blocks.0.mlp.layer1"), tmp_path / "a.safetensors")
    assert summarise(tmp_path / "a.safetensors")["not read by ComfyUI"].startswith("2 keys, such as transformer.blocks.0")


def test_a_model_is_no_adapter(tmp_path, model):
    with pytest.raises(FileError, match="not an adapter; it is an Anima transformer"):
        summarise(model.transformer)


def test_long_metadata_is_cut_when_shown(tmp_path, capsys):
    state = tensors("lora_down.weight lora_up.weight")
    save_file(state, tmp_path / "a.safetensors", metadata={"ss_tag_frequency": "x" * 148_074, "ss_seed": "7"})
    assert main(["inspect", str(tmp_path / "a.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert "… (148,074 characters)" in shown and "ss_seed: 7" in shown and len(shown) < 3000


@pytest.mark.parametrize(
    "prefix", ["base_model.model.", "net.", "transformer.", "model.diffusion_model.", "diffusion_model.", ""]
)
def test_a_dotted_layer_is_found_behind_every_prefix(prefix):
    assert read_key(f"{prefix}blocks.3.mlp.layer1.lora_A.weight") == ("transformer", "blocks.3.mlp.layer1", "lora_down.weight")


@pytest.mark.parametrize("prefix", ["base_model.model.", "net.", "transformer.", ""])
def test_comfyui_passes_other_prefixes_over_and_reads_what_convert_makes_of_them(prefix, comfyui_oracle):
    network = trained(NetworkConfig(rank=4, alpha=4))
    peft = {"diffusion_model.": prefix, "lora_down": "lora_A", "lora_up": "lora_B"}
    state = {k: v for k, v in adapter_state(network).items() if not k.endswith("alpha")}
    for ours, theirs in peft.items():
        state = {key.replace(ours, theirs): tensor for key, tensor in state.items()}
    base = {f"base.{k}": v for k, v in tiny_transformer().state_dict().items()}
    used = []
    for keys in (state, convert_keys(state, "lora_unet")):
        answer = comfyui_oracle("oracle_adapters.py", base | {f"lora.{k}": v for k, v in keys.items()}, strength=1.0)
        used.append(len(keys) - int(answer["unused"]))
    assert used == [0, 60]  # an alpha for each layer is added


def with_text_encoder(path):
    state = adapter_state(trained(NetworkConfig(rank=4, alpha=4))) | tensors("lora_down.weight lora_up.weight alpha", TEXT)
    save_adapter(path, state, {"ss_x": "y"})
    return state


def test_convert_keeps_and_counts_the_text_encoders_keys(tmp_path, capsys):
    state = with_text_encoder(tmp_path / "a.safetensors")
    assert (
        main(["convert", str(tmp_path / "a.safetensors"), "--to", "lora_unet", "--output", str(tmp_path / "k.safetensors")])
        == 0
    )
    assert "60 tensors renamed to lora_unet, 3 of the text encoder kept as they are" in capsys.readouterr().out
    assert {key for key in load_file(tmp_path / "k.safetensors") if key.startswith("lora_te")} == {
        k for k in state if TEXT in k
    }
    assert len(load_file(tmp_path / "k.safetensors")) == len(state)


def test_convert_refuses_layers_of_another_model(tmp_path):
    state = tensors("lora_up.weight lora_down.weight", "lora_unet_down_blocks_0_attentions_1")
    save_file(state | tensors("lora_up.weight lora_down.weight"), tmp_path / "a.safetensors")
    with pytest.raises(SettingError, match="2 keys, first lora_unet_down_blocks_0.* not a layer of Anima"):
        convert_file(tmp_path / "a.safetensors", tmp_path / "b.safetensors", "lora_unet")
    assert not (tmp_path / "b.safetensors").exists()


def test_convert_refuses_a_model(tmp_path, model):
    with pytest.raises(FileError, match="not an adapter; it is an Anima transformer"):
        convert_file(model.transformer, tmp_path / "b.safetensors", "lora_unet")
    assert not (tmp_path / "b.safetensors").exists()


def test_a_start_that_lacks_a_tensor_is_damaged_and_no_setting_helps(tmp_path):
    state = adapter_state(trained(NetworkConfig(rank=4, alpha=4)))
    lost = next(key for key in state if key.endswith("q_proj.lora_up.weight"))
    save_file({key: tensor for key, tensor in state.items() if key != lost}, tmp_path / "a.safetensors")
    network = AdapterNetwork.inject(tiny_transformer(), NetworkConfig(rank=4, alpha=4), 0)
    with pytest.raises(FileError, match="q_proj lacks lora_up.weight; download it again, or use another file$"):
        load_into(network, tmp_path / "a.safetensors")


def test_training_starts_from_the_transformers_part_and_says_so(tmp_path, model):
    with_text_encoder(tmp_path / "a.safetensors")
    network = AdapterNetwork.inject(tiny_transformer(), NetworkConfig(rank=4, alpha=4), 0)
    load_into(network, tmp_path / "a.safetensors")
    assert same_tensors(adapter_state(network), adapter_state(trained(NetworkConfig(rank=4, alpha=4))))
    said = "`network.weights`: 1 layers of the text encoder are left out: only the transformer is trained"
    assert notes_of(tmp_path / "a.safetensors") == [said]
    write(tmp_path / "pictures", "a.png")
    start = NetworkConfig(rank=4, alpha=4, weights=str(tmp_path / "a.safetensors"))
    config = train_config(model, tmp_path / "pictures", tmp_path / "out", network=start)
    assert said in preflight(config).warnings
    with pytest.raises(SettingError, match="q_proj.lora_down has shape|has shape .* set the same"):  # before a model loads
        preflight(dataclasses.replace(config, network=dataclasses.replace(start, rank=8)))


@pytest.mark.parametrize(
    "names, text",
    [
        (
            "hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2 alpha",
            "is loha with core tensors, which is not trained here; start from a file of loha, lokr, lora",
        ),
        ("hada_w1_a hada_w1_b hada_w2_a hada_w2_b dora_scale", r"is a dora \(loha\), this network a lora; train a loha"),
        ("lora_down.weight lora_up.weight dora_scale", "is a DoRA, this network is none; set network.dora as for the file"),
        ("diff", "is difference of weights, which is not trained here"),
        ("lokr_w1 lokr_w2", "is a lokr, this network a lora; train a lokr"),
    ],
)
def test_a_type_that_cannot_be_started_from_is_named(tmp_path, names, text):
    save_file(tensors(names), tmp_path / "a.safetensors")
    with pytest.raises(SettingError, match=text):
        load_into(AdapterNetwork.inject(tiny_transformer(), NetworkConfig(rank=4), 0), tmp_path / "a.safetensors")


def test_a_file_with_norms_names_the_setting_that_trains_them(tmp_path):
    save_adapter(tmp_path / "a.safetensors", adapter_state(trained(NetworkConfig(rank=4, train_norm=True))), {})
    with pytest.raises(SettingError, match="of the file is not trained; set network.train_norm as for the file"):
        load_into(AdapterNetwork.inject(tiny_transformer(), NetworkConfig(rank=4), 0), tmp_path / "a.safetensors")


MIXED = {
    "one rank": NetworkConfig(rank=4, alpha=2),
    "a rank for a leaf": NetworkConfig(rank=4, alpha=2, ranks=("*mlp.layer1=8",)),
    "ranks within a leaf, some none": NetworkConfig(rank=4, alpha=2, ranks=("blocks.0.mlp.layer1=8", "re:1.self_attn.q=0")),
    "alpha is the rank": NetworkConfig(rank=4, alpha=0, ranks=("*cross_attn*=2",)),
    "adaln, attention only": NetworkConfig(rank=2, alpha=2, targets="attn+adaln"),
    "llm adapter and norms": NetworkConfig(rank=4, alpha=4, targets="+llm_adapter", ranks=("llm_adapter*=2",), train_norm=True),
    "lokr": NetworkConfig(type="lokr", rank=2, alpha=1, factor=4),
    "lokr, balanced, both of a rank": NetworkConfig(
        type="lokr", rank=2, alpha=3, factor=-1, decompose_both=True, targets="+adaln"
    ),
    "lokr, some factors whole by rank": NetworkConfig(type="lokr", rank=12, alpha=4, factor=4),
    "lokr, whole": NetworkConfig(type="lokr", rank=100000, alpha=0, factor=8),
    "loha": NetworkConfig(type="loha", rank=3, alpha=1, ranks=("*mlp.layer1=5",)),
    "dora": NetworkConfig(rank=4, alpha=2, dora=True),
    "dora of loha": NetworkConfig(type="loha", rank=2, alpha=2, targets="attn", dora=True),
}


@pytest.mark.parametrize("layout", MIXED)
def test_dim_from_weights_makes_the_files_network(layout, tmp_path):
    """Every layer with its own rank, and no layer more or less: the file loads, and comes out the same."""
    config, path = MIXED[layout], tmp_path / "a.safetensors"
    save_adapter(path, adapter_state(trained(config)), {})
    again = NetworkConfig(**network_of(path))
    network = AdapterNetwork.inject(tiny_transformer(), again, 3)
    load_into(network, path)
    assert same_tensors(adapter_state(network), load_file(path))


def test_dim_from_weights_of_a_plain_file_sets_rank_and_alpha_only(tmp_path):
    save_adapter(tmp_path / "a.safetensors", adapter_state(trained(NetworkConfig(rank=4, alpha=2))), {})
    assert network_of(tmp_path / "a.safetensors") == {"type": "lora", "rank": 4, "alpha": 2.0}


def test_the_layers_of_a_plain_file_are_those_that_the_model_and_the_preset_give():
    assert default_layers() == set(map(glob_of, select_targets(tiny_transformer(), NetworkConfig())))


def test_dim_from_weights_leaves_what_is_typed(tmp_path, model):
    save_adapter(tmp_path / "a.safetensors", adapter_state(trained(MIXED["ranks within a leaf, some none"])), {})
    flags = ["--anima_transformer", model.transformer, "--vae", model.vae, "--qwen", model.qwen, "--train_data_dir", "x"]
    flags += [
        "--t5_tokenizer_dir",
        model.t5_tokenizer_dir,
        "--dim_from_weights",
        "--network_weights",
        str(tmp_path / "a.safetensors"),
    ]
    read = config_of(flags).network
    assert read.rank == 4 and read.ranks == (r"re:^blocks\.0\.mlp\.layer1$=8",) and read.targets == "" and len(read.include) > 9
    typed = config_of([*flags, "--network_args", "targets=attn", "network_reg_dims=x=3"]).network
    assert typed.targets == "attn" and typed.include == () and typed.ranks == ("re:^(?:x)$=3",) and typed.rank == 4


def test_only_the_transformers_part_is_read(tmp_path):
    with_text_encoder(tmp_path / "a.safetensors")
    assert len(read_adapter(tmp_path / "a.safetensors")) == 20
    save_file(tensors("lora_down.weight lora_up.weight", TEXT), tmp_path / "t.safetensors")
    with pytest.raises(FileError, match="holds no layer of Anima's transformer"):
        read_adapter(tmp_path / "t.safetensors")


def test_convert_replaces_no_file_and_writes_under_no_other_ending(tmp_path):
    save_file({"diffusion_model.blocks.0.mlp.layer1.lora_down.weight": torch.zeros(2, 4)}, tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(FileError, match="is there already"):
        convert_file(tmp_path / "a.safetensors", tmp_path / "a.safetensors", "lora_unet")
    with pytest.raises(SettingError, match=r"ends in \.safetensors"):
        convert_file(tmp_path / "a.safetensors", tmp_path / "a.ckpt", "lora_unet")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == before

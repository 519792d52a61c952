"""The command line: real runs, exit statuses, and one line for every bad input, before anything is written."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from anima_core.cli import main
from anima_core.demo.pictures import write_pictures

from . import processes

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_pictures(folder, 4)
    return folder


def flags(model, pictures, out, **changes) -> list[str]:
    values = {
        "anima_transformer": model.transformer,
        "vae": model.vae,
        "qwen": model.qwen,
        "t5_tokenizer_dir": model.t5_tokenizer_dir,
        "train_data_dir": pictures,
        "output_dir": out,
        "output_name": "x",
        "network_module": "networks.lora_anima",
        "resolution": "64",
        "min_bucket_reso": 32,
        "bucket_reso_steps": 16,
        "max_train_steps": 2,
        "device": "cpu",
    } | changes
    return ["train", *(text for name, value in values.items() if value is not None for text in (f"--{name}", str(value)))]


@pytest.mark.parametrize("module, keys", [("networks.lora_anima", "lora_down"), ("networks.lokr_anima", "lokr_w1")])
def test_train_inspect_convert(model, pictures, tmp_path, capsys, module, keys):
    assert main(flags(model, pictures, tmp_path, network_module=module)) == 0
    adapter = tmp_path / "x.safetensors"
    state = load_file(adapter)
    assert all(key.startswith("diffusion_model.blocks.") for key in state) and any(keys in key for key in state)
    assert len({key.rsplit(".lo", 1)[0].removesuffix(".alpha") for key in state}) == 20  # two blocks of ten layers
    assert (tmp_path / "x-run" / "config.toml").is_file() and (tmp_path / "x-run" / "log.jsonl").is_file()
    assert main(["convert", str(adapter), "--to", "lora_unet", "--output", str(tmp_path / "k.safetensors")]) == 0
    assert all(key.startswith("lora_unet_blocks_") for key in load_file(tmp_path / "k.safetensors"))
    assert (
        main(
            ["convert", str(tmp_path / "k.safetensors"), "--to", "diffusion_model", "--output", str(tmp_path / "d.safetensors")]
        )
        == 0
    )
    back = load_file(tmp_path / "d.safetensors")
    assert back.keys() == state.keys() and all(torch.equal(back[k], state[k]) for k in state)
    capsys.readouterr()
    assert main(["inspect", str(adapter)]) == 0
    shown = capsys.readouterr().out
    assert "ss_network_module" in shown and "20 layers" in shown and str(tmp_path) not in shown


def test_as_a_program(model, pictures, tmp_path):
    command = [sys.executable, "-m", "anima_core", *flags(model, pictures, tmp_path, max_train_steps=1)]
    done = processes.run(command, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "finished after 1 steps" in done.stdout


def test_dataset_config(model, pictures, tmp_path):
    toml = tmp_path / "data.toml"
    toml.write_text(
        f"""
[general]
caption_extension = ".txt"
shuffle_caption = true
[[datasets]]
resolution = 64
batch_size = 2
enable_bucket = true
min_bucket_reso = 32
bucket_reso_steps = 16
[[datasets.subsets]]
image_dir = '{pictures}'
num_repeats = 2
""",
        encoding="utf-8",
    )
    assert main(flags(model, pictures, tmp_path / "out", train_data_dir=None, dataset_config=toml)) == 0


OLD_FILES = {
    "lora, steps, AdamW": """
[training]
max_steps = 2
batch_size = 2
grad_accum = 2
learning_rate = 1e-4
mixed_precision = "no"
lr_scheduler = "cosine"
lr_warmup_ratio = 0.1
seq_len = 512
xformers = false
[lora]
network_type = "lora"
lora_rank = 8
lora_alpha = 4
lora_dropout = 0.1
lora_targets = "q_proj,k_proj,v_proj,re:mlp"
[optimizer]
type = "adamw"
weight_decay = 0.01
""",
    "lokr, epochs, ScheduleFree": """
[training]
epochs = 1
batch_size = 4
learning_rate = 1e-3
lr_scheduler = "constant"
lr_warmup_steps = 0
noise_offset = 0.02
[lora]
network_type = "lokr"
lora_rank = 100000
lora_alpha = 100000
lokr_factor = 4
train_norm = true
train_llm_adapter = true
[optimizer]
type = "radam_schedulefree"
beta1 = 0.9
beta2 = 0.95
[monitor]
every = 5
""",
    "lokr both, saving": """
[training]
max_steps = 3
learning_rate = 1e-3
caption_tag_dropout_rate = 0.1
grad_checkpoint = true
[lora]
network_type = "lokr"
lora_rank = 2
lora_alpha = 1
lokr_factor = -1
lokr_decompose_both = true
lokr_module_dropout = 0.1
[output]
save_every = 1
save_state = true
""",
}


@pytest.mark.parametrize("name", OLD_FILES)
def test_old_sectioned_files_train(model, pictures, tmp_path, capsys, name):
    head = f"""
[model]
transformer_path = '{model.transformer}'
vae_path = '{model.vae}'
text_encoder_path = '{Path(model.qwen).parent}'
t5_tokenizer_path = '{model.t5_tokenizer_dir}'
[dataset]
data_dir = '{pictures}'
repeats = 2
resolution = 64
min_reso = 32
max_reso = 128
reso_step = 16
shuffle_caption = true
keep_tokens = 1
flip_augment = true
"""
    text = head + OLD_FILES[name]
    text += (
        f"output_dir = '{tmp_path}'\noutput_name = 'old'\n"
        if "[output]" in text
        else f"[output]\noutput_dir = '{tmp_path}'\noutput_name = 'old'\n"
    )
    (tmp_path / "old.toml").write_text(text, encoding="utf-8")
    assert main(["train", "--config", str(tmp_path / "old.toml"), "--device", "cpu", "--cache_dir", str(tmp_path / "c")]) == 0
    assert "note: " in capsys.readouterr().err or "seq_len" not in text
    assert any("lora_down" in key or "lokr_w1" in key for key in load_file(tmp_path / "old.safetensors"))


def refused(capsys, argv, text, status=2):
    assert main(argv) == status
    error = capsys.readouterr().err.strip().splitlines()
    assert text in error[-1] and len([line for line in error if line.startswith("anima: ")]) == 1
    assert "Traceback" not in "\n".join(error)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"anima_transformer": ""}, "Anima transformer path is required. Set --anima_transformer"),
        ({"vae": ""}, "Anima VAE path is required. Set --vae."),
        ({"qwen": ""}, "Qwen path is required. Set --qwen."),
        ({"t5_tokenizer_dir": ""}, "T5 tokenizer directory is required. Set --t5_tokenizer_dir."),
        ({"network_module": "networks.lora"}, "Unsupported network module: networks.lora. Expected one of:"),
        ({"train_data_dir": "nowhere"}, "nowhere: no such folder of pictures"),
        ({"train_data_dir": None}, "No pictures: set --dataset_config"),
        ({"network_dim": 0}, "--network_dim=0: must be at least 1"),
        ({"max_train_steps": 0}, "max_train_steps=0"),
        ({"train_batch_size": 0}, "batch_size=0"),
        ({"learning_rate": "nan"}, "learning_rate=nan"),
        ({"network_args": "targets=attn+mpl"}, "unknown mpl; the words are"),
        ({"network_args": "target_modules=blocks.99.mlp.layer1"}, "matches no layer; names look like"),
        ({"network_args": "rnak=3"}, "network_args: unknown rnak"),
        (
            {"optimizer_type": "RAdamScheduleFree", "lr_scheduler": "cosine"},
            "optimizer=RAdamScheduleFree requires lr_scheduler=constant",
        ),
        ({"optimizer_args": "beta=3"}, "optimizer_args 'beta=3': AdamW takes name=value with"),
        ({"device": "cuda:7"}, "device=cuda:7"),
        ({"resolution": "60"}, "sides must be at least 64 px"),
        ({"save_state": None, "resume": "latest"}, "no checkpoint in"),
    ],
)
def test_bad_settings(model, pictures, tmp_path, capsys, changes, text):
    out = tmp_path / "out"
    refused(capsys, flags(model, pictures, out, **changes), text)
    assert not list(out.rglob("*.safetensors")) and not (out / "x-run").exists()


def test_bad_files(model, pictures, tmp_path, capsys):
    def expect(text, **changes):
        refused(capsys, flags(model, pictures, tmp_path / "out", **changes), text)

    expect("not an Anima transformer", anima_transformer=model.vae)
    expect("it is an Anima transformer: give it as the transformer", vae=model.transformer)
    expect("not a Qwen3 text encoder", qwen=model.vae)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(Path(model.transformer).read_bytes()[:-64])
    expect("truncated, 64 bytes", anima_transformer=cut)
    torch.save({}, tmp_path / "model.ckpt")
    expect("a pickle", anima_transformer=tmp_path / "model.ckpt")
    expect("no such file", vae=tmp_path / "none.safetensors")
    (tmp_path / "t5").mkdir()
    expect(
        "T5 tokenizer directory missing required files: ['config.json', 'spiece.model', 'tokenizer.json']",
        t5_tokenizer_dir=tmp_path / "t5",
    )
    other = tmp_path / "adapter.safetensors"
    save_file({"diffusion_model.blocks.0.mlp.layer1.lora_down.weight": torch.zeros(1, 1)}, other)
    expect("it is an adapter", anima_transformer=other)


def test_bad_pictures(model, tmp_path, capsys):
    def expect(text, folder, *more):
        refused(capsys, [*flags(model, folder, tmp_path / "out"), *more], text)

    empty = tmp_path / "empty"
    empty.mkdir()
    expect("no pictures", empty)
    bare = tmp_path / "bare"
    write_pictures(bare, 2)
    for caption in bare.glob("*.txt"):
        caption.unlink()
    expect("no captions; put .txt files beside the pictures", bare)
    broken = tmp_path / "broken"
    write_pictures(broken, 2)
    (broken / "zz.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    expect("strict: 1 warnings about the data (unreadable pictures, left out: 1 (zz.png)); repair it", broken, "--strict")
    for picture in broken.glob("[!z]*.png"):
        picture.unlink()
    expect("no usable pictures", broken)


def test_output_that_cannot_be_written(model, pictures, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    refused(capsys, flags(model, pictures, tmp_path / "file" / "out"), "cannot be written")


def test_unknown_flag_is_one_line(capsys):
    refused(capsys, ["train", "--netwrok_dim", "3"], "unknown flag --netwrok_dim; did you mean --network_dim?")
    refused(capsys, ["demo", "--network_dim", "3"], "demo has no flag --network_dim; `--help` lists those that it has")

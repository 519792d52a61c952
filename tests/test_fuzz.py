"""Every parser of what strangers send: any input gives a result or one line of AnimaError, never anything else."""

import contextlib
import json
import math
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from anima_core.adapters.formats import convert_file, read_adapter
from anima_core.adapters.inspection import summarise
from anima_core.cli import build_parser
from anima_core.compat.arguments import config_from_file, data_request_from, parse, request_from
from anima_core.compat.dataset_config import datasets_from, read_dataset_config
from anima_core.compat.flags import mapped_flags
from anima_core.data.caption_files import read_caption
from anima_core.data.captions import process_caption
from anima_core.errors import AnimaError, FileError
from anima_core.models.checkpoint import FORMATS, read_header, read_metadata
from anima_core.models.quantised import read_weights
from anima_core.models.qwen import load_qwen
from anima_core.models.transformer import load_transformer
from anima_core.models.vae import load_vae
from anima_core.settings import DatasetConfig, SampleConfig, SubsetConfig, TrainConfig, from_dict, to_dict
from anima_core.settings.samples import preview_request
from anima_core.settings.toml_file import dump_toml, line_of, read_toml

from .quantised import SAMPLES

pytestmark = pytest.mark.slow

often = settings(max_examples=150, deadline=None, derandomize=True)
seldom = settings(max_examples=60, deadline=None, derandomize=True)


@contextlib.contextmanager
def one_line_at_most():
    """An AnimaError of one line passes; anything else that is raised fails the test."""
    try:
        yield
    except AnimaError as error:
        if "\n" in str(error) or not str(error).strip():
            raise AssertionError(repr(str(error))) from error


@contextlib.contextmanager
def file_with(data: bytes, suffix: str = ".safetensors"):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"file{suffix}"
        path.write_bytes(data)
        yield path


# --- safetensors

GOOD = save({"blocks.0.mlp.layer1.weight": torch.zeros(2, 3), "x": torch.ones(4)}, metadata={"format": "pt"})

junk = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
numbers = st.integers() | st.integers(2**60, 2**70) | st.floats() | st.booleans() | st.none() | st.text(max_size=3)
entry = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "F8_E4M3", "I64", "BOOL", "nonsense"]) | junk,
        "shape": st.lists(st.integers(0, 4) | numbers, max_size=5) | junk,
        "data_offsets": st.lists(st.integers(0, 64) | numbers, max_size=3) | junk,
    },
)
headers = st.dictionaries(
    st.text(max_size=6) | st.just("__metadata__"), entry | junk | st.dictionaries(st.text(), junk), max_size=4
)


def safetensors_of(header: bytes, length: int | None = None, data: bytes = b"\0" * 64) -> bytes:
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


hostile_files = st.one_of(
    st.binary(max_size=200),
    headers.map(lambda header: safetensors_of(json.dumps(header).encode())),
    st.builds(safetensors_of, st.binary(max_size=60), st.none() | st.integers(0, 2**64 - 1)),
    st.builds(
        lambda place, byte: GOOD[:place] + bytes([byte]) + GOOD[place + 1 :], st.integers(0, len(GOOD) - 1), st.integers(0, 255)
    ),
    st.integers(0, len(GOOD)).map(lambda length: GOOD[:length]),
    st.binary(max_size=30).map(lambda tail: GOOD + tail),
)

EXTREMES = [
    safetensors_of(b"[" * 100_000),
    safetensors_of(b'{"a":' * 50_000),
    safetensors_of(b"{}", length=2**63),
    safetensors_of(b"{}", length=99_000_000),
    safetensors_of(b'{"a": {"dtype": "F32", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}'),
    safetensors_of(json.dumps({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 64]}}).encode()),
    safetensors_of(json.dumps({"a": {"dtype": "F32", "shape": [1] * 100_000, "data_offsets": [0, 4]}}).encode()),
    safetensors_of(json.dumps({"a": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}, "__metadata__": [1]}).encode()),
    safetensors_of(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, Infinity]}}'),
    safetensors_of(json.dumps({n: {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]} for n in "ab"}).encode()),
    safetensors_of(
        json.dumps({"a": {"dtype": "F32", "shape": [True] * 2, "data_offsets": [False, 4]}}).encode(), data=b"\0" * 4
    ),
    b"",
]


def read_every_way(path: Path) -> None:
    """What read_header accepts the library opens too, with the same shapes, or it is refused in our words."""
    for reader in (read_metadata, read_adapter, summarise):
        with one_line_at_most():
            reader(path)
    for loader in (load_transformer, load_vae):
        with one_line_at_most():
            loader(path)
    with one_line_at_most():
        header = read_header(path)
        for info in header.values():
            assert all(isinstance(side, int) and side >= 0 for side in info.shape)


@often
@given(hostile_files)
def test_safetensors(data):
    with file_with(data) as path:
        read_every_way(path)


# Quantised layers of which one part is gone, or of another dtype and shape, or says something else
part = st.tuples(
    st.sampled_from(["F32", "BF16", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I64"]),
    st.sampled_from([(), (1,), (64,), (64, 64), (64, 1), (128, 4), (0,), (2, 0), (1, 2, 3), (64, 64, 2)]),
)
forms = st.sampled_from(["nvfp4", "mxfp8", "int8_tensorwise", "convrot_w4a4", "float8_e4m3fn", "float8_e5m2"])
odd = junk | st.sampled_from([4, 16, 256, -1])
said = junk | st.fixed_dictionaries({"format": forms}, optional={"convrot": odd, "convrot_groupsize": odd, "params": odd})
changes = st.none() | part | said


@often
@given(st.sampled_from([*SAMPLES]), st.integers(0, 3), changes, st.none() | said)
def test_quantised_safetensors(kind, place, change, metadata):
    tensors = dict(SAMPLES[kind](64, 64, torch.Generator().manual_seed(0)).tensors)
    name = sorted(tensors)[place % len(tensors)]
    if isinstance(change, tuple):
        tensors[name] = torch.zeros(change[1], dtype=FORMATS[change[0]])
    elif change is None:
        del tensors[name]
    else:
        tensors["comfy_quant"] = torch.tensor(list(json.dumps(change).encode()), dtype=torch.uint8)
    header = {"_quantization_metadata": json.dumps({"layers": {"x": metadata}})} if metadata is not None else None
    with file_with(save({f"x.{part}": tensor for part, tensor in tensors.items()}, header)) as path, one_line_at_most():
        for _, weight in read_weights(path):
            assert weight.numbers(torch.bfloat16, "cpu").shape == weight.shape == weight.on_meta().shape


@pytest.mark.parametrize("data", EXTREMES, ids=range(len(EXTREMES)))
def test_extreme_safetensors(data):
    with file_with(data) as path:
        read_every_way(path)
        with pytest.raises(FileError):
            load_transformer(path)


def test_a_whole_file_is_read(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(GOOD)
    header = read_header(tmp_path / "x.safetensors")
    assert {name: list(info.shape) for name, info in header.items()} == {
        name: list(tensor.shape) for name, tensor in load_file(tmp_path / "x.safetensors").items()
    }


@pytest.mark.parametrize("suffix", [".pt", ".ckpt", ".pkl", ".pth", ".bin", ".safetensors"])
def test_pickles_are_refused_everywhere_with_the_reason(tmp_path, suffix):
    """By their ending, and by their first bytes under any name."""
    path = tmp_path / f"model{suffix}"
    torch.save({"a": torch.zeros(1)}, path)
    readers = [read_header, read_metadata, read_adapter, summarise, load_transformer, load_vae, load_qwen]
    readers += [lambda p: convert_file(p, tmp_path / "out.safetensors", "lora_unet")]
    for reader in readers:
        with pytest.raises(FileError, match="a pickle, which can run code when opened; convert it to safetensors first"):
            reader(path)


def test_a_hugging_face_folder_of_pickles_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(FileError, match="no .safetensors file in this folder"):
        load_qwen(tmp_path)


# --- TOML

values = st.recursive(
    st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
VALID = {
    "flat": {
        flag.name: flag.default for flag in mapped_flags() if flag.default != () and flag.name not in ("config", "config_file")
    },
    "sectioned": {
        "model": {"transformer_path": "a", "vae_path": "b", "text_encoder_path": "c", "t5_tokenizer_dir": "d"},
        "dataset": {
            "data_dir": "p",
            "resolution": 1024,
            "repeats": 1,
            "min_reso": 256,
            "keep_tokens": 1,
            "shuffle_caption": True,
        },
        "training": {"learning_rate": 1e-4, "batch_size": 1, "max_steps": 10, "epochs": 1, "lr_scheduler": "constant"},
        "lora": {"network_type": "lokr", "lora_rank": 4, "lora_alpha": 4, "lokr_factor": 8, "lora_targets": ["x"]},
        "optimizer": {"type": "AdamW", "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.99, "eps": 1e-8},
        "output": {"output_dir": "o", "output_name": "n", "save_every": 5},
    },
}


def replaced(tree: dict, path: tuple[str, ...], value) -> dict:
    copy = dict(tree)
    copy[path[0]] = value if len(path) == 1 else replaced(tree[path[0]], path[1:], value)
    return copy


def places(tree: dict, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        p
        for key, value in tree.items()
        for p in [(*prefix, key), *(places(value, (*prefix, key)) if isinstance(value, dict) else [])]
    ]


def mutated(tree: dict) -> st.SearchStrategy:
    one = st.tuples(st.sampled_from(places(tree)), values)
    return st.lists(one, min_size=1, max_size=3).map(lambda changes: apply(tree, changes))


def apply(tree: dict, changes: list) -> dict:
    for path, value in changes:
        with contextlib.suppress(TypeError, KeyError, ValueError):  # an earlier change took the table away
            tree = replaced(tree, path, value)
    return tree


def toml_of(data: dict) -> bytes:
    """As TOML, if the writer can say it."""
    try:
        return dump_toml(json.loads(json.dumps(data, default=str))).encode("utf-8", "replace")
    except (ValueError, TypeError, IndexError):
        assume(False)


@often
@given(
    st.binary(max_size=120)
    | st.text(max_size=120).map(str.encode)
    | st.dictionaries(st.text(), values, max_size=4).map(toml_of)
)
def test_toml(data):
    with file_with(data, ".toml") as path, one_line_at_most():
        read_toml(path)
        line_of(path, "a", "b")


@pytest.mark.parametrize(
    "data", [b"a = " + b"[" * 100_000, b"\xff\xfe", b"a = 1\0", b"[" * 10_000, b"a." * 50_000 + b"a = 1", b"a = " + b"9" * 5000]
)
def test_extreme_toml(data):
    with file_with(data, ".toml") as path:
        for reader in (read_toml, config_from_file, lambda p: read_dataset_config(p, {})):
            with one_line_at_most():
                reader(path)


@pytest.mark.parametrize("dialect", VALID)
@seldom
@given(st.data())
def test_training_files_with_wrong_values(dialect, data):
    document = data.draw(mutated(VALID[dialect]))
    with file_with(toml_of(document), ".toml") as path, one_line_at_most():
        config_from_file(path)


def frozen() -> dict:
    from anima_core.settings import ModelConfig

    return json.loads(json.dumps(to_dict(TrainConfig(ModelConfig("a", "b", "c", "d"), (DatasetConfig((SubsetConfig("p"),)),)))))


@often
@given(st.data())
def test_frozen_configs_with_wrong_values(data):
    with one_line_at_most():
        from_dict(TrainConfig, data.draw(mutated(frozen())), "config.toml")


DATASETS = {
    "general": {
        "resolution": 1024,
        "batch_size": 1,
        "enable_bucket": True,
        "caption_extension": ".txt",
        "prior_loss_weight": 1.0,
    },
    "datasets": [
        {"resolution": [1024, 768], "subsets": [{"image_dir": "p", "num_repeats": 2, "is_reg": True, "mask_dir": "m"}]}
    ],
}


@often
@given(mutated(DATASETS) | st.dictionaries(st.sampled_from(["general", "datasets", "x"]), values))
def test_dataset_configs(data):
    with one_line_at_most():
        datasets_from(data, {}, "data.toml")


@often
@given(mutated(DATASETS["datasets"][0]), mutated(DATASETS["datasets"][0]["subsets"][0]), values)
def test_dataset_configs_deeper(dataset, subset, value):
    for entry in (dataset, {**DATASETS["datasets"][0], "subsets": [subset]}, {**dataset, "subsets": [value]}, value):
        with one_line_at_most():
            datasets_from({"datasets": [entry]}, {}, "data.toml")


# --- the command line, prompts, captions

texts = st.text(max_size=12) | st.sampled_from(
    ["nan", "inf", "-1", "0", "1e400", "9" * 30, "true", "x=1", "a=b=c", "1,2,3", "[1]"]
)


@often
@given(st.lists(st.tuples(st.sampled_from([flag.name for flag in mapped_flags() if flag.kind != "path"]), texts), max_size=4))
def test_command_lines(pairs):
    flags = [part for name, value in pairs for part in (f"--{name}", value)]
    required = ["--anima_transformer", "a", "--vae", "b", "--qwen", "c", "--t5_tokenizer_dir", "d", "--train_data_dir", "p"]
    for command, reader in (("train", request_from), ("check", data_request_from)):
        with one_line_at_most():
            reader(parse(build_parser(), [command, *required, *flags]))


@often
@given(st.text(max_size=20), st.lists(st.tuples(st.sampled_from(["w", "h", "s", "d", "l", "fs", "n", "x"]), texts), max_size=4))
def test_prompt_lines(prompt, flags):
    with one_line_at_most():
        request = preview_request(prompt + "".join(f" --{key} {value}" for key, value in flags), SampleConfig())
        assert request.width >= 16 and request.height >= 16 and request.steps >= 1
        assert math.isfinite(request.cfg) and math.isfinite(request.shift)


@often
@given(st.binary(max_size=60))
def test_caption_files(data):
    with file_with(data, ".txt") as path, one_line_at_most():
        text, encoding = read_caption(path)
        assert text == text.strip() and encoding


@often
@given(st.text(max_size=60), st.text(max_size=3), st.integers(0, 5), st.text(max_size=3), st.booleans(), st.integers(0, 2**62))
def test_captions_lose_no_tag_and_invent_none(text, separator, keep, marker, shuffle, seed):
    subset = SubsetConfig(
        "p", caption_separator=separator, keep_tokens=keep, keep_tokens_separator=marker, shuffle_caption=shuffle
    )
    drawn = process_caption(text, subset, torch.Generator().manual_seed(seed))
    if not shuffle and not (marker and marker in text):
        assert drawn == text
    letters = [c for c in text if c.isalnum() and c not in separator + marker]
    assert sorted(c for c in drawn if c.isalnum() and c not in separator + marker) == sorted(letters)

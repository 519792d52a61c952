"""GGUF files: read by our own reader, numbers those of the `gguf` package to the bit."""

import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from anima_core import files
from anima_core.errors import FileError
from anima_core.models.candidates import Candidates, transformer_rank
from anima_core.models.frozen import FloatWeight, frozen_linears
from anima_core.models.quantised import gguf_file, pieces, read_stored, read_weights
from anima_core.models.quantised.gguf_blocks import BLOCKS, BlockWeight
from anima_core.models.qwen import check_qwen, load_qwen
from anima_core.models.transformer import check_transformer, load_transformer, meta_transformer

from .quantised import gradients, linears, write
from .test_fuzz import one_line_at_most

gguf = pytest.importorskip("gguf", reason="the package `gguf` is not installed: pip install gguf")


def blocks_of(type_name: str, rows: int, columns: int) -> Tensor:
    """Random blocks of one type as bytes [rows, bytes], all their scales finite and small."""
    kind = gguf.GGMLQuantizationType[type_name]
    blocks = next(known for known in BLOCKS.values() if known.name == type_name)
    g = torch.Generator().manual_seed(kind)
    data = torch.randint(0, 256, (rows * columns // blocks.numbers, blocks.bytes), generator=g, dtype=torch.uint8)
    places = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}
    for place in places.get(type_name, (0, 2)):
        halves = (torch.rand(len(data), 1, generator=g) + 0.5).mul(1e-3).half()
        data[:, place : place + 2] = halves.view(torch.uint8)
    return data.view(rows, -1)


def dequantised(data: Tensor, type_name: str) -> Tensor:
    return torch.from_numpy(gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType[type_name]))


def write_gguf(path: Path, tensors: dict[str, tuple[Tensor, str]], **values) -> Path:
    """tensors: name -> plain numbers, or bytes of blocks, and the type."""
    writer = gguf.GGUFWriter(path, "cosmos")
    for key, value in values.items():
        writer.add_array(key.replace("__", "."), value)
    for name, (tensor, kind) in tensors.items():
        writer.add_tensor(name, tensor.numpy(), raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("number", BLOCKS)
def test_numbers_of_each_type_are_those_of_the_package(number, monkeypatch):
    blocks, kind = BLOCKS[number], gguf.GGMLQuantizationType(number)
    assert kind.name == blocks.name and gguf.GGML_QUANT_SIZES[kind] == (blocks.numbers, blocks.bytes)
    data = blocks_of(kind.name, 6, 512)
    weight = BlockWeight(data.view(-1, blocks.bytes), torch.Size((6, 512)), blocks)
    theirs = dequantised(data, kind.name)
    assert theirs.isfinite().all() and theirs.std() > 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(weight.numbers(dtype, "cpu"), theirs.to(dtype))
    monkeypatch.setattr(pieces, "PIECE", 700)
    assert torch.equal(weight.numbers(torch.float32, "cpu"), theirs)
    assert weight.bytes == data.numel()


def test_every_plain_type_is_read(tmp_path):
    g = torch.Generator().manual_seed(0)
    numbers = torch.randn(5, 7, generator=g)
    plain = {
        "a": (numbers, "F32"),
        "b": (numbers.half(), "F16"),
        "c": (numbers[0].double(), "F64"),
        "d": (numbers.int(), "I32"),
    }
    bf16 = numbers.bfloat16().view(torch.uint8).view(5, -1)
    found = dict(read_weights(write_gguf(tmp_path / "x.gguf", plain | {"e": (bf16, "BF16")})))
    for name, (tensor, _) in plain.items():
        assert found[name].kind == FloatWeight.kind and torch.equal(found[name].value, tensor)
    assert torch.equal(found["e"].value, numbers.bfloat16())


# --- models


@pytest.fixture
def state(model) -> dict[str, Tensor]:
    return load_file(model.transformer)


def as_gguf(path: Path, state: dict[str, Tensor], **types: str) -> dict[str, Tensor]:
    """Write a transformer as ComfyUI's GGUF packs do. types: of the MLP's second layers, and of the others that are quantised.

    Return the state of the numbers that it holds.
    """
    tensors, plain = {}, {}
    for name, tensor in state.items():
        kind = types["second"] if ".layer2." in name else types["others"]
        if name.removesuffix(".weight") in linears(state):
            data = blocks_of(kind, *tensor.shape)
            tensors[name], plain[name] = (data, kind), dequantised(data, kind)
        else:
            tensors[name], plain[name] = (tensor, "F32"), tensor
    write_gguf(path, {name.removeprefix("net."): value for name, value in tensors.items()})
    return plain


@pytest.mark.parametrize("second, others", [("Q4_K", "Q8_0"), ("Q6_K", "Q4_0"), ("Q5_K", "Q5_1")])
def test_a_transformer_stays_in_blocks_and_an_adapter_learns_on_it(state, tmp_path, second, others):
    path = tmp_path / "anima.gguf"
    plain = as_gguf(path, state, second=second, others=others)
    ours = load_transformer(path)
    kinds = [layer.stored.kind for _, layer in frozen_linears(ours)]
    assert len(kinds) == 20 and set(kinds) == {f"GGUF {second}", f"GGUF {others}"}
    empty = meta_transformer(path, torch.bfloat16)
    assert [layer.stored.bytes for _, layer in frozen_linears(empty)] == [
        layer.stored.bytes for _, layer in frozen_linears(ours)
    ]
    theirs = load_transformer(write(tmp_path / "plain.safetensors", plain))
    for left, right in zip(gradients(ours, True), gradients(theirs, True), strict=True):
        assert left.isfinite().all() and torch.equal(left, right)
    assert Candidates(transformer_rank).rank(str(path)) == 1


LLAMA = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def llama_name(name: str) -> str:
    parts = name.removeprefix("model.").split(".")
    block = f"blk.{parts[1]}." if parts[0] == "layers" else ""
    return f"{block}{LLAMA['.'.join(parts[2 if block else 0 : -1])]}.weight"


@pytest.mark.parametrize("rename", [llama_name, str], ids=["llama.cpp's names", "ComfyUI's names"])
def test_a_text_encoder_is_read_under_either_names(model, tmp_path, rename):
    state, tensors, plain = load_file(model.qwen), {}, {}
    for name, tensor in state.items():
        data = blocks_of("Q8_0", *tensor.shape) if tensor.ndim == 2 else tensor
        tensors[rename(name)] = (data, "Q8_0" if tensor.ndim == 2 else "F32")
        plain[name] = dequantised(data, "Q8_0") if tensor.ndim == 2 else tensor
    path = write_gguf(tmp_path / "qwen.gguf", tensors, tokenizer__ggml__tokens=[f"word {n}" for n in range(500)])
    folder = Path(model.qwen).parent
    assert check_qwen(path) == check_qwen(model.qwen)
    theirs = load_qwen(write(tmp_path / "plain.safetensors", plain), tokenizer_dir=folder)
    ours = load_qwen(path, tokenizer_dir=folder)
    assert torch.equal(ours.encode(["a red circle"])[0], theirs.encode(["a red circle"])[0])


def test_a_shape_that_blocks_could_not_have_is_put_back(tmp_path):
    data, values = blocks_of("Q4_K", 3, 256), {"comfy__gguf__orig_shape__x": [12, 64]}
    ((_, weight),) = read_weights(write_gguf(tmp_path / "x.gguf", {"x": (data, "Q4_K")}, **values))
    assert torch.equal(weight.numbers(torch.float32, "cpu"), dequantised(data, "Q4_K").view(12, 64))


def test_its_digest_is_known_when_it_has_been_read(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_digests", {})
    tensors = {name: (blocks_of("Q8_0", 3, 32), "Q8_0") for name in "abc"}
    path = write_gguf(tmp_path / "x.gguf", tensors)
    path.write_bytes(path.read_bytes() + bytes(24))  # some writers pad the end
    for _ in read_weights(path):
        assert files.known(path) is None
    assert files.known(path) == files.digest(path)


# --- what is refused


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "x.gguf"
    values = {"a__list": [1, 2, 3], "words": [f"word {n}" for n in range(80)]}
    return write_gguf(path, {"a": (blocks_of("Q8_0", 2, 32), "Q8_0"), "b": (torch.ones(3), "F32")}, **values).read_bytes()


def header(count: int, *tensors: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, count, 0) + b"".join(tensors)


def info(name: str, kind: int, place: int, *sides: int) -> bytes:
    return struct.pack(f"<Q{len(name)}sI{len(sides)}QIQ", len(name), name.encode(), len(sides), *sides, kind, place)


@pytest.mark.parametrize(
    "data, text",
    [
        (header(0, version=1), "is a GGUF file, and its version is 1, while 2 and 3 are read; download it again"),
        (header(2**60), "it ends inside its header; download it again"),
        (header(1, info("a", 18, 0, 256)), "a is of the type IQ3_XXS, which is not read; use the model in bf16"),
        (header(1, info("a", 99, 0, 256)), "a is of the type 99, which is not read"),
        (header(1, info("a", 8, 0, 33)), "the shape of a tensor is damaged"),
        (header(1, info("a", 0, 0, 2**40, 2**40)), "the shape of a tensor is damaged"),
        (header(2, info("a", 0, 0, 8), info("b", 0, 16, 8)), "its tensors overlap"),
        (header(2, info("a", 0, 0, 8), info("a", 0, 32, 8)), "its header is damaged"),
        (header(2, info("blk.1.attn_q.weight", 0, 0, 8), info("model.layers.1.self_attn.q_proj.weight", 0, 32, 8)), "one name"),
        (header(1, info("a", 0, 0, 1000)), "truncated, 4,000 bytes are missing; download it again"),
    ],
)
def test_a_damaged_file_is_refused_with_the_way_out(tmp_path, data, text):
    path = tmp_path / "x.gguf"
    path.write_bytes(data.ljust(64 + len(data) % 32) if "truncated" not in text else data + bytes(-len(data) % 32))
    for read in (read_stored, check_transformer, check_qwen):
        with pytest.raises(FileError, match=f"x.gguf: .*{text}"):
            read(path)


def test_a_file_that_only_bears_the_ending_is_no_safetensors_file_either(tmp_path):
    (tmp_path / "x.gguf").write_bytes(bytes(100))
    with pytest.raises(FileError, match="x.gguf: not a GGUF file, or a damaged one; download it again"):
        check_transformer(tmp_path / "x.gguf")


def test_what_is_missing_and_what_is_another_model_are_said(tmp_path):
    with pytest.raises(FileError, match=r"no such file"):
        read_stored(tmp_path / "none.gguf")
    path = write_gguf(tmp_path / "flux.gguf", {"double_blocks.0.img_attn.qkv.weight": (torch.ones(2, 2), "F32")})
    with pytest.raises(FileError, match="not an Anima transformer.*it is a Flux model"):
        check_transformer(path)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_bytes_are_read_or_refused_in_one_line(small, tmp_path_factory, data):
    changed = bytearray(small)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(4, 600))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "any.gguf"
    path.write_bytes(bytes(changed[: data.draw(st.integers(4, len(changed)))]))
    with one_line_at_most():
        for _, weight in read_weights(path):
            assert weight.numbers(torch.float32, "cpu").shape == weight.shape


def test_a_header_nested_without_end_is_damaged(tmp_path):
    path = tmp_path / "x.gguf"
    nested = struct.pack("<IQ", gguf_file.ARRAY, 1) * 100_000
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"a", gguf_file.ARRAY) + nested)
    with pytest.raises(FileError, match="x.gguf: is a GGUF file, and its header is damaged"):
        read_stored(path)

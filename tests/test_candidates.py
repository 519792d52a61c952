"""Which files are the model that is wanted: by their headers, whatever they are called, read once."""

import json
import os
from pathlib import Path

import pytest

from anima_core.demo.models import write_models
from anima_core.models import candidates
from anima_core.models.candidates import Candidates, qwen_rank, transformer_rank, vae_rank

from .tiny import CORPUS


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    paths = write_models(folder, CORPUS)
    return {"transformer": str(paths["anima_transformer"]), "vae": str(paths["vae"]), "qwen": str(paths["qwen"])}


@pytest.mark.parametrize("wanted, rank", [("transformer", transformer_rank), ("vae", vae_rank), ("qwen", qwen_rank)])
def test_each_kind_knows_its_own_and_no_other(models, wanted, rank):
    found = Candidates(rank)
    assert {kind for kind, path in models.items() if found.rank(path) is not None} == {wanted}


def write_header(path, names: dict[str, list[int]]) -> str:
    """A file with tensors of these shapes, all zeros, of which a file system stores nothing."""
    end, header = 0, {}
    for name, shape in names.items():
        size = 2
        for side in shape:
            size *= side
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return str(path)


def qwen3(path, hidden: int) -> str:
    """The header of a whole Qwen3 of one layer."""
    half, layer = hidden // 2, "model.layers.0."
    names = {f"{layer}self_attn.{part}_proj.weight": [hidden, hidden] for part in "qkvo"}
    names |= {f"{layer}self_attn.{part}_norm.weight": [half] for part in "qk"}
    names |= {f"{layer}mlp.{part}_proj.weight": [hidden, hidden] for part in ("gate", "up", "down")}
    names |= {f"{layer}{part}.weight": [hidden] for part in ("input_layernorm", "post_attention_layernorm")}
    return write_header(path, names | {"model.embed_tokens.weight": [64, hidden], "model.norm.weight": [hidden]})


def test_the_smallest_qwen3_is_meant_first(tmp_path):
    """Other models' text encoders are Qwen3 too, of 4 and 8 billion weights."""
    found = Candidates(qwen_rank)
    large, small = (found.rank(qwen3(tmp_path / f"{hidden}.safetensors", hidden)) for hidden in (64, 32))
    assert (large, small) == (64, 32)


def test_what_cannot_be_read_is_none_of_them(models, tmp_path):
    found = Candidates(transformer_rank)
    whole = Path(models["transformer"]).read_bytes()
    odd = {"empty": b"", "text": b"no model", "pickle": b"\x80\x02}q", "cut": whole[:-1], "long": whole + b"x"}
    odd["deep"] = (200_000).to_bytes(8, "little") + b"llm_adapter." + b"[" * 200_000
    for name, data in odd.items():
        (tmp_path / name).write_bytes(data)
        assert found.rank(str(tmp_path / name)) is None, name
    assert found.rank(str(tmp_path / "gone")) is None and found.rank(str(tmp_path)) is None and found.rank("\0") is None


def test_a_file_is_read_again_only_when_it_has_changed(models, tmp_path, monkeypatch):
    path, read = tmp_path / "a.safetensors", []
    path.write_bytes(b"not one yet")
    monkeypatch.setattr(candidates, "raw_header", lambda file, real=candidates.raw_header: read.append(file) or real(file))
    found = Candidates(transformer_rank)
    assert [found.rank(str(path)) for _ in range(3)] == [None] * 3 and len(read) == 1
    os.replace(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    path.write_bytes(Path(models["transformer"]).read_bytes())
    assert [found.rank(str(path)) for _ in range(3)] == [0] * 3 and len(read) == 2


def test_a_foreign_header_is_not_taken_apart(tmp_path, monkeypatch):
    """A folder of hundreds of other models is told in a moment."""
    path = write_header(tmp_path / "flux.safetensors", {f"double_blocks.{n}.weight": [16, 16] for n in range(900)})
    monkeypatch.setattr(candidates, "check_transformer", lambda path: pytest.fail("was read whole"))
    assert Candidates(transformer_rank).rank(path) is None

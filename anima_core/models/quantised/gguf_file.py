"""GGUF files: key-value pairs, tensor infos, then the tensors, each at a multiple of the alignment.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md, versions 2 and 3, little endian. Names are those of the
model that was converted, or llama.cpp's own, which are put back.
"""

import math
import os
import re
import struct
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...errors import FileError
from ...files import read_through
from ..checkpoint import FORMATS, MAX_DIMENSIONS, MOST_VALUES, TensorInfo, check_is_file, readable
from ..frozen import FloatWeight, FrozenWeight
from ..kinds import READABLE
from .gguf_blocks import BLOCKS, BlockWeight
from .stored import Parts, Stored

MAGIC = b"GGUF"
ALIGNMENT = 32  # bytes, where a file does not say
STRING, ARRAY = 8, 9  # types of values; the others are numbers, as `struct` writes them
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
LONGEST_LIST = 64  # longer ones, as a tokenizer's words, are passed over
PLAIN = {0: "F32", 1: "F16", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 30: "BF16"}  # types of tensors
TYPES = {15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S",
         23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}  # fmt: skip
SHAPE = "comfy.gguf.orig_shape."  # before a tensor's name: its shape in the model, where blocks needed another one

# llama.cpp's names -> those of the model it converted, for the models that Anima's text encoder is one of
LLAMA = (
    (r"^token_embd\.", "model.embed_tokens."),
    (r"^output_norm\.", "model.norm."),
    (r"^output\.", "lm_head."),
    (r"^blk\.(\d+)\.", r"model.layers.\1."),
    (r"(layers\.\d+\.)attn_([qk]_norm)\.", r"\1self_attn.\2."),
    (r"(layers\.\d+\.)attn_([qkv])\.", r"\1self_attn.\2_proj."),
    (r"(layers\.\d+\.)attn_output\.", r"\1self_attn.o_proj."),
    (r"(layers\.\d+\.)attn_norm\.", r"\1input_layernorm."),
    (r"(layers\.\d+\.)ffn_(gate|up|down)\.", r"\1mlp.\2_proj."),
    (r"(layers\.\d+\.)ffn_norm\.", r"\1post_attention_layernorm."),
)


@dataclass(frozen=True)
class Entry:
    """A tensor in a file. begin, end: its bytes there."""

    type: int
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def info(self) -> TensorInfo:
        """How its bytes are read: a plain tensor, or blocks."""
        if plain := PLAIN.get(self.type):
            return TensorInfo(plain, self.shape)
        length = BLOCKS[self.type].bytes
        return TensorInfo("U8", ((self.end - self.begin) // length, length))

    def make(self, parts: Parts) -> FrozenWeight:
        if self.type in PLAIN:
            return FloatWeight(parts["weight"])
        return BlockWeight(parts["weight"], torch.Size(self.shape), BLOCKS[self.type])


class Damaged(ValueError):
    """What is no GGUF any more. Its text completes "a GGUF file, and …"."""


def is_gguf(path: Path) -> bool:
    """Tell a GGUF file by its first bytes; what cannot be read is none."""
    try:
        with open(path, "rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def read_stored(path: Path) -> dict[str, Stored]:
    """Return how each tensor of a file is stored, by its name. Raises FileError."""
    entries = read_entries(path)
    return {name: Stored({"weight": name}, {"weight": entry.info}, entry.make) for name, entry in entries.items()}


def read_parts(path: Path, keys: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the bytes of the tensors of these names, as `Entry.info` has them, from front to back. Raises FileError.

    The file's digest is learnt on the way.
    """
    entries, at = read_entries(path), 0
    size = path.stat().st_size
    with readable(path), read_through(path) as reading:
        for name, entry in sorted(entries.items(), key=lambda item: item[1].begin):
            if name not in keys:
                continue
            reading.pass_over(entry.begin - at)
            data = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
            reading.fill(data.numpy().data)
            at = entry.end
            yield name, data.view(FORMATS[entry.info.dtype]).reshape(entry.info.shape)
            del data
        reading.pass_over(size - at)


def read_entries(path: Path) -> dict[str, Entry]:
    """Return where each tensor is, by its name. Raises FileError for a file that is damaged, or in types that are not read."""
    if not is_gguf(path):
        check_is_file(path)
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            values, found, start = _header(Reader(file, size))
        check_types(path, found)
        entries = {_model_name(name): entry_of(place, start, values.get(SHAPE + name)) for name, place in found.items()}
        end = check_order(entries, len(found), start)
    except (ValueError, RecursionError, OverflowError) as error:  # not UTF-8, nested without end
        what = error if isinstance(error, Damaged) else "its header is damaged"
        raise FileError(f"{path}: is a GGUF file, and {what}; download it again") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    if end > size:
        raise FileError(f"{path}: truncated, {end - size:,} bytes are missing; download it again")
    return entries


def _model_name(name: str) -> str:
    for theirs, ours in LLAMA:
        name = re.sub(theirs, ours, name)
    return name


def check_types(path: Path, found: "dict[str, Place]") -> None:
    """Raise FileError for a type of tensor that is not read."""
    for name, (kind, _, _) in found.items():
        if kind not in PLAIN and kind not in BLOCKS:
            raise FileError(f"{path}: {name} is of the type {TYPES.get(kind, kind)}, which is not read; {READABLE}")


def entry_of(place: "Place", start: int, own: Any) -> Entry:
    """Return where a tensor is. own: its shape in the model, where the file says that it is another. Raises Damaged."""
    kind, shape, begin = place
    numbers = math.prod(shape)
    per_block, length = (1, FORMATS[PLAIN[kind]].itemsize) if kind in PLAIN else (BLOCKS[kind].numbers, BLOCKS[kind].bytes)
    if not shape or not 0 < numbers < MOST_VALUES or shape[-1] % per_block:
        raise Damaged("the shape of a tensor is damaged")
    if isinstance(own, list) and all(type(side) is int and side > 0 for side in own) and math.prod(own) == numbers:
        shape = tuple(own)
    return Entry(kind, shape, start + begin, start + begin + numbers // per_block * length)


def check_order(entries: dict[str, Entry], count: int, start: int) -> int:
    """Return where the last tensor ends. Raises Damaged where one lies in another, or two have one name."""
    end = start
    for entry in sorted(entries.values(), key=lambda entry: entry.begin):
        if entry.begin < end:
            raise Damaged("its tensors overlap")
        end = entry.end
    if len(entries) < count:
        raise Damaged("two of its tensors have one name")
    return end


class Reader:
    """Reads what a header consists of, and never past the file's end. Raises Damaged."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def number(self, kind: str) -> Any:
        length = struct.calcsize(f"<{kind}")
        return struct.unpack(f"<{kind}", self.bytes(length))[0]

    def bytes(self, length: int) -> bytes:
        if length > self.size - self.file.tell():
            raise Damaged("it ends inside its header")
        return self.file.read(length)

    def skip(self, length: int) -> None:
        if length > self.size - self.file.tell():
            raise Damaged("it ends inside its header")
        self.file.seek(length, os.SEEK_CUR)

    def text(self) -> str:
        return self.bytes(self.number("Q")).decode()

    def value(self, kind: int) -> Any:
        """Read one value. A long list is passed over, and is None."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(_number(kind))
        of, count = self.number("I"), self.number("Q")
        if of not in (STRING, ARRAY) and count > LONGEST_LIST:
            return self.skip(struct.calcsize(f"<{_number(of)}") * count)
        if count <= LONGEST_LIST:
            return [self.value(of) for _ in range(count)]
        for _ in range(count):
            self.skip(self.number("Q")) if of == STRING else self.value(of)
        return None


def _number(kind: int) -> str:
    if kind not in NUMBERS:
        raise Damaged("its header is damaged")
    return NUMBERS[kind]


Place = tuple[int, tuple[int, ...], int]  # type, shape, bytes after the first tensor's begin


def _header(reader: Reader) -> tuple[dict[str, Any], dict[str, Place], int]:
    """Read the values, of each tensor its type, shape and place, and where the first one begins."""
    reader.skip(len(MAGIC))
    version = reader.number("I")
    if version not in (2, 3):
        raise Damaged(f"its version is {version}, while 2 and 3 are read")
    count, pairs = reader.number("Q"), reader.number("Q")
    values = {}
    for _ in range(pairs):
        name = reader.text()
        values[name] = reader.value(reader.number("I"))
    found = {}
    for _ in range(count):
        name, sides = reader.text(), reader.number("I")
        if sides > MAX_DIMENSIONS or name in found:
            raise Damaged("its header is damaged")
        shape = tuple(reader.number("Q") for _ in range(sides))[::-1]  # the last side first
        found[name] = (reader.number("I"), shape, reader.number("Q"))
    alignment = values.get("general.alignment", ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment < 1 << 20:
        raise Damaged("its alignment is damaged")
    return values, found, -(-reader.file.tell() // alignment) * alignment

"""Token ids equal ComfyUI's, and folders that hold something else are refused."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import anima_core.models.tokenizers as tokenizers_module
from anima_core.demo.random_text import qwen_state, write_qwen_tokenizer, write_t5_tokenizer
from anima_core.errors import FileError, SettingError
from anima_core.models.qwen import load_qwen
from anima_core.models.tokenizers import (
    comfyui_tokenizers,
    load_qwen_tokenizer,
    load_t5_tokenizer,
    plain_parentheses,
    qwen_tokenizer_dir,
    t5_tokenizer_dir,
)

from .conftest import relative_error

CORPUS = ["masterpiece, 1girl, solo, long hair, smile", "A girl stands by the sea.", "1boy, blue sky, school uniform"]

NASTY = [
    "",
    " ",
    "     ",
    "\n",
    "\t \n ",
    "1girl",
    " 1girl",
    "1girl ",
    "  two   spaces  everywhere  ",
    "trailing comma,",
    ",leading comma",
    ",,, ,",
    "masterpiece, best quality, 1girl, solo, long hair, blue eyes, looking at viewer",
    "long_hair, blue_eyes, :d, ^_^, >:)",
    r"hatsune miku \(vocaloid\), artoria pendragon \(fate\)",
    "hatsune miku (vocaloid), ((nested)), (unbalanced",
    "closing first ) ( then",
    r"already \\(double escaped\\)",
    "trailing backslash \\",
    r"C:\new\folder, \o/, \\ \n",
    "(weight syntax:1.3) is plain text, [brackets], {braces|choice}",
    "A girl stands by the sea.\nThe wind is strong.",
    "tags, first line\n\nThen prose; with \"quotes\", 'apostrophes' and it's, we'll, I'D.",
    "windows\r\nline endings\r\n",
    "tab\tseparated\ttags",
    "embedding:",
    "embedding:first, word",
    "123 4567 3.14159 1e-6 2024-01-01 16:9",
    "naïve café, Łódź, Ærøskøbing, straße, İstanbul",
    "decomposed: e\u0301 n\u0303 \u30ab\u3099",
    "初音未来，双马尾，蓝色眼睛。",
    "長い髪の少女が海辺に立っている。ｶﾞﾗｽ ﾊﾝｶｸ",
    "한국어 캡션, 소녀",
    "Девушка у моря",
    "فتاة تقف بجانب البحر",
    "ภาษาไทย ก็",
    "😀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 ❤️",
    "zero\u200bwidth, no\u00a0break, ideographic\u3000space, bom\ufeffinside",
    "ligature ﬁ, fraction ½, circled ①, roman Ⅳ, full width ＡＢＣ",
    "typographic “quotes” ‘single’ – — … •",
    "control \x01\x02\x7f characters",
    "▁sentencepiece mark▁",
    "<|im_start|>user<|im_end|> <think> <b>html</b> &amp;",
    "<lora:name:1.0>, BREAK, AND",
    "https://example.org/a?b=c&d=e#f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "!@#$%^&*_+-=~`|;:'\",.<>/?",
    ", ".join(f"tag number {i} of many" for i in range(200)),
]

SIZES = {
    "num_hidden_layers": 2,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def as_prompt(caption: str) -> str:
    """What a user types for a caption: each parenthesis that is not escaped yet is."""
    return re.sub(r"(?<!\\)([()])", r"\\\1", caption)


@pytest.fixture(scope="module")
def bundled(comfyui):
    qwen, t5 = comfyui[0] / "comfy/text_encoders/qwen25_tokenizer", comfyui[0] / "comfy/text_encoders/t5_tokenizer"
    return load_qwen_tokenizer(qwen), load_t5_tokenizer(t5)


@pytest.fixture(scope="module")
def small_qwen(comfyui, tmp_path_factory):
    """Two layers with the released head size and vocabulary, which ComfyUI's class and tokenizer take for given."""
    path = tmp_path_factory.mktemp("qwen") / "qwen.safetensors"
    generator = torch.Generator().manual_seed(1)
    save_file(qwen_state(151936, 256, generator, head_dim=128), path)
    return path


@pytest.fixture(scope="module")
def theirs(comfyui_oracle, small_qwen):
    return comfyui_oracle("oracle_text.py", load_file(small_qwen), prompts=[as_prompt(c) for c in NASTY], sizes=SIZES)


def test_ids_equal_comfyui(bundled, theirs):
    qwen, t5 = (tokenizer.encode(NASTY) for tokenizer in bundled)
    assert [c for i, c in enumerate(NASTY) if qwen[i] != theirs[f"qwen.{i}"].tolist()] == []
    assert [c for i, c in enumerate(NASTY) if t5[i] != theirs[f"t5.{i}"].tolist()] == []
    assert max(map(len, qwen)) > 600 and max(map(len, t5)) > 600


def test_hidden_states_equal_comfyui(comfyui, small_qwen, theirs):
    """Captions in, hidden states out, through ComfyUI's own encoder; 48 captions, worst measured 1.0e-6."""
    qwen = load_qwen(small_qwen, tokenizer_dir=comfyui[0] / "comfy/text_encoders/qwen25_tokenizer")
    ours = qwen.encode(NASTY)
    assert [h.shape for h in ours] == [theirs[f"hidden.{i}"].shape for i in range(len(NASTY))]
    errors = [relative_error(h, theirs[f"hidden.{i}"]) for i, h in enumerate(ours)]
    assert max(errors) < 1e-5


def test_the_released_ids(bundled):
    qwen, t5 = bundled
    assert qwen.encode([""]) == [[151643]] and qwen.pad_id == 151643
    assert t5.encode(["", "1girl"]) == [[1], [209, 18722, 1]]


@pytest.fixture
def tiny_t5(tmp_path):
    write_t5_tokenizer(tmp_path / "t5", CORPUS)
    return tmp_path / "t5"


@pytest.fixture
def tiny_qwen(tmp_path):
    write_qwen_tokenizer(tmp_path / "qwen", CORPUS)
    return tmp_path / "qwen"


def test_tiny_t5(tiny_t5):
    t5 = load_t5_tokenizer(tiny_t5)
    empty, known, unknown = t5.encode(["", "1girl, solo", "1girl, 漢"])
    assert empty == [1] and known[-1] == 1 and 2 not in known and 2 in unknown
    assert max(known + unknown) < 400
    assert len(t5.encode(["1girl, " * 500])[0]) == 1001


def test_tiny_spiece_model_is_real(tiny_t5):
    sentencepiece = pytest.importorskip("sentencepiece")
    spiece = sentencepiece.SentencePieceProcessor(model_file=str(tiny_t5 / "spiece.model"))
    captions = ["1girl, solo", "A girl stands by the sea.", "sky school 1boy"]
    assert [[*spiece.encode(c), 1] for c in captions] == load_t5_tokenizer(tiny_t5).encode(captions)
    assert (spiece.pad_id(), spiece.eos_id(), spiece.unk_id()) == (0, 1, 2)


def test_tiny_qwen_has_ids_for_every_text(tiny_qwen):
    qwen = load_qwen_tokenizer(tiny_qwen)
    ids = qwen.encode(NASTY)
    assert ids[0] == [qwen.pad_id]
    assert max(max(row) for row in ids) == qwen.pad_id
    assert qwen._tokenizer.decode(ids[NASTY.index("Девушка у моря")]) == "Девушка у моря"
    assert len(qwen.encode(["1girl, solo"])[0]) < len("1girl, solo")


def test_tiny_tokenizers_are_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        write_qwen_tokenizer(tmp_path / name, CORPUS)
        write_t5_tokenizer(tmp_path / name / "t5", CORPUS)
    for file in ("vocab.json", "merges.txt", "t5/tokenizer.json", "t5/spiece.model"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_truncation_and_padding_in_the_file_are_ignored(tiny_t5):
    t5 = load_t5_tokenizer(tiny_t5)
    t5._tokenizer.enable_truncation(8)
    t5._tokenizer.enable_padding(length=8)
    t5._tokenizer.save(str(tiny_t5 / "tokenizer.json"))
    assert [len(ids) for ids in load_t5_tokenizer(tiny_t5).encode(["", "1girl, " * 20])] == [1, 41]


@pytest.mark.parametrize(
    "escaped, plain",
    [(r"a \(b\)", "a (b)"), ("a (b)", "a (b)"), (r"a \\(b", r"a \(b"), ("\\", "\\"), ("", ""), (r"\[x\]", r"\[x\]")],
)
def test_plain_parentheses(escaped, plain):
    assert plain_parentheses(escaped) == plain


def test_escaped_and_plain_parentheses_are_one_caption(tiny_qwen, tiny_t5):
    for tokenizer in (load_qwen_tokenizer(tiny_qwen), load_t5_tokenizer(tiny_t5)):
        escaped, plain = tokenizer.encode([r"sky \(blue\)", "sky (blue)"])
        assert escaped == plain


def test_t5_folder_is_missing(tmp_path):
    with pytest.raises(FileError, match="T5 tokenizer directory not found: [^ ]*nowhere"):
        load_t5_tokenizer(tmp_path / "nowhere")
    with pytest.raises(SettingError, match="T5 tokenizer directory is required"):
        t5_tokenizer_dir("")


def test_t5_folder_is_a_file(tiny_t5):
    with pytest.raises(FileError, match="T5 tokenizer path is not a directory: .*config.json"):
        t5_tokenizer_dir(tiny_t5 / "config.json")


def test_t5_folder_lacks_files(tiny_t5):
    (tiny_t5 / "spiece.model").unlink()
    with pytest.raises(FileError, match=r"T5 tokenizer directory missing required files: \['spiece.model'\]"):
        t5_tokenizer_dir(tiny_t5)


def test_comfyuis_folder_is_known_by_its_place_alone(tiny_t5, tmp_path):
    """It lacks two of the files that sd-scripts asks for; a copy of it elsewhere is refused as any other folder is."""
    for name in ("config.json", "spiece.model"):
        (tiny_t5 / name).unlink()
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tiny_t5 / name).write_text("{}", encoding="utf-8")
    with pytest.raises(FileError, match=r"missing required files: \['config.json', 'spiece.model'\]"):
        t5_tokenizer_dir(str(tiny_t5))
    own = tmp_path / "any/comfy/text_encoders/t5_tokenizer"
    own.parent.mkdir(parents=True)
    tiny_t5.rename(own)
    assert t5_tokenizer_dir(str(own)) == own
    (tmp_path / "link").symlink_to(own)
    assert t5_tokenizer_dir(tmp_path / "link") == tmp_path / "link"


def edit_json(path, change):
    data = json.loads(path.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(post_processor=None), r"an empty caption must be \[1\]"),
        (lambda d: d["model"]["vocab"].extend([f"w{i}", -9.0] for i in range(5000)), "tokens, expected 32100"),
        (
            lambda d: d["model"]["vocab"].extend([f"w{i}", -9.0] for i in range(32100 - len(d["model"]["vocab"]))),
            "32100 tokens",
        ),
    ],
)
def test_another_t5_is_refused(tiny_t5, change, message):
    edit_json(tiny_t5 / "tokenizer.json", change)
    with pytest.raises(FileError, match=f"T5 tokenizer strict validation failed: .*{message}"):
        load_t5_tokenizer(tiny_t5)


def test_qwen_as_t5_is_refused(tiny_qwen, tiny_t5):
    load_qwen_tokenizer(tiny_qwen)._tokenizer.backend_tokenizer.save(str(tiny_t5 / "tokenizer.json"))
    with pytest.raises(FileError, match="strict validation failed: .*an empty caption must be"):
        load_t5_tokenizer(tiny_t5)


def test_damaged_files_are_named(tiny_t5, tiny_qwen):
    (tiny_t5 / "tokenizer.json").write_text("{", encoding="utf-8")
    with pytest.raises(FileError, match="strict validation failed: .*download it again"):
        load_t5_tokenizer(tiny_t5)
    (tiny_qwen / "merges.txt").write_text("not in the vocabulary\n", encoding="utf-8")
    with pytest.raises(FileError, match="Qwen tokenizer cannot be read"):
        load_qwen_tokenizer(tiny_qwen)


def test_comfyui_is_found(tmp_path, monkeypatch, tiny_qwen, tiny_t5):
    checkout = tmp_path / "ComfyUI"
    (checkout / "comfy/text_encoders").mkdir(parents=True)
    tiny_qwen.rename(checkout / "comfy/text_encoders/qwen25_tokenizer")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tiny_t5 / name).write_text("{}", encoding="utf-8")
    tiny_t5.rename(checkout / "comfy/text_encoders/t5_tokenizer")
    monkeypatch.setenv("COMFYUI_PATH", str(checkout))
    qwen, t5 = comfyui_tokenizers()
    assert load_qwen_tokenizer(qwen).pad_id > 255 and load_t5_tokenizer(t5).encode([""]) == [[1]]
    assert qwen_tokenizer_dir(tmp_path / "model.safetensors") == qwen
    (qwen / "merges.txt").unlink()
    rest = comfyui_tokenizers()
    assert rest is None or checkout not in rest[0].parents


def test_the_running_comfyui_is_found(tmp_path, monkeypatch, tiny_qwen, tiny_t5):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tiny_t5 / name).write_text("{}", encoding="utf-8")
    folder = tmp_path / "running" / "comfy" / "text_encoders"
    folder.mkdir(parents=True)
    found = tiny_qwen.rename(folder / "qwen25_tokenizer"), tiny_t5.rename(folder / "t5_tokenizer")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path / "running"))
    assert comfyui_tokenizers() == found


def test_a_pack_near_the_root_is_no_crash(tmp_path, monkeypatch):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(tokenizers_module, "__file__", str(Path(tmp_path.anchor) / "app/anima_core/models/tokenizers.py"))
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert comfyui_tokenizers() is None

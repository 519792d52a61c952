r"""The two tokenizers: Qwen's and T5's. Ids only; nothing is cut and nothing padded.

Captions are text, not prompts: weights are not parsed, but `\(` and `\)` become plain parentheses, as in a prompt, so
that ids equal ComfyUI's for the prompt that asks for the caption.
"""

import os
import sys
import threading
from pathlib import Path

from ..errors import FileError, SettingError

T5_FILES = ("config.json", "spiece.model", "tokenizer.json")  # what sd-scripts asks a T5 folder to hold
BUNDLED_T5_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")  # what ComfyUI brings along
BUNDLED_T5_PLACE = ("comfy", "text_encoders", "t5_tokenizer")
QWEN_FILES = ("vocab.json", "merges.txt")
T5_PAD, T5_EOS = 0, 1
T5_VOCABULARY = 32100
T5_PROBE = ("masterpiece, 1girl, solo", [20975, 6, 209, 18722, 6, 6729, 1])  # ids by ComfyUI 0.29.0
TOY_VOCABULARY = 4096  # below it: a tokenizer of the demo or the tests, which no real model was made with


def plain_parentheses(caption: str) -> str:
    return caption.replace("\\)", ")").replace("\\(", "(")


class T5Tokenizer:
    """encode(captions) -> ids of each, EOS (1) last; an empty caption is [1]. Any thread may ask."""

    def __init__(self, directory: Path) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:
            text = f"{directory}: {_one_line(error)}; download it again"
            raise FileError(f"T5 tokenizer strict validation failed: {text}") from None
        self._lock = threading.Lock()
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        if problem := self._problem():
            text = f"{directory}: {problem}; use google/t5-v1_1-base's tokenizer"
            raise FileError(f"T5 tokenizer strict validation failed: {text}")

    def _problem(self) -> str:
        """Say why these are not the ids that Anima's LLM adapter knows; a look-up past its rows would crash the GPU."""
        if self.encode([""]) != [[T5_EOS]] or self._tokenizer.token_to_id("<pad>") != T5_PAD:
            return "an empty caption must be [1] and <pad> 0"
        size = self._tokenizer.get_vocab_size()
        text, expected = T5_PROBE
        if size >= TOY_VOCABULARY and (size != T5_VOCABULARY or self.encode([text]) != [expected]):
            return f"not Anima's vocabulary ({size} tokens, expected {T5_VOCABULARY}; {text!r} must be {expected})"
        return ""

    def encode(self, captions: list[str]) -> list[list[int]]:
        with self._lock:
            return [e.ids for e in self._tokenizer.encode_batch([plain_parentheses(c) for c in captions])]


class QwenTokenizer:
    """encode(captions) -> ids of each, no special tokens; an empty caption is one pad token (<|endoftext|>).

    Any thread may ask: the library's own raises "Already borrowed" when two do at once.
    """

    def __init__(self, directory: Path) -> None:
        from transformers import Qwen2TokenizerFast  # in transformers 4 the plain name is a slow one that accepts damaged files

        try:
            self._tokenizer = Qwen2TokenizerFast.from_pretrained(str(directory), local_files_only=True)
        except Exception as error:
            raise FileError(f"{directory}: its Qwen tokenizer cannot be read ({_one_line(error)}); download it again") from None
        self._lock = threading.Lock()
        self.pad_id = self._tokenizer.convert_tokens_to_ids("<|endoftext|>")
        if self.pad_id is None:
            raise FileError(f"{directory}: the Qwen tokenizer has no <|endoftext|>; use Qwen3-0.6B's")

    def encode(self, captions: list[str]) -> list[list[int]]:
        texts = [plain_parentheses(c) for c in captions]
        with self._lock:
            return [self._tokenizer(t, truncation=False)["input_ids"] if t else [self.pad_id] for t in texts]


def load_t5_tokenizer(directory: str | Path) -> T5Tokenizer:
    """Load from a folder with config.json, spiece.model and tokenizer.json, or ComfyUI's own. Raises FileError."""
    return T5Tokenizer(t5_tokenizer_dir(directory))


def load_qwen_tokenizer(directory: str | Path) -> QwenTokenizer:
    return QwenTokenizer(Path(directory))


def t5_tokenizer_dir(directory: str | Path) -> Path:
    """Check that a folder holds a T5 tokenizer, in sd-scripts' words when it does not."""
    if not str(directory):
        raise SettingError("T5 tokenizer directory is required. Set `model.t5_tokenizer_dir`.")
    path = Path(directory)
    if not path.exists():
        raise FileError(f"T5 tokenizer directory not found: {path}. Set `model.t5_tokenizer_dir`.")
    if not path.is_dir():
        raise FileError(f"T5 tokenizer path is not a directory: {path}. Name the folder that holds {', '.join(T5_FILES)}.")
    if is_comfyuis_t5(path):
        return path
    missing = [name for name in T5_FILES if not (path / name).is_file()]
    if missing:
        raise FileError(f"T5 tokenizer directory missing required files: {missing} in {path}. Download the whole folder.")
    return path


def is_comfyuis_t5(path: Path) -> bool:
    """Tell ComfyUI's own folder, by its place; it has fewer files than sd-scripts asks for."""
    here = BUNDLED_T5_PLACE in (path.absolute().parts[-3:], path.resolve().parts[-3:])
    return here and all((path / name).is_file() for name in BUNDLED_T5_FILES)


def comfyui_tokenizers() -> tuple[Path, Path] | None:
    """Find ComfyUI's (Qwen, T5) tokenizer folders; nothing is imported.

    Looked for in `$COMFYUI_PATH`, the running ComfyUI (on `sys.path`), the one around this pack, and comfy-cli's usual place.
    """
    around = [str(place) for place in Path(__file__).absolute().parents[4:5]]  # none, where the pack lies near the root
    places = [os.environ.get("COMFYUI_PATH", ""), *sys.path, *around, "~/comfy/ComfyUI"]
    for place in places:
        if place:
            t5 = Path(place).expanduser().joinpath(*BUNDLED_T5_PLACE)
            qwen = t5.with_name("qwen25_tokenizer")
            if _holds_qwen(qwen) and all((t5 / name).is_file() for name in BUNDLED_T5_FILES):
                return qwen, t5
    return None


def qwen_tokenizer_dir(weights: str | Path, given: str = "") -> Path:
    """Find Qwen's tokenizer: as given, in the model's folder, beside its file, or ComfyUI's. Raises SettingError, FileError."""
    if given:
        if not _holds_qwen(Path(given)):
            way_out = "name the folder of Qwen3-0.6B"
            raise SettingError(f"`model.qwen_tokenizer_dir`={given}: holds no vocab.json and merges.txt; {way_out}")
        return Path(given)
    weights = Path(weights)
    bundled = comfyui_tokenizers()
    own = weights if weights.is_dir() else weights.parent
    in_diffusers = own / "tokenizer", own.parent / "tokenizer"  # of the folder of all models, or of one of them
    for folder in (own, *in_diffusers, bundled[0] if bundled else None):
        if folder is not None and _holds_qwen(folder):
            return folder
    advice = "set `model.qwen_tokenizer_dir` or the environment's COMFYUI_PATH"
    raise FileError(f"{weights}: no Qwen tokenizer (vocab.json, merges.txt) beside it; {advice}")


def _holds_qwen(folder: Path) -> bool:
    return all((folder / name).is_file() for name in QWEN_FILES)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

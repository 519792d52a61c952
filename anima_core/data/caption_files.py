"""Caption files: which endings they have, whether they are JSON, and their encodings.

UTF-8 is the rule; old editors on Windows leave GBK, Shift-JIS, UTF-16 or Latin-1. Bytes that are not UTF-8 are read in each
candidate, and the one that gives the most ordinary text wins: common hanzi, kana and common kanji, single accented letters.
Text that is ordinary in none of them, or in two, is not guessed at.
"""

import codecs
from collections.abc import Callable
from pathlib import Path

from ..errors import FileError
from .json_captions import read_json_caption

BOMS = (
    (codecs.BOM_UTF8, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32-be", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16-le", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16-be", "UTF-16"),
)
MIN_ORDINARY = 0.5  # share of the non-ASCII characters that must be ordinary
MIN_LEAD = 0.2  # by which the best reading must exceed the second
OTHER_ENDINGS = {"txt", "caption", "cap", "tags", "prompt"}  # captions of other tools, named when they are not read
JSON, TEXT = ".json", (".txt", ".caption")


def caption_endings(extension: str) -> tuple[str, ...]:
    """Return the endings that a picture's caption may have, the first found wins.

    The default, .txt, also finds .caption, which sd-scripts reads when nothing is said; JSON also both, as in AnimaLoraStudio.
    The dot may be left out.
    """
    ending = extension if extension.startswith(".") or not extension else f".{extension}"
    return {JSON: (JSON, *TEXT), TEXT[0]: TEXT}.get(ending, (ending,))


def read_caption(path: str | Path) -> tuple[str, str]:
    """Return the text of a caption file without the white space around it, and the encoding it was in.

    Raises FileError, naming the file, when it cannot be read.
    """
    try:
        text, encoding = decode(Path(path).read_bytes())
    except UnicodeError as error:
        raise FileError(f"{path}: {error}; save the caption as UTF-8") from None
    except OSError as error:
        raise FileError(f"{path}: cannot be read ({error.strerror}); check the caption file") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").strip(), encoding


def check_json(path: str | Path, text: str) -> None:
    """Raise FileError, naming the file and the line, for a JSON caption that cannot be read."""
    try:
        read_json_caption(text)
    except ValueError as error:
        raise FileError(f"{path}: {error}; repair the caption") from None


def decode(data: bytes) -> tuple[str, str]:
    """Return the text, and the encoding's name for people. Raises UnicodeError, saying what was found, when none fits well."""
    for mark, codec, name in BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(codec), name
    if b"\0" in data:
        return _utf16(data), "UTF-16"
    try:
        return data.decode("utf-8"), "UTF-8"
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at {error.start}"
    readings = sorted(_readings(data), reverse=True)
    best, runner_up = (*readings, (0.0, "", ""), (0.0, "", ""))[:2]
    if best[0] < MIN_ORDINARY or best[0] - runner_up[0] < MIN_LEAD:
        raise UnicodeError(f"not UTF-8 ({byte}) nor clearly anything else")
    return best[2], best[1]


def _utf16(data: bytes) -> str:
    """Decode UTF-16 without a mark in the byte order that gives more ASCII. Raises UnicodeError when neither gives text."""
    texts = [text for codec in ("utf-16-le", "utf-16-be") if (text := _text(data, codec))]
    if not texts:
        raise UnicodeError("not text (zero bytes)")
    return max(texts, key=lambda text: sum(c < "\x80" for c in text))


def _text(data: bytes, codec: str) -> str:
    """Decode; empty when that fails, or gives characters that no text has."""
    try:
        text = data.decode(codec)
    except UnicodeDecodeError:
        return ""
    return "" if any(c < " " and c not in "\t\r\n" for c in text) else text


def _readings(data: bytes) -> list[tuple[float, str, str]]:
    """Return (how ordinary the text would be, name, text) for each candidate."""
    found = []
    for codec, name, ordinary in CANDIDATES:
        text = _text(data, codec)
        places = [i for i, c in enumerate(text) if c > "\x7f"]
        found.append((sum(ordinary(text, i) for i in places) / max(1, len(places)), name, text))
    return found


def _ordinary_gbk(text: str, i: int) -> float:
    """Judge a character as GBK.

    GB2312 sorts its 3755 common hanzi first, lead bytes B0 to D7; A1 and A3 are punctuation and full-width forms.
    """
    lead = _lead_byte(text[i], "gb2312")
    return 1.0 if lead in (0xA1, 0xA3) or 0xB0 <= lead <= 0xD7 else 0.6 if lead else 0.0


def _ordinary_shift_jis(text: str, i: int) -> float:
    """Judge a character as Shift-JIS: kana, full-width forms and the common kanji of JIS level 1 are ordinary.

    Half-width katakana are not: text in other encodings looks like them.
    """
    c = text[i]
    if "\u3000" <= c <= "\u30ff" or "\uff01" <= c <= "\uff5e":
        return 1.0
    lead = _lead_byte(c, "shift_jis")
    return 1.0 if 0x88 <= lead <= 0x98 else 0.6 if lead >= 0x99 and not "\uff61" <= c <= "\uff9f" else 0.0


def _ordinary_latin(text: str, i: int) -> float:
    """Judge a character as Latin-1: an accented letter or a typographic mark with ASCII around it is ordinary.

    In other encodings high bytes come in rows.
    """
    alone = not any(c > "\x7f" for c in text[max(0, i - 1) : i] + text[i + 1 : i + 2])
    usual = ("À" <= text[i] <= "ÿ" and text[i] not in "×÷") or text[i] in "‘’“”–—…«»¿¡°ŒœŠšŽžŸ"
    return float(usual) * (1.0 if alone else 0.3)


def _lead_byte(character: str, codec: str) -> int:
    try:
        data = character.encode(codec)
    except UnicodeEncodeError:
        return 0
    return data[0] if len(data) == 2 else 0


Ordinary = Callable[[str, int], float]
CANDIDATES: tuple[tuple[str, str, Ordinary], ...] = (
    ("gb18030", "GBK", _ordinary_gbk),
    ("cp932", "Shift-JIS", _ordinary_shift_jis),
    ("cp1252", "Latin-1", _ordinary_latin),
)

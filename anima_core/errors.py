"""The errors a user may see. Each message is one line: the setting or file, its value, and the way out.

A message names a setting as `section.field`, in backticks, alone (`network.rank`) or with a value (`train.memory=keep`).
Whoever shows it puts the word that its user knows in that place: a flag on the command line, a widget in the graph.
"""

import re
import traceback
from collections.abc import Mapping

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NAMED = re.compile(r"`([a-z_]+\.[a-z0-9_]+)(=[^`]*)?`")


def in_words(text: str, words: Mapping[str, str] | None = None) -> str:
    """Replace each setting that a text names by the user's word for it; one without a word is named as in `config.toml`.

    words: `section.field`, or `section.field=value` where a value has a word of its own, -> the user's word.
    """

    def word(found: re.Match[str]) -> str:
        name, value = found[1], found[2] or ""
        known = words or {}
        return known.get(name + value) or known.get(name, name.removeprefix("train.")) + value

    return NAMED.sub(word, text)


def printable(text: str) -> str:
    """Show control characters and line breaks escaped: a key or a file's name may hold them, and a message is one line."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class AnimaError(Exception):
    """Base of every error that is meant for the user. The command line prints it without a traceback."""

    exit_status = 1
    __module__ = "anima_trainer"  # ComfyUI prints it before the name, and its own for a node pack is the path of a file

    def __init_subclass__(cls) -> None:
        cls.__module__ = AnimaError.__module__

    def __init__(self, message: str) -> None:
        self.text = printable(str(message))
        super().__init__(in_words(self.text))

    def said(self, words: Mapping[str, str]) -> str:
        """Return the message in the words of one edge: `section.field` -> flag or widget."""
        return in_words(self.text, words)


class SettingError(AnimaError):
    """A setting that is refused, before anything is loaded."""

    exit_status = 2

    @property
    def field(self) -> str:
        """The first setting that the message names, as "section.field"; empty when it names none."""
        found = NAMED.search(self.text)
        return found[1] if found else ""


class FileError(AnimaError):
    """A file or folder that cannot be used: missing, truncated, of the wrong kind, or not writable."""

    exit_status = 2


class CheckpointError(FileError):
    """A checkpoint of another version, from which no run goes on. A full disk or a locked name is another error."""


class RunError(AnimaError):
    """A failure in the run itself: non-finite loss, an adapter that does not move, out of memory."""


class Interrupted(AnimaError):
    """The user stopped the run; its state was saved first."""

    exit_status = 130


# What torch, cuBLAS, HIP, XPU (out of device memory, out of resources) and MPS say, in lower case.
OUT_OF_MEMORY = ("out of memory", "alloc_failed", "erroroutofmemory", "error_out_of_")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Recognise torch's own error, and what drivers and libraries say in a plain RuntimeError when they fail first."""
    text = str(error).lower()
    return type(error).__name__ == "OutOfMemoryError" or any(words in text for words in OUT_OF_MEMORY)


def let_go(error: BaseException | None) -> None:
    """Clear the local variables of the calls that an error ended: it would keep alive what they held, a model say."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__

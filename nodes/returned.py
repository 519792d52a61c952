"""What each training node of this server returned last: its sentence, and whether the adapter is still where it was."""

from collections import Counter
from dataclasses import dataclass

from .on_disk import file_state
from .tell import say, this_node


@dataclass(frozen=True)
class Returned:
    sentence: str
    adapter: str
    state: str  # of the adapter's file


# A prompt's worker thread writes and reads these; the server is one process.
_returned: dict[str, Returned] = {}  # by node id
_changes: Counter[str] = Counter()


def remember(sentence: str, adapter: str) -> None:
    """Say what the node that is executed returns, and remember it."""
    say(sentence)
    _returned[this_node()] = Returned(sentence, adapter, file_state(adapter))


def forget() -> None:
    _returned.pop(this_node(), None)


def changes() -> int:
    """Count how often the adapter that this node had returned was found renamed, deleted or written anew.

    It is part of the fingerprint of a training node, so that ComfyUI's cache never hands on a path where nothing is. While
    the adapter is as it was, the node says its sentence again: it may not be executed, and the page may be a new one.
    """
    last = _returned.get(this_node())
    if last is not None and file_state(last.adapter) == last.state:
        say(last.sentence)
    elif last is not None:
        forget()
        _changes[this_node()] += 1
    return _changes[this_node()]

"""What every node of this pack shares: settings read from their declarations, errors in the graph's words."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from comfy_api.latest import io

from ..anima_core.errors import AnimaError
from .widgets import Widget


class AnimaNode(io.ComfyNode):
    """A node that implements `run`. widgets: its inputs that are settings. own_words: its inputs that stand for a setting."""

    widgets: ClassVar[Sequence[Widget]] = ()
    own_words: ClassVar[dict[str, str]] = {}
    run: ClassVar[Callable[..., io.NodeOutput]]

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        try:
            return cls.run(**inputs)
        except AnimaError as error:
            raise type(error)(error.said(graph_words(cls))) from None


def graph_words(node: type[AnimaNode] | None = None) -> dict[str, str]:
    """Return what the graph calls each setting: `section.field` -> the widget of the node itself, else of any node."""
    found: dict[str, str] = {}
    for cls in (*subclasses(AnimaNode), *([node] if node else [])):
        for w in cls.widgets:
            found[w.setting] = w.name
            found |= {f"{w.setting}={ours}": f"{w.name}={word}" for word, ours in w.words.items()}
        found |= cls.own_words
    return found


def subclasses(cls: type[AnimaNode]) -> list[type[AnimaNode]]:
    return [found for direct in cls.__subclasses__() for found in (direct, *subclasses(direct))]

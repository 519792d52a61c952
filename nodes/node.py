"""What every node of this pack shares: settings read from their declarations, errors in the graph's words and on the node."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from comfy_api.latest import io

from ..anima_core.errors import AnimaError
from .tell import say, this_node
from .widgets import Widget

_failed: set[str] = set()  # ids of nodes that show an error


class AnimaNode(io.ComfyNode):
    """A node that implements `run`. widgets: its inputs that are settings. own_words: its inputs that stand for a setting."""

    widgets: ClassVar[Sequence[Widget]] = ()
    own_words: ClassVar[dict[str, str]] = {}
    run: ClassVar[Callable[..., io.NodeOutput]]

    @classmethod
    def execute(cls, **inputs: Any) -> io.NodeOutput:
        """Run the node. Its error stands on the node, too: ComfyUI's own notice does not show the line."""
        if this_node() in _failed:
            _failed.remove(this_node())
            say(" ")  # a text stays until another comes, and an empty one is ignored
        try:
            return cls.run(**inputs)
        except Exception as error:
            told = type(error)(error.said(graph_words(cls))) if isinstance(error, AnimaError) else error
            _failed.add(this_node())
            say(str(told) or type(told).__name__)
            if told is error:
                raise
            raise told from None

    @classmethod
    def workflow(cls) -> dict[str, Any] | None:
        """Return the graph that is executed, as the page has it; None where a prompt was posted without."""
        posted = getattr(getattr(cls, "hidden", None), "extra_pnginfo", None)
        found = posted.get("workflow") if isinstance(posted, dict) else None
        return found if isinstance(found, dict) else None


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

"""What becomes of captions before they are trained, for whoever wants more than a dataset node shows."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.settings import SubsetConfig
from . import types
from .dataset_widgets import ALL
from .node import AnimaNode
from .widgets import inputs, settings_from, widget

A_LINE = "one a line"  # a placeholder is all that the classic renderer shows of a text's name


class AnimaCaptionRules(AnimaNode):
    widgets = (
        widget("caption_trigger", SubsetConfig),
        widget("caption_replace", SubsetConfig, multiline=True, placeholder=f"replace: old => new, {A_LINE}"),
        widget("caption_blacklist", SubsetConfig, multiline=True, placeholder=f"blacklist: tag or re:pattern, {A_LINE}"),
        widget("category_shuffle", SubsetConfig, multiline=True, placeholder=f"shuffle: artist=0.5, {A_LINE}"),
        widget("category_dropout", SubsetConfig, multiline=True, placeholder=f"dropout: artist=0.3, {A_LINE}"),
        widget("caption_order", SubsetConfig, multiline=True, placeholder=f"order: categories, {A_LINE}"),
        widget("caption_sources", SubsetConfig, multiline=True, placeholder=f"sources: .nl.txt=1, {A_LINE}"),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaCaptionRules",
            display_name="Anima Caption Rules",
            category=types.DATA,
            description="Rules for the captions of a dataset: a trigger word, renames, tags that are left out, chances by "
            "category, several captions of a picture. The files stay as they are; Inspect Anima Dataset shows what is trained.",
            search_aliases=["trigger word", "blacklist", "tag dropout", "shuffle tags", "json captions", "replace tags"],
            inputs=inputs(cls.widgets, ALL),
            outputs=[types.Captions.Output(display_name="caption_rules")],
        )

    @classmethod
    def run(cls, **given: Any) -> io.NodeOutput:
        found = settings_from(cls.widgets, given, SubsetConfig)
        SubsetConfig("any folder", **found)  # what is wrong is said on this node
        return io.NodeOutput(found)


NODES: list[type[io.ComfyNode]] = [AnimaCaptionRules]

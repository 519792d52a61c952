"""What an adapter file says about itself."""

from typing import Any

from comfy_api.latest import io

from ..anima_core.settings import MetadataConfig
from . import types
from .node import AnimaNode
from .widgets import inputs, settings_from, widget


class AnimaMetadata(AnimaNode):
    widgets = (
        widget("trigger_phrase", MetadataConfig),
        widget("title", MetadataConfig),
        widget("author", MetadataConfig),
        widget("description", MetadataConfig, multiline=True, placeholder="description"),
        widget("usage_hint", MetadataConfig),
        widget("tags", MetadataConfig),
        widget("license", MetadataConfig),
        widget("thumbnail", MetadataConfig),
        widget("tag_frequency", MetadataConfig),
    )

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AnimaMetadata",
            display_name="Anima Adapter Metadata",
            category=types.TRAINING,
            description="What LoRA managers show of the adapter: trigger words, title, author, a small picture of the last "
            "preview, the tags it was trained on.",
            search_aliases=["trigger words", "modelspec", "lora metadata", "thumbnail"],
            inputs=inputs(cls.widgets),
            outputs=[types.Metadata.Output(display_name="metadata")],
        )

    @classmethod
    def run(cls, **given: Any) -> io.NodeOutput:
        return io.NodeOutput(MetadataConfig(**settings_from(cls.widgets, given, MetadataConfig)))


NODES: list[type[io.ComfyNode]] = [AnimaMetadata]

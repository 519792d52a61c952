"""Settings of what an adapter file says to those who get it."""

from dataclasses import dataclass

from .setting import check, require, setting

MOST_CHARACTERS = 20_000  # of one text: a header is read whole whenever a list of adapters is shown


@dataclass(frozen=True)
class MetadataConfig:
    """What LoRA managers and model pages show of an adapter: Stability's `modelspec.*` and sd-scripts' `ss_*`."""

    title: str = setting("", "Title of the adapter. Empty: its file's name.", resume="free", shapes=False)
    author: str = setting("", "Author of the adapter.", resume="free", shapes=False)
    description: str = setting("", "What the adapter is for.", resume="free", shapes=False)
    license: str = setting("", "Licence of the adapter.", resume="free", shapes=False)
    tags: str = setting("", "Tags of the adapter for lists of models, comma-separated.", resume="free", shapes=False)
    usage_hint: str = setting("", "How the adapter is best used, such as its strength.", resume="free", shapes=False)
    trigger_phrase: str = setting("", "Words that call the adapter up, comma-separated.", resume="free", shapes=False)
    picture: str = setting(
        "", "A picture whose thumbnail the file carries. Empty: the newest preview.", path="read", resume="free", shapes=False
    )
    thumbnail: bool = setting(
        True, "Let the file carry a small picture, of 256 px at most, which LoRA managers show.", resume="free", shapes=False
    )
    tag_frequency: bool = setting(
        True, "Let the file say how often each tag stands in the captions, by folder.", resume="free", shapes=False
    )

    def __post_init__(self) -> None:
        check(self)
        for name in ("title", "author", "description", "license", "tags", "usage_hint", "trigger_phrase"):
            length = len(getattr(self, name))
            rule = f"must have at most {MOST_CHARACTERS:,} characters"
            require(length <= MOST_CHARACTERS, f"metadata.{name}", f"{length:,} characters", rule)

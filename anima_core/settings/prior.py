"""Settings of what the base model draws and an adapter shall leave as it is."""

from dataclasses import dataclass

from .setting import check, require, setting


@dataclass(frozen=True)
class PriorConfig:
    """Prior preservation: outside of masks, and for captions of the class that the pictures' subject belongs to."""

    masked: float = setting(
        0.0,
        "How much the black of a picture's mask is kept as the base model draws it; 0 is off, 1 counts each pixel there as one "
        "that is trained. About 1.4 times as much to compute.",
        low=0,
    )
    weight: float = setting(
        0.0,
        "How much what the base model draws for the class is kept; 0 is off, 1 counts it as much as the pictures. About 2.4 "
        "times as much to compute.",
        low=0,
    )
    trigger: str = setting(
        "",
        "The words of the captions that call the adapter up, which `prior.class_words` replace. Empty: they replace the whole "
        "caption.",
    )
    class_words: str = setting(
        "",
        "What the subject is to the base model, such as woman where `prior.trigger` is a name. Empty, and without "
        "`prior.trigger`: what is drawn without a prompt is kept.",
    )

    def __post_init__(self) -> None:
        check(self)
        same = bool(self.trigger) and self.trigger == self.class_words
        way_out = "is the same as `prior.trigger`; name what the subject is without it, such as woman"
        require(not same, "prior.class_words", repr(self.class_words), way_out)

    def warnings(self) -> list[str]:
        """Say what was set without effect."""
        words = next((name for name in ("trigger", "class_words") if getattr(self, name)), "")
        if not words or self.weight:
            return []
        return [f"`prior.{words}`={getattr(self, words)!r} has no effect: `prior.weight` is 0; 1 is usual"]

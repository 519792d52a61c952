"""Widgets of settings: a node names the settings that it shows, their declaration says the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_origin, get_type_hints

from comfy_api.latest import io

from ..anima_core.errors import in_words
from ..anima_core.settings.setting import name_of, settings_of


@dataclass(frozen=True)
class Widget:
    """An input of a node that is a setting.

    default, why: where the graph starts from another value than the setting does. words: the graph's values -> ours.
    look: what only the widget knows: min, max, step, advanced, optional, multiline, options, a tooltip of its own, …
    """

    name: str
    owner: type
    field: str
    default: Any
    why: str
    words: Mapping[str, Any]
    look: dict[str, Any]

    @property
    def setting(self) -> str:
        return name_of(self.owner, self.field)

    def input(self, words: Mapping[str, str]) -> io.Input:
        """Make the input for a schema. words: what its node calls other settings, for the tooltip."""
        facts, kind = settings_of(self.owner)[self.field], get_type_hints(self.owner)[self.field]
        options = list(self.words) or list(facts.choices)
        common = {"default": self.default, "optional": True, "tooltip": in_words(facts.help, words)}
        if "options" in self.look or options:
            return io.Combo.Input(self.name, **({"options": options} | common | self.look))
        if kind is bool:
            return io.Boolean.Input(self.name, **(common | self.look))
        if kind in (int, float):
            bounds = {"min": facts.low, "max": facts.high}
            limits = {end: kind(bound) for end, bound in bounds.items() if bound is not None}
            make = io.Int.Input if kind is int else io.Float.Input
            return make(self.name, **(common | limits | self.look))
        return io.String.Input(self.name, **(common | self.look))

    def value(self, given: Any) -> Any:
        """Return what a widget holds as the setting's value: words as ours, text as a tuple of its lines."""
        if get_origin(get_type_hints(self.owner)[self.field]) is tuple and isinstance(given, str):
            return lines(given)
        return self.words.get(given, given) if self.words else given


def widget(
    name: str, owner: type, field_name: str = "", *, why: str = "", words: Mapping[str, Any] | None = None, **look: Any
) -> Widget:
    """Name a setting of a class as an input of a node, called as the setting is unless another field is given."""
    field_name = field_name or name
    default = look.pop("default", None)
    assert (default is None) == (not why), f"{name}: another default needs its reason"
    if default is None:
        default = owner.__dataclass_fields__[field_name].default  # type: ignore[attr-defined]
        default = next((word for word, ours in (words or {}).items() if ours == default), default)
        default = "\n".join(default) if isinstance(default, tuple) else default
    return Widget(name, owner, field_name, default, why, words or {}, look)


def inputs(widgets: Sequence[Widget], others: Sequence[Widget] = ()) -> list[io.Input]:
    """Make the inputs of a node's widgets, in their order. others: of the node it is linked to; tooltips name them, too."""
    words = {w.setting: w.name for w in (*others, *widgets)}
    return [w.input(words) for w in widgets]


def settings_from(widgets: Sequence[Widget], given: Mapping[str, Any], owner: type) -> dict[str, Any]:
    """Return the settings of one class among a node's inputs, by field; inputs that a prompt lacks have their default."""
    own = [(w, given.get(w.name)) for w in widgets if w.owner is owner]  # ComfyUI gives None for a nested one that is lacking
    return {w.field: w.value(w.default if value is None else value) for w, value in own}


def lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())


def strength_input(tooltip: str) -> io.Input:
    return io.Float.Input("strength", default=1.0, min=-10.0, max=10.0, step=0.05, optional=True, tooltip=tooltip)


def name_input(default: str) -> io.Input:
    """Make the input of a file's name, which `files.unused` makes one that is not taken."""
    tooltip = "File name without extension; -2, -3 … is added if taken."
    return io.String.Input("name", default=default, optional=True, tooltip=tooltip)


def block_weights_input(what: str) -> io.Input:
    """Make the input of a text that `read_block_weights` reads. what: the weights do, the beginning of its tooltip."""
    return io.String.Input(
        "block_weights",
        default="",
        multiline=True,
        optional=True,
        placeholder="block weights: 0-9=0, 10-27=1",
        tooltip=f"{what}, as 0-9=0, 10-27=0.5; llm_adapter=0 and other=0 are all layers elsewhere. Or a list with a number "
        "for each block.",
    )

"""Which layers of a model get an adapter, and at what rank."""

import fnmatch
import re
from collections.abc import Callable

from torch import nn

from ..errors import SettingError
from ..settings import NetworkConfig
from ..settings.network import pattern_value

DEFAULT = "attn+mlp"
LAYERS = re.compile(r"^(?:llm_adapter\.)?blocks\.\d+\.(?P<place>[a-z_]+)\.(?P<leaf>.+)$")

Matches = Callable[[str], bool]


def words_of(name: str) -> set[str]:
    """Return the preset words that a linear layer answers to."""
    if name.startswith("llm_adapter."):
        return {"llm_adapter", "all"} if LAYERS.match(name) else {"all"}
    if "adaln_modulation" in name:
        return {"adaln", "all"}
    found = LAYERS.match(name)
    if found is None:
        return {"embedders", "all"}
    return {"mlp" if found["place"] == "mlp" else "attn", "all"}


WORDS = ("attn", "mlp", "adaln", "embedders", "llm_adapter", "all")


def linear_names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def pattern_matcher(pattern: str, setting: str) -> Matches:
    """Read a pattern: re:<regex> searches the whole name, * and ? glob it; else it is the last part or a dotted suffix.

    Raises SettingError for what is no regular expression.
    """
    pattern = pattern.removeprefix("transformer.")
    if pattern.startswith("re:"):
        try:
            found = re.compile(pattern[3:])
        except re.error as error:
            raise SettingError(f"`{setting}` {pattern!r}: not a regular expression ({error}); repair it") from None
        return lambda name: found.search(name) is not None
    if "*" in pattern or "?" in pattern:
        return lambda name: fnmatch.fnmatchcase(name, pattern)
    return lambda name: name == pattern or name.endswith(f".{pattern}")


def select_targets(model: nn.Module, config: NetworkConfig) -> dict[str, int]:
    """Return the names of the layers to adapt, in model order -> rank.

    Raises SettingError for an unknown preset word, and for a pattern that matches nothing.
    """
    names = linear_names(model)
    wanted = preset_words(config.targets)
    chosen = {name for name in names if words_of(name) & wanted}
    chosen -= matching(config.exclude, names, "network.exclude")
    chosen |= matching(config.include, names, "network.include")
    ranks = [(pattern_value(item), matching((pattern_value(item)[0],), names, "network.ranks")) for item in config.ranks]
    result = {}
    for name in names:
        if name in chosen:
            rank = next((int(value) for (_, value), found in ranks if name in found), config.rank)
            if rank > 0:
                result[name] = rank
    return result


def preset_words(targets: str) -> set[str]:
    """Split "attn+mlp" into its words; a leading + adds to the default. Raises SettingError for an unknown word."""
    text = targets.strip()
    if text.startswith("+"):
        text = DEFAULT + text
    words = {word.strip() for word in text.split("+") if word.strip()}
    unknown = words - set(WORDS)
    if unknown:
        raise SettingError(
            f"`network.targets`={targets!r}: unknown {', '.join(sorted(unknown))}; the words are {', '.join(WORDS)}"
        )
    return words


def matching(patterns: tuple[str, ...], names: list[str], setting: str) -> set[str]:
    """Return the names that any pattern matches. Raises SettingError for a pattern that matches none."""
    found = set()
    for pattern in patterns:
        hits = set(filter(pattern_matcher(pattern, setting), names))
        if not hits:
            examples = ", ".join(names[len(names) // 3 :: len(names) // 3][:3])
            raise SettingError(f"`{setting}` {pattern!r}: matches no layer; names look like {examples}")
        found |= hits
    return found


def alpha_of(name: str, config: NetworkConfig) -> float:
    """Return the alpha of the first pattern of `alphas` that matches, else that of all."""
    return first_match(name, config.alphas, "network.alphas", config.alpha)


def learning_rate_of(name: str, config: NetworkConfig, base: float) -> float:
    """Return the rate of the first pattern of `learning_rates` that matches, else the base."""
    return first_match(name, config.learning_rates, "network.learning_rates", base)


def first_match(name: str, items: tuple[str, ...], setting: str, default: float) -> float:
    for item in items:
        pattern, value = pattern_value(item)
        if pattern_matcher(pattern, setting)(name):
            return value
    return default

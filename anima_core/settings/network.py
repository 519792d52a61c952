"""Settings of the adapter."""

from dataclasses import dataclass

from ..errors import SettingError
from .registry import plain
from .setting import check, require, setting

FULL_MATRIX_RANK = 100000  # sd-scripts-anima: a rank this large asks for a LoKr whose factors are both whole

PATTERNS = "One pattern a line: re:<regex>, a glob with * or ?, or the end of a module name such as mlp.layer1."


@dataclass(frozen=True)
class NetworkConfig:
    """The adapter. Patterns: `re:<regex>` searches, `*` and `?` glob the whole name, else a leaf or dotted suffix."""

    type: str = setting("lora", "Type of the adapter, by its name in anima_core/adapters/types.", resume="fixed")
    rank: int = setting(
        32,
        "Rank, the capacity: 8 to 16 for a character, 32 for most styles; the file grows with it (32: about 92 MB).",
        low=1,
        resume="fixed",
    )
    alpha: float = setting(
        32.0,
        "Strength: the adapter is scaled by alpha / rank. Equal to the rank is a good rule, and 0 stands for it.",
        low=0,
        resume="fixed",
    )
    targets: str = setting(
        "attn+mlp",
        "Which layers the adapter changes. attn+mlp is right for most; + adds to it. Leave the LLM adapter out unless you "
        "know why: the model's author freezes it, too.",
        resume="fixed",
    )
    include: tuple[str, ...] = setting((), f"Patterns of further layers. {PATTERNS}", resume="fixed")
    exclude: tuple[str, ...] = setting((), f"Patterns of layers that are left out. {PATTERNS}", resume="fixed")
    ranks: tuple[str, ...] = setting(
        (), "Ranks of certain layers, pattern=rank a line, the first match counts; 0 leaves a layer out.", resume="fixed"
    )
    alphas: tuple[str, ...] = setting(
        (),
        "Alphas of certain layers, pattern=alpha a line, the first match counts; 0 stands for the layer's rank.",
        resume="fixed",
    )
    learning_rates: tuple[str, ...] = setting(
        (), "Learning rates of certain layers, pattern=rate a line, the first match counts.", resume="fixed"
    )
    dropout: float = setting(0.0, "Chance that a value inside the adapter is zeroed.", low=0, below=1, resume="fixed")
    rank_dropout: float = setting(0.0, "Chance that a rank is left out of a step.", low=0, below=1, resume="fixed")
    module_dropout: float = setting(0.0, "Chance that a layer's adapter is left out of a step.", low=0, below=1, resume="fixed")
    loraplus_lr_ratio: float = setting(
        1.0,
        "LoRA+: learning rate of the zero-initialised factor, relative to the other. 1 is off, 16 is usual.",
        above=0,
        resume="fixed",
    )
    factor: int = setting(
        8, "Size of the small factor of a LoKr: 4 to 16; smaller means a larger file, -1 balances the two.", resume="fixed"
    )
    full_matrix: bool = setting(
        False,
        "Keep both factors of a LoKr whole: the usual choice for styles. Off: the large factor has a rank.",
        resume="fixed",
    )
    decompose_both: bool = setting(False, "Give the small factor of a LoKr a rank as well.", resume="fixed")
    dora: bool = setting(
        False,
        "DoRA: the adapter turns each column of a weight, and a number of its own sets the column's length. Closer to full "
        "training at low ranks, and slower.",
        resume="fixed",
    )
    tlora_min_rank: int = setting(
        0,
        "T-LoRA: ranks that a picture of pure noise trains; the less noise, the more, up to all. 0 is off; 1, or an eighth of "
        "the rank, is usual where there are few pictures.",
        low=0,
        resume="fixed",
    )
    tlora_alpha: float = setting(
        1.0,
        "T-LoRA: exponent of 1 - noise. 1 lets the ranks rise evenly, 2 keeps more of them for little noise.",
        above=0,
        resume="fixed",
    )
    tlora_schedule: str = setting(
        "linear", "T-LoRA: how ranks rise as noise falls.", choices=("linear", "cosine"), resume="fixed"
    )
    train_norm: bool = setting(False, "Also train the norms' weights.", resume="fixed")
    weights: str = setting(
        "",
        "Adapter file of any trainer to start from, instead of from nothing. What is not set here is taken from it.",
        path="read",
    )

    def __post_init__(self) -> None:
        check(self)
        require(self.factor == -1 or self.factor >= 1, "network.factor", self.factor, "must be -1 or at least 1")
        if self.tlora_min_rank:
            other = " or `network.dora` to false" if self.dora else ""
            name, rule = "network.tlora_min_rank", f"only the ranks of a plain lora can follow the noise; set it to 0{other}"
            require(plain(self.type) == "lora" and not self.dora, name, self.tlora_min_rank, rule)
            require(self.tlora_min_rank <= self.rank, name, self.tlora_min_rank, f"must be at most the rank, {self.rank}")
        for name in ("ranks", "alphas", "learning_rates"):
            for item in getattr(self, name):
                pattern, value = pattern_value(item, f"network.{name}")
                require(value >= 0, f"network.{name}", f"{pattern}={value:g}", "must be at least 0")


def pattern_value(item: str, setting: str = "network.ranks") -> tuple[str, float]:
    """Split "pattern=number" at its last `=`; the pattern itself may hold one. Raises SettingError that names the setting."""
    pattern, _, number = item.rpartition("=")
    try:
        return pattern, float(number)
    except ValueError:
        raise SettingError(f"`{setting}` {item!r}: write it as pattern=number, such as *mlp*=16") from None

"""Settings of the pictures that no step sees, and of what their loss decides."""

from collections.abc import Sequence
from dataclasses import dataclass

from .data import DatasetConfig
from .setting import check, require, setting

WITHOUT_EFFECT = ("every_n_steps", "every_n_epochs", "patience", "most")  # where nothing is held out


@dataclass(frozen=True)
class HeldOutConfig:
    """Pictures whose loss is measured and never trained. Without a share, a number or a folder there are none."""

    share: float = setting(
        0.0, "Share of each dataset's pictures that is held out of training and only measured; 0.1 is usual.", low=0, high=1
    )
    count: int = setting(0, "How many pictures of each dataset are held out, instead of `held_out.share`.", low=0)
    folder: str = setting(
        "",
        "A folder of captioned pictures that are only measured, never trained, instead of `held_out.share`.",
        path="read",
    )
    seed: int = setting(
        42,
        "Seed of the draw of held-out pictures and of their noise: the same in all runs that are to be compared.",
        low=0,
        below=2**63,
    )
    most: int = setting(0, "Held-out pictures that are measured, at most; 0: all.", low=0)
    every_n_steps: int = setting(
        0, "Steps between measurements of the held-out loss; 0: about twenty times in a run.", low=0, resume="free"
    )
    every_n_epochs: int = setting(0, "Epochs between measurements of the held-out loss; 0: by steps.", low=0, resume="free")
    patience: int = setting(
        0, "Measurements without a lower held-out loss after which training stops early; 0: never.", low=0, resume="free"
    )
    keep_best: bool = setting(
        True,
        "Save the adapter with the lowest held-out loss as name-best.safetensors, beside the last one.",
        resume="free",
    )

    def __post_init__(self) -> None:
        check(self)
        one = not (self.share and self.count)
        require(one, "held_out.count", self.count, "cannot be with `held_out.share`; set one of them")
        draws = bool(self.share or self.count)
        require(
            not (self.folder and draws), "held_out.folder", self.folder, "cannot be with a share or a number; set one of them"
        )

    def check_beside(self, datasets: Sequence[DatasetConfig]) -> None:
        """Refuse a folder where datasets hold pictures out themselves. Raises SettingError."""
        for subset in (subset for dataset in datasets for subset in dataset.subsets):
            name = next((name for name in ("validation_split", "validation_split_num") if getattr(subset, name)), "")
            rule = f"cannot be with `subset.{name}`={getattr(subset, name, 0)}; set one of them"
            require(not (self.folder and name), "held_out.folder", self.folder, rule)

    def warnings(self, held_out: bool) -> list[str]:
        """Say what was set without effect. held_out: whether there is any held-out picture."""
        found = [] if held_out else [name for name in WITHOUT_EFFECT if getattr(self, name)]
        way_out = "nothing is held out; 0.1 is usual as `held_out.share`"
        return [f"`held_out.{name}`={getattr(self, name)} has no effect: {way_out}" for name in found]

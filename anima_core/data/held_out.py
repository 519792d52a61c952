"""Pictures that no step sees: drawn from the datasets by their content, or of a folder of their own."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from .. import seeds
from ..errors import FileError, SettingError
from ..settings import DatasetConfig, HeldOutConfig, SubsetConfig
from .folder import Picture
from .report import NAMES_SHOWN, DataReport, counted, first_of

DRAWN = "pictures held out of training"
ELSEWHERE = "pictures left out of training, another dataset holds them out"

Rule = tuple[float, int, int]  # share, number, seed of a draw
Scan = Callable[[DatasetConfig], tuple[list[Picture], DataReport]]


@dataclass(frozen=True)
class HeldOut:
    """The held-out pictures of each dataset, none repeated. notes, warnings: what there is to say of their folder."""

    datasets: tuple[DatasetConfig, ...] = ()
    pictures: tuple[tuple[Picture, ...], ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(self.pictures)


NOTHING_HELD_OUT = HeldOut()


def score(seed: int, digest: str) -> int:
    """Return a number that depends on a picture's content alone: those of the lowest are drawn."""
    return seeds.seed_of(seed, "held out", digest)


@cache
def measured(subset: SubsetConfig) -> SubsetConfig:
    """Return a folder's settings as its held-out pictures have them: the centre, never mirrored, captions whole, in order."""
    whole = replace(subset, shuffle_caption=False, caption_dropout_rate=0.0, caption_tag_dropout_rate=0.0)
    return replace(whole, category_shuffle=(), category_dropout=(), flip_aug=False, random_crop=False, num_repeats=1)


@dataclass
class Holding:
    """Holds pictures out while datasets are scanned.

    `draw` is asked by each scan, `read_folder` when all are done, `without` then for what is trained of each.
    """

    config: HeldOutConfig = field(default_factory=HeldOutConfig)
    found: list[list[Picture]] = field(default_factory=list)  # of each dataset
    folder: DatasetConfig | None = None
    report: DataReport | None = None  # of the folder

    def draw(self, pictures: list[Picture], report: DataReport) -> list[Picture]:
        """Take what is held out of a dataset; return the rest. Raises SettingError for too few pictures.

        Pictures that have the same share are drawn together, by (seed, content): another picture more, or a new name, moves
        at most one of the others. Several of the same bytes go together. Regularisation pictures are never held out.
        """
        subsets = {id(p.subset): p.subset for p in pictures if not p.subset.is_reg}
        rules = {number: rule for number, subset in subsets.items() if any((rule := self.rule(subset))[:2])}
        groups: dict[Rule, list[Picture]] = defaultdict(list)
        for picture in pictures if rules else []:
            if id(picture.subset) in rules and not picture.blank:
                groups[rules[id(picture.subset)]].append(picture)
        drawn = {digest for rule, group in groups.items() for digest in drawn_of(group, rule)}
        own = {p.digest: p for p in reversed(pictures) if p.digest in drawn and not p.subset.is_reg}
        self.found.append([p for p in pictures if own.get(p.digest) is p])
        for picture in self.found[-1]:
            report.note(DRAWN, picture.name)
        return [p for p in pictures if p.digest not in drawn] if drawn else pictures

    def rule(self, subset: SubsetConfig) -> Rule:
        """Return how a folder's pictures are drawn: as it says itself, else as the run does."""
        seed = self.config.seed if subset.validation_seed < 0 else subset.validation_seed
        if subset.validation_split or subset.validation_split_num:
            return subset.validation_split, subset.validation_split_num, seed
        return self.config.share, self.config.count, seed

    def read_folder(self, first: DatasetConfig, scan: Scan) -> None:
        """Read the folder of held-out pictures, where there is one, as the first dataset's first folder is read.

        Raises FileError where there is nothing usable in it.
        """
        if not self.config.folder:
            return
        own = next((s for s in first.subsets if not s.is_reg), first.subsets[0])
        own = replace(own, image_dir=self.config.folder, is_reg=False, num_repeats=1, mask_dir="", metadata_file="")
        subset = replace(own, validation_split=0.0, validation_split_num=0)
        self.folder = replace(first, subsets=(subset,))
        try:
            pictures, self.report = scan(self.folder)
        except FileError as error:  # the folder that it names was given elsewhere
            raise FileError(error.text.replace("`subset.image_dir`", "`held_out.folder`")) from None
        unique = {p.digest: p for p in reversed(pictures) if not p.blank}
        self.found.append([p for p in pictures if unique.get(p.digest) is p])

    def without(self, pictures: list[Picture], report: DataReport) -> list[Picture]:
        """Return a dataset's pictures but for those that another dataset holds out. Raises FileError for the folder's."""
        held = {p.digest: p for group in self.found for p in group}
        if not held:
            return pictures
        both = [f"{p.path} = {held[p.digest].path}" for p in pictures if p.digest in held]
        if both and self.folder is not None:
            problem = f"{len(both)} of its pictures are trained as well ({first_of(both, NAMES_SHOWN)})"
            raise FileError(f"`held_out.folder`={self.config.folder}: {problem}; take them out of one of the two")
        for picture in pictures:
            if picture.digest in held:
                report.warn(ELSEWHERE, picture.name)
        kept = [p for p in pictures if p.digest not in held]
        report.pictures, report.draws = len(kept), sum(p.repeats for p in kept)
        return kept

    def result(self, datasets: Sequence[DatasetConfig]) -> HeldOut:
        """Return what was held out. Raises SettingError where something was asked for, and nothing is."""
        pictures = tuple(tuple(p._replace(repeats=1, subset=measured(p.subset)) for p in group) for group in self.found)
        name = next((name for name in ("folder", "share", "count") if getattr(self.config, name)), "")
        if name and not any(pictures):
            value, way_out = getattr(self.config, name), "name a folder of other pictures as `held_out.folder`"
            raise SettingError(f"`held_out.{name}`={value}: there is no picture that could be held out; {way_out}")
        of_folder = [] if self.folder is None else [self.folder]
        said = self.report or DataReport()
        notes = (
            [f"held-out folder: {line}" for line in (counted(said.pictures, "picture"), *said.notes())] if self.report else []
        )
        warnings = [f"held-out folder: {line}" for line in said.warnings()]
        return HeldOut((*datasets, *of_folder), pictures, tuple(notes), tuple(warnings))


def drawn_of(pictures: list[Picture], rule: Rule) -> list[str]:
    """Return the digests that are held out of a group: a share, at least one, or a number. Raises SettingError."""
    share, count, seed = rule
    digests = sorted({p.digest for p in pictures}, key=lambda digest: score(seed, digest))
    wanted = count or max(1, round(share * len(digests)))
    if wanted >= len(digests) and share < 1:
        name, value = ("count", count) if count else ("share", share)
        are = "is" if len(digests) == 1 else "are"
        problem = f"{counted(len(digests), 'picture')} {are} too few to hold {wanted} out and train the rest"
        way_out = "add pictures, hold fewer out, or name a folder of others as `held_out.folder`"
        raise SettingError(f"`held_out.{name}`={value}: {problem}; {way_out}")
    return digests[:wanted]

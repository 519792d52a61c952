"""What a run has saved, listed in its folder as `saves.json`: only what stands there is ever deleted or moved aside."""

import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ..files import delete, replace, unused, write_whole

LIST = "saves.json"
STEP, EPOCH, AUTO, RESCUE = "step", "epoch", "auto", "rescue"
WISH = "wish"  # of the user, while the run went on
BEST = "best"  # of all by the held-out loss
LASTING = {WISH, BEST}


@dataclass(frozen=True)
class Save:
    """A file or folder. by: every reason that it was saved for at that step."""

    path: str  # from the run folder, so that both may be moved together
    step: int
    by: tuple[str, ...]


@dataclass(frozen=True)
class Keep:
    """How long intermediate saves last; 0 is for ever.

    steps: of those by steps, what was saved within the last N steps; epochs: of those by epochs the newest N; newest: of
    both together the newest N. A save for two reasons lasts as long as either lets it. What the user wished for
    lasts, and the best. auto: of all others the newest N.
    """

    steps: int = 0
    epochs: int = 0
    newest: int = 0
    auto: int = 0


def outlived(saves: Sequence[Save], keep: Keep) -> list[Save]:
    """Return the saves that are to be deleted. As sd-scripts counts: `save_last_n_steps` steps, `save_last_n_epochs` saves."""
    asked = [save for save in saves if {STEP, EPOCH} & set(save.by)]
    kept = within([save for save in asked if STEP in save.by], keep.steps)
    kept += last([save for save in asked if EPOCH in save.by], keep.epochs)
    kept = [save for save in kept if save in last(asked, keep.newest)]
    kept += last([save for save in saves if save not in asked and not LASTING & set(save.by)], keep.auto)
    return [save for save in saves if save not in kept and not LASTING & set(save.by)]


def within(saves: Sequence[Save], steps: int) -> list[Save]:
    newest = max((save.step for save in saves), default=0)
    return [save for save in saves if not steps or save.step >= newest - steps]


def last(saves: Sequence[Save], count: int) -> list[Save]:
    return sorted(saves, key=lambda save: save.step)[-count if count else 0 :]


class Saves:
    """The list of one run folder, of one sort: `adapters` or `checkpoints`."""

    def __init__(self, run_dir: Path, sort: str) -> None:
        self.run_dir = run_dir
        self.sort = sort

    def read(self) -> list[Save]:
        return [Save(entry["path"], entry["step"], tuple(entry["by"])) for entry in self._all().get(self.sort, [])]

    def add(self, path: Path, step: int, *by: str) -> None:
        """List a save, before it is written: a kill in between leaves nothing that is in no list."""
        name, saves = self._name(path), self.read()
        former = [reason for save in saves if save.path == name for reason in save.by if reason not in by]
        self._write([save for save in saves if save.path != name] + [Save(name, step, (*by, *former))])

    def has(self, path: Path) -> bool:
        return any(save.path == self._name(path) for save in self.read())

    def prune(self, keep: Keep) -> list[str]:
        """Delete what has outlived its time. Return warnings: what cannot be deleted now is tried again next time."""
        old = outlived(self.read(), keep)
        gone = [save for save in old if discard(self.path(save))]
        if gone:
            self._write([save for save in self.read() if save not in gone])
        return [f"{save.path}: cannot be deleted, something has it open; it is tried again" for save in old if save not in gone]

    def set_aside(self, folder: Path, after: int = -1) -> list[Path]:
        """Move what was saved after a step into a folder, and drop it from the list. Return where it is now."""
        later = [save for save in self.read() if save.step > after]
        moved = [moved_into(folder, path) for save in later if (path := self.path(save)).exists()]
        if later:
            self._write([save for save in self.read() if save not in later])
        return moved

    def path(self, save: Save) -> Path:
        """Return where a save is. By its name alone, as it was listed: the run folder may be below a link to another disk."""
        return Path(os.path.normpath(self.run_dir / save.path))

    def _name(self, path: Path) -> str:
        try:
            return Path(os.path.relpath(path, self.run_dir)).as_posix()
        except ValueError:  # on another drive of Windows
            return str(path.absolute())

    def _all(self) -> dict:
        try:
            found = json.loads((self.run_dir / LIST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, saves: Iterable[Save]) -> None:
        write_whole(self.run_dir / LIST, json.dumps(self._all() | {self.sort: [asdict(save) for save in saves]}, indent=1))


def moved_into(folder: Path, path: Path) -> Path:
    """Move a file or folder into another, under a name that is free there. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = unused(folder / path.name)
    try:
        replace(path, aside)
    except OSError:  # another disk
        shutil.move(path, aside)
    return aside


def discard(path: Path) -> bool:
    """Delete a save, if it is there; tell whether it is gone. A kill leaves no folder that looks whole."""
    if path.is_dir():
        hidden = path.with_name(f".{path.name}.pruned")  # see `rundir.half_written`
        try:
            replace(path, hidden)
        except OSError:
            return False
        delete(hidden)  # or at the next start
        return True
    return delete(path)

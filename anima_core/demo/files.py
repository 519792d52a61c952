"""The demo's files: drawn pictures and tiny models in one folder."""

from dataclasses import dataclass
from pathlib import Path

from ..files import write_whole
from ..settings import DatasetConfig, SubsetConfig
from .models import model_paths, write_models
from .pictures import write_pictures

PICTURES = 36
SIDE, MIN_SIDE, BUCKET_STEP = 128, 64, 32  # px
COMPLETE = ".complete"  # written last: without it the folder is written again


@dataclass(frozen=True)
class DemoFiles:
    """pictures: a folder, captions beside each. models: paths by command-line flag."""

    pictures: Path
    models: dict[str, Path]

    def dataset(self) -> DatasetConfig:
        """Return the pictures as a dataset, at the size that the tiny models were made for."""
        subset = SubsetConfig(image_dir=str(self.pictures))
        return DatasetConfig((subset,), ((SIDE, SIDE),), min_bucket_reso=MIN_SIDE, bucket_reso_steps=BUCKET_STEP)


def write_demo(folder: Path) -> DemoFiles:
    """Write pictures and models into a folder: the same bytes every time."""
    corpus = write_pictures(folder / "pictures", PICTURES)
    return DemoFiles(folder / "pictures", write_models(folder / "models", corpus))


def demo_files(folder: Path) -> DemoFiles:
    """Return the demo's files in a folder. They are written when one is missing."""
    note = folder / COMPLETE
    names = note.read_text(encoding="utf-8").splitlines() if note.is_file() else []
    if names and all((folder / name).is_file() for name in names):
        return DemoFiles(folder / "pictures", model_paths(folder / "models"))
    found = write_demo(folder)
    written = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_whole(note, "\n".join(name for name in written if name != COMPLETE))
    return found

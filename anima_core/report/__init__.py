"""Tell a run in one page: curves, samples, settings, data, warnings, how it goes on; and its samples as one picture."""

from glob import escape
from pathlib import Path

from ..errors import FileError, SettingError
from ..files import write_whole
from ..run_history import LOG
from .page import page
from .pictures import contact_sheet, table_of
from .story import Story, read_story

__all__ = ["contact_sheet", "find_run", "read_story", "table_of", "write_report"]

NAME = "report.html"
DEEP = 2  # folders below the current one, within which a run is looked for by its name


def write_report(run: Story, path: Path | None = None) -> Path:
    """Write the page of a run, into its folder or to a path, and return where. Raises FileError when that cannot be written."""
    path = path or run.folder / NAME
    try:
        write_whole(path, page(run, table_of(run)), durable=False)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror}); name another file") from None
    return path


def find_run(run: str, below: Path) -> Path:
    """Find a run folder: by its path, its adapter's beside it, or its name, in this folder or in one below it.

    Raises SettingError for none, or for several.
    """
    given = Path(run)
    beside = given.with_name(f"{given.name.removesuffix('.safetensors')}-run") if given.name else given
    deep = range(DEEP + 1 if run and run == given.name else 0)
    named = [below.glob(f"{'*/' * depth}{escape(beside.name)}") for depth in deep]
    for places in ([given], [beside], *named):
        found = [place for place in places if (place / LOG).is_file()]
        if len(found) > 1:
            raise SettingError(f"run={run}: there are several, {', '.join(map(str, sorted(found)[:3]))}; name the folder")
        if found:
            return found[0]
    raise SettingError(f"run={run}: no run of this name here or in the folders below; name the run folder, which holds {LOG}")

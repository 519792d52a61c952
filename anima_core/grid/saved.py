"""The adapters that a run has saved."""

from pathlib import Path

from ..run_history import config_of, name_of
from ..training.saves import Saves
from .drawing import Named


def saved_adapters(run_dir: Path) -> list[Named]:
    """List the adapters of a run that are there, by step, the last one at the end."""
    saves = Saves(run_dir, "adapters")
    found = [Named(f"step {save.step:,}", saves.path(save)) for save in sorted(saves.read(), key=lambda save: save.step)]
    return [adapter for adapter in [*found, last_adapter(run_dir)] if adapter.path.is_file()]


def last_adapter(run_dir: Path) -> Named:
    """Return where a run's own adapter is: where its settings say, or beside its folder, that may have been moved."""
    name, config = f"{name_of(run_dir)}.safetensors", config_of(run_dir)
    folder = Path(config.output.adapter_dir or config.output.dir) if config else run_dir.parent
    return Named(name_of(run_dir), folder / name if (folder / name).is_file() else run_dir.parent / name)

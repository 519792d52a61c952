"""The command grid: adapter files, or those that a run has saved, in one picture."""

import argparse
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..compat.arguments import Parser, add_some
from ..compat.flags import mapped_flags, setting_words
from ..compat.mapped import settings_for
from ..compat.prompts import read_prompts
from ..compat.translate import resolution
from ..errors import FileError, SettingError
from ..progress_bar import ProgressBar
from ..settings import ModelConfig, SampleConfig
from ..settings.samples import CHOSEN_FLAGS

if TYPE_CHECKING:  # importing torch takes seconds: only a command that is run does
    from .drawing import Grid, Named

FLAGS = (  # of training, that count here
    *("anima_transformer", "vae", "qwen", "qwen_tokenizer_dir", "t5_tokenizer_dir", "llm_adapter", "mixed_precision", "device"),
    *("sample_prompts", "sample_size", "sample_steps", "sample_cfg", "sample_sampler", "sample_scheduler", "seed"),
)
SMALLEST = 16  # px, of a picture in the grid
NEEDED = ("transformer", "vae", "qwen", "t5_tokenizer_dir")


def add_grid_command(commands: "argparse._SubParsersAction[Parser]") -> None:
    grid = commands.add_parser("grid", help="adapters, prompts and strengths side by side in one picture", allow_abbrev=False)
    what = "adapter files; or a run, by its folder or name: the adapters that it has saved, its models and its prompts"
    grid.add_argument("adapters", nargs="+", metavar="adapter|run", help=what)
    strengths = "what each adapter is multiplied by, in this order; 0 is the base model"
    grid.add_argument("--strengths", nargs="+", type=float, default=[1.0], metavar="STRENGTH", help=strengths)
    grid.add_argument("--output", default="grid.png", help="the PNG to write")
    grid.add_argument("--force", action="store_true", help="write over a file that is there already")
    grid.add_argument("--cell_size", type=int, default=512, help="longest side of a picture in the grid, in pixels")
    add_some(grid, FLAGS)
    grid.set_defaults(run=run_grid)


def run_grid(args: argparse.Namespace) -> None:
    path = target(args.output, args.force)
    if args.cell_size < SMALLEST:
        raise SettingError(f"--cell_size {args.cell_size}: must be at least {SMALLEST} px")
    from ..training.events import Events
    from ..training.previews import save_png
    from .drawing import draw
    from .sheet import sheet

    grid = grid_of(args)
    grid.check()
    print(f"{len(grid.adapters)} adapters, {len(grid.samples.prompts)} prompts, {len(grid.strengths)} strengths: ", end="")
    print(f"{len(grid.cells())} pictures")
    with ProgressBar(setting_words()) as bar, closing(Events(None, bar.on_event)) as events:
        cells = draw(grid, events.progress("grid"))
    try:
        save_png(sheet(grid, cells, args.cell_size), path)
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None
    print(f"grid: {path}")


def target(output: str, force: bool) -> Path:
    """Return where the grid goes. Raises SettingError for another ending, FileError for what is there."""
    path = Path(output)
    if path.suffix.lower() != ".png":
        raise SettingError(f"--output {path}: the grid is a PNG; name it so")
    if path.exists() and not force:
        raise FileError(f"{path}: is there already; choose another --output, or give --force")
    return path


def grid_of(args: argparse.Namespace) -> "Grid":
    """Read what is asked for: what is typed wins over what the first run among the adapters was trained with."""
    from ..run_history import config_of
    from .drawing import Grid

    values, runs = vars(args), [found for name in args.adapters if (found := run_named(name))]
    config = config_of(runs[0]) if runs else None
    typed = {flag.name: values[flag.name] for flag in mapped_flags() if flag.name in values}
    device = typed.get("device") or "auto"
    models = model_config(settings_for(ModelConfig, typed), config.model if config else None)
    samples = sample_config(typed, config.samples if config else SampleConfig())
    return Grid(models, named_adapters(args.adapters), samples, args.strengths, device)


def run_named(name: str) -> Path | None:
    """Return the folder of a run, by its path or name; None for an adapter file."""
    from ..report import find_run

    return None if Path(name).is_file() else find_run(name, Path())


def named_adapters(names: list[str]) -> "list[Named]":
    """List adapter files, and those of runs. Raises SettingError for a run that has saved none."""
    from .drawing import Named
    from .saved import saved_adapters

    found: list[Named] = []
    for name in names:
        run = run_named(name)
        own = [Named(Path(name).stem, Path(name))] if run is None else saved_adapters(run)
        if not own:
            raise SettingError(f"{name}: this run has no adapter file; name one, or train it on")
        found += own
    return found


def model_config(typed: Mapping[str, Any], of_run: ModelConfig | None) -> ModelConfig:
    """Return the models' files. Raises SettingError for one that is not named."""
    if of_run is not None:
        return replace(of_run, **typed)
    missing = [f"`model.{name}`" for name in NEEDED if not typed.get(name)]
    if missing:
        raise SettingError(f"{', '.join(missing)}: not named; give them, or a run, whose models are then taken")
    return ModelConfig(**typed)


def sample_config(typed: Mapping[str, Any], base: SampleConfig) -> SampleConfig:
    """Return the prompts and how they are drawn. Raises SettingError, FileError."""
    found = settings_for(SampleConfig, typed)
    for name, named, _ in CHOSEN_FLAGS.values():
        if name in found:
            found[name] = named(found[name]) or found[name]  # an unknown one is refused by its setting
    if typed.get("sample_prompts"):
        found["prompts"], _ = read_prompts(typed["sample_prompts"])
    if typed.get("sample_size"):
        found["width"], found["height"] = resolution(typed["sample_size"], "sample_size")
    if "seed" in typed:
        found["seed"] = typed["seed"]
    return replace(base, **found)

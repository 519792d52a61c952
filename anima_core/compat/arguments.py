"""The sd-scripts command line and its files -> TrainConfig.

Everything becomes one flat table of flag values first: defaults, then the file, then what stands on the command line,
which wins also when it equals a default.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ..errors import FileError, SettingError
from ..files import digest, write_whole
from ..loggers.wanted import Logging
from ..settings import DatasetConfig, HeldOutConfig, TrainConfig, from_dict, to_dict
from ..settings.toml_file import dump_toml, read_toml
from .flags import MAPPED, Flag, known_names, mapped_flags
from .flat_toml import read_flat
from .kinds import TYPED
from .logging_flags import NAMES as LOGGING
from .logging_flags import NOTHING, logging_from
from .mapped import settings_for
from .mistaken import refuse_dataset_file
from .prompts import names_file
from .root_toml import is_root_style, read_root
from .translate import dataset_configs, train_config
from .unknown import hint
from .unmapped import IGNORED, REFUSED, is_on


class Parser(argparse.ArgumentParser):
    """One line and exit status 2, like every refused setting."""

    def error(self, message: str) -> NoReturn:
        raise SettingError(message)


@dataclass(frozen=True)
class Request:
    """A parsed command line: the run, what was accepted without effect, and what else was asked for."""

    config: TrainConfig
    notes: tuple[str, ...]
    output_config: bool = False
    logging: Logging = NOTHING


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every flag to a parser. Defaults are suppressed: what the namespace holds afterwards was typed."""
    for title, flags in MAPPED.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            _add(group, flag)
    for name, (values, _reason) in {**IGNORED, **REFUSED}.items():
        spellings = [f"--{name}"] if values else [f"--{name}", f"--no_{name}", f"--no-{name}"]
        action: dict[str, Any] = {"nargs": values} if values == "*" else {} if values else {"action": "store_true"}
        parser.add_argument(*spellings, dest=name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **action)


def add_some(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add the flags of these names. Defaults are suppressed: what the namespace holds afterwards was typed."""
    for flag in mapped_flags():
        if flag.name in names:
            _add(parser, flag)


def _add(group: Any, flag: Flag) -> None:
    names = [f"--{name}" for name in (flag.name, *flag.aliases)]
    common: dict[str, Any] = {"dest": flag.name, "default": argparse.SUPPRESS}
    common["help"] = flag.full_help.replace("%", "%%") + (f" [{flag.default}]" if flag.default not in ("", (), 0) else "")
    if flag.kind == "switch":
        group.add_argument(*names, action=argparse.BooleanOptionalAction, **common)
    elif flag.kind == "list":
        group.add_argument(*names, nargs="*", metavar="NAME=VALUE", **common)
    else:
        choices = (*flag.choices, "") if flag.choices else None  # an empty word is "not set"
        group.add_argument(*names, type=TYPED[flag.kind], choices=choices, metavar=flag.kind.upper(), **common)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and name the nearest flag for each that is unknown."""
    args, rest = parser.parse_known_args(argv)
    unknown = [text.split("=")[0] for text in rest if text.startswith("--")]
    if unknown:
        raise SettingError("; ".join(unknown_flag(name, getattr(args, "command", "train")) for name in unknown))
    if rest:
        raise SettingError(f"unexpected {rest[0]!r}; flags start with --")
    return args


def unknown_flag(name: str, command: str) -> str:
    known = known_names()
    if name.lstrip("-") in known:
        return f"{command} has no flag {name}; `--help` lists those that it has"
    return f"unknown flag {name}{hint(name.lstrip('-'), known, '--')}"


Guard = Callable[[str, str], str]  # (path, setting) -> where it is; raises for a path that may not be read


def as_written(path: str, setting: str) -> str:
    return path


def request_from(args: argparse.Namespace, guard: Guard = as_written, seed_of_file: str = "") -> Request:
    """Read the typed flags, and the files they name, as a run. Checks run in sd-scripts' order, with its texts.

    guard: is asked about every path that a file gives before it is read, and may say where that is. seed_of_file: gives the
    seed where -1 stands for one, instead of chance.
    """
    typed = typed_flags(args)
    notes = refuse_and_note(vars(args), "--")
    frozen = frozen_config(typed)
    if frozen is not None:
        logging, more = logging_from(defaults() | typed, set(typed))
        return Request(frozen, (*notes, *more), typed.get("output_config", False), logging)
    values, explicit, file_notes = all_values(typed)
    for flag in mapped_flags():
        value = values[flag.name]
        if value and (flag.kind == "path" or flag.name == "resume" or (flag.kind == "prompts" and names_file(value))):
            values[flag.name] = guard(value, flag.name)
    if seed_of_file and values["seed"] == -1:
        values["seed"] = int(digest(Path(seed_of_file))[:8], 16) >> 1  # 31 bits, as a drawn one
        file_notes.append(f"seed=-1: {values['seed']}, which follows from the content of {Path(seed_of_file).name}")
    config, more = train_config(values, explicit)
    logging, idle = logging_from(values, explicit)
    return Request(config, (*notes, *file_notes, *more, *idle), values["output_config"], logging)


def typed_flags(args: argparse.Namespace) -> dict[str, Any]:
    known = {flag.name for flag in mapped_flags()}
    return {name: value for name, value in vars(args).items() if name in known}


def defaults() -> dict[str, Any]:
    return {flag.name: flag.default for flag in mapped_flags()}


def all_values(typed: dict[str, Any]) -> tuple[dict[str, Any], set[str], list[str]]:
    """Return the value of every flag, the names of those that were given, typed or in a file, and notes.

    A flag that is typed empty is as if it were nowhere, also where the file gives it.
    """
    from_file, notes = read_files(typed)
    emptied = {name for name, value in typed.items() if value in ("", [])}
    from_file = {name: value for name, value in from_file.items() if name not in emptied}
    typed = {name: value for name, value in typed.items() if name not in emptied}
    values = defaults() | from_file | typed
    if "dataset_config" in typed and "inline_datasets" in values:
        del values["inline_datasets"]
        notes.append("--dataset_config wins over the [dataset] of the file")
    return values, set(from_file) | set(typed), notes


@dataclass(frozen=True)
class DataRequest:
    """What `check` looks at. t5_tokenizer_dir and cache_dir may be empty."""

    datasets: tuple[DatasetConfig, ...]
    t5_tokenizer_dir: str
    cache_dir: str
    per_step: int  # micro-batches in a step
    strict: bool
    notes: tuple[str, ...]
    seed: int
    caption_variants: int
    held_out: HeldOutConfig

    def __post_init__(self) -> None:
        self.held_out.check_beside(self.datasets)


def data_request_from(args: argparse.Namespace) -> DataRequest:
    """Read the same flags and files as training does; only the data's are needed."""
    typed = typed_flags(args)
    notes = refuse_and_note(vars(args), "--")
    frozen = frozen_config({name: value for name, value in typed.items() if name != "strict"})
    if frozen is not None:
        strict = typed.get("strict", frozen.strict_data)
        model, steps = frozen.model, frozen.gradient_accumulation_steps
        drawn = (frozen.seed, frozen.caption_variants, frozen.held_out)
        return DataRequest(frozen.datasets, model.t5_tokenizer_dir, frozen.cache_dir, steps, strict, tuple(notes), *drawn)
    values, explicit, file_notes = all_values(typed)
    datasets, more = dataset_configs(values, explicit)
    return DataRequest(
        datasets=datasets,
        t5_tokenizer_dir=values["t5_tokenizer_dir"],
        cache_dir=values["cache_dir"],
        per_step=values["gradient_accumulation_steps"],
        strict=values["strict"],
        notes=(*notes, *file_notes, *more),
        seed=max(values["seed"], 0),  # -1 draws one when the run begins
        caption_variants=values["caption_variants"],
        held_out=HeldOutConfig(**settings_for(HeldOutConfig, values)),
    )


def refuse_and_note(given: dict[str, Any], prefix: str) -> list[str]:
    """Raise for a refused flag; a line for each that has no effect here. One that asks for nothing is passed over."""
    asked = [name for name, value in given.items() if is_on(value)]
    for name in asked:
        if name in REFUSED:
            raise SettingError(f"{prefix}{name}: {REFUSED[name][1]}")
    return [f"{prefix}{name} has no effect: {IGNORED[name][1]}" for name in asked if name in IGNORED]


def frozen_config(typed: dict[str, Any]) -> TrainConfig | None:
    """Read a run's own config.toml given as --config: exactly that run; only output and loggers may be typed beside it."""
    path = typed.get("config") or typed.get("config_file")
    if not path:
        return None
    data = read_toml(path)
    refuse_dataset_file(data, str(path))
    if not {"model", "datasets", "network", "optimizer"} <= set(data):
        return None
    output = {
        name: typed[flag]
        for flag, name in (("output_dir", "dir"), ("output_name", "name"), ("resume", "resume"))
        if flag in typed
    }
    others = set(typed) - {"config", "config_file", "output_config", "output_dir", "output_name", "resume", *LOGGING}
    if others:
        raise SettingError(f"--{sorted(others)[0]}: {path} is a run's frozen config; change it there")
    data["output"] = data.get("output", {}) | output
    return from_dict(TrainConfig, data, str(path))


def read_files(typed: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Read --config (sectioned) or --config_file (sectioned, or flat as sd-scripts writes it): flag values and notes."""
    if typed.get("config"):
        data = read_toml(typed["config"])
        if not is_root_style(data):
            raise SettingError("Input config is not a valid root-style Anima TOML. Expected sections: [model], [training].")
        return read_root(data, typed["config"], typed)
    if typed.get("config_file"):
        path = typed["config_file"] if Path(typed["config_file"]).suffix else typed["config_file"] + ".toml"
        data = read_toml(path)
        return read_root(data, path, typed) if is_root_style(data) else read_flat(data, path)
    return {}, []


def config_of(flags: Sequence[str]) -> TrainConfig:
    """Return the run that these flags of `train` ask for."""
    parser = Parser(prog="train", allow_abbrev=False)
    add_arguments(parser)
    return request_from(parse(parser, flags)).config


def config_from_file(path: str | Path, guard: Guard = as_written) -> tuple[TrainConfig, tuple[str, ...]]:
    """Read a whole run from one file of any dialect, frozen, sectioned or flat; return it and its notes.

    Every reading gives the same run, also of a file that says `seed = -1`: whoever asks for it again is not to train again.
    """
    key = "config" if is_root_style(read_toml(path)) else "config_file"
    request = request_from(argparse.Namespace(**{key: str(path)}), guard, seed_of_file=str(path))
    asked = {"TensorBoard's files are written": request.logging.tensorboard, "wandb is told": request.logging.wandb}
    only = [f"{what} by the command line only" for what, is_asked in asked.items() if is_asked]
    return request.config, (*request.notes, *only)


def write_config(config: TrainConfig, path: Path) -> None:
    """Write the canonical TOML: every setting, spelt out. `--config` reads it back as exactly this run."""
    try:
        write_whole(path, dump_toml(to_dict(config)))
    except OSError as error:
        raise FileError(f"{path}: cannot be written ({error.strerror}); choose another output_dir") from None

"""sd-scripts' own file: flag names as keys, at the top or in tables, whose names are only for the reader.

Front ends write such files with keys of their own, see `front_ends`. Other programs' files are named for what they are.
"""

from typing import Any

from ..errors import SettingError
from ..settings.toml_file import line_of
from . import front_ends
from .flags import as_flag_kind, known_names, mapped_flags
from .optimizers import keys_of
from .unknown import Unknown, line_of_table, refuse_unknown
from .unmapped import IGNORED, REFUSED, is_on

Values = dict[str, Any]

OTHER_DIALECTS = {  # tables that tell it -> what the file is, and the way out
    ("train_mode",): "a file of LoRA_Easy_Training_Scripts, which is not read; give the config.toml and dataset.toml of its "
    "backend's runtime_store as --config_file and --dataset_config",
    ("model", "adapter"): "a file of diffusion-pipe, whose keys are others; write the flags of docs/flags.md instead",
}  # fmt: skip


def read_flat(data: dict[str, Any], path: str) -> tuple[Values, list[str]]:
    """Read the file as flag values and notes. A key that is empty ("" or []) is not set."""
    refuse_other_dialects(data, path)
    flags = {name: flag for flag in mapped_flags() for name in (flag.name, *flag.aliases)}
    pairs = entries(data)
    known = [*known_names(), *front_ends.KEYS]
    refuse_unknown(path, [Unknown(table, key, known) for table, key, _ in pairs if key not in known])
    values: Values = {}
    own: Values = {}
    notes = []
    read = keys_of(next((value for _, key, value in pairs if key == "optimizer_type"), ""))
    for table, key, value in pairs:
        where = f"{path}, line {line_of(path, table, key)}: {key}"
        name = front_ends.RENAMED.get(key, key)
        refuse(key, value, where)
        if value in ("", []):
            continue
        if name in flags:
            values[flags[name].name] = as_flag_kind(flags[name], value, where)
        elif key not in read and (reason := ({key: why for key, (_, why) in IGNORED.items()} | front_ends.IGNORED).get(key)):
            notes += [f"{where} has no effect: {reason}"] if is_on(value) else []
        elif key in front_ends.KEYS:
            own[key] = as_flag_kind(flags[front_ends.LISTS[key]], value, where) if key in front_ends.LISTS else value
    return front_ends.flag_values(own, values), notes


def refuse(key: str, value: Any, where: str) -> None:
    if key in REFUSED and is_on(value):
        raise SettingError(f"{where}: {REFUSED[key][1]}")
    if value not in ("", []):
        front_ends.refuse(key, value, where)


def entries(data: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """List every (table, key, value), what stands above the first table under ""; without what describes a preset."""
    top = {key: value for key, value in data.items() if not isinstance(value, dict)}
    named = {table: value for table, value in data.items() if isinstance(value, dict)}
    found = [(table, key, value) for table, inner in ({"": top} | named).items() for key, value in inner.items()]
    return [entry for entry in found if entry[0] != "metadata" or entry[1] not in front_ends.PRESET]


def refuse_other_dialects(data: dict[str, Any], path: str) -> None:
    """Name a file of another program for what it is. Raises SettingError."""
    for telling, text in OTHER_DIALECTS.items():
        if all(isinstance(data.get(table), dict | list) for table in telling):
            raise SettingError(f"{path}, line {line_of_table(path, telling[0])}: [{telling[0]}]: {text}")
